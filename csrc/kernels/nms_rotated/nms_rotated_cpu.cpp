// Rotated IoU and NMS on the CPU. Contract and method: nms_rotated.h.
#include <limits>

#include "common/box_segments.h"
#include "common/neighbours.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/nms_rotated/nms_rotated.h"
#include "kernels/nms_rotated/nms_rotated_math.h"

namespace cvk {
namespace {

// Rotated boxes by coordinate, for SIMD: `stride` values of x, then of y and so on. One vector may be read behind the end.
template <class A>
struct RotatedArrays {
  A* base;
  int64_t stride;

  static CVK_HD int64_t bytes(int64_t capacity) { return 6 * capacity * static_cast<int64_t>(sizeof(A)); }
  CVK_HD void set(int64_t i, const RotatedBox<A>& box) const {
    A* p = base + i;
    p[0] = box.x;
    p[stride] = box.y;
    p[2 * stride] = box.cosine;
    p[3 * stride] = box.sine;
    p[4 * stride] = box.half_w;
    p[5 * stride] = box.half_h;
  }
  template <Isa isa>
  CVK_HD RotatedBox<typename Simd<isa, A>::Vec> load(int64_t i) const {
    using S = Simd<isa, A>;
    const A* p = base + i;
    return {S::load(p),
            S::load(p + stride),
            S::load(p + 2 * stride),
            S::load(p + 3 * stride),
            S::load(p + 4 * stride),
            S::load(p + 5 * stride)};
  }
};

template <Isa isa, class A>
CVK_HD RotatedBox<typename Simd<isa, A>::Vec> broadcast_rotated(const RotatedBox<A>& box) {
  using S = Simd<isa, A>;
  return {S::broadcast(box.x),    S::broadcast(box.y),      S::broadcast(box.cosine),
          S::broadcast(box.sine), S::broadcast(box.half_w), S::broadcast(box.half_h)};
}

// ---- IoU

template <Isa isa, class A>
CVK_HD typename Simd<isa, A>::Vec overlaps_of(const RotatedBox<typename Simd<isa, A>::Vec>& a,
                                              const RotatedBox<typename Simd<isa, A>::Vec>& b, bool over_first) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  const RotatedPair<Vec> pair = rotated_pair(a, b);
  const typename S::IntVec meet = rotated_meet(pair);
  if (!S::any(meet)) return Vec{};
  return meet ? rotated_ratio(pair, over_first, a.area(), b.area()) : Vec{};
}

template <Isa isa, class T, class Vec>
CVK_HD void store_lanes(T* to, Vec values, int64_t count) {
  using S = Simd<isa, Acc<T>>;
  if (count >= S::kLanes)
    S::store(to, values);
  else
    S::store_partial(to, values, static_cast<int>(count));
}

template <Isa isa, class A, class T>
CVK_HD void aligned_iou(const NmsRotatedIouParams<A, T>& params, const Parallel& parallel) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  parallel(params.rows, kNmsRotatedPrepareGrain, [&](int64_t first, int64_t last) {
    alignas(64) A memory1[6 * kLanes] = {}, memory2[6 * kLanes] = {};
    const RotatedArrays<A> boxes1{memory1, kLanes}, boxes2{memory2, kLanes};
    for (int64_t i = first; i < last; i += kLanes) {
      const int64_t count = min_of<int64_t>(kLanes, last - i);
      for (int64_t lane = 0; lane < count; ++lane) {
        boxes1.set(lane, rotated_box(params.boxes1 + 5 * (i + lane), params.clockwise));
        boxes2.set(lane, rotated_box(params.boxes2 + 5 * (i + lane), params.clockwise));
      }
      const auto a = boxes1.template load<isa>(0), b = boxes2.template load<isa>(0);
      store_lanes<isa>(params.overlaps + i, overlaps_of<isa, A>(a, b, params.over_first), count);
    }
  });
}

template <Isa isa, class A, class T>
CVK_HD void matrix_iou(const NmsRotatedIouParams<A, T>& params, const Parallel& parallel) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  const int64_t columns = params.columns;
  const Scratch memory(RotatedArrays<A>::bytes(columns) + kSimdBytes<isa>);
  const RotatedArrays<A> boxes2{memory.as<A>(), columns};
  parallel(columns, kNmsRotatedPrepareGrain, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) boxes2.set(j, rotated_box(params.boxes2 + 5 * j, params.clockwise));
  });
  const int64_t width = min_of(columns, kNmsRotatedTile), tiles = ceil_div(columns, width);
  parallel(params.rows * tiles, max_of<int64_t>(1, kNmsRotatedPairGrain / width), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t row = item / tiles, begin = item % tiles * width, end = min_of(begin + width, columns);
      const auto a = broadcast_rotated<isa>(rotated_box(params.boxes1 + 5 * row, params.clockwise));
      T* const overlaps = params.overlaps + row * columns;
      for (int64_t j = begin; j < end; j += kLanes) {
        const auto b = boxes2.template load<isa>(j);
        store_lanes<isa>(overlaps + j, overlaps_of<isa, A>(a, b, params.over_first), end - j);
      }
    }
  });
}

