// The kept boxes of one segment, arranged so that a box finds the few that it could overlap.
//
// Levels by size (the binary exponent of the longer side), and in each level a regular grid over box centres. Two boxes with
// IoU > t satisfy, on each axis, t * w_a < w_b < w_a / t and |centre distance| < (w_a + w_b) / 2 - t * max(w_a, w_b), because
// their intersection is wider than t times the wider of them. That bounds the levels and the cells to look at, for every
// t >= 0. All boxes are known beforehand, so a cell's slots are allotted at once and its kept boxes lie side by side,
// ready for SIMD.
//
// Invariant: the bounds only choose which kept boxes are tested; the test itself is exact (overlaps_any).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/box.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/nms/nms_math.h"

namespace cvk {

template <class A>
struct BoxWithArea {
  Box<A> box;
  A area;
};

// Boxes by coordinate, for SIMD: `stride` values of x1, then of y1, x2, y2 and the area.
template <class A>
struct BoxArrays {
  A* base;
  int64_t stride;

  static CVK_HD int64_t bytes(int64_t capacity) { return 5 * capacity * static_cast<int64_t>(sizeof(A)); }
  CVK_HD BoxWithArea<A> get(int64_t i) const {
    const A* p = base + i;
    return {{p[0], p[stride], p[2 * stride], p[3 * stride]}, p[4 * stride]};
  }
  CVK_HD void set(int64_t i, const BoxWithArea<A>& b) const {
    A* p = base + i;
    p[0] = b.box.x1;
    p[stride] = b.box.y1;
    p[2 * stride] = b.box.x2;
    p[3 * stride] = b.box.y2;
    p[4 * stride] = b.area;
  }
};

// Whether `box` overlaps any of boxes [first, last) of `list` by more than the threshold. Loads whole vectors, so one vector
// behind the end of the arrays must be readable.
template <Isa isa, class A>
CVK_HD bool overlaps_any(const BoxArrays<A>& list, int64_t first, int64_t last, const BoxWithArea<A>& box,
                         A threshold) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  const Box<Vec> here{S::broadcast(box.box.x1), S::broadcast(box.box.y1), S::broadcast(box.box.x2),
                      S::broadcast(box.box.y2)};
  const Vec area = S::broadcast(box.area), exact = S::broadcast(threshold);
  const Vec loose = S::broadcast(nms_loose_threshold(threshold)), small = S::broadcast(nms_small_union<A>());
  const bool shortcut = nms_has_shortcut(threshold);
  for (int64_t i = first; i < last; i += S::kLanes) {
    const A* p = list.base + i;
    const Box<Vec> there{S::load(p), S::load(p + list.stride), S::load(p + 2 * list.stride),
                         S::load(p + 3 * list.stride)};
    const Vec intersection = box_intersection(here, there);
    const Vec united = box_union(area, S::load(p + 4 * list.stride), intersection);
    const typename S::IntVec present = S::first_lanes(last - i);
    if (shortcut && !S::any(((intersection > loose * united) | (united < small)) & present)) continue;
    if (S::any((intersection / united > exact) & present)) return true;
  }
  return false;
}

template <class A>
class Grid {
 public:
  CVK_HD Grid() : memory_(0) {}
  CVK_HD ~Grid() {
    if (memory_ != 0) ::operator delete(reinterpret_cast<void*>(memory_), std::align_val_t(64));
  }
  Grid(const Grid&) = delete;
  Grid& operator=(const Grid&) = delete;

  // Allots cells to positions [first, last) of `boxes`. False where the bounds do not hold (a negative threshold, many
  // areas near the subnormal range) and every pair must be tested.
  template <Isa isa>
  CVK_HD bool build(const BoxArrays<A>& boxes, int64_t first, int64_t last, A threshold);

  // The cell of a position, -1 for an inert box.
  CVK_HD int32_t cell_of(int64_t position) const { return cell_of_[position - first_]; }
  CVK_HD bool is_inert(int64_t position) const { return cell_of(position) < 0; }

  // Whether a kept box overlaps `box` by more than the threshold; with `recent`, whether one that is not settled does.
  template <Isa isa, bool recent>
  CVK_HD bool suppresses(const BoxWithArea<A>& box, A threshold) const;

