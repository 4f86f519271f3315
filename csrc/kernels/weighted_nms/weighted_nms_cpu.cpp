// Merge rules on the CPU. Contract and method: weighted_nms.h.
#include "kernels/weighted_nms/weighted_nms.h"

#include "common/box_segments.h"
#include "common/neighbours.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/weighted_nms/weighted_nms_math.h"

namespace cvk {
namespace {

template <class A>
CVK_HD BoxWithArea<A> box_at(const A* boxes, int64_t i) {
  const A* p = boxes + 4 * i;
  const Box<A> box{p[0], p[1], p[2], p[3]};
  return {box, box_area(box)};
}

// Kept boxes by position, so that those of a class lie together.
template <class A>
struct KeptByPosition {
  Scratch memory;
  const Keyed<uint32_t>* entries = nullptr;  // key position, value row in keep
  int64_t count = 0;

  CVK_HD KeptByPosition() {}
  CVK_HD ~KeptByPosition() {}

  CVK_HD void build(const BoxSegments<A>& segments, const int64_t* keep, int64_t slots, int64_t boxes) {
    if (boxes == 0) return;
    constexpr uint32_t kUnranked = 0xffffffffu;
    const Scratch places(boxes * static_cast<int64_t>(sizeof(uint32_t)));
    uint32_t* position_of = places.as<uint32_t>();
    memset(position_of, 0xff, static_cast<size_t>(boxes) * sizeof(uint32_t));
    for (int64_t i = 0; i < segments.ranked(); ++i) position_of[segments.index(i)] = static_cast<uint32_t>(i);
    memory.reset(2 * slots * static_cast<int64_t>(sizeof(Keyed<uint32_t>)));
    Keyed<uint32_t>* unsorted = memory.as<Keyed<uint32_t>>();
    for (int64_t row = 0; row < slots; ++row) {
      const uint32_t position = position_of[keep[row]];
      if (position != kUnranked) unsorted[count++] = {position, static_cast<uint32_t>(row)};
    }
    entries = radix_sort(unsorted, unsorted + slots, count);
  }
  // The first entry whose position is at least this.
  CVK_HD int64_t lower_bound(int64_t position) const {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (entries[middle].key < position)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

// Calls f(segment, parallel) for every class: several in parallel, or a single one with the whole loop lent to it.
template <class A, class F>
CVK_HD void for_each_segment(const BoxSegments<A>& segments, const Parallel& parallel, F&& f) {
  if (segments.segments() == 1) {
    f(int64_t{0}, parallel);
    return;
  }
  const int64_t grain =
      max_of<int64_t>(1, segments.segments() * kWeightedNmsGrain / max_of<int64_t>(1, segments.ranked()));
  parallel(segments.segments(), grain, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) f(s, Parallel{});
  });
}

// Positions by slot, as integers of the lanes' width.
template <Isa isa, class A>
class Positions {
 public:
  using S = Simd<isa, A>;
  CVK_HD explicit Positions(const Neighbours<A>& neighbours)
      : memory_((neighbours.size() + S::kLanes) * static_cast<int64_t>(sizeof(A))),
        position_(memory_.template as<typename S::IntElement>()) {
    for (int64_t i = 0; i < neighbours.size(); ++i) {
      position_[i] = static_cast<typename S::IntElement>(neighbours.position(i));
    }
  }
  CVK_HD ~Positions() {}
  CVK_HD typename S::IntVec at(int64_t slot) const { return S::load_int(position_ + slot); }

 private:
  Scratch memory_;
  typename S::IntElement* position_;
};

// Weighted differences from one box, per coordinate.
template <Isa isa, class A>
struct Mean {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  Vec weights[4], differences[4];