// ---- NMS

// Boxes by position: exact ones, and bounds that decide which of them are worth a test.
template <class A>
struct RotatedEngine {
  const RotatedBox<A>* boxes;
  BoxArrays<A> bounds;
  A threshold;
  int64_t max_output;

  CVK_HD bool is_inert(int64_t position) const { return !(boxes[position].half_w > A(0)); }
};

// Kept boxes gathered into one vector, to be tested against a candidate.
template <Isa isa, class A>
class Gathered {
 public:
  using S = Simd<isa, A>;

  CVK_HD void add(const RotatedBox<A>& box) { arrays().set(count_++, box); }
  CVK_HD bool is_full() const { return count_ == S::kLanes; }

  // Whether any of them overlaps `box` by more than the threshold. Empties the vector. Invariant: in the other lanes there are
  // boxes that were tested against `box` before, or nothing, which overlaps it by 0.
  CVK_HD bool overlap(const RotatedBox<typename S::Vec>& box, A threshold) {
    const auto kept = arrays().template load<isa>(0);
    const auto pair = rotated_pair(kept, box);
    const typename S::IntVec meet = rotated_meet(pair);
    count_ = 0;
    if (!S::any(meet)) return false;
    return S::any((rotated_ratio(pair, false, kept.area(), box.area()) > S::broadcast(threshold)) & meet);
  }

 private:
  CVK_HD RotatedArrays<A> arrays() { return {memory_, S::kLanes}; }

  alignas(64) A memory_[6 * S::kLanes] = {};
  int count_ = 0;
};

// Bounds of kept boxes: in order of arrival, or with a grid, each in the place that its segment has for it.
template <Isa isa, class A>
class KeptBoxes {
 public:
  using S = Simd<isa, A>;

  CVK_HD KeptBoxes() {}  // both spelled out so that they are inlined: see the note on symbols in isa.h
  CVK_HD ~KeptBoxes() {}

  // Makes places for positions [first, last): with a grid where that pays and its bounds hold, which they do not for areas of
  // bounds that underflow or overflow.
  CVK_HD void build(const RotatedEngine<A>& engine, int64_t first, int64_t last) {
    const int64_t size = last - first;
    memory_.reset(BoxArrays<A>::bytes(size) + kSimdBytes<isa>);
    places_ = {memory_.template as<A>(), size};
    if (size < kNmsRotatedGridSegment) return;
    for (int64_t i = first; i < last; ++i) {
      const BoxWithArea<A> bounds = engine.bounds.get(i);
      if (!engine.is_inert(i) && box_is_inert(bounds.box, bounds.area)) return;
    }
    cells_.template build<isa>(engine.bounds, first, last, A(0), kNmsRotatedGridSegment);
    slot_memory_.reset(size * static_cast<int64_t>(sizeof(uint32_t)));
    slot_of_ = slot_memory_.template as<uint32_t>();
    first_ = first;
    used_ = size;
    for (int64_t slot = 0; slot < size; ++slot) {
      slot_of_[cells_.position(slot) - first] = static_cast<uint32_t>(slot);
      places_.base[slot] = std::numeric_limits<A>::infinity();  // x1 of a box that overlaps nothing
    }
  }

  CVK_HD void add(const RotatedEngine<A>& engine, int64_t position) {
    if (engine.is_inert(position)) return;
    const int64_t place = slot_of_ != nullptr ? int64_t{slot_of_[position - first_]} : used_++;
    places_.set(place, engine.bounds.get(position));
    places_.set_int(kPosition, place, position);
  }

  // Whether one of them suppresses the box at `position`.
  CVK_HD bool suppress(const RotatedEngine<A>& engine, int64_t position) const {
    if (used_ == 0) return false;
    const BoxWithArea<A> bounds = engine.bounds.get(position);
    const auto here = broadcast_box<isa>(bounds.box);
    const auto box = broadcast_rotated<isa>(engine.boxes[position]);
    Gathered<isa, A> gathered;
    bool found = false;
    const auto visit = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last && !found; i += S::kLanes) {
        const auto there = places_.template load<isa>(i);
        const typename S::IntVec near =
            (there.x1 < here.x2) & (here.x1 < there.x2) & (there.y1 < here.y2) & (here.y1 < there.y2);
        if (!S::any(near)) continue;
        uint32_t lanes = S::lane_bits(near);
        if (last - i < S::kLanes) lanes &= (uint32_t{1} << (last - i)) - 1;
        for (; lanes != 0 && !found; lanes &= lanes - 1) {
          gathered.add(engine.boxes[places_.get_int(kPosition, i + __builtin_ctz(lanes))]);
          if (gathered.is_full()) found = gathered.overlap(box, engine.threshold);
        }
      }
    };
    if (slot_of_ != nullptr)
      cells_.for_each_run(bounds, visit);
    else
      visit(int64_t{0}, used_);
    return found || gathered.overlap(box, engine.threshold);
  }

 private:
  static constexpr int kPosition = 4;  // the column of the area holds positions

  BoxArrays<A> places_{nullptr, 0};
  int64_t used_ = 0, first_ = 0;
  Neighbours<A> cells_;
  uint32_t* slot_of_ = nullptr;  // [size] by position - first, or null: no grid
  Scratch memory_, slot_memory_;
};