  // Adds a kept box.
  CVK_HD void insert(int64_t position, const BoxWithArea<A>& box) {
    Cell& cell = cells_[cell_of(position)];
    boxes_of(cell).set(cell.kept++, box);
  }

  // Counts the kept boxes in the cell of `position` as settled.
  CVK_HD void settle(int64_t position) {
    Cell& cell = cells_[cell_of(position)];
    cell.settled = cell.kept;
  }

 private:
  static constexpr int kSizeLevels = 32;
  // One more level, a single cell that every box looks at: boxes whose areas are so small that the computed IoU of two of
  // them can be far from the true one. More than a few make the grid pointless.
  static constexpr int kTinyLevel = kSizeLevels;
  static constexpr int kMostTiny = 64;

  struct Cell {
    uint32_t begin, kept, settled;  // the next cell's begin ends this one's slots
  };

  // A cell's slots are one block of memory, coordinate after coordinate: a look at a cell costs a cache line or two.
  CVK_HD BoxArrays<A> boxes_of(const Cell& cell) const {
    return {slots_ + int64_t{5} * cell.begin, static_cast<int64_t>((&cell)[1].begin) - cell.begin};
  }

  struct Level {
    int64_t count;
    A least_x, most_x, least_y, most_y;  // centres
    A least_w, most_w, least_h, most_h;  // sides
    A per_x, per_y;                      // cells per unit
    int columns, rows;
    int64_t first_cell;

    CVK_HD double wanted_columns() const {
      return (static_cast<double>(most_x) - least_x) / (kNmsCellSize * most_w) + 1;
    }
    CVK_HD double wanted_rows() const { return (static_cast<double>(most_y) - least_y) / (kNmsCellSize * most_h) + 1; }
    CVK_HD double wanted_cells() const { return wanted_columns() * wanted_rows(); }

    CVK_HD int column(A x) const { return cell(x, least_x, per_x, columns); }
    CVK_HD int row(A y) const { return cell(y, least_y, per_y, rows); }
    // Monotone in the coordinate, so that a range of coordinates maps into a range of cells.
    static CVK_HD int cell(A coordinate, A least, A per, int cells) {
      const A scaled = (coordinate - least) * per;
      if (!(scaled > A(0))) return 0;
      return scaled < static_cast<A>(cells) ? static_cast<int>(scaled) : cells - 1;
    }
  };

  // Narrows a level's range of centres to where nearly all of a sample lies, so that a few far boxes do not stretch the cells
  // of all others. Exact all the same: a centre outside the range belongs to the cell at the rim.
  template <class InLevel>
  static CVK_HD void trim(Level& level, const BoxArrays<A>& boxes, int64_t first, int64_t last, InLevel in_level) {
    constexpr int kSample = 256;
    A x[kSample], y[kSample];
    int taken = 0;
    const int64_t stride = max_of<int64_t>(1, (last - first) / (4 * kSample));
    for (int64_t i = first; i < last && taken < kSample; i += stride) {
      const BoxWithArea<A> b = boxes.get(i);
      if (nms_is_inert(b.box, b.area) || !in_level(b)) continue;
      x[taken] = middle(b.box.x1, b.box.x2);
      y[taken++] = middle(b.box.y1, b.box.y2);
    }
    if (taken < 16) return;
    sort(x, taken);
    sort(y, taken);
    const int cut = taken / 16;
    const A margin_x = (x[taken - 1 - cut] - x[cut]) * A(0.25) + level.most_w;
    const A margin_y = (y[taken - 1 - cut] - y[cut]) * A(0.25) + level.most_h;
    level.least_x = max_of(level.least_x, x[cut] - margin_x);
    level.most_x = min_of(level.most_x, x[taken - 1 - cut] + margin_x);
    level.least_y = max_of(level.least_y, y[cut] - margin_y);
    level.most_y = min_of(level.most_y, y[taken - 1 - cut] + margin_y);
  }
  static CVK_HD void sort(A* values, int count) {
    for (int i = 1; i < count; ++i) {
      const A value = values[i];
      int j = i;
      for (; j > 0 && values[j - 1] > value; --j) values[j] = values[j - 1];
      values[j] = value;
    }
  }

  static CVK_HD A middle(A low, A high) { return low * A(0.5) + high * A(0.5); }

