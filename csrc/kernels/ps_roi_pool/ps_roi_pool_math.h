// Per-element arithmetic of position-sensitive RoI Pool: its boxes in whole pixels (common/roi_cells.h), as
// common/position_sensitive.cuh asks for them.
#pragma once

#include "common/roi_cells.h"
#include "common/roi_geometry.h"
#include "common/roi_taps.h"

namespace cvk {

// The axis of a box whose far end does not belong to it.
template <class A>
struct OpenAxis : CellAxis<A> {
  int extent;  // pixels of the map
};

// The vertical or horizontal axis of a box row.
template <class A>
CVK_HD void roi_make_axis(const RoiShape& shape, const A* box, bool along_y, OpenAxis<A>& axis) {
  axis.extent = along_y ? shape.height : shape.width;
  static_cast<CellAxis<A>&>(axis) =
      cell_axis(along_y ? box[2] : box[1], along_y ? box[4] : box[3], static_cast<A>(shape.spatial_scale),
                along_y ? shape.pooled_height : shape.pooled_width, axis.extent, FarEnd::kOutside);
}

template <class A>
CVK_HD PixelRange roi_pixel_range(const OpenAxis<A>& axis, int bin) {
  return pixel_range(axis, bin);
}

// Every pixel of a bin counts as much.
template <class A>
CVK_HD A roi_pixel_weight(const OpenAxis<A>& axis, int bin, int pixel) {
  const PixelRange range = pixel_range(axis, bin);
  return pixel >= range.first && pixel < range.last ? A(1) : A(0);
}

template <class A>
CVK_HD void roi_pixel_tap(const OpenAxis<A>& axis, int bin, int pixel, Tap<A>& tap) {
  tap = {pixel, roi_pixel_weight(axis, bin, pixel)};
}

// The sum is divided by the pixels, or by 1 where there are none.
template <class A>
CVK_HD A roi_bin_divisor(const OpenAxis<A>& axis, int bin) {
  const PixelRange range = pixel_range(axis, bin);
  return range.empty() ? A(1) : static_cast<A>(range.last - range.first);
}

}  // namespace cvk
