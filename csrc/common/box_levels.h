// Places for boxes, so that a box finds the few that it could overlap.
//
// Levels by size (the binary exponent of the longer side), and in each level a regular grid of cells over box centres. Two
// boxes with IoU > t satisfy, on each axis, t * w_a < w_b < w_a / t and |centre distance| < (w_a + w_b) / 2 - t * max(w_a, w_b),
// because their intersection is wider than t times the wider of them. That bounds the levels and the cells to look at, for
// every t >= 0, and for every criterion, which are all at most the IoU.
//
// Invariant: the bounds only choose which boxes are tested; the test itself is the caller's and exact.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/box_arrays.h"
#include "common/box_overlap.h"

namespace cvk {

// Cells of a level relative to its largest box side, and at most this many cells per box.
// Of 0.33 / 0.5 / 0.75 in hard NMS, at 10,000 boxes of the acceptance density on one thread: 1.75 / 1.54 / 1.37 ms; at
// 1,000,000 on two threads: 411 / 408 / 345 ms (EPYC 9004, 2026-11-20).
constexpr double kBoxCellSize = 0.75;
constexpr int64_t kBoxCellsPerBox = 4;

template <class A>
class BoxLevels {
 public:
  CVK_HD BoxLevels() {}  // spelled out so that it is inlined: see the note on symbols in isa.h

  // Lays out cells for positions [first, last) of `boxes`. False where the bounds do not hold (a negative threshold, many
  // areas near the subnormal range) and every pair must be tested.
  CVK_HD bool build(const BoxArrays<A>& boxes, int64_t first, int64_t last, A threshold);

  CVK_HD int64_t cells() const { return cells_; }

  // The cell of a box that is not inert.
  CVK_HD int64_t cell_of(const BoxWithArea<A>& b) const {
    const Level& level = level_[level_of(b)];
    return level.first_cell + static_cast<int64_t>(level.row(middle(b.box.y1, b.box.y2))) * level.columns +
           level.column(middle(b.box.x1, b.box.x2));
  }

  // Calls visit(first cell, last cell) for rows of neighbouring cells that together hold every box whose IoU with `box` can
  // be above the threshold; stops and returns true as soon as visit does.
  template <class Visit>
  CVK_HD bool for_each_row(const BoxWithArea<A>& box, A threshold, Visit&& visit) const;

 private:
  static constexpr int kSizeLevels = 32;
  // One more level, a single cell that every box looks at: boxes whose areas are so small that the computed IoU of two of
  // them can be far from the true one. More than a few make the grid pointless.
  static constexpr int kTinyLevel = kSizeLevels;
  static constexpr int kMostTiny = 64;

  struct Level {
    int64_t count;
    A least_x, most_x, least_y, most_y;  // centres
    A least_w, most_w, least_h, most_h;  // sides
    A per_x, per_y;                      // cells per unit
    int columns, rows;
    int64_t first_cell;

    CVK_HD double wanted_columns() const {
      return (static_cast<double>(most_x) - least_x) / (kBoxCellSize * most_w) + 1;
    }
    CVK_HD double wanted_rows() const { return (static_cast<double>(most_y) - least_y) / (kBoxCellSize * most_h) + 1; }
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
      if (box_is_inert(b.box, b.area) || !in_level(b)) continue;
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

  static constexpr bool kFloat = sizeof(A) == 4;
  static CVK_HD int exponent_of(A side) {
    using Bits = std::conditional_t<kFloat, uint32_t, uint64_t>;
    return static_cast<int>(bit_cast<Bits>(side) >> (kFloat ? 23 : 52));
  }
  CVK_HD int level_of(const BoxWithArea<A>& b) const {
    if (b.area < small_union<A>()) return kTinyLevel;
    const int below = top_ - exponent_of(max_of(b.box.x2 - b.box.x1, b.box.y2 - b.box.y1));
    return below < kSizeLevels ? below : kSizeLevels - 1;
  }

  int levels_ = 0;
  int top_ = 0;  // exponent of the longest side
  int64_t cells_ = 0;
  Level level_[kSizeLevels + 1];
};

template <class A>
CVK_HD bool BoxLevels<A>::build(const BoxArrays<A>& boxes, int64_t first, int64_t last, A threshold) {
  if (!(threshold >= A(0))) return false;

  // The longest side decides where the levels begin.
  A longest = A(0);
  int tiny = 0;
  for (int64_t i = first; i < last; ++i) {
    const BoxWithArea<A> b = boxes.get(i);
    if (box_is_inert(b.box, b.area)) continue;
    if (b.area < small_union<A>() && ++tiny > kMostTiny) return false;
    longest = max_of(longest, max_of(b.box.x2 - b.box.x1, b.box.y2 - b.box.y1));
  }
  top_ = exponent_of(longest);

  levels_ = 0;
  for (Level& level : level_) level.count = 0;
  for (int64_t i = first; i < last; ++i) {
    const BoxWithArea<A> b = boxes.get(i);
    if (box_is_inert(b.box, b.area)) continue;
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
    const double most = static_cast<double>(min_of<int64_t>(kBoxCellsPerBox * level.count + 16, 1 << 30));
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

  cells_ = cells;
  return cells < std::numeric_limits<int32_t>::max();  // else hundreds of millions of boxes: test all
}

template <class A>
template <class Visit>
CVK_HD bool BoxLevels<A>::for_each_row(const BoxWithArea<A>& box, A threshold, Visit&& visit) const {
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
      const int64_t begin = level.first_cell + static_cast<int64_t>(row) * level.columns;
      if (visit(begin + left, begin + right + 1)) return true;
    }
  }
  return false;
}

}  // namespace cvk
