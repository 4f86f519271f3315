// Hard NMS on CUDA: the rules by which axis-aligned boxes suppress each other. Contract: nms.h; method: nms_engine.cuh.
//
// What was tried: on an H100 nothing else yet; the structure is chosen from PERFORMANCE notes (no N^2 mask, no host step).
#include "kernels/nms/nms_engine.cuh"
#include "kernels/nms/nms_math.h"

namespace cvk {
namespace {

// IoU above one threshold. Perf: the plain case knows its criterion when compiled, 16 bytes a box and no density to read.
template <class A>
struct IouRule {
  static constexpr bool kHeavy = false;
  struct alignas(4 * sizeof(A)) Item {
    A x1, y1, x2, y2;
    CVK_HD Box<A> box() const { return {x1, y1, x2, y2}; }
  };
  const A* boxes;  // [B * N, 4]
  A threshold;

  CVK_HD Item load(int64_t box) const {
    const A* const at = boxes + 4 * box;
    return Item{at[0], at[1], at[2], at[3]};
  }
  CVK_HD bool suppresses(const Item& kept, const Item& other) const {
    const Box<A> a = kept.box(), b = other.box();
    return overlaps_above(a, box_area(a), b, box_area(b), threshold, OverlapRule<A>{});
  }
};

// Any criterion, above the larger of the threshold and the density of the kept box.
template <class A>
struct OverlapAndDensityRule {
  static constexpr bool kHeavy = sizeof(A) == 8;
  struct Item {
    A x1, y1, x2, y2;
    A limit;
    CVK_HD Box<A> box() const { return {x1, y1, x2, y2}; }
  };
  const A* boxes;      // [B * N, 4]
  const A* densities;  // [B * N] or null
  A threshold;
  OverlapRule<A> overlap;

  CVK_HD Item load(int64_t box) const {
    const A* const at = boxes + 4 * box;
    const A limit = densities != nullptr ? nms_threshold_of(threshold, densities[box]) : threshold;
    return Item{at[0], at[1], at[2], at[3], limit};
  }
  CVK_HD bool suppresses(const Item& kept, const Item& other) const {
    const Box<A> a = kept.box(), b = other.box();
    return overlaps_above(a, box_area(a), b, box_area(b), kept.limit, overlap);
  }
};

// Calls f(problem, rule) with the rule that the parameters ask for.
template <class A, class F>
auto with_rule(const NmsBatchParams<A>& params, F&& f) {
  const NmsProblem problem{params.batch,   params.count, params.max_output, params.order, params.ordered_scores,
                           params.classes, params.keep,  params.kept,       params.owner};
  if (params.overlap.criterion == OverlapCriterion::kIou && params.densities == nullptr) {
    return f(problem, IouRule<A>{params.boxes, params.threshold});
  }
  return f(problem, OverlapAndDensityRule<A>{params.boxes, params.densities, params.threshold, params.overlap});
}

}  // namespace

template <class A>
int64_t nms_scratch_cuda(const NmsBatchParams<A>& params) {
  return with_rule(
      params, [](const NmsProblem& problem, auto rule) { return nms_engine::scratch_bytes<decltype(rule)>(problem); });
}

template <class A>
CudaStatus nms_cuda(const NmsBatchParams<A>& params, void* scratch, CudaStream stream) {
  return static_cast<CudaStatus>(with_rule(params, [&](const NmsProblem& problem, const auto& rule) {
    return nms_engine::run(problem, rule, scratch, stream);
  }));
}

template int64_t nms_scratch_cuda<float>(const NmsBatchParams<float>&);
template int64_t nms_scratch_cuda<double>(const NmsBatchParams<double>&);
template CudaStatus nms_cuda<float>(const NmsBatchParams<float>&, void*, CudaStream);
template CudaStatus nms_cuda<double>(const NmsBatchParams<double>&, void*, CudaStream);

}  // namespace cvk
