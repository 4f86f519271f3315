// Hard NMS on the CPU. Contract and method: nms.h.
#include "kernels/nms/nms.h"

#include <limits>

#include "common/box_segments.h"
#include "common/neighbours.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/nms/nms_places.h"

namespace cvk {
namespace {

// What is decided about each position: it is kept, or which kept position suppressed it.
constexpr uint32_t kUndecided = 0xffffffffu;

template <class A>
struct Engine {
  BoxArrays<A> candidates;  // by position
  NmsRule<A> rule;
  int64_t max_output;
  uint8_t* kept;     // by position
  uint32_t* claims;  // by position: that of the box that suppresses it; null where nobody asks

  CVK_HD void keep(int64_t position) const { kept[position] = 1; }
};

// Positions [first, last) against a plain list of the kept boxes.
template <Isa isa, bool owners, class A>
CVK_HD void decide_by_scan(const Engine<A>& engine, int64_t first, int64_t last, const BoxArrays<A>& list) {
  const bool negative = engine.rule.threshold < A(0);
  int64_t listed = 0, kept = 0;
  for (int64_t i = first; i < last; ++i) {
    if (kept == engine.max_output && !owners) return;
    const BoxWithArea<A> box = engine.candidates.get(i);
    const bool inert = !negative && box_is_inert(box.box, box.area);
    if (!inert) {
      const int64_t suppressor = suppressor_of<isa, owners>(list, listed, box, engine.rule);
      if (suppressor != kNmsNobody) {
        if (owners) engine.claims[i] = static_cast<uint32_t>(suppressor);
        continue;
      }
    }
    if (kept == engine.max_output) continue;
    engine.keep(i);
    ++kept;
    if (!inert) engine.rule.list(list, listed++, i, box);
  }
}

// Decides boxes [first, last) of `boxes` in order, each kept box claiming what it suppresses of the boxes around it.
// verdict[i] of box first + i: i itself where it is kept, else the one that claimed it, counted from `first`, or kUndecided
// where `most` were kept before.
template <Isa isa, class A, class ThresholdOf>
CVK_HD void decide_by_claims(const BoxArrays<A>& boxes, int64_t first, int64_t last, const NmsRule<A>& rule,
                             int64_t most, uint32_t* verdict, ThresholdOf&& threshold_of) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using IntVec = typename S::IntVec;
  using IntElement = typename S::IntElement;
  const int64_t size = last - first;
  Neighbours<A> neighbours;
  neighbours.template build<isa>(boxes, first, last, rule.threshold, kNmsGridSegment);
  const auto index_of = [&](int64_t slot) { return neighbours.position(slot) - first; };

  const Scratch claim_memory((size + S::kLanes) * static_cast<int64_t>(sizeof(IntElement)));
  const Scratch slot_memory(size * static_cast<int64_t>(sizeof(uint32_t)));
  IntElement* const claims = claim_memory.as<IntElement>();  // the verdicts by slot, -1 for none yet
  uint32_t* const slots = slot_memory.as<uint32_t>();        // by index
  memset(claims, 0xff, static_cast<size_t>(size) * sizeof(IntElement));
  for (int64_t slot = 0; slot < size; ++slot) slots[index_of(slot)] = static_cast<uint32_t>(slot);

