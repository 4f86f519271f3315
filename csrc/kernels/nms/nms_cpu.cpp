// Hard NMS on the CPU. Contract and method: nms.h.
#include "kernels/nms/nms.h"

#include <limits>

#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/nms/nms_grid.h"
#include "kernels/nms/nms_math.h"

namespace cvk {
namespace {

// ---- order: stable radix sorts

template <class Key>
struct Keyed {
  Key key;
  uint32_t value;
};

// Sorts `entries` by ascending key, stably, byte by byte from the lowest; bytes that all keys share cost nothing.
// Returns the array that holds the result, `entries` or `spare`.
template <class Key>
CVK_HD Keyed<Key>* radix_sort(Keyed<Key>* entries, Keyed<Key>* spare, int64_t count) {
  if (count <= 48) {  // insertion sort
    for (int64_t i = 1; i < count; ++i) {
      const Keyed<Key> entry = entries[i];
      int64_t j = i;
      for (; j > 0 && entries[j - 1].key > entry.key; --j) entries[j] = entries[j - 1];
      entries[j] = entry;
    }
    return entries;
  }
  Key any_set = 0, all_set = static_cast<Key>(~Key{0});
  for (int64_t i = 0; i < count; ++i) {
    any_set |= entries[i].key;
    all_set &= entries[i].key;
  }
  const Key differs = any_set ^ all_set;
  for (int shift = 0; shift < static_cast<int>(sizeof(Key)) * 8; shift += 8) {
    if (((differs >> shift) & 0xffu) == 0) continue;
    uint32_t begin[256];
    memset(begin, 0, sizeof(begin));
    for (int64_t i = 0; i < count; ++i) ++begin[(entries[i].key >> shift) & 0xffu];
    uint32_t running = 0;
    for (uint32_t& slot : begin) {
      const uint32_t here = slot;
      slot = running;
      running += here;
    }
    for (int64_t i = 0; i < count; ++i) spare[begin[(entries[i].key >> shift) & 0xffu]++] = entries[i];
    Keyed<Key>* swap = entries;
    entries = spare;
    spare = swap;
  }
  return entries;
}

template <class S>
CVK_HD int64_t rank_by_score(const S* scores, int64_t count, uint32_t* order) {
  using Key = decltype(nms_descending_key(S(0)));
  const Scratch memory(2 * count * static_cast<int64_t>(sizeof(Keyed<Key>)));
  Keyed<Key>* entries = memory.as<Keyed<Key>>();
  int64_t ranked = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] == scores[i]) entries[ranked++] = {nms_descending_key(scores[i]), static_cast<uint32_t>(i)};
  }
  const Keyed<Key>* sorted = radix_sort(entries, entries + count, ranked);
  for (int64_t i = 0; i < ranked; ++i) order[i] = sorted[i].value;
  return ranked;
}

// Groups the ranks 0..ranked-1 by class, in rank order within a class: rank_of[position], and where segments begin.
// Returns the number of segments, 0 when there is only one class (rank_of is then not written).
CVK_HD int64_t group_by_class(const int64_t* classes, const uint32_t* order, int64_t ranked, uint32_t* rank_of,
                              uint32_t* segment_begin) {
  const Scratch memory(2 * ranked * static_cast<int64_t>(sizeof(Keyed<uint64_t>)));
  Keyed<uint64_t>* entries = memory.as<Keyed<uint64_t>>();
  bool one = true;
  for (int64_t rank = 0; rank < ranked; ++rank) {
    const uint64_t key = static_cast<uint64_t>(classes[order[rank]]);
    entries[rank] = {key, static_cast<uint32_t>(rank)};
    one = one && key == entries[0].key;
  }
  if (one) return 0;
  const Keyed<uint64_t>* sorted = radix_sort(entries, entries + ranked, ranked);
  int64_t segments = 0;
  for (int64_t i = 0; i < ranked; ++i) {
    if (i == 0 || sorted[i].key != sorted[i - 1].key) segment_begin[segments++] = static_cast<uint32_t>(i);
    rank_of[i] = sorted[i].value;
  }
  segment_begin[segments] = static_cast<uint32_t>(ranked);
  return segments;
}

