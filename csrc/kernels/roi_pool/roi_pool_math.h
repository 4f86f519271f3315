// Per-element arithmetic of RoI Pool beyond that of boxes in whole pixels (common/roi_cells.h).
#pragma once

#include "common/roi_cells.h"
#include "common/roi_geometry.h"

namespace cvk {

// The vertical or horizontal axis of a box row.
template <class A>
CVK_HD void roi_make_axis(const RoiShape& shape, const A* box, bool along_y, CellAxis<A>& axis) {
  axis = cell_axis(along_y ? box[2] : box[1], along_y ? box[4] : box[3], static_cast<A>(shape.spatial_scale),
                   along_y ? shape.pooled_height : shape.pooled_width, along_y ? shape.height : shape.width);
}

}  // namespace cvk
