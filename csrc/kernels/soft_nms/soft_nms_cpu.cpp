// Soft-NMS on the CPU. Contract and method: soft_nms.h.
#include "kernels/soft_nms/soft_nms.h"

#include <limits>

#include "common/box_segments.h"
#include "common/neighbours.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/soft_nms/soft_nms_math.h"

namespace cvk {
namespace {

template <class A>
struct Selected {
  A score;
  uint32_t index;
};

// Current scores by slot under a tree of maxima. A score below 0 is out. Ties go to the lowest index, so every node knows
// score and index of its best.
template <Isa isa, class A>
class ScoreTree {
 public:
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using Int = typename S::IntElement;
  using IntVec = typename S::IntVec;

  struct Best {
    A score;
    Int index;
  };

  CVK_HD ScoreTree() {}
  CVK_HD ~ScoreTree() {}

  // All out.
  CVK_HD void build(int64_t size) {
    leaves_ = round_up<int64_t>(size, kSoftNmsBlock);
    blocks_ = round_up<int64_t>(leaves_ / kSoftNmsBlock, kSoftNmsBlock);
    tops_ = round_up<int64_t>(blocks_ / kSoftNmsBlock, S::kLanes);
    const int64_t all = leaves_ + S::kLanes + blocks_ + tops_;  // a vector may be read behind the leaves
    memory_.reset(2 * all * static_cast<int64_t>(sizeof(A)));
    score_ = memory_.template as<A>();
    index_ = reinterpret_cast<Int*>(score_ + all);
    for (int64_t i = 0; i < all; ++i) {
      score_[i] = A(-1);
      index_[i] = kNone;
    }
  }
  CVK_HD void set(int64_t slot, A score, Int index) {
    score_[slot] = score;
    index_[slot] = index;
  }
  CVK_HD A* scores() const { return score_; }

  // Brings the maxima above slots [first, last) up to date.
  CVK_HD void refresh(int64_t first, int64_t last) {
    const int64_t block = first / kSoftNmsBlock, block_end = (last - 1) / kSoftNmsBlock + 1;
    for (int64_t b = block; b < block_end; ++b) put(first_block() + b, best_of(b * kSoftNmsBlock, kSoftNmsBlock));
    if (blocks_ == kSoftNmsBlock) return;  // the blocks are the top
    const int64_t top = block / kSoftNmsBlock, top_end = (block_end - 1) / kSoftNmsBlock + 1;
    for (int64_t t = top; t < top_end; ++t)
      put(first_top() + t, best_of(first_block() + t * kSoftNmsBlock, kSoftNmsBlock));
  }

  // The best of all, and its slot; -1 where all are out.
  CVK_HD int64_t find(Best* best) const {
    int64_t node;
    if (blocks_ == kSoftNmsBlock) {
      *best = best_of(first_block(), blocks_);
      if (best->score < A(0)) return -1;
      node = where(first_block(), best->index);
    } else {
      *best = best_of(first_top(), tops_);
      if (best->score < A(0)) return -1;
      node = where(first_block() + where(first_top(), best->index) * kSoftNmsBlock, best->index) +
             where(first_top(), best->index) * kSoftNmsBlock;
    }
    return node * kSoftNmsBlock + where(node * kSoftNmsBlock, best->index);
  }

 private:
  static constexpr Int kNone = std::numeric_limits<Int>::max();

  CVK_HD int64_t first_block() const { return leaves_ + S::kLanes; }
  CVK_HD int64_t first_top() const { return first_block() + blocks_; }
  CVK_HD void put(int64_t node, const Best& best) {
    score_[node] = best.score;
    index_[node] = best.index;
  }
  // `count` is a multiple of the lanes.
  CVK_HD Best best_of(int64_t first, int64_t count) const {
    Vec most = S::load(score_ + first);
    for (int64_t i = S::kLanes; i < count; i += S::kLanes) most = max_of(most, S::load(score_ + first + i));
    const A score = S::reduce_max(most);
    IntVec least = IntVec{} + kNone;
    for (int64_t i = 0; i < count; i += S::kLanes) {
      const IntVec index = S::load_int(index_ + first + i);
      least = min_of(least, S::load(score_ + first + i) == S::broadcast(score) ? index : IntVec{} + kNone);
    }
    return {score, S::reduce_min(least)};
  }
  // The offset from `first` of the node whose best has this index; it exists.
  CVK_HD int64_t where(int64_t first, Int index) const {
    for (int64_t i = 0;; i += S::kLanes) {
      const IntVec equal = S::load_int(index_ + first + i) == IntVec{} + index;
      if (S::any(equal)) return i + S::first_true(equal);
    }
  }

  int64_t leaves_ = 0, blocks_ = 0, tops_ = 0;
  A* score_ = nullptr;
  Int* index_ = nullptr;
  Scratch memory_;
};

// Positions [first, last) of one class; returns how many were selected, in order, into `selected`.
template <Isa isa, class A>
CVK_HD int64_t select(const SoftNmsParams<A>& params, const A* scores, const BoxSegments<A>& segments, int64_t first,
                      int64_t last, Selected<A>* selected) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  // The segment is sorted by score: what is below min_score from the start lies at its end.
  while (last > first && !(scores[segments.index(last - 1)] >= params.min_score)) --last;
  const int64_t size = last - first, limit = min_of(size, params.max_output);
  if (limit == 0) return 0;

