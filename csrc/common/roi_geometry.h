// Geometry of the RoI family: the sizes of a call, and where the samples of a box lie. The only copy of these formulas; forward
// and backward, CPU and CUDA use them.
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

// The sizes of a call. Operators without samples leave sampling_ratio and aligned as they are.
struct RoiShape {
  int64_t batch, channels;
  int height, width;
  int64_t boxes;
  int pooled_height, pooled_width;
  double spatial_scale;
  int sampling_ratio;
  bool aligned;
  bool channels_last;  // memory format of input, output and their gradients

  CVK_HD int64_t bins() const { return static_cast<int64_t>(pooled_height) * pooled_width; }
  CVK_HD int64_t pixels() const { return static_cast<int64_t>(height) * width; }
};

// Most samples per bin and axis that an adaptive grid may have. It bounds the work of absurd boxes (the grid of a box
// 10^9 pixels long) and changes no box whose bins are under 32,768 input pixels.
constexpr int kRoiMaxGrid = 1 << 15;

// One axis of one box.
template <class A>
struct RoiAxis {
  A start;         // first coordinate of the box, in input pixels
  A bin;           // extent of one bin, in input pixels
  A step;          // distance of samples, rounded; may be 0 or negative
  A inverse_step;  // meaningful where step > 0
  A share;         // 1 / samples: what one sample counts for in a mean along this axis
  int samples;     // samples per bin along this axis
  int extent;      // pixels of the input along this axis
  bool stretched;  // the box is narrower (see roi_span)
};

// Where a box begins along an axis and how long it is, in input pixels.
template <class A>
struct RoiSpan {
  A start, length;
  bool stretched = false;  // the length is not the box's own
};

template <class A>
CVK_HD RoiSpan<A> roi_span(A low, A high, A spatial_scale, bool aligned) {
  const A offset = aligned ? A(0.5) : A(0);
  RoiSpan<A> span;
  span.start = low * spatial_scale - offset;
  span.length = high * spatial_scale - offset - span.start;
  span.stretched = !aligned && span.length < A(1);  // a NaN length stays NaN
  if (span.stretched) span.length = A(1);
  return span;
}

// The axis over a span.
template <class A>
CVK_HD RoiAxis<A> roi_axis(const RoiSpan<A>& span, int bins, int sampling_ratio, int extent) {
  const A length = span.length;
  RoiAxis<A> axis;
  axis.start = span.start;
  axis.bin = length / static_cast<A>(bins);
  axis.extent = extent;
  axis.stretched = span.stretched;
  if (sampling_ratio > 0) {
    axis.samples = sampling_ratio;
  } else {
    // A NaN or negative length fails the first comparison and has no samples.
    const A grid = ceil(length / static_cast<A>(bins));
    axis.samples = grid > A(0) ? static_cast<int>(min_of(grid, static_cast<A>(kRoiMaxGrid))) : 0;
  }
  const A samples = static_cast<A>(axis.samples > 0 ? axis.samples : 1);
  axis.step = axis.bin / samples;
  axis.inverse_step = samples / axis.bin;
  axis.share = A(1) / samples;
  return axis;
}

template <class A>
CVK_HD RoiAxis<A> roi_axis(A low, A high, A spatial_scale, bool aligned, int bins, int sampling_ratio, int extent) {
  return roi_axis(roi_span(low, high, spatial_scale, aligned), bins, sampling_ratio, extent);
}

// The vertical or horizontal axis of a box row.
template <class A>
CVK_HD void roi_make_axis(const RoiShape& shape, const A* box, bool along_y, RoiAxis<A>& axis) {
  axis = roi_axis(along_y ? box[2] : box[1], along_y ? box[4] : box[3], static_cast<A>(shape.spatial_scale),
                  shape.aligned, along_y ? shape.pooled_height : shape.pooled_width, shape.sampling_ratio,
                  along_y ? shape.height : shape.width);
}

// Numerics: torchvision's expression in torchvision's order, so that a sample on the very rim of the map is inside or outside
// alike. The division could be (i + 0.5) * step, which rounds differently where samples is no power of two.
template <class A>
CVK_HD A roi_sample_coordinate(const RoiAxis<A>& axis, int bin, int sample) {
  return axis.start + static_cast<A>(bin) * axis.bin +
         (static_cast<A>(sample) + A(0.5)) * axis.bin / static_cast<A>(axis.samples);
}

// Where a sample lies in its box, in bins: its coordinate is start + position * bin. The derivatives of the coordinate with
// respect to start and bin are 1 and this.
template <class A>
CVK_HD A roi_sample_position(const RoiAxis<A>& axis, int bin, int sample) {
  return static_cast<A>(bin) + (static_cast<A>(sample) + A(0.5)) * axis.share;
}

// The gradient of a box's two coordinates along an axis.
template <class A>
struct RoiCorners {
  A low, high;
};

// From the gradient of an axis, that is of its start and of its bin's extent. The number of samples is a constant, and a
// stretched box moves with its first corner alone.
template <class A>
CVK_HD RoiCorners<A> roi_corners(A grad_start, A grad_bin, A spatial_scale, int bins, bool stretched) {
  const A along = stretched ? A(0) : grad_bin / static_cast<A>(bins);
  return {spatial_scale * (grad_start - along), spatial_scale * along};
}

struct SampleRange {
  int first, last;  // half open
};

// Pixels of an axis, half open.
struct PixelRange {
  int first, last;

  CVK_HD bool empty() const { return last <= first; }
};

// A range of samples that contains every sample of `bin` whose coordinate lies in [low, high]; a few more at the rim.
// Keeps the work of a box far larger than the input proportional to the input.
template <class A>
CVK_HD SampleRange roi_sample_range(const RoiAxis<A>& axis, int bin, A low, A high) {
  SampleRange range{0, axis.samples};
  const A origin = axis.start + static_cast<A>(bin) * axis.bin;
  if (!is_finite(origin) || !is_finite(axis.bin)) return SampleRange{0, 0};
  if (axis.samples <= 4 || !(axis.step > A(0)) || !is_finite(axis.inverse_step)) return range;
  // Numerics: the margin covers the rounding of coordinates much larger than the input.
  const A magnitude = origin < A(0) ? -origin : origin;
  const A margin = A(2) + A(1e-6) * (magnitude + axis.bin) * axis.inverse_step;
  const A first = (low - origin) * axis.inverse_step - margin;
  const A last = (high - origin) * axis.inverse_step + margin;
  const A limit = static_cast<A>(axis.samples);
  if (!(last > A(0)) || !(first < limit)) return SampleRange{0, 0};
  if (first > A(0)) range.first = static_cast<int>(first);
  if (last < limit) range.last = static_cast<int>(last);
  return range;
}

// The batch index of a box row, or -1 when it is not in [0, batch). Truncates toward zero, NaN is out of range.
template <class A>
CVK_HD int64_t roi_batch_index(A value, int64_t batch) {
  if (!(value > A(-1) && value < static_cast<A>(batch))) return -1;
  const int64_t index = static_cast<int64_t>(value);
  return index < batch ? index : -1;
}

}  // namespace cvk