  CVK_HD Mean() {
    for (int c = 0; c < 4; ++c) weights[c] = differences[c] = Vec{};
  }
  CVK_HD void add(int c, Vec weight, Vec difference, typename S::IntVec lanes) {
    weights[c] += lanes ? weight : Vec{};
    differences[c] += lanes ? weight * difference : Vec{};
  }
  CVK_HD A moved(int c, A coordinate, A own_weight) const {
    return weighted_nms_moved(coordinate, S::reduce_add(differences[c]), S::reduce_add(weights[c]) + own_weight);
  }
};

}  // namespace

template <Isa isa, class A>
void weighted_nms_merge_cpu(const WeightedNmsMergeParams<A>& params, int64_t image) {
  const int64_t count = params.count, slots = params.slots;
  const A* const boxes = params.boxes + image * count * 4;
  const A* const scores = params.scores + image * count;
  const int64_t* const keep = params.keep + image * slots;
  const int64_t* const owner = params.owner + image * count;
  A* const merged = params.merged + image * slots * 4;
  constexpr int kSums = 5;  // of the weighted differences and of the weights
  const Scratch memory(kSums * slots * static_cast<int64_t>(sizeof(A)));
  A* const sums = memory.as<A>();
  for (int64_t i = 0; i < kSums * slots; ++i) sums[i] = A(0);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t row = owner[j];
    if (row < 0) continue;
    A* const sum = sums + kSums * row;
    const int64_t k = keep[row];
    if (k == j) {
      sum[4] += scores[j];
      continue;
    }
    const BoxWithArea<A> here = box_at(boxes, k), there = box_at(boxes, j);
    const A intersection = box_intersection(here.box, there.box);
    const A united = box_union(here.area, there.area, intersection);
    const A overlap = weight_of_overlap(box_overlap(here.box, there.box, intersection, united, params.overlap));
    if (!(overlap > A(0))) continue;  // Edge: 0 * infinity
    const A weight = scores[j] * overlap;
    sum[0] += weight * (there.box.x1 - here.box.x1);
    sum[1] += weight * (there.box.y1 - here.box.y1);
    sum[2] += weight * (there.box.x2 - here.box.x2);
    sum[3] += weight * (there.box.y2 - here.box.y2);
    sum[4] += weight;
  }
  for (int64_t row = 0; row < slots; ++row) {
    for (int c = 0; c < 4; ++c) {
      merged[4 * row + c] =
          keep[row] < 0 ? A(0)
                        : weighted_nms_moved(boxes[4 * keep[row] + c], sums[kSums * row + c], sums[kSums * row + 4]);
    }
  }
}

template <Isa isa, class A>
void weighted_nms_vote_cpu(const WeightedNmsVoteParams<A>& params, const Parallel& parallel) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using IntVec = typename S::IntVec;
  for (int64_t row = 0; row < params.slots; ++row) {
    memcpy(params.voted + 4 * row, params.boxes + 4 * params.keep[row], 4 * sizeof(A));
  }
  BoxSegments<A> segments;
  segments.template build<isa>(params.boxes, params.scores, params.classes, params.count, parallel);
  KeptByPosition<A> kept;
  kept.build(segments, params.keep, params.slots, params.count);
  const bool by_variance = params.variances != nullptr;
  const OverlapRule<A> rule = by_variance ? OverlapRule<A>{} : params.overlap;
  const A prune = by_variance ? A(0) : max_of(params.threshold, A(0));

  for_each_segment(segments, parallel, [&](int64_t s, const Parallel& within) {
    const int64_t first = kept.lower_bound(segments.begin(s)), last = kept.lower_bound(segments.end(s));
    if (first == last) return;
    Neighbours<A> neighbours;
    neighbours.template build<isa>(segments.boxes(), segments.begin(s), segments.end(s), prune,
                                   kWeightedNmsGridSegment);
    const BoxArrays<A>& boxes = neighbours.boxes();
    const Positions<isa, A> positions(neighbours);
    // What weighs, by slot: the score, or the variances of the four coordinates.
    const int columns = by_variance ? 4 : 1;
    const Scratch memory((columns * neighbours.size() + S::kLanes) * static_cast<int64_t>(sizeof(A)));
    A* const weighs = memory.as<A>();
    for (int64_t i = 0; i < neighbours.size(); ++i) {
      const int64_t index = segments.index(neighbours.position(i));
      for (int c = 0; c < columns; ++c) {
        weighs[c * neighbours.size() + i] = by_variance ? params.variances[4 * index + c] : params.scores[index];
      }
    }
    within(last - first, kWeightedNmsGrain, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        const Keyed<uint32_t> entry = kept.entries[first + e];
        const int64_t k = params.keep[entry.value];
        const BoxWithArea<A> box = segments.boxes().get(entry.key);
        const A coordinate[4] = {box.box.x1, box.box.y1, box.box.x2, box.box.y2};
        const IntVec mine = IntVec{} + static_cast<typename S::IntElement>(entry.key);
        Mean<isa, A> mean;
        const auto vote = [&](int64_t i, IntVec lanes, Vec overlap) {
          const Vec weight = by_variance ? weighted_nms_vote_weight(weight_of_overlap(overlap), params.sigma_t)
                                         : S::load(weighs + i) * weight_of_overlap(overlap);
          lanes &= overlap > S::broadcast(prune);
          for (int c = 0; c < 4; ++c) {
            mean.add(c,
                     by_variance ? weighted_nms_vote_of(weight, S::load(weighs + c * neighbours.size() + i)) : weight,
                     S::load(boxes.column(c) + i) - S::broadcast(coordinate[c]), lanes);
          }
        };
        neighbours.template for_each_overlap<isa>(
            box, rule, [&](int64_t i) { return by_variance ? positions.at(i) != mine : positions.at(i) > mine; }, vote);
        for (int c = 0; c < 4; ++c) {
          const A own = by_variance ? weighted_nms_vote_of(A(1), params.variances[4 * k + c]) : params.scores[k];
          params.voted[4 * entry.value + c] = mean.moved(c, coordinate[c], own);
        }
      }
    });
  });
}

