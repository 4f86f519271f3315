// How a kept box suppresses, and a plain list of kept boxes, ready for SIMD.
#pragma once

#include <cstdint>
#include <limits>

#include "common/box_arrays.h"
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

}  // namespace cvk
