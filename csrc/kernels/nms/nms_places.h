// Hard NMS of a large segment in the order of places instead of scores.
//
// A box is kept unless a kept box ranked before it suppresses it, and only its neighbours can. So every box asks its neighbours,
// each of which may have to ask its own first; ranks fall from one to the next, so that this ends. Boxes are visited cell by
// cell: what they ask lies near in memory, however large the segment, and threads take stretches of cells. Two threads may
// decide one box, alike.
#pragma once

#include <cstdint>

#include "common/neighbours.h"
#include "common/radix_sort.h"
#include "common/scratch.h"
#include "kernels/nms/nms_list.h"
#include "kernels/nms/nms_tuning.h"

namespace cvk {

// The boxes that wait for an answer of the one above them. Nearly always a few; in a chain of boxes, all of them.
class NmsPending {
 public:
  CVK_HD NmsPending() {}  // both spelled out so that they are inlined: see the note on symbols in isa.h
  CVK_HD ~NmsPending() {}
  CVK_HD bool empty() const { return size_ == 0; }
  CVK_HD uint32_t top() const { return items_[size_ - 1]; }
  CVK_HD void pop() { --size_; }
  CVK_HD void push(uint32_t slot) {
    if (size_ == capacity_) grow();
    items_[size_++] = slot;
  }

 private:
  CVK_HD void grow() {
    Scratch& larger = memory_[which_ ^= 1];
    larger.reset(2 * capacity_ * static_cast<int64_t>(sizeof(uint32_t)));
    memcpy(larger.as<uint32_t>(), items_, static_cast<size_t>(size_) * sizeof(uint32_t));
    memory_[which_ ^ 1].reset(0);
    items_ = larger.as<uint32_t>();
    capacity_ *= 2;
  }

  uint32_t few_[64];
  uint32_t* items_ = few_;
  int64_t size_ = 0, capacity_ = 64;
  Scratch memory_[2];
  int which_ = 0;
};

template <Isa isa, class A>
class NmsPlaces {
 public:
  // Of positions [first, last) of `boxes`. False where the boxes do not suit the cells.
  CVK_HD bool build(const BoxArrays<A>& boxes, int64_t first, int64_t last, const NmsRule<A>& rule,
                    const Parallel& parallel) {
    rule_ = rule;
    neighbours_.template build<isa>(boxes, first, last, rule.threshold, 0, parallel);
    if (!neighbours_.sorted()) return false;
    state_memory_.reset(neighbours_.size() + Simd<isa, A>::kLanes);
    state_ = state_memory_.template as<uint8_t>();
    memset(state_, kOpen, static_cast<size_t>(neighbours_.size()) + Simd<isa, A>::kLanes);
    return true;
  }
  CVK_HD NmsPlaces() {}
  CVK_HD ~NmsPlaces() {}

  CVK_HD int64_t size() const { return neighbours_.size(); }
  CVK_HD int64_t position(int64_t slot) const { return neighbours_.position(slot); }
  CVK_HD bool is_kept(int64_t slot) const { return state_[slot] == kKept; }

  // Decides slots [first, last), in stretches of cells, each by rank: most of what its boxes ask is decided then.
  CVK_HD void decide(int64_t first, int64_t last) const {
    NmsPending pending;
    const Scratch memory(2 * kNmsStretch * static_cast<int64_t>(sizeof(Keyed<uint32_t>)));
    Keyed<uint32_t>* const entries = memory.as<Keyed<uint32_t>>();
    for (int64_t begin = first; begin < last; begin += kNmsStretch) {
      const int64_t count = min_of(kNmsStretch, last - begin);
      for (int64_t i = 0; i < count; ++i) {
        entries[i] = {static_cast<uint32_t>(position(begin + i)), static_cast<uint32_t>(begin + i)};
      }
      const Keyed<uint32_t>* ranked = radix_sort(entries, entries + kNmsStretch, count);
      for (int64_t i = 0; i < count; ++i) decide(ranked[i].value, pending);
    }
  }
  // The position of the first kept box that suppresses the box of this slot; kNmsNobody for none. Once all is decided.
  CVK_HD int64_t owner(int64_t slot) const {
    int64_t found = kNmsNobody;
    for_each_overlap(slot, [&](int64_t other, int64_t at, A overlap) {
      if (at < found && at < position(slot) && is_kept(other) && overlap > rule_.threshold_of(at)) found = at;
      return false;
    });
    return found;
  }