// Calls keep(position) for the boxes kept of positions [first, last).
template <Isa isa, class A, class Keep>
CVK_HD void decide_segment(const RotatedEngine<A>& engine, int64_t first, int64_t last, Keep&& keep) {
  if (engine.threshold < A(0)) {  // every overlap is above it
    keep(first);
    return;
  }
  KeptBoxes<isa, A> boxes;
  boxes.build(engine, first, last);
  int64_t kept = 0;
  for (int64_t i = first; i < last && kept < engine.max_output; ++i) {
    if (boxes.suppress(engine, i)) continue;
    boxes.add(engine, i);
    keep(i);
    ++kept;
  }
}

}  // namespace

template <Isa isa, class A, class T>
void nms_rotated_iou_cpu(const NmsRotatedIouParams<A, T>& params, const Parallel& parallel) {
  if (params.rows == 0 || params.columns == 0) return;
  if (params.aligned)
    aligned_iou<isa>(params, parallel);
  else
    matrix_iou<isa>(params, parallel);
}

template <Isa isa, class A, class S>
int64_t nms_rotated_cpu(const NmsRotatedParams<A, S>& params, const Parallel& parallel) {
  const int64_t count = params.count;
  if (count == 0 || params.max_output == 0) return 0;

  // Sines and cosines by index, then everything by position.
  Scratch box_memory(count * static_cast<int64_t>(sizeof(RotatedBox<A>)));
  RotatedBox<A>* const by_index = box_memory.as<RotatedBox<A>>();
  Scratch bound_memory(count * static_cast<int64_t>(sizeof(Box<A>)));
  Box<A>* const bounds = bound_memory.as<Box<A>>();
  parallel(count, kNmsRotatedPrepareGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      by_index[i] = rotated_box(params.boxes + 5 * i, params.clockwise);
      bounds[i] = rotated_bounds(by_index[i]);
    }
  });
  BoxSegments<A> segments;
  segments.template build<isa>(&bounds->x1, params.scores, params.classes, count, parallel);
  bound_memory.reset(0);
  const int64_t ranked = segments.ranked();
  const Scratch order_memory(ranked * static_cast<int64_t>(sizeof(RotatedBox<A>)));
  RotatedBox<A>* const boxes = order_memory.as<RotatedBox<A>>();
  for (int64_t i = 0; i < ranked; ++i) boxes[i] = by_index[segments.index(i)];
  box_memory.reset(0);

  const Scratch kept_memory(ranked);
  uint8_t* const kept = kept_memory.as<uint8_t>();  // by rank
  memset(kept, 0, static_cast<size_t>(ranked));
  const RotatedEngine<A> engine{boxes, segments.boxes(), params.threshold, params.max_output};
  const int64_t grain = max_of<int64_t>(1, segments.segments() * kNmsRotatedSegmentGrain / max_of<int64_t>(ranked, 1));
  parallel(segments.segments(), grain, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      decide_segment<isa>(engine, segments.begin(s), segments.end(s),
                          [&](int64_t position) { kept[segments.rank(position)] = 1; });
    }
  });

  int64_t used = 0;
  for (int64_t rank = 0; rank < ranked && used < params.max_output; ++rank) {
    if (kept[rank] != 0) params.keep[used++] = segments.index_of_rank(rank);
  }
  return used;
}

#define CVK_INSTANTIATE(A, S) \
  template int64_t nms_rotated_cpu<Isa::CVK_ISA, A, S>(const NmsRotatedParams<A, S>&, const Parallel&);
CVK_INSTANTIATE(float, float)
CVK_INSTANTIATE(float, double)
CVK_INSTANTIATE(double, float)
CVK_INSTANTIATE(double, double)
#undef CVK_INSTANTIATE
#define CVK_INSTANTIATE(A, T) \
  template void nms_rotated_iou_cpu<Isa::CVK_ISA, A, T>(const NmsRotatedIouParams<A, T>&, const Parallel&);
CVK_INSTANTIATE(float, float)
CVK_INSTANTIATE(float, half_t)
CVK_INSTANTIATE(float, bfloat16_t)
CVK_INSTANTIATE(double, double)
#undef CVK_INSTANTIATE

}  // namespace cvk
