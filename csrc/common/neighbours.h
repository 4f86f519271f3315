// All boxes of one segment in slots such that the boxes that a box can overlap lie in a few runs of slots, read as whole
// vectors. Large segments are sorted into the cells of common/box_levels.h; in small ones slots are in order of position.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/box_arrays.h"
#include "common/box_levels.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace cvk {

template <class A>
class Neighbours {
 public:
  CVK_HD Neighbours() {}  // both spelled out so that they are inlined: see the note on symbols in isa.h
  CVK_HD ~Neighbours() {}

  // Of positions [first, last) of `boxes`, for pairs whose overlap is above `threshold`; the grid is used from `grid_from`
  // boxes on.
  template <Isa isa>
  CVK_HD void build(const BoxArrays<A>& boxes, int64_t first, int64_t last, A threshold, int64_t grid_from,
                    const Parallel& parallel = {});

  CVK_HD int64_t size() const { return size_; }
  CVK_HD bool sorted() const { return sorted_; }  // into cells
  CVK_HD int64_t position(int64_t slot) const { return first_ + (sorted_ ? offset_[slot] : slot); }
  // By slot. One vector may be read behind the end of a column.
  CVK_HD const BoxArrays<A>& boxes() const { return boxes_; }

  // Calls visit(slot, lanes, overlap) for vectors of slots in which a lane that `wanted(slot)` holds has an intersection large
  // enough for an overlap above the threshold; `lanes` are those, `overlap` is exact in them. Stops and returns true as soon as
  // visit does; a visit without a result never does.
  template <Isa isa, class Wanted, class Visit>
  CVK_HD bool for_each_overlap(const BoxWithArea<A>& box, const OverlapRule<A>& rule, Wanted&& wanted,
                               Visit&& visit) const {
    using S = Simd<isa, A>;
    using Vec = typename S::Vec;
    const Box<Vec> here = broadcast_box<isa>(box.box);
    const Vec area = S::broadcast(box.area), loose = S::broadcast(loose_threshold(threshold_));
    const Vec small = S::broadcast(small_union<A>());
    const bool shortcut = has_shortcut(threshold_);
    return for_each_run(box, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += S::kLanes) {
        typename S::IntVec lanes = wanted(i) & S::first_lanes(end - i);
        if (!S::any(lanes)) continue;
        const Box<Vec> there = boxes_.template load<isa>(i);
        const Vec intersection = box_intersection(here, there);
        const Vec united = box_union(area, S::load(boxes_.column(4) + i), intersection);
        if (shortcut) lanes &= (intersection > loose * united) | (united < small);
        if (S::any(lanes) && stops(visit, i, lanes, box_overlap(here, there, intersection, united, rule))) return true;
      }
      return false;
    });
  }

  // Calls visit(first slot, last slot) for runs of slots that together hold every box whose overlap with `box` is above the
  // threshold. Stops and returns true as soon as visit does.
  template <class Visit>
  CVK_HD bool for_each_run(const BoxWithArea<A>& box, Visit&& visit) const {
    if (!sorted_) return stops(visit, int64_t{0}, size_);
    if (box_is_inert(box.box, box.area)) return false;
    return levels_.for_each_row(box, threshold_, [&](int64_t from, int64_t to) {
      const int64_t first = begin_[from], last = begin_[to];
      return first < last && stops(visit, first, last);
    });
  }

 private:
  template <class Visit, class... Arguments>
  static CVK_HD bool stops(Visit&& visit, const Arguments&... arguments) {
    if constexpr (std::is_void_v<decltype(visit(arguments...))>) {
      visit(arguments...);
      return false;
    } else {
      return visit(arguments...);
    }
  }

  BoxLevels<A> levels_;
  BoxArrays<A> boxes_{nullptr, 0};
  A threshold_ = A(0);
  int64_t first_ = 0, size_ = 0;
  bool sorted_ = false;
  uint32_t* begin_ = nullptr;   // [cells + 1] first slot of a cell; inert boxes lie behind the last cell
  uint32_t* offset_ = nullptr;  // [size] slot -> position - first
  Scratch memory_;
};

template <class A>
template <Isa isa>
CVK_HD void Neighbours<A>::build(const BoxArrays<A>& boxes, int64_t first, int64_t last, A threshold, int64_t grid_from,
                                 const Parallel& parallel) {
  first_ = first;
  size_ = last - first;
  threshold_ = threshold;
  boxes_ = {boxes.base + first, boxes.stride};
  sorted_ = size_ >= grid_from && levels_.build(boxes, first, last, threshold);
  if (!sorted_) return;
  const int64_t cells = levels_.cells();
  const int64_t box_bytes = round_up<int64_t>(BoxArrays<A>::bytes(size_) + kSimdBytes<isa>, 64);
  memory_.reset(box_bytes + (cells + 2 + size_) * static_cast<int64_t>(sizeof(uint32_t)));
  boxes_ = {memory_.template as<A>(), size_};
  begin_ = reinterpret_cast<uint32_t*>(memory_.template as<char>() + box_bytes);
  offset_ = begin_ + cells + 2;

  // Counting sort by cell; begin_[c + 1] counts, then points at the next free slot of cell c.
  const auto cell_of = [&](const BoxWithArea<A>& b) {
    return box_is_inert(b.box, b.area) ? cells : levels_.cell_of(b);
  };
  memset(begin_, 0, static_cast<size_t>(cells + 2) * sizeof(uint32_t));
  const Scratch places(size_ * static_cast<int64_t>(sizeof(uint32_t)));
  uint32_t* const cell = places.as<uint32_t>();
  constexpr int64_t kGrain = 32768;  // 100 us
  parallel(size_, kGrain, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) cell[i] = static_cast<uint32_t>(cell_of(boxes.get(first + i)));
  });
  for (int64_t i = 0; i < size_; ++i) ++begin_[cell[i] + 1];
  uint32_t running = 0;
  for (int64_t c = 1; c <= cells + 1; ++c) {
    const uint32_t here = begin_[c];
    begin_[c] = running;
    running += here;
  }
  for (int64_t i = 0; i < size_; ++i) {
    const int64_t slot = begin_[cell[i] + 1]++;
    offset_[slot] = static_cast<uint32_t>(i);
    boxes_.set(slot, boxes.get(first + i));
  }
}

}  // namespace cvk