  // Largest centre distance at which a box of side `side` and one of side at most `most` can have IoU > t.
  static CVK_HD A reach(A side, A most, A t) {
    if (most <= side) return (side + most) * A(0.5) - t * side;
    if (t >= A(0.5)) return side * (A(1) - t);
    const A other = t > A(0) ? min_of(most, side / t) : most;
    return side * A(0.5) + other * (A(0.5) - t);
  }

  int64_t first_ = 0;
  int levels_ = 0;
  Level level_[kSizeLevels + 1];
  int32_t* cell_of_ = nullptr;  // [last - first], -1 for inert boxes
  Cell* cells_ = nullptr;
  A* slots_ = nullptr;
  uintptr_t memory_;
};

template <class A>
template <Isa isa>
CVK_HD bool Grid<A>::build(const BoxArrays<A>& boxes, int64_t first, int64_t last, A threshold) {
  constexpr bool kFloat = sizeof(A) == 4;
  if (!(threshold >= A(0))) return false;
  first_ = first;
  const int64_t size = last - first;

  // The longest side decides where the levels begin.
  A longest = A(0);
  int tiny = 0;
  for (int64_t i = first; i < last; ++i) {
    const BoxWithArea<A> b = boxes.get(i);
    if (nms_is_inert(b.box, b.area)) continue;
    if (b.area < nms_small_union<A>() && ++tiny > kMostTiny) return false;
    longest = max_of(longest, max_of(b.box.x2 - b.box.x1, b.box.y2 - b.box.y1));
  }
  constexpr int kMantissa = kFloat ? 23 : 52;
  using Bits = std::conditional_t<kFloat, uint32_t, uint64_t>;
  const int top = static_cast<int>(bit_cast<Bits>(longest) >> kMantissa);
  const auto level_of = [&](const BoxWithArea<A>& b) {
    if (b.area < nms_small_union<A>()) return kTinyLevel;
    const A side = max_of(b.box.x2 - b.box.x1, b.box.y2 - b.box.y1);
    const int below = top - static_cast<int>(bit_cast<Bits>(side) >> kMantissa);
    return below < kSizeLevels ? below : kSizeLevels - 1;
  };

  levels_ = 0;
  for (Level& level : level_) level.count = 0;
  for (int64_t i = first; i < last; ++i) {
    const BoxWithArea<A> b = boxes.get(i);
    if (nms_is_inert(b.box, b.area)) continue;
    const A w = b.box.x2 - b.box.x1, h = b.box.y2 - b.box.y1;
    const A x = middle(b.box.x1, b.box.x2), y = middle(b.box.y1, b.box.y2);
    const int which = level_of(b);
    Level& level = level_[which];
    if (level.count++ == 0) {
      level.least_x = level.most_x = x;
      level.least_y = level.most_y = y;
      level.least_w = level.most_w = w;
      level.least_h = level.most_h = h;
      levels_ = max_of(levels_, which + 1);
    } else {
      level.least_x = min_of(level.least_x, x);
      level.most_x = max_of(level.most_x, x);
      level.least_y = min_of(level.least_y, y);
      level.most_y = max_of(level.most_y, y);
      level.least_w = min_of(level.least_w, w);
      level.most_w = max_of(level.most_w, w);
      level.least_h = min_of(level.least_h, h);
      level.most_h = max_of(level.most_h, h);
    }
  }

  int64_t cells = 0;
  for (int l = 0; l < levels_; ++l) {
    Level& level = level_[l];
    if (level.count == 0) continue;
    if (l == kTinyLevel) {
      level.least_w = level.least_h = A(0);
      level.most_w = level.most_h = std::numeric_limits<A>::infinity();
      level.columns = level.rows = 1;
      level.per_x = level.per_y = A(0);
      level.first_cell = cells++;
      continue;
    }
    const double most = static_cast<double>(min_of<int64_t>(kNmsCellsPerBox * level.count + 16, 1 << 30));
    if (level.wanted_cells() > 64 * most)
      trim(level, boxes, first, last, [&](const auto& b) { return level_of(b) == l; });
    const double wide = static_cast<double>(level.most_x) - level.least_x;
    const double high = static_cast<double>(level.most_y) - level.least_y;
    const double columns = level.wanted_columns(), rows = level.wanted_rows();
    const double shrink = columns * rows > most ? std::sqrt(most / (columns * rows)) : 1;
    const double fitting = max_of(1.0, min_of(columns * shrink, most));
    level.columns = static_cast<int>(fitting);
    level.rows = static_cast<int>(max_of(1.0, min_of(rows, most / level.columns)));
    level.per_x = wide > 0 ? static_cast<A>(level.columns / wide) : A(0);
    level.per_y = high > 0 ? static_cast<A>(level.rows / high) : A(0);
    level.first_cell = cells;
    cells += static_cast<int64_t>(level.columns) * level.rows;
  }

  if (cells >= std::numeric_limits<int32_t>::max()) return false;  // hundreds of millions of boxes: scan

  // One allocation: slots (and a vector to read beyond them), cells (and one that ends the last), cell_of.
  const int64_t slot_bytes = round_up<int64_t>(BoxArrays<A>::bytes(size) + kSimdBytes<isa>, 64);
  const int64_t cell_bytes = (cells + 1) * static_cast<int64_t>(sizeof(Cell));
  const int64_t bytes = slot_bytes + cell_bytes + size * static_cast<int64_t>(sizeof(int32_t));
  memory_ = reinterpret_cast<uintptr_t>(::operator new(static_cast<size_t>(bytes), std::align_val_t(64)));
  slots_ = reinterpret_cast<A*>(memory_);
  cells_ = reinterpret_cast<Cell*>(reinterpret_cast<char*>(memory_) + slot_bytes);
  cell_of_ = reinterpret_cast<int32_t*>(cells_ + cells + 1);
  memset(cells_, 0, static_cast<size_t>(cell_bytes));

  for (int64_t i = first; i < last; ++i) {
    const BoxWithArea<A> b = boxes.get(i);
    if (nms_is_inert(b.box, b.area)) {
      cell_of_[i - first] = -1;
      continue;
    }
    const Level& level = level_[level_of(b)];
    const int64_t cell = level.first_cell +
                         static_cast<int64_t>(level.row(middle(b.box.y1, b.box.y2))) * level.columns +
                         level.column(middle(b.box.x1, b.box.x2));
    cell_of_[i - first] = static_cast<int32_t>(cell);
    ++cells_[cell].kept;
  }
  uint32_t running = 0;
  for (int64_t c = 0; c < cells; ++c) {
    cells_[c].begin = running;
    running += cells_[c].kept;
    cells_[c].kept = 0;
  }
  cells_[cells].begin = running;
  return true;
}

