// The weights of Precise RoI Pooling along one axis, and how they change with the box: the kind of axis that common/roi_taps.cuh
// and common/roi_plan.h ask for.
//
// Between two neighbouring pixel centres, in a cell, the kernel max(0, 1 - |x - p|) of each pixel p is linear. Its integral over
// a part of a cell is the part's length times its value at the part's middle: a bin is a list of samples, one for each cell that
// it meets, of which each counts for its part of the bin. With the box they move as samples do that keep their place in it, for
//   mean over the bin = integral from 0 to 1 of kernel(low + u * (high - low)) du
// has constant limits, and the kernel's slope is constant in a cell.
//
// Numerics: nothing is subtracted but ends of the same cell, so that weights stay exact for tiny bins, and positions are counted
// from the pixel before the box, so that they do far from the origin.
#pragma once

#include "common/numeric.h"
#include "common/roi_geometry.h"
#include "common/roi_taps.h"

namespace cvk {

template <class A>
struct PrRoIAxis {
  A base;          // a pixel: where positions are counted from
  A start;         // of the box, from base
  A bin;           // extent of one bin; 0 where the box has no extent
  int extent;      // pixels of the input along this axis
  bool stretched;  // never (see roi_boxes.h)
};

// The vertical or horizontal axis of a box row.
template <class A>
CVK_HD void roi_make_axis(const RoiShape& shape, const A* box, bool along_y, PrRoIAxis<A>& axis) {
  const A low = along_y ? box[2] : box[1], high = along_y ? box[4] : box[3];
  const A scale = static_cast<A>(shape.spatial_scale);
  const A start = low * scale;
  const A bin = (high - low) * scale / static_cast<A>(along_y ? shape.pooled_height : shape.pooled_width);
  const bool exists = bin > A(0) && is_finite(bin) && is_finite(start);  // NaN fails
  axis.base = exists ? floor(start) : A(0);
  axis.start = exists ? start - axis.base : A(0);
  axis.bin = exists ? bin : A(0);
  axis.extent = along_y ? shape.height : shape.width;
  axis.stretched = false;
}

// The ends of a bin, from the axis's base. Neighbouring bins share theirs.
template <class A>
struct PrRoIBin {
  A low, high;
};

template <class A>
CVK_HD PrRoIBin<A> prroi_bin(const PrRoIAxis<A>& axis, int bin) {
  return {axis.start + static_cast<A>(bin) * axis.bin, axis.start + static_cast<A>(bin + 1) * axis.bin};
}

// The pixels whose kernels a bin meets.
template <class A>
CVK_HD PixelRange roi_pixel_range(const PrRoIAxis<A>& axis, int bin) {
  if (!(axis.bin > A(0))) return {0, 0};
  const PrRoIBin<A> ends = prroi_bin(axis, bin);
  const A before = floor(ends.low), after = ceil(ends.high);
  const A first = axis.base + before, last = axis.base + max_of(after, before + A(1));
  const A extent = static_cast<A>(axis.extent);
  if (!(first < extent && last >= A(0))) return {0, 0};
  return {first > A(0) ? static_cast<int>(first) : 0, last < extent ? static_cast<int>(last) + 1 : axis.extent};
}

// What a bin takes from one pixel.
template <class Entry, class A>
CVK_HD void roi_pixel_tap(const PrRoIAxis<A>& axis, int bin, int pixel, Entry& tap) {
  tap = empty_tap<Entry>(pixel);
  if (!(axis.bin > A(0))) return;
  const PrRoIBin<A> ends = prroi_bin(axis, bin);
  const A centre = static_cast<A>(pixel) - axis.base, length = ends.high - ends.low;
  const bool point = !(length > A(0));  // the bin is smaller than the spacing of numbers here
  const A inverse = point ? A(1) : A(1) / length;
  for (int side = 0; side < 2; ++side) {  // the cells before and after the pixel
    const A cell = side == 0 ? centre - A(1) : centre;
    const A from = max_of(ends.low, cell), to = min_of(ends.high, cell + A(1));
    const A share = point ? static_cast<A>(from == ends.low && from < cell + A(1)) : (to - from) * inverse;
    if (!(share > A(0))) continue;
    const A middle = from + A(0.5) * (to - from);
    const A position = static_cast<A>(bin) + (point ? A(0.5) : (middle - ends.low) * inverse);
    const A weight = side == 0 ? middle - cell : A(1) - (middle - cell);
    add_to_tap(tap, share * weight, side == 0 ? share : -share, position);
  }
}

// Along one axis, a span that contains a box.
template <class A>
CVK_HD RoiSpan<A> prroi_span(A low, A high, A spatial_scale) {
  return {low * spatial_scale, (high - low) * spatial_scale, false};
}

}  // namespace cvk
