// Per-element arithmetic of RoI Pool: that of boxes in whole pixels (common/roi_cells.h), as common/roi_max.cuh asks for it.
#pragma once

#include "common/roi_cells.h"

namespace cvk {

// What bin `bin` compares along an axis, and what it reads.
template <class A>
CVK_HD PixelRange roi_bin_cells(const CellAxis<A>& axis, int bin) {
  return pixel_range(axis, bin);
}
template <class A>
CVK_HD PixelRange roi_pixel_range(const CellAxis<A>& axis, int bin) {
  return pixel_range(axis, bin);
}

}  // namespace cvk
