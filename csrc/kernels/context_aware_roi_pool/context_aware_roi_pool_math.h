// Per-element arithmetic of context-aware RoI Pool: boxes in whole pixels (common/roi_cells.h), enlarged where they are smaller than
// their grid.
#pragma once

#include "common/bilinear.h"
#include "common/roi_cells.h"
#include "common/roi_geometry.h"

namespace cvk {

// An axis whose cells are pixels, or parts of them where the box has fewer pixels than bins.
template <class A>
struct EnlargedAxis : CellAxis<A> {};

template <class A>
CVK_HD void roi_make_axis(const RoiShape& shape, const A* box, bool along_y, EnlargedAxis<A>& axis) {
  roi_make_axis(shape, box, along_y, static_cast<CellAxis<A>&>(axis));
  const int bins = along_y ? shape.pooled_height : shape.pooled_width;
  if (axis.size == 0 || axis.size >= bins) return;
  axis.last = static_cast<int>(min_of(max_of<int64_t>(axis.start + axis.size, 0), axis.limit));  // no pixel of rounding
  axis.stretch = static_cast<int>(ceil_div<int64_t>(bins, axis.size));
  axis.start *= axis.stretch;
  axis.size *= axis.stretch;
  axis.limit *= axis.stretch;
  axis.bin = static_cast<A>(axis.size) / static_cast<A>(bins);
}

// The cells of a bin, counted from the first that is on the map.
template <class A>
CVK_HD CellRange roi_bin_cells(const EnlargedAxis<A>& axis, int bin) {
  const CellRange cells = cell_range(axis, bin);
  const int64_t origin = static_cast<int64_t>(axis.first) * axis.stretch;
  return {cells.first - origin, cells.last - origin};
}

// What a cell reads: a pixel, or two with weights that sum to 1.
template <class A>
struct CellTaps {
  int pixel[2];
  A weight[2];
  int count;
};

// The transposed convolution with a bilinear kernel: the cell interpolates between the centres of pixels, those at the rim of what
// the box has of the map continue. Stored small, because plans keep it: pixels [first, first + pixels) and the stretch.
template <class A>
CVK_HD CellTaps<A> cell_taps(int first, int pixels, int stretch, int64_t cell) {
  const A place = static_cast<A>(2 * cell + 1 - stretch) / static_cast<A>(2 * int64_t{stretch});
  const BilinearAxis<A> tap = bilinear_axis(place, pixels);
  return {{first + tap.low, first + tap.high}, {tap.low_weight, tap.high_weight}, tap.high_weight != A(0) ? 2 : 1};
}

template <class A>
CVK_HD CellTaps<A> cell_taps(const EnlargedAxis<A>& axis, int64_t cell) {
  return cell_taps<A>(axis.first, axis.last - axis.first, axis.stretch, cell);
}

// The pixels that a bin reads.
template <class A>
CVK_HD PixelRange roi_pixel_range(const EnlargedAxis<A>& axis, int bin) {
  const CellRange cells = roi_bin_cells(axis, bin);
  if (cells.empty()) {  // where it would be, so that bins stay in order
    const int pixel = axis.first + static_cast<int>(cells.first / axis.stretch);
    return {pixel, pixel};
  }
  const CellTaps<A> first = cell_taps(axis, cells.first), last = cell_taps(axis, cells.last - 1);
  return {first.pixel[0], (last.count == 2 ? last.pixel[1] : last.pixel[0]) + 1};
}

}  // namespace cvk