// ---- deciding a segment

template <class A>
struct Engine {
  BoxArrays<A> candidates;  // in segment order
  A threshold;
  int64_t max_output;
  const uint32_t* rank_of;  // position -> rank; null: the same
  uint8_t* kept;            // by rank

  CVK_HD void keep(int64_t position) const { kept[rank_of != nullptr ? rank_of[position] : position] = 1; }
};

// Positions [first, last) against a plain list of the kept boxes.
template <Isa isa, class A>
CVK_HD void decide_by_scan(const Engine<A>& engine, int64_t first, int64_t last, const BoxArrays<A>& list) {
  const bool negative = engine.threshold < A(0);
  int64_t listed = 0, kept = 0;
  for (int64_t i = first; i < last && kept < engine.max_output; ++i) {
    const BoxWithArea<A> box = engine.candidates.get(i);
    if (!negative && nms_is_inert(box.box, box.area)) {
      engine.keep(i);
      ++kept;
      continue;
    }
    if (overlaps_any<isa>(list, 0, listed, box, engine.threshold)) continue;
    engine.keep(i);
    ++kept;
    list.set(listed++, box);
  }
}

// Positions [first, last) against a grid of the kept boxes.
template <Isa isa, class A>
CVK_HD void decide_by_grid(const Engine<A>& engine, int64_t first, int64_t last, Grid<A>& grid,
                           const Parallel& parallel) {
  int64_t kept = 0;
  if (last - first < kNmsBlockedSegment) {
    for (int64_t i = first; i < last && kept < engine.max_output; ++i) {
      if (!grid.is_inert(i)) {
        const BoxWithArea<A> box = engine.candidates.get(i);
        if (grid.template suppresses<isa, false>(box, engine.threshold)) continue;
        grid.insert(i, box);
      }
      engine.keep(i);
      ++kept;
    }
    return;
  }
  const Scratch survivors(kNmsMostBlock);
  uint8_t* survives = survivors.as<uint8_t>();
  const Scratch places(2 * kNmsMostBlock * static_cast<int64_t>(sizeof(Keyed<uint32_t>)));
  int64_t size = 0;
  for (int64_t block = first; block < last && kept < engine.max_output; block += size) {
    size = min_of(max_of(kNmsLeastBlock, min_of(block - first, kNmsMostBlock)), last - block);
    // Filter: the grid is only read, so any order will do. Perf: neighbours after one another find their cells in cache.
    Keyed<uint32_t>* entries = places.as<Keyed<uint32_t>>();
    for (int64_t i = 0; i < size; ++i) {
      entries[i] = {static_cast<uint32_t>(grid.cell_of(block + i) + 1), static_cast<uint32_t>(i)};
    }
    const Keyed<uint32_t>* by_place = radix_sort(entries, entries + size, size);
    parallel(size, kNmsGrain, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t i = by_place[j].value;
        survives[i] = grid.is_inert(block + i) ||
                      !grid.template suppresses<isa, false>(engine.candidates.get(block + i), engine.threshold);
      }
    });
    for (int64_t i = 0; i < size; ++i) {  // commit: in order, against what this block has added
      if (!survives[i]) continue;
      if (kept == engine.max_output) return;
      if (!grid.is_inert(block + i)) {
        const BoxWithArea<A> box = engine.candidates.get(block + i);
        if (grid.template suppresses<isa, true>(box, engine.threshold)) {
          survives[i] = 0;
          continue;
        }
        grid.insert(block + i, box);
      }
      engine.keep(block + i);
      ++kept;
    }
    for (int64_t i = 0; i < size; ++i) {
      if (survives[i] && !grid.is_inert(block + i)) grid.settle(block + i);
    }
  }
}