  int64_t kept = 0;
  for (int64_t i = 0; i < size && kept < most; ++i) {
    if (claims[slots[i]] >= 0) continue;
    claims[slots[i]] = static_cast<IntElement>(i);
    ++kept;
    const IntVec mine = IntVec{} + static_cast<IntElement>(i);
    const Vec limit = S::broadcast(threshold_of(i));
    neighbours.template for_each_overlap<isa>(
        boxes.get(first + i), rule.overlap, [&](int64_t slot) { return S::load_int(claims + slot) < 0; },
        [&](int64_t slot, IntVec lanes, Vec overlap) {
          S::store_int(claims + slot, (lanes & (overlap > limit)) ? mine : S::load_int(claims + slot));
        });
  }
  for (int64_t slot = 0; slot < size; ++slot) {
    verdict[index_of(slot)] = claims[slot] < 0 ? kUndecided : static_cast<uint32_t>(claims[slot]);
  }
}

// All of a segment at once.
template <Isa isa, class A>
CVK_HD void decide_whole(const Engine<A>& engine, int64_t first, int64_t last) {
  const Scratch memory((last - first) * static_cast<int64_t>(sizeof(uint32_t)));
  uint32_t* const verdict = memory.as<uint32_t>();
  decide_by_claims<isa>(engine.candidates, first, last, engine.rule, engine.max_output, verdict,
                        [&](int64_t i) { return engine.rule.threshold_of(first + i); });
  for (int64_t i = 0; i < last - first; ++i) {
    if (verdict[i] == i)
      engine.keep(first + i);
    else if (engine.claims != nullptr && verdict[i] != kUndecided)
      engine.claims[first + i] = static_cast<uint32_t>(first + verdict[i]);
  }
}

// In the order of places, on all threads. False where the boxes do not suit it.
template <Isa isa, bool owners, class A>
CVK_HD bool decide_by_place(const Engine<A>& engine, int64_t first, int64_t last, const Parallel& parallel) {
  // Whether a box is kept depends on those ranked before it, so that a few kept boxes are found among the first.
  int64_t size = last - first;
  if (!owners && engine.max_output < size / kNmsPrefix)
    size = max_of(kNmsPlacedSegment, engine.max_output * kNmsPrefix);
  for (;; size *= kNmsPrefix) {
    size = min_of(size, last - first);
    NmsPlaces<isa, A> places;
    if (!places.build(engine.candidates, first, first + size, engine.rule, parallel)) return false;
    parallel(size, kNmsGrain, [&](int64_t begin, int64_t end) { places.decide(begin, end); });
    parallel(size, kNmsGrain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        const int64_t position = places.position(slot);
        if (places.is_kept(slot))
          engine.keep(position);
        else if (owners)
          engine.claims[position] = static_cast<uint32_t>(places.owner(slot));
      }
    });
    if (size == last - first) return true;
    int64_t kept = 0;
    for (int64_t i = first; i < first + size; ++i) kept += engine.kept[i];
    if (kept >= engine.max_output) return true;
  }
}

template <Isa isa, bool owners, class A>
CVK_HD void decide_segment(const Engine<A>& engine, int64_t first, int64_t last, const Parallel& parallel) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  const int64_t size = last - first;
  if (size <= kNmsSmallSegment) {
    alignas(64) A list[kNmsMostColumns * kNmsSmallSegment + kLanes];
    decide_by_scan<isa, owners>(engine, first, last, BoxArrays<A>{list, kNmsSmallSegment});
    return;
  }
  if (size >= kNmsPlacedSegment && decide_by_place<isa, owners>(engine, first, last, parallel)) return;
  decide_whole<isa>(engine, first, last);
}

template <Isa isa, bool owners, class A>
CVK_HD void decide(const Engine<A>& engine, const BoxSegments<A>& segments, const Parallel& parallel) {
  if (segments.segments() == 1) {
    decide_segment<isa, owners>(engine, 0, segments.ranked(), parallel);
    return;
  }
  // Small segments in parallel, each by one thread; then the large ones one after another, each by all threads.
  const Parallel alone;
  const int64_t large = parallel.threads > 1 ? kNmsPlacedSegment : std::numeric_limits<int64_t>::max();
  const int64_t grain = max_of<int64_t>(1, segments.segments() * kNmsSegmentGrain / segments.ranked());
  parallel(segments.segments(), grain, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      if (segments.size(s) < large) {
        decide_segment<isa, owners>(engine, segments.begin(s), segments.end(s), alone);
      }
    }
  });
  for (int64_t s = 0; s < segments.segments(); ++s) {
    if (segments.size(s) >= large) {
      decide_segment<isa, owners>(engine, segments.begin(s), segments.end(s), parallel);
    }
  }
}

}  // namespace

