// Per-element arithmetic of RoI Align beyond the family's (common/roi_geometry.h).
#pragma once

#include "common/roi_geometry.h"

namespace cvk {

// Derivative of bin `bin`'s average along one axis with respect to pixel `pixel`: the summed bilinear weight of the
// pixel over the bin's samples, divided by their number. The adjoint of the forward rule, used by gathering backwards.
template <class A>
CVK_HD A roi_pixel_weight(const RoiAxis<A>& axis, int bin, int pixel) {
  // Samples beyond the rim read the rim pixel, so the outermost pixels look further out.
  const A low = pixel == 0 ? A(-1) : static_cast<A>(pixel - 1);
  const A high = pixel == axis.extent - 1 ? static_cast<A>(axis.extent) : static_cast<A>(pixel + 1);
  const SampleRange range = roi_sample_range(axis, bin, low, high);
  A sum = A(0);
  for (int i = range.first; i < range.last; ++i) {
    const BilinearAxis<A> tap = bilinear_axis(roi_sample_coordinate(axis, bin, i), axis.extent);
    if (!tap.inside) continue;
    if (tap.low == pixel) sum += tap.low_weight;
    if (tap.high == pixel) sum += tap.high_weight;
  }
  return sum * axis.share;
}

}  // namespace cvk