template <Isa isa, class A>
CVK_HD void decide_segment(const Engine<A>& engine, int64_t first, int64_t last, const Parallel& parallel) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  const int64_t size = last - first;
  if (size <= kNmsSmallSegment) {
    alignas(64) A list[5 * kNmsSmallSegment + kLanes];
    decide_by_scan<isa>(engine, first, last, BoxArrays<A>{list, kNmsSmallSegment});
    return;
  }
  if (size >= kNmsGridSegment) {
    Grid<A> grid;
    if (grid.template build<isa>(engine.candidates, first, last, engine.threshold)) {
      decide_by_grid<isa>(engine, first, last, grid, parallel);
      return;
    }
  }
  const Scratch list(BoxArrays<A>::bytes(size) + kSimdBytes<isa>);
  decide_by_scan<isa>(engine, first, last, BoxArrays<A>{list.as<A>(), size});
}

}  // namespace

template <Isa isa, class A, class S>
int64_t nms_cpu(const NmsParams<A, S>& params, const Parallel& parallel) {
  const int64_t count = params.count;
  if (count == 0 || params.max_output == 0) return 0;
  const Scratch order_memory(count * static_cast<int64_t>(sizeof(uint32_t)));
  uint32_t* order = order_memory.as<uint32_t>();
  const int64_t ranked = rank_by_score(params.scores, count, order);

  const Scratch class_memory(params.classes != nullptr ? (2 * ranked + 1) * static_cast<int64_t>(sizeof(uint32_t)) : 0);
  uint32_t* rank_of = class_memory.as<uint32_t>();
  uint32_t* segment_begin = rank_of + ranked;
  const int64_t segments = params.classes != nullptr && ranked > 0
                               ? group_by_class(params.classes, order, ranked, rank_of, segment_begin)
                               : 0;
  if (segments == 0) rank_of = nullptr;

  const Scratch box_memory(BoxArrays<A>::bytes(ranked) + ranked);
  Engine<A> engine;
  engine.candidates = BoxArrays<A>{box_memory.as<A>(), ranked};
  engine.threshold = params.threshold;
  engine.max_output = params.max_output;
  engine.rank_of = rank_of;
  engine.kept = box_memory.as<uint8_t>() + BoxArrays<A>::bytes(ranked);
  memset(engine.kept, 0, static_cast<size_t>(ranked));
  parallel(ranked, kNmsGatherGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const A* p = params.boxes + int64_t{4} * order[rank_of != nullptr ? rank_of[i] : i];
      const Box<A> box{p[0], p[1], p[2], p[3]};
      engine.candidates.set(i, BoxWithArea<A>{box, box_area(box)});
    }
  });

  if (segments == 0) {
    decide_segment<isa>(engine, 0, ranked, parallel);
  } else {
    // Small segments in parallel, each by one thread; then the large ones one after another, each by all threads.
    const Parallel alone;
    const int64_t large = parallel.threads > 1 ? kNmsBlockedSegment : std::numeric_limits<int64_t>::max();
    parallel(segments, max_of<int64_t>(1, segments * kNmsSegmentGrain / ranked), [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        if (int64_t{segment_begin[s + 1]} - segment_begin[s] < large) {
          decide_segment<isa>(engine, segment_begin[s], segment_begin[s + 1], alone);
        }
      }
    });
    for (int64_t s = 0; s < segments; ++s) {
      if (int64_t{segment_begin[s + 1]} - segment_begin[s] >= large) {
        decide_segment<isa>(engine, segment_begin[s], segment_begin[s + 1], parallel);
      }
    }
  }

  int64_t used = 0;
  for (int64_t rank = 0; rank < ranked && used < params.max_output; ++rank) {
    if (engine.kept[rank] != 0) params.keep[used++] = order[rank];
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
