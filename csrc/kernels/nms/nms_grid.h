// The kept boxes of one segment, arranged so that a box finds the few that it could overlap (common/box_levels.h). All boxes
// are known beforehand, so a cell's slots are allotted at once and its kept boxes lie side by side, ready for SIMD.
#pragma once

#include <cstdint>
#include <limits>

#include "common/box_levels.h"
#include "common/scratch.h"
#include "kernels/nms/nms_math.h"

namespace cvk {

// Columns of a list of kept boxes behind the box itself; present where the rule needs them.
constexpr int kNmsRankColumn = BoxArrays<float>::kColumns;  // position in the segment, an integer
constexpr int kNmsThresholdColumn = kNmsRankColumn + 1;     // the threshold of this box
constexpr int kNmsMostColumns = kNmsThresholdColumn + 1;

constexpr int64_t kNmsNobody = std::numeric_limits<int32_t>::max();

// How a kept box suppresses. `columns` says which columns of the lists are filled.
template <class A>
struct NmsRule {
  A threshold;
  OverlapRule<A> overlap;
  const A* densities;  // [positions] or null
  int columns;

  CVK_HD A threshold_of(int64_t position) const {
    return densities == nullptr ? threshold : nms_threshold_of(threshold, densities[position]);
  }
  CVK_HD void list(const BoxArrays<A>& boxes, int64_t slot, int64_t position, const BoxWithArea<A>& box) const {
    boxes.set(slot, box);
    if (columns > kNmsRankColumn) boxes.set_int(kNmsRankColumn, slot, position);
    if (columns > kNmsThresholdColumn) boxes.column(kNmsThresholdColumn)[slot] = threshold_of(position);
  }
};

// The position of the first of the `count` kept boxes of `list`, in the order in which they were kept, that suppresses `box`;
// kNmsNobody where none does. With first_of_all false any of them, or just something other than kNmsNobody. Loads whole
// vectors, so one vector behind the end of the arrays must be readable.
template <Isa isa, bool first_of_all, class A>
CVK_HD int64_t suppressor_of(const BoxArrays<A>& list, int64_t count, const BoxWithArea<A>& box,
                             const NmsRule<A>& rule) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using IntVec = typename S::IntVec;
  const Box<Vec> here = broadcast_box<isa>(box.box);
  const Vec area = S::broadcast(box.area), exact = S::broadcast(rule.threshold);
  const Vec loose = S::broadcast(loose_threshold(rule.threshold)), small = S::broadcast(small_union<A>());
  const bool shortcut = has_shortcut(rule.threshold);
  for (int64_t i = 0; i < count; i += S::kLanes) {
    const Box<Vec> there = list.template load<isa>(i);
    const Vec intersection = box_intersection(here, there);
    const Vec united = box_union(area, S::load(list.column(4) + i), intersection);
    const IntVec present = S::first_lanes(count - i);
    if (shortcut && !S::any(((intersection > loose * united) | (united < small)) & present)) continue;
    const Vec overlap = box_overlap(here, there, intersection, united, rule.overlap);
    const Vec limit = rule.columns > kNmsThresholdColumn ? S::load(list.column(kNmsThresholdColumn) + i) : exact;
    const IntVec suppressing = (overlap > limit) & present;
    if (!S::any(suppressing)) continue;
    // Boxes are listed in the order in which they were kept, so the first lane is the first position.
    if (!first_of_all) return 0;
    return list.get_int(kNmsRankColumn, i + S::first_true(suppressing));
  }
  return kNmsNobody;
}

template <class A>
class Grid {
 public:
  CVK_HD Grid() {}  // both spelled out so that they are inlined: see the note on symbols in isa.h
  CVK_HD ~Grid() {}

  // Allots cells to positions [first, last) of `boxes`. False where every pair must be tested.
  template <Isa isa>
  CVK_HD bool build(const BoxArrays<A>& boxes, int64_t first, int64_t last, const NmsRule<A>& rule);

  // The cell of a position, -1 for an inert box.
  CVK_HD int32_t cell_of(int64_t position) const { return cell_of_[position - first_]; }
  CVK_HD bool is_inert(int64_t position) const { return cell_of(position) < 0; }

  // suppressor_of over the kept boxes in reach.
  template <Isa isa, bool first_of_all>
  CVK_HD int64_t suppressor(const BoxWithArea<A>& box, const NmsRule<A>& rule) const {
    int64_t found = kNmsNobody;
    levels_.for_each_row(box, rule.threshold, [&](int64_t from, int64_t to) {
      for (const Cell* cell = cells_ + from; cell < cells_ + to; ++cell) {
        if (cell->kept == 0) continue;
        if (first_of_all && cell->first > found) continue;  // and so are the others in it
        const int64_t position = suppressor_of<isa, first_of_all>(boxes_of(*cell), cell->kept, box, rule);
        found = min_of(found, position);
        if (!first_of_all && found != kNmsNobody) return true;
      }
      return false;
    });
    return found;
  }

  // Adds a kept box. Those of one cell must come in the order in which they were kept.
  CVK_HD void insert(int64_t position, const BoxWithArea<A>& box, const NmsRule<A>& rule) {
    Cell& cell = cells_[cell_of(position)];
    if (cell.kept == 0) cell.first = static_cast<int32_t>(position);
    rule.list(boxes_of(cell), cell.kept++, position, box);
  }

 private:
  struct Cell {
    uint32_t begin, kept;  // the next cell's begin ends this one's slots
    int32_t first;         // position of its first kept box
  };

  // A cell's slots are one block of memory, coordinate after coordinate: a look at a cell costs a cache line or two.
  CVK_HD BoxArrays<A> boxes_of(const Cell& cell) const {
    return {slots_ + int64_t{columns_} * cell.begin, static_cast<int64_t>((&cell)[1].begin) - cell.begin};
  }

  BoxLevels<A> levels_;
  int64_t first_ = 0;
  int columns_ = BoxArrays<A>::kColumns;
  int32_t* cell_of_ = nullptr;  // [last - first], -1 for inert boxes
  Cell* cells_ = nullptr;
  A* slots_ = nullptr;
  Scratch memory_;
};

template <class A>
template <Isa isa>
CVK_HD bool Grid<A>::build(const BoxArrays<A>& boxes, int64_t first, int64_t last, const NmsRule<A>& rule) {
  if (!levels_.build(boxes, first, last, rule.threshold)) return false;
  first_ = first;
  columns_ = rule.columns;
  const int64_t size = last - first, cells = levels_.cells();

  // One allocation: slots (and a vector to read beyond them), cells (and one that ends the last), cell_of.
  const int64_t slot_bytes = round_up<int64_t>(BoxArrays<A>::bytes(size, columns_) + kSimdBytes<isa>, 64);
  const int64_t cell_bytes = (cells + 1) * static_cast<int64_t>(sizeof(Cell));
  memory_.reset(slot_bytes + cell_bytes + size * static_cast<int64_t>(sizeof(int32_t)));
  slots_ = memory_.template as<A>();
  cells_ = reinterpret_cast<Cell*>(memory_.template as<char>() + slot_bytes);
  cell_of_ = reinterpret_cast<int32_t*>(cells_ + cells + 1);
  memset(static_cast<void*>(cells_), 0, static_cast<size_t>(cell_bytes));

  for (int64_t i = first; i < last; ++i) {
    const BoxWithArea<A> b = boxes.get(i);
    const bool inert = box_is_inert(b.box, b.area);
    cell_of_[i - first] = inert ? -1 : static_cast<int32_t>(levels_.cell_of(b));
    if (!inert) ++cells_[cell_of_[i - first]].kept;
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

}  // namespace cvk