 private:
  enum : uint8_t { kOpen, kKept, kSuppressed };
  static constexpr int64_t kNone = -1;

  CVK_HD void decide(uint32_t slot, NmsPending& pending) const {
    if (state(slot) != kOpen) return;
    for (pending.push(slot); !pending.empty();) {
      const int64_t asked = state(pending.top()) == kOpen ? look(pending.top()) : kNone;
      if (asked == kNone)
        pending.pop();
      else
        pending.push(static_cast<uint32_t>(asked));
    }
  }

  // Threads read what others are deciding: no order is needed, since an answer does not depend on who gives it.
  CVK_HD uint8_t state(int64_t slot) const { return __atomic_load_n(state_ + slot, __ATOMIC_RELAXED); }
  CVK_HD void set(int64_t slot, uint8_t state) const { __atomic_store_n(state_ + slot, state, __ATOMIC_RELAXED); }

  // Perf: vectors of boxes known to be suppressed are passed over. What this reads may be out of date, which costs a test.
  // Calls visit(slot, position, overlap) for the others whose overlap is above the common threshold, until it returns true.
  template <class Visit>
  CVK_HD bool for_each_overlap(int64_t slot, Visit&& visit) const {
    using S = Simd<isa, A>;
    const typename S::Vec limit = S::broadcast(rule_.threshold);
    return neighbours_.template for_each_overlap<isa>(
        neighbours_.boxes().get(slot), rule_.overlap,
        [&](int64_t i) { return S::load_bytes(state_ + i) != static_cast<typename S::IntElement>(kSuppressed); },
        [&](int64_t i, typename S::IntVec lanes, typename S::Vec overlap) {
          A overlaps[S::kLanes];
          uint32_t bits = S::lane_bits(lanes & (overlap > limit));
          if (bits == 0) return false;
          S::store(overlaps, overlap);
          for (; bits != 0; bits &= bits - 1) {
            const int lane = __builtin_ctz(bits);
            if (i + lane != slot && visit(i + lane, position(i + lane), overlaps[lane])) return true;
          }
          return false;
        });
  }

  // Decides an open box, or returns the slot of a box that must be decided before it.
  CVK_HD int64_t look(int64_t slot) const {
    constexpr int kMostClaimed = 64;
    const int64_t mine = position(slot);
    const A limit = rule_.threshold_of(mine);
    int64_t asked = kNone, asked_position = mine;
    uint32_t claimed[kMostClaimed];
    int claims = 0;
    const bool suppressed = for_each_overlap(slot, [&](int64_t other, int64_t at, A overlap) {
      const uint8_t known = state(other);
      if (known == kSuppressed) return false;
      if (at > mine) {
        if (overlap > limit && claims++ < kMostClaimed) claimed[claims - 1] = static_cast<uint32_t>(other);
        return false;
      }
      if (!(overlap > rule_.threshold_of(at))) return false;
      if (known == kKept) return true;
      if (at < asked_position) {  // of several, the one that is most likely kept
        asked = other;
        asked_position = at;
      }
      return false;
    });
    if (suppressed) {
      set(slot, kSuppressed);
      return kNone;
    }
    if (asked != kNone) return asked;
    set(slot, kKept);
    // Perf: later boxes that this one suppresses need not ask.
    if (claims <= kMostClaimed) {
      for (int i = 0; i < claims; ++i) set(claimed[i], kSuppressed);
      return kNone;
    }
    for_each_overlap(slot, [&](int64_t other, int64_t at, A overlap) {
      if (at > mine && overlap > limit) set(other, kSuppressed);
      return false;
    });
    return kNone;
  }

  Neighbours<A> neighbours_;
  NmsRule<A> rule_{};
  uint8_t* state_ = nullptr;  // [size] by slot
  Scratch state_memory_;
};

}  // namespace cvk