  // Only hard removal at a negative threshold reaches boxes that do not overlap.
  const A prune = params.method == SoftNmsMethod::kHard       ? params.threshold
                  : params.method == SoftNmsMethod::kGaussian ? A(0)
                                                              : max_of(params.threshold, A(0));
  Neighbours<A> neighbours;
  neighbours.template build<isa>(segments.boxes(), first, last, prune, kSoftNmsGridSegment);
  const BoxArrays<A>& boxes = neighbours.boxes();
  ScoreTree<isa, A> tree;
  tree.build(size);
  for (int64_t slot = 0; slot < size; ++slot) {
    const int64_t index = segments.index(neighbours.position(slot));
    tree.set(slot, scores[index], static_cast<typename S::IntElement>(index));
  }
  tree.refresh(0, size);

  A* const current = tree.scores();
  for (int64_t done = 0; done < limit; ++done) {
    typename ScoreTree<isa, A>::Best best;
    const int64_t chosen = tree.find(&best);
    if (chosen < 0) return done;
    selected[done] = {best.score, static_cast<uint32_t>(best.index)};
    current[chosen] = A(-1);
    // Slots whose maxima are out of date, brought up to date once the next change lies elsewhere.
    int64_t changed_from = chosen, changed_to = chosen + 1;
    neighbours.template for_each_overlap<isa>(
        boxes.get(chosen), params.overlap, [&](int64_t i) { return S::load(current + i) >= Vec{}; },
        [&](int64_t i, typename S::IntVec lanes, Vec overlap) {
          const Vec score = S::load(current + i);
          const Vec weight = soft_nms_weight(overlap, params.method, params.threshold, params.sigma);
          S::store(current + i, lanes ? soft_nms_decayed(score, weight, params.min_score) : score);
          if (i < changed_from || i > changed_to + kSoftNmsBlock) {
            tree.refresh(changed_from, changed_to);
            changed_from = changed_to = i;
          }
          changed_to = max_of(changed_to, min_of<int64_t>(i + S::kLanes, size));
        });
    tree.refresh(changed_from, changed_to);
  }
  return limit;
}

// Sorts by descending score, ties by index: the order in which a loop over all classes would have selected.
template <class A>
CVK_HD void merge(Selected<A>* selected, int64_t count) {
  using Key = decltype(descending_key(A(0)));
  const Scratch memory(2 * count * static_cast<int64_t>(sizeof(Keyed<Key>)) +
                       count * static_cast<int64_t>(sizeof(Selected<A>)));
  Keyed<Key>* entries = memory.as<Keyed<Key>>();
  Selected<A>* sorted = reinterpret_cast<Selected<A>*>(entries + 2 * count);
  for (int64_t i = 0; i < count; ++i) entries[i] = {selected[i].index, static_cast<uint32_t>(i)};
  const Keyed<Key>* by_index = radix_sort(entries, entries + count, count);
  for (int64_t i = 0; i < count; ++i) sorted[i] = selected[by_index[i].value];
  for (int64_t i = 0; i < count; ++i) entries[i] = {descending_key(sorted[i].score), static_cast<uint32_t>(i)};
  const Keyed<Key>* by_score = radix_sort(entries, entries + count, count);
  for (int64_t i = 0; i < count; ++i) selected[i] = sorted[by_score[i].value];
}

}  // namespace

template <Isa isa, class A>
void soft_nms_cpu(const SoftNmsParams<A>& params, int64_t image, const Parallel& parallel) {
  const int64_t count = params.count;
  const A* const scores = params.scores + image * count;
  int64_t* const keep = params.keep + image * params.max_output;
  A* const new_scores = params.new_scores + image * params.max_output;
  int64_t used = 0;
  if (count > 0 && params.max_output > 0) {
    BoxSegments<A> segments;
    segments.template build<isa>(params.boxes + image * count * 4, scores,
                                 params.classes != nullptr ? params.classes + image * count : nullptr, count, parallel);
    const int64_t ranked = segments.ranked(), classes = segments.segments();
    const Scratch memory(ranked * static_cast<int64_t>(sizeof(Selected<A>)));
    const Scratch counts(classes * static_cast<int64_t>(sizeof(int64_t)));
    Selected<A>* const selected = memory.as<Selected<A>>();  // by position: each class at its own
    int64_t* const selected_of = counts.as<int64_t>();
    const int64_t grain = ranked > 0 ? max_of<int64_t>(1, classes * kSoftNmsSegmentGrain / ranked) : 1;
    parallel(classes, grain, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        selected_of[s] =
            select<isa>(params, scores, segments, segments.begin(s), segments.end(s), selected + segments.begin(s));
      }
    });
    int64_t all = 0;
    for (int64_t s = 0; s < classes; ++s) {
      for (int64_t i = 0; i < selected_of[s]; ++i) selected[all++] = selected[segments.begin(s) + i];
    }
    if (classes > 1) merge(selected, all);
    used = min_of(all, params.max_output);
    for (int64_t i = 0; i < used; ++i) {
      keep[i] = selected[i].index;
      new_scores[i] = selected[i].score;
    }
  }
  params.kept[image] = used;
  for (int64_t i = used; i < params.max_output; ++i) {
    keep[i] = -1;
    new_scores[i] = A(0);
  }
}

#define CVK_INSTANTIATE(A) \
  template void soft_nms_cpu<Isa::CVK_ISA, A>(const SoftNmsParams<A>&, int64_t, const Parallel&);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
#undef CVK_INSTANTIATE

}  // namespace cvk