template <Isa isa, class A>
void weighted_nms_penalty_cpu(const WeightedNmsPenaltyParams<A>& params, const Parallel& parallel) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using IntVec = typename S::IntVec;
  if (params.count == 0) return;
  memcpy(params.new_scores, params.scores, static_cast<size_t>(params.count) * sizeof(A));
  BoxSegments<A> segments;
  segments.template build<isa>(params.boxes, params.scores, params.classes, params.count, parallel);
  KeptByPosition<A> kept;
  kept.build(segments, params.keep, params.slots, params.count);
  const Scratch memory(BoxArrays<A>::bytes(kept.count) + kSimdBytes<isa>);
  const BoxArrays<A> kept_boxes{memory.as<A>(), kept.count};
  for (int64_t e = 0; e < kept.count; ++e) kept_boxes.set(e, segments.boxes().get(kept.entries[e].key));

  for_each_segment(segments, parallel, [&](int64_t s, const Parallel& within) {
    const int64_t first = kept.lower_bound(segments.begin(s)), last = kept.lower_bound(segments.end(s));
    if (first == last) return;
    Neighbours<A> neighbours;
    neighbours.template build<isa>(kept_boxes, first, last, A(0), kWeightedNmsGridSegment);
    const Scratch slots((neighbours.size() + S::kLanes) * static_cast<int64_t>(sizeof(A)));
    typename S::IntElement* const position = slots.as<typename S::IntElement>();
    for (int64_t i = 0; i < neighbours.size(); ++i) {
      position[i] = static_cast<typename S::IntElement>(kept.entries[neighbours.position(i)].key);
    }
    within(segments.size(s), kWeightedNmsGrain, [&](int64_t begin, int64_t end) {
      for (int64_t p = segments.begin(s) + begin; p < segments.begin(s) + end; ++p) {
        const IntVec mine = IntVec{} + static_cast<typename S::IntElement>(p);
        Vec squares = Vec{};
        neighbours.template for_each_overlap<isa>(
            segments.boxes().get(p), params.overlap, [&](int64_t i) { return S::load_int(position + i) < mine; },
            [&](int64_t, IntVec lanes, Vec overlap) {
              const Vec weight = weight_of_overlap(overlap);
              squares += lanes ? weight * weight : Vec{};
            });
        const int64_t index = segments.index(p);
        params.new_scores[index] = weighted_nms_penalised(params.scores[index], S::reduce_add(squares), params.sigma);
      }
    });
  });
}

#define CVK_INSTANTIATE(A)                                                                                \
  template void weighted_nms_merge_cpu<Isa::CVK_ISA, A>(const WeightedNmsMergeParams<A>&, int64_t);       \
  template void weighted_nms_vote_cpu<Isa::CVK_ISA, A>(const WeightedNmsVoteParams<A>&, const Parallel&); \
  template void weighted_nms_penalty_cpu<Isa::CVK_ISA, A>(const WeightedNmsPenaltyParams<A>&, const Parallel&);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
#undef CVK_INSTANTIATE

}  // namespace cvk
