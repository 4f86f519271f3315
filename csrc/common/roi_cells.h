// RoI geometry in whole pixels: boxes rounded to pixels and divided into bins of pixels, as RoI Pool does it. The only copy of
// these formulas; RoI Pool, position-sensitive RoI Pool and context-aware RoI Pool use them on CPU and CUDA.
//
// A cell is a pixel, or a part of one where a box smaller than its grid is enlarged.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "common/numeric.h"
#include "common/roi_geometry.h"

namespace cvk {

// One axis of one box.
template <class A>
struct CellAxis {
  int64_t start;    // first cell of the box; may lie outside the map
  int64_t size;     // cells of the box; 0 where a coordinate is not finite: no cell
  int64_t limit;    // cells of the map
  A bin;            // cells of a bin
  int stretch;      // cells of a pixel
  int first, last;  // pixels on the map that bins read, half open; empty where last <= first
};

struct CellRange {
  int64_t first, last;  // half open

  CVK_HD bool empty() const { return last <= first; }
};

// What a box is along an axis. RoI Pool: the pixel at the far end belongs to the box. Position-sensitive RoI Pool: it does not,
// and the last pixel of the map is never read (in torchvision and its ancestors).
enum class FarEnd { kInside, kOutside };

// The pixel of a coordinate: halves are rounded away from zero. Beyond +-2^31 it makes no difference to any map.
template <class A>
CVK_HD int64_t nearest_pixel(A coordinate) {
  constexpr A kMost = A(2147483648.0);
  return static_cast<int64_t>(min_of(max_of(static_cast<A>(round(coordinate)), -kMost), kMost));
}

template <class A>
CVK_HD CellAxis<A> cell_axis(A low, A high, A spatial_scale, int bins, int extent, FarEnd far_end = FarEnd::kInside) {
  CellAxis<A> axis{0, 0, 0, A(0), 1, 0, 0};
  const A from = low * spatial_scale, to = high * spatial_scale;
  if (!is_finite(from) || !is_finite(to)) return axis;
  const bool inside = far_end == FarEnd::kInside;
  axis.start = nearest_pixel(from);
  axis.size = max_of<int64_t>(nearest_pixel(to) - axis.start + (inside ? 1 : 0), 1);
  axis.limit = inside ? extent : extent - 1;
  axis.bin = static_cast<A>(axis.size) / static_cast<A>(bins);
  axis.first = static_cast<int>(min_of(max_of<int64_t>(axis.start, 0), max_of<int64_t>(axis.limit, 0)));
  // Rounding may give the last bin a pixel more than the box has (29 pixels in seven bins of a double): torchvision's, too.
  const int64_t size = max_of(axis.size, static_cast<int64_t>(ceil(static_cast<A>(bins) * axis.bin)));
  axis.last = static_cast<int>(min_of(max_of<int64_t>(axis.start + size, 0), max_of<int64_t>(axis.limit, 0)));
  return axis;
}

// The vertical or horizontal axis of a box row.
template <class A>
CVK_HD void roi_make_axis(const RoiShape& shape, const A* box, bool along_y, CellAxis<A>& axis) {
  axis = cell_axis(along_y ? box[2] : box[1], along_y ? box[4] : box[3], static_cast<A>(shape.spatial_scale),
                   along_y ? shape.pooled_height : shape.pooled_width, along_y ? shape.height : shape.width);
}

// The cells of a bin that are on the map.
template <class A>
CVK_HD CellRange cell_range(const CellAxis<A>& axis, int bin) {
  if (axis.size == 0) return {0, 0};
  const int64_t from = static_cast<int64_t>(floor(static_cast<A>(bin) * axis.bin)) + axis.start;
  const int64_t to = static_cast<int64_t>(ceil(static_cast<A>(bin + int64_t{1}) * axis.bin)) + axis.start;
  return {min_of(max_of<int64_t>(from, 0), axis.limit), min_of(max_of<int64_t>(to, 0), axis.limit)};
}

// The pixels of a bin, where cells are pixels.
template <class A>
CVK_HD PixelRange pixel_range(const CellAxis<A>& axis, int bin) {
  const CellRange cells = cell_range(axis, bin);
  return {static_cast<int>(cells.first), static_cast<int>(cells.last)};
}

// Of two maxima the earlier one stays unless the later is greater; NaN is greater than all numbers, as in torch.
template <class A>
CVK_HD bool is_greater(A later, A earlier) {
  return later > earlier || (later != later && earlier == earlier);
}

}  // namespace cvk
