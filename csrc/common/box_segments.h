// Boxes in the order in which NMS visits them: by descending score, ties by index, class after class.
#pragma once

#include <cstdint>

#include "common/box_arrays.h"
#include "common/parallel.h"
#include "common/radix_sort.h"
#include "common/scratch.h"

namespace cvk {

// A *rank* counts boxes by descending score, NaN scores left out. A *position* counts them class after class, in rank order
// within a class: a class is a segment of positions. With one class, position and rank are the same.
template <class A>
class BoxSegments {
 public:
  CVK_HD BoxSegments() {}  // both spelled out so that they are inlined: see the note on symbols in isa.h
  CVK_HD ~BoxSegments() {}

  template <Isa isa, class S>
  CVK_HD void build(const A* boxes,          // [count, 4]
                    const S* scores,         // [count]
                    const int64_t* classes,  // [count] or null
                    int64_t count, const Parallel& parallel);

  CVK_HD int64_t ranked() const { return ranked_; }
  CVK_HD int64_t segments() const { return segments_; }
  CVK_HD int64_t begin(int64_t segment) const { return begin_ != nullptr ? begin_[segment] : 0; }
  CVK_HD int64_t end(int64_t segment) const { return begin_ != nullptr ? begin_[segment + 1] : ranked_; }
  CVK_HD int64_t size(int64_t segment) const { return end(segment) - begin(segment); }
  CVK_HD int64_t rank(int64_t position) const { return rank_of_ != nullptr ? rank_of_[position] : position; }
  CVK_HD int64_t index_of_rank(int64_t rank) const { return order_[rank]; }
  CVK_HD int64_t index(int64_t position) const { return order_[rank(position)]; }
  // By position. One vector may be read behind the end of a column.
  CVK_HD const BoxArrays<A>& boxes() const { return boxes_; }

 private:
  // Boxes gathered into order that a thread should get at least: 100 us.
  static constexpr int64_t kGatherGrain = 32768;

  template <class S>
  CVK_HD void rank_by_score(const S* scores, int64_t count);
  CVK_HD void group_by_class(const int64_t* classes);

  int64_t ranked_ = 0, segments_ = 0;
  uint32_t* order_ = nullptr;    // [ranked] rank -> index
  uint32_t* rank_of_ = nullptr;  // [ranked] position -> rank, or null
  uint32_t* begin_ = nullptr;    // [segments + 1], or null
  BoxArrays<A> boxes_{nullptr, 0};
  Scratch order_memory_, class_memory_, box_memory_;
};

template <class A>
template <class S>
CVK_HD void BoxSegments<A>::rank_by_score(const S* scores, int64_t count) {
  using Key = decltype(descending_key(S(0)));
  const Scratch memory(2 * count * static_cast<int64_t>(sizeof(Keyed<Key>)));
  Keyed<Key>* entries = memory.as<Keyed<Key>>();
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] == scores[i]) entries[ranked_++] = {descending_key(scores[i]), static_cast<uint32_t>(i)};
  }
  const Keyed<Key>* sorted = radix_sort(entries, entries + count, ranked_);
  order_memory_.reset(ranked_ * static_cast<int64_t>(sizeof(uint32_t)));
  order_ = order_memory_.as<uint32_t>();
  for (int64_t i = 0; i < ranked_; ++i) order_[i] = sorted[i].value;
}

template <class A>
CVK_HD void BoxSegments<A>::group_by_class(const int64_t* classes) {
  bool one = true;
  for (int64_t rank = 1; rank < ranked_ && one; ++rank) one = classes[order_[rank]] == classes[order_[0]];
  if (one) return;
  const Scratch memory(2 * ranked_ * static_cast<int64_t>(sizeof(Keyed<uint64_t>)));
  Keyed<uint64_t>* entries = memory.as<Keyed<uint64_t>>();
  for (int64_t rank = 0; rank < ranked_; ++rank) {
    entries[rank] = {static_cast<uint64_t>(classes[order_[rank]]), static_cast<uint32_t>(rank)};
  }
  const Keyed<uint64_t>* sorted = radix_sort(entries, entries + ranked_, ranked_);
  class_memory_.reset((2 * ranked_ + 1) * static_cast<int64_t>(sizeof(uint32_t)));
  rank_of_ = class_memory_.as<uint32_t>();
  begin_ = rank_of_ + ranked_;
  segments_ = 0;
  for (int64_t i = 0; i < ranked_; ++i) {
    if (i == 0 || sorted[i].key != sorted[i - 1].key) begin_[segments_++] = static_cast<uint32_t>(i);
    rank_of_[i] = sorted[i].value;
  }
  begin_[segments_] = static_cast<uint32_t>(ranked_);
}

template <class A>
template <Isa isa, class S>
CVK_HD void BoxSegments<A>::build(const A* boxes, const S* scores, const int64_t* classes, int64_t count,
                                  const Parallel& parallel) {
  ranked_ = 0;
  rank_by_score(scores, count);
  segments_ = ranked_ > 0 ? 1 : 0;
  if (classes != nullptr) group_by_class(classes);
  box_memory_.reset(BoxArrays<A>::bytes(ranked_) + kSimdBytes<isa>);
  boxes_ = {box_memory_.template as<A>(), ranked_};
  parallel(ranked_, kGatherGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const A* p = boxes + int64_t{4} * index(i);
      const Box<A> box{p[0], p[1], p[2], p[3]};
      boxes_.set(i, BoxWithArea<A>{box, box_area(box)});
    }
  });
}

}  // namespace cvk
