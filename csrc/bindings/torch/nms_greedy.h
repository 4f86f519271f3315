// The greedy engine on tensors: what nms and weighted_nms call.
#pragma once

#include "bindings/torch/nms_family.h"
#include "kernels/nms/nms.h"

namespace cvk::bindings {

// B images whose arguments have been checked.
struct GreedyProblem {
  const char* op;
  int64_t batch, count;
  Tensor boxes, scores;      // [..., N, 4], [..., N]
  OptionalTensor classes;    // [..., N] int64
  OptionalTensor densities;  // [..., N]
  double threshold;
  OverlapCriterion criterion;
  double beta;
};

inline GreedyProblem checked_problem(const char* op, int64_t dims, const Tensor& boxes, const Tensor& scores,
                                     const OptionalTensor& idxs, const OptionalTensor& densities, double iou_threshold,
                                     const std::string& criterion, double beta) {
  check_candidates(op, dims, boxes, scores, idxs);
  if (densities) check_row_values(op, "densities", *densities, "boxes", boxes);
  check_threshold(op, iou_threshold);
  const OverlapCriterion rule = checked_criterion(op, criterion, beta);
  return {op,
          dims == 3 ? boxes.size(0) : 1,
          boxes.size(dims - 2),
          boxes,
          scores,
          as_int64(idxs),
          densities,
          iou_threshold,
          rule,
          beta};
}

// Calls f with tags of the arithmetic type of the boxes and the type of the scores.
template <class F>
void with_greedy_types(const GreedyProblem& problem, F&& f) {
  const bool wide_scores = problem.scores.scalar_type() == ScalarType::Double;
  const auto with_boxes = [&](auto box_type) {
    if (wide_scores)
      f(box_type, TypeTag<double>{});
    else
      f(box_type, TypeTag<float>{});
  };
  if (problem.boxes.scalar_type() == ScalarType::Double)
    with_boxes(TypeTag<double>{});
  else
    with_boxes(TypeTag<float>{});
}

// The kept indices of image b from keep[b * width] on, kept[b] of them, the rest untouched; owner [B, N] or null.
inline void greedy_on_cpu(const GreedyProblem& problem, int64_t width, int64_t* keep, int64_t* kept, int64_t* owner) {
  with_greedy_types(problem, [&](auto box_type, auto score_type) {
    using A = typename decltype(box_type)::T;
    using S = typename decltype(score_type)::T;
    const Tensor boxes = converted(problem.boxes, kScalarType<A>), scores = converted(problem.scores, kScalarType<S>);
    OptionalTensor densities;
    if (problem.densities) densities = converted(*problem.densities, kScalarType<A>);
    const int64_t count = problem.count;
    for_each_image(problem.op, problem.boxes, problem.batch, [&](auto isa, int64_t image, const Parallel& parallel) {
      const NmsParams<A, S> params{count,
                                   data<A>(boxes) + image * count * 4,
                                   data<S>(scores) + image * count,
                                   problem.classes ? data<int64_t>(*problem.classes) + image * count : nullptr,
                                   densities ? data<A>(*densities) + image * count : nullptr,
                                   overlap_threshold<A>(problem.threshold),
                                   overlap_rule<A>(problem.criterion, problem.beta),
                                   std::min(count, width),
                                   keep + image * width,
                                   owner != nullptr ? owner + image * count : nullptr};
      kept[image] = nms_cpu<isa.value>(params, parallel);
    });
  });
}

// On CUDA or its emulation: keep [B, width] padded with -1, kept [B], owner [B, N].
inline void greedy_on_cuda(const GreedyProblem& problem, int64_t width, const Tensor& keep, const Tensor& kept,
                           const OptionalTensor& owner) {
  const auto [ordered_scores, order] = sorted(problem.scores, true);
  const Tensor verdict = converted(ordered_scores, ScalarType::Float);
  const Tensor ranks = converted(order, ScalarType::Long);
  with_greedy_types(problem, [&](auto box_type, auto) {
    using A = typename decltype(box_type)::T;
    const Tensor boxes = converted(problem.boxes, kScalarType<A>);
    OptionalTensor densities;
    if (problem.densities) densities = converted(*problem.densities, kScalarType<A>);
    NmsBatchParams<A> params{};
    params.batch = problem.batch;
    params.count = problem.count;
    params.max_output = width;
    params.boxes = data<A>(boxes);
    params.order = data<int64_t>(ranks);
    params.ordered_scores = data<float>(verdict);
    params.classes = data_or_null(problem.classes);
    params.densities = densities ? data<A>(*densities) : nullptr;
    params.threshold = overlap_threshold<A>(problem.threshold);
    params.overlap = overlap_rule<A>(problem.criterion, problem.beta);
    params.keep = mutable_data<int64_t>(keep);
    params.kept = mutable_data<int64_t>(kept);
    params.owner = owner ? mutable_data<int64_t>(*owner) : nullptr;
    if constexpr (!kOnCpu) {
      const Tensor scratch = allocate({nms_scratch_cuda(params)}, ScalarType::Byte, problem.boxes);
      on_device(problem.op, problem.boxes,
                [&](CudaStream stream) { return nms_cuda(params, mutable_data<void>(scratch), stream); });
    }
  });
}

// On the device of this library.
inline void greedy(const GreedyProblem& problem, int64_t width, const Tensor& keep, const Tensor& kept,
                   const OptionalTensor& owner) {
  if (problem.batch == 0) return;
  if constexpr (kOnCpu) {
    int64_t* const rows = mutable_data<int64_t>(keep);
    int64_t* const counts = mutable_data<int64_t>(kept);
    greedy_on_cpu(problem, width, rows, counts, owner ? mutable_data<int64_t>(*owner) : nullptr);
    for (int64_t image = 0; image < problem.batch; ++image) {
      std::fill(rows + image * width + counts[image], rows + (image + 1) * width, int64_t{-1});
    }
  } else {
    greedy_on_cuda(problem, width, keep, kept, owner);
  }
}

}  // namespace cvk::bindings
