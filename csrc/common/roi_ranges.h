// Plans of pooling over whole pixels on the CPU. A record is the header, then the pixels of the PH rows of bins and of the PW columns.
#pragma once

#include <cstdint>

#include "common/roi_cells.h"
#include "common/roi_plan.h"

namespace cvk {

CVK_HD int64_t range_bytes(const RoiShape& shape) {
  const int64_t ranges = int64_t{shape.pooled_height} + shape.pooled_width;
  return round_up<int64_t>(sizeof(RecordHeader) + ranges * sizeof(PixelRange), kRecordAlign);
}

CVK_HD PixelRange* y_ranges(char* record) { return reinterpret_cast<PixelRange*>(record + sizeof(RecordHeader)); }
CVK_HD PixelRange* x_ranges(char* record, const RoiShape& shape) { return y_ranges(record) + shape.pooled_height; }

// Axis: a CellAxis, for which there is a roi_make_axis.
template <class Axis, class A>
CVK_HD void plan_ranges(const RoiShape& shape, const A* box, char* record) {
  Axis y, x;
  roi_make_axis(shape, box, true, y);
  roi_make_axis(shape, box, false, x);
  *reinterpret_cast<RecordHeader*>(record) = {y.first, y.last - 1, x.first, x.last - 1, 0, 0};
  for (int i = 0; i < shape.pooled_height; ++i) y_ranges(record)[i] = pixel_range(y, i);
  for (int j = 0; j < shape.pooled_width; ++j) x_ranges(record, shape)[j] = pixel_range(x, j);
}

}  // namespace cvk