template <class A>
template <Isa isa, bool recent>
CVK_HD bool Grid<A>::suppresses(const BoxWithArea<A>& box, A threshold) const {
  // Numerics: the bounds hold for the true IoU; the computed one may exceed it by a few roundings.
  const A t = threshold * (A(1) - A(1e-5));
  const A slack = A(4) * std::numeric_limits<A>::epsilon();
  const A w = box.box.x2 - box.box.x1, h = box.box.y2 - box.box.y1;
  const A x = middle(box.box.x1, box.box.x2), y = middle(box.box.y1, box.box.y2);
  const A size_x = x < A(0) ? -x : x, size_y = y < A(0) ? -y : y;
  for (int l = 0; l < levels_; ++l) {
    const Level& level = level_[l];
    if (level.count == 0 || level.most_w < t * w || level.most_h < t * h || t * level.least_w > w ||
        t * level.least_h > h) {
      continue;
    }
    const A reach_x = reach(w, level.most_w, t), reach_y = reach(h, level.most_h, t);
    const A far_x = reach_x + reach_x * A(1e-5) + slack * (size_x + reach_x);
    const A far_y = reach_y + reach_y * A(1e-5) + slack * (size_y + reach_y);
    const int left = level.column(x - far_x), right = level.column(x + far_x);
    const int top = level.row(y - far_y), bottom = level.row(y + far_y);
    for (int row = top; row <= bottom; ++row) {
      const Cell* line = cells_ + level.first_cell + static_cast<int64_t>(row) * level.columns;
      for (int column = left; column <= right; ++column) {
        const Cell& cell = line[column];
        const uint32_t from = recent ? cell.settled : 0;
        if (cell.kept > from && overlaps_any<isa>(boxes_of(cell), from, cell.kept, box, threshold)) return true;
      }
    }
  }
  return false;
}

}  // namespace cvk
