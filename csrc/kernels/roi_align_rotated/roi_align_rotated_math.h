// Per-element arithmetic of rotated RoI Align: where the samples of a box lie, and which of them can lie in a rectangle.
#pragma once

#include <limits>

#include "common/bilinear.h"
#include "common/elementary.h"
#include "common/host_device.h"
#include "common/numeric.h"
#include "common/roi_geometry.h"

namespace cvk {

// A box in its own frame: RoI Align's axes about its centre, and how they lie in the map.
template <class A>
struct RotatedAxes {
  RoiAxis<A> y, x;  // along height and width
  A centre_y, centre_x;
  A cosine, sine;
};

template <class A>
CVK_HD RotatedAxes<A> rotated_axes(const RoiShape& shape, bool clockwise, const A* box) {  // [6]
  const A scale = static_cast<A>(shape.spatial_scale), offset = shape.aligned ? A(0.5) : A(0);
  A width = box[3] * scale, height = box[4] * scale;
  if (!shape.aligned) {  // NaN stays NaN
    width = max_of(A(1), width);
    height = max_of(A(1), height);
  }
  RotatedAxes<A> axes;
  axes.y = roi_axis(RoiSpan<A>{-height / A(2), height}, shape.pooled_height, shape.sampling_ratio, shape.height);
  axes.x = roi_axis(RoiSpan<A>{-width / A(2), width}, shape.pooled_width, shape.sampling_ratio, shape.width);
  axes.centre_x = box[1] * scale - offset;
  axes.centre_y = box[2] * scale - offset;
  const double angle = clockwise ? -static_cast<double>(box[5]) : static_cast<double>(box[5]);
  if (is_finite(width) && is_finite(height) && is_finite(axes.centre_x) && is_finite(axes.centre_y) &&
      angle >= -kMostAngle && angle <= kMostAngle) {
    double sine, cosine;
    sine_cosine(angle, &sine, &cosine);
    axes.sine = static_cast<A>(sine);
    axes.cosine = static_cast<A>(cosine);
  } else {
    axes.sine = axes.cosine = A(0);
    axes.y.samples = axes.x.samples = 0;
  }
  return axes;
}

// Where the point (v, u) of the box's frame lies in the map.
template <class A>
struct RotatedPoint {
  A y, x;
};

// Invariant: monotone in v and in u, rounding included, so that the points of a rectangle lie between those of its corners.
template <class A>
CVK_HD RotatedPoint<A> rotated_point(const RotatedAxes<A>& axes, A v, A u) {
  return {v * axes.cosine - u * axes.sine + axes.centre_y, v * axes.sine + u * axes.cosine + axes.centre_x};
}

// One sample: what it reads along each axis of the map.
template <class A>
struct RotatedSample {
  BilinearAxis<A> y, x;

  CVK_HD bool inside() const { return y.inside && x.inside; }
};

template <class A>
CVK_HD RotatedSample<A> rotated_sample(const RotatedAxes<A>& axes, int bin_y, int bin_x, int i, int j) {
  const RotatedPoint<A> point =
      rotated_point(axes, roi_sample_coordinate(axes.y, bin_y, i), roi_sample_coordinate(axes.x, bin_x, j));
  return {bilinear_axis(point.y, axes.y.extent), bilinear_axis(point.x, axes.x.extent)};
}

// The samples of a bin that can lie in a rectangle of the map: rows times columns of its grid, a few more than needed.
struct RotatedRange {
  SampleRange y, x;

