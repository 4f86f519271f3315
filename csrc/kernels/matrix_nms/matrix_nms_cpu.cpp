// Matrix NMS on the CPU. Contract and method: matrix_nms.h.
#include "kernels/matrix_nms/matrix_nms.h"

#include "common/box_segments.h"
#include "common/neighbours.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/matrix_nms/matrix_nms_math.h"

namespace cvk {
namespace {

template <Isa isa, class A>
CVK_HD void decay_boxes(const MatrixNmsParams<A>& params, const Parallel& parallel) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using IntVec = typename S::IntVec;
  using Int = typename S::IntElement;
  BoxSegments<A> segments;
  segments.template build<isa>(params.boxes, params.scores, params.classes, params.count, parallel);

  const auto decay_segment = [&](int64_t s, const Parallel& within) {
    Neighbours<A> neighbours;
    neighbours.template build<isa>(segments.boxes(), segments.begin(s), segments.end(s), A(0), kMatrixNmsGridSegment);
    const int64_t size = neighbours.size();
    const BoxArrays<A>& boxes = neighbours.boxes();
    const int64_t padded = size + S::kLanes;
    const Scratch memory(2 * padded * static_cast<int64_t>(sizeof(A)));
    Int* const position = memory.as<Int>();  // by slot
    A* const compensation = memory.as<A>() + padded;
    for (int64_t i = 0; i < size; ++i) position[i] = static_cast<Int>(neighbours.position(i));
    for (int64_t i = size; i < padded; ++i) compensation[i] = A(0);
    const auto better_than = [&](IntVec mine) {
      return [&, mine](int64_t i) { return S::load_int(position + i) < mine; };
    };
    within(size, kMatrixNmsGrain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        Vec most = Vec{};
        neighbours.template for_each_overlap<isa>(boxes.get(slot), params.overlap,
                                                  better_than(IntVec{} + position[slot]),
                                                  [&](int64_t, IntVec lanes, Vec overlap) {
                                                    most = max_of(lanes ? weight_of_overlap(overlap) : Vec{}, most);
                                                  });
        compensation[slot] = S::reduce_max(most);
      }
    });
    within(size, kMatrixNmsGrain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        Vec folded = matrix_nms_start<Vec>(params.kernel);
        neighbours.template for_each_overlap<isa>(
            boxes.get(slot), params.overlap, better_than(IntVec{} + position[slot]),
            [&](int64_t i, IntVec lanes, Vec overlap) {
              const Vec next =
                  matrix_nms_fold(folded, weight_of_overlap(overlap), S::load(compensation + i), params.kernel);
              folded = lanes ? next : folded;
            });
        A one = folded[0];
        for (int lane = 1; lane < S::kLanes; ++lane) one = matrix_nms_combine(one, A(folded[lane]), params.kernel);
        const int64_t index = segments.index(position[slot]);
        params.new_scores[index] = params.scores[index] * matrix_nms_decay(one, params.kernel, params.sigma);
      }
    });
  };
  if (segments.segments() == 1) {
    decay_segment(0, parallel);
    return;
  }
  const int64_t grain =
      max_of<int64_t>(1, segments.segments() * kMatrixNmsGrain / max_of<int64_t>(1, segments.ranked()));
  parallel(segments.segments(), grain, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) decay_segment(s, Parallel{});
  });
}

