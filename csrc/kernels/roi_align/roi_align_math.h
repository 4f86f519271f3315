// Per-element arithmetic of RoI Align beyond the family's (common/roi_geometry.h).
#pragma once

#include "common/roi_boxes.h"
#include "common/roi_geometry.h"
#include "common/roi_taps.h"

namespace cvk {

// The pixels between the outermost samples of a bin, all that it may read.
template <class A>
CVK_HD PixelRange roi_pixel_range(const RoiAxis<A>& axis, int bin) {
  if (axis.samples == 0) return {0, 0};
  const A ends[2] = {roi_sample_coordinate(axis, bin, 0), roi_sample_coordinate(axis, bin, axis.samples - 1)};
  const A low = min_of(ends[0], ends[1]), high = max_of(ends[0], ends[1]);
  const A extent = static_cast<A>(axis.extent);
  if (!(high >= A(-1) && low <= extent) || axis.extent == 0) return {0, 0};  // NaN fails
  const int first = low < extent ? static_cast<int>(max_of(low, A(0))) : axis.extent - 1;
  const int last = high < extent ? static_cast<int>(max_of(high, A(0))) + 2 : axis.extent;
  return {min_of(first, axis.extent - 1), min_of(last, axis.extent)};
}

// The samples of a bin that can read one of the pixels [first, last). Samples beyond the rim read the rim pixel, so the outermost
// pixels look further out.
template <class A>
CVK_HD SampleRange roi_samples_at(const RoiAxis<A>& axis, int bin, int first, int last) {
  return roi_sample_range(axis, bin, static_cast<A>(first - 1), static_cast<A>(min_of(last, axis.extent)));
}

// What a bin takes from one pixel, by summing over its samples: the adjoint of the forward rule.
template <class Entry, class A>
CVK_HD void roi_pixel_tap(const RoiAxis<A>& axis, int bin, int pixel, Entry& tap) {
  const SampleRange range = roi_samples_at(axis, bin, pixel, pixel + 1);
  tap = empty_tap<Entry>(pixel);
  for (int i = range.first; i < range.last; ++i) {
    const A coordinate = roi_sample_coordinate(axis, bin, i);
    const BilinearAxis<A> sample = bilinear_axis(coordinate, axis.extent);
    if (!sample.inside) continue;
    const A slope = bilinear_slope(coordinate, sample), position = roi_sample_position(axis, bin, i);
    if (sample.low == pixel) add_to_tap(tap, sample.low_weight, -slope, position);
    if (sample.high == pixel) add_to_tap(tap, sample.high_weight, slope, position);
  }
  scale_tap(tap, axis.share);
}

// The weights of neighbouring pixels (roi_pixel_weight) from one look at the samples.
template <int count, class A>
CVK_HD void roi_pixel_weights(const RoiAxis<A>& axis, int bin, int first_pixel, A (&weights)[count]) {
  for (int p = 0; p < count; ++p) weights[p] = A(0);
  const SampleRange range = roi_samples_at(axis, bin, first_pixel, first_pixel + count);
  for (int i = range.first; i < range.last; ++i) {
    const BilinearAxis<A> sample = bilinear_axis(roi_sample_coordinate(axis, bin, i), axis.extent);
    if (!sample.inside) continue;
    for (int p = 0; p < count; ++p) {
      if (sample.low == first_pixel + p) weights[p] += sample.low_weight;
      if (sample.high == first_pixel + p) weights[p] += sample.high_weight;
    }
  }
  for (int p = 0; p < count; ++p) weights[p] *= axis.share;
}

// Adds to `sums` what the gradient `grad` of one maximum does to the axes of its box: the value follows sample `index` of bin
// (bin_y, bin_x). at(y, x) reads a pixel. A foreign index adds nothing.
template <class A, class At>
CVK_HD void add_maximum(const RoiAxis<A>& y_axis, const RoiAxis<A>& x_axis, int bin_y, int bin_x, int index, A grad,
                        At&& at, A (&sums)[kRoiSums]) {
  if (index < 0 || x_axis.samples <= 0 || index / x_axis.samples >= y_axis.samples) return;
  const int y_sample = index / x_axis.samples, x_sample = index % x_axis.samples;
  const A y_coordinate = roi_sample_coordinate(y_axis, bin_y, y_sample);
  const A x_coordinate = roi_sample_coordinate(x_axis, bin_x, x_sample);
  const BilinearAxis<A> y = bilinear_axis(y_coordinate, y_axis.extent);
  const BilinearAxis<A> x = bilinear_axis(x_coordinate, x_axis.extent);
  if (!y.inside || !x.inside) return;
  const A corner[2][2] = {{at(y.low, x.low), at(y.low, x.high)}, {at(y.high, x.low), at(y.high, x.high)}};
  if (bilinear_slope(y_coordinate, y) != A(0)) {
    const A slope = x.low_weight * (corner[1][0] - corner[0][0]) + x.high_weight * (corner[1][1] - corner[0][1]);
    sums[kYStart] += grad * slope;
    sums[kYBin] += grad * slope * roi_sample_position(y_axis, bin_y, y_sample);
  }
  if (bilinear_slope(x_coordinate, x) != A(0)) {
    const A slope = y.low_weight * (corner[0][1] - corner[0][0]) + y.high_weight * (corner[1][1] - corner[1][0]);
    sums[kXStart] += grad * slope;
    sums[kXBin] += grad * slope * roi_sample_position(x_axis, bin_x, x_sample);
  }
}

}  // namespace cvk