template <Isa isa, class A, class S>
int64_t nms_cpu(const NmsParams<A, S>& params, const Parallel& parallel) {
  const int64_t count = params.count;
  const bool owners = params.owner != nullptr;
  if (owners) memset(params.owner, 0xff, static_cast<size_t>(count) * sizeof(int64_t));
  if (count == 0 || params.max_output == 0) return 0;
  BoxSegments<A> segments;
  segments.template build<isa>(params.boxes, params.scores, params.classes, count, parallel);
  const int64_t ranked = segments.ranked();
  if (ranked == 0) return 0;

  // By position: kept, and where asked for densities, and claims; afterwards by rank: the row in keep.
  const bool several = segments.segments() > 1;
  const int64_t word_bytes = ranked * static_cast<int64_t>(sizeof(uint32_t));
  const Scratch density_memory(params.densities != nullptr ? ranked * static_cast<int64_t>(sizeof(A)) : 0);
  const Scratch claim_memory(owners ? 2 * word_bytes : 0);
  const Scratch kept_memory(several ? 2 * ranked : ranked);
  A* const densities = density_memory.as<A>();
  if (densities != nullptr) {
    for (int64_t i = 0; i < ranked; ++i) densities[i] = params.densities[segments.index(i)];
  }
  Engine<A> engine;
  engine.candidates = segments.boxes();
  engine.rule = {params.threshold, params.overlap, densities,
                 densities != nullptr ? kNmsThresholdColumn + 1
                 : owners             ? kNmsRankColumn + 1
                                      : BoxArrays<A>::kColumns};
  engine.max_output = params.max_output;
  engine.kept = kept_memory.as<uint8_t>();
  engine.claims = claim_memory.as<uint32_t>();
  memset(engine.kept, 0, static_cast<size_t>(ranked));
  if (owners) {
    memset(engine.claims, 0xff, static_cast<size_t>(word_bytes));
    decide<isa, true>(engine, segments, parallel);
  } else {
    decide<isa, false>(engine, segments, parallel);
  }

  const uint8_t* kept_by_rank = engine.kept;
  if (several) {
    uint8_t* by_rank = engine.kept + ranked;
    for (int64_t i = 0; i < ranked; ++i) by_rank[segments.rank(i)] = engine.kept[i];
    kept_by_rank = by_rank;
  }
  uint32_t* row_of_rank = owners ? engine.claims + ranked : nullptr;
  int64_t used = 0;
  for (int64_t rank = 0; rank < ranked; ++rank) {
    if (used == params.max_output && !owners) break;
    const bool kept = kept_by_rank[rank] != 0 && used < params.max_output;
    if (owners) row_of_rank[rank] = kept ? static_cast<uint32_t>(used) : kUndecided;
    if (kept) params.keep[used++] = segments.index_of_rank(rank);
  }
  if (owners) {
    for (int64_t i = 0; i < ranked; ++i) {
      const int64_t owner = engine.kept[i] != 0 ? i : engine.claims[i];
      if (owner == kUndecided) continue;
      const uint32_t row = row_of_rank[segments.rank(owner)];
      if (row != kUndecided) params.owner[segments.index(i)] = row;
    }
  }
  return used;
}

#define CVK_INSTANTIATE(A, S) template int64_t nms_cpu<Isa::CVK_ISA, A, S>(const NmsParams<A, S>&, const Parallel&);
CVK_INSTANTIATE(float, float)
CVK_INSTANTIATE(float, double)
CVK_INSTANTIATE(double, float)
CVK_INSTANTIATE(double, double)
#undef CVK_INSTANTIATE

}  // namespace cvk