  CVK_HD int64_t samples() const {
    return static_cast<int64_t>(y.last - y.first) * static_cast<int64_t>(x.last - x.first);
  }
};

// A rectangle of the map in the frame of the box: the least intervals of v and u around it.
template <class A>
struct RotatedBounds {
  A y_low, y_high, x_low, x_high;
};

template <class A>
CVK_HD RotatedBounds<A> rotated_bounds(const RotatedAxes<A>& axes, A y_low, A y_high, A x_low, A x_high) {
  const A half_y = (y_high - y_low) / A(2), half_x = (x_high - x_low) / A(2);
  const A dy = y_low + half_y - axes.centre_y, dx = x_low + half_x - axes.centre_x;
  const A v = dy * axes.cosine + dx * axes.sine, u = dx * axes.cosine - dy * axes.sine;
  // Numerics: 16 roundings of the largest number around here.
  const A slack =
      A(16) * std::numeric_limits<A>::epsilon() *
      (magnitude(axes.centre_y) + magnitude(axes.centre_x) + magnitude(dy) + magnitude(dx) + half_y + half_x);
  const A reach_v = half_y * magnitude(axes.cosine) + half_x * magnitude(axes.sine) + slack;
  const A reach_u = half_y * magnitude(axes.sine) + half_x * magnitude(axes.cosine) + slack;
  return {v - reach_v, v + reach_v, u - reach_u, u + reach_u};
}

// Where samples that read something of the map lie.
template <class A>
CVK_HD RotatedBounds<A> rotated_map_bounds(const RotatedAxes<A>& axes) {
  return rotated_bounds(axes, A(-1), static_cast<A>(axes.y.extent), A(-1), static_cast<A>(axes.x.extent));
}

template <class A>
CVK_HD RotatedRange rotated_range(const RotatedAxes<A>& axes, const RotatedBounds<A>& bounds, int bin_y, int bin_x) {
  return {roi_sample_range(axes.y, bin_y, bounds.y_low, bounds.y_high),
          roi_sample_range(axes.x, bin_x, bounds.x_low, bounds.x_high)};
}

// The pixels that samples of a range can read: half open, empty where the range is, or lies outside.
struct PixelRectangle {
  int y_first, y_last, x_first, x_last;

  CVK_HD bool empty() const { return y_last <= y_first || x_last <= x_first; }
  CVK_HD int64_t pixels() const {
    return empty() ? 0 : static_cast<int64_t>(y_last - y_first) * static_cast<int64_t>(x_last - x_first);
  }
};

template <class A>
CVK_HD void rotated_pixels_along(A low, A high, int extent, int* first, int* last) {
  *first = *last = 0;
  if (!(high >= A(-1) && low <= static_cast<A>(extent)) || extent == 0) return;  // outside, or NaN
  const A most = static_cast<A>(extent - 1);
  *first = low > A(0) ? static_cast<int>(min_of(low, most)) : 0;
  *last = (high > A(0) ? static_cast<int>(min_of(high, most)) : 0) + 2;
  if (*last > extent) *last = extent;
}

template <class A>
CVK_HD PixelRectangle rotated_pixels(const RotatedAxes<A>& axes, const RotatedRange& range, int bin_y, int bin_x) {
  PixelRectangle pixels{0, 0, 0, 0};
  if (range.y.first >= range.y.last || range.x.first >= range.x.last) return pixels;
  A y_low = A(0), y_high = A(0), x_low = A(0), x_high = A(0);
  for (int corner = 0; corner < 4; ++corner) {
    const A v = roi_sample_coordinate(axes.y, bin_y, corner < 2 ? range.y.first : range.y.last - 1);
    const A u = roi_sample_coordinate(axes.x, bin_x, corner % 2 == 0 ? range.x.first : range.x.last - 1);
    const RotatedPoint<A> point = rotated_point(axes, v, u);
    y_low = corner == 0 ? point.y : min_of(y_low, point.y);
    y_high = corner == 0 ? point.y : max_of(y_high, point.y);
    x_low = corner == 0 ? point.x : min_of(x_low, point.x);
    x_high = corner == 0 ? point.x : max_of(x_high, point.x);
  }
  rotated_pixels_along(y_low, y_high, axes.y.extent, &pixels.y_first, &pixels.y_last);
  rotated_pixels_along(x_low, x_high, axes.x.extent, &pixels.x_first, &pixels.x_last);
  return pixels;
}

}  // namespace cvk