// From a matrix. Row i is read once per pass, against all boxes ranked after i: a slice of boxes belongs to one thread.
template <Isa isa, class A>
CVK_HD void decay_matrix(const MatrixNmsParams<A>& params, const Parallel& parallel) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using IntVec = typename S::IntVec;
  using Int = typename S::IntElement;
  using Key = decltype(descending_key(A(0)));
  const int64_t count = params.count;
  const Scratch sorting(2 * count * static_cast<int64_t>(sizeof(Keyed<Key>)));
  Keyed<Key>* const entries = sorting.as<Keyed<Key>>();
  int64_t ranked = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (params.scores[i] == params.scores[i]) {
      entries[ranked++] = {descending_key(params.scores[i]), static_cast<uint32_t>(i)};
    }
  }
  const Keyed<Key>* const order = radix_sort(entries, entries + count, ranked);

  const int64_t padded = count + S::kLanes;
  const Scratch memory(3 * padded * static_cast<int64_t>(sizeof(A)));
  Int* const rank = memory.as<Int>();  // by index; those without one precede nobody
  A* const compensation = memory.as<A>() + padded;
  A* const folded = compensation + padded;
  for (int64_t i = 0; i < padded; ++i) {
    rank[i] = Int{-1};
    compensation[i] = A(0);
    folded[i] = matrix_nms_start<A>(params.kernel);
  }
  for (int64_t r = 0; r < ranked; ++r) rank[order[r].value] = static_cast<Int>(r);

  // Of a slice that ends at `last`; what lies behind belongs to another thread.
  const auto load_within = [](const A* from, int64_t j, int64_t last) {
    return last - j >= S::kLanes ? S::load(from + j) : S::load_partial(from + j, static_cast<int>(last - j));
  };

  // f(index of i, column j, lanes ranked after i and of its class, overlaps) for the columns [first, last)
  const auto for_each_pair = [&](int64_t first, int64_t last, auto&& f) {
    for (int64_t r = 0; r < ranked; ++r) {
      const int64_t i = order[r].value;
      for (int64_t j = first; j < last; j += S::kLanes) {
        IntVec lanes = (S::load_int(rank + j) > IntVec{} + static_cast<Int>(r)) & S::first_lanes(last - j);
        if (!S::any(lanes)) continue;
        if (params.classes != nullptr) {
          for (int64_t lane = 0; lane < min_of<int64_t>(S::kLanes, last - j); ++lane) {
            if (params.classes[j + lane] != params.classes[i]) lanes[lane] = 0;
          }
        }
        f(i, j, lanes, weight_of_overlap(load_within(params.overlaps + i * count, j, last)));
      }
    }
  };
  const int64_t grain = max_of<int64_t>(S::kLanes, kMatrixNmsGrain * kMatrixNmsGrain / max_of<int64_t>(1, count));
  parallel(count, grain, [&](int64_t first, int64_t last) {
    for_each_pair(first, last, [&](int64_t, int64_t j, IntVec lanes, Vec overlap) {
      const Vec before = load_within(compensation, j, last);
      const Vec after = max_of(lanes ? overlap : Vec{}, before);
      S::store_partial(compensation + j, after, static_cast<int>(min_of<int64_t>(S::kLanes, last - j)));
    });
  });
  parallel(count, grain, [&](int64_t first, int64_t last) {
    for_each_pair(first, last, [&](int64_t i, int64_t j, IntVec lanes, Vec overlap) {
      const Vec before = load_within(folded, j, last);
      const Vec after = matrix_nms_fold(before, overlap, S::broadcast(compensation[i]), params.kernel);
      S::store_partial(folded + j, lanes ? after : before, static_cast<int>(min_of<int64_t>(S::kLanes, last - j)));
    });
    for (int64_t j = first; j < last; ++j) {
      if (rank[j] >= 0)
        params.new_scores[j] = params.scores[j] * matrix_nms_decay(folded[j], params.kernel, params.sigma);
    }
  });
}

}  // namespace

template <Isa isa, class A>
void matrix_nms_cpu(const MatrixNmsParams<A>& params, const Parallel& parallel) {
  if (params.count == 0) return;
  memcpy(params.new_scores, params.scores, static_cast<size_t>(params.count) * sizeof(A));  // NaN stays
  if (params.overlaps != nullptr) {
    decay_matrix<isa>(params, parallel);
  } else {
    decay_boxes<isa>(params, parallel);
  }
}

#define CVK_INSTANTIATE(A) template void matrix_nms_cpu<Isa::CVK_ISA, A>(const MatrixNmsParams<A>&, const Parallel&);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
#undef CVK_INSTANTIATE

}  // namespace cvk
