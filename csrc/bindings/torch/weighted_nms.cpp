#include "kernels/weighted_nms/weighted_nms.h"

#include "bindings/torch/nms_greedy.h"

namespace cvk::bindings {
namespace {

// Merged boxes [B, width, 4] in the dtype of the boxes.
Tensor merged(const GreedyProblem& problem, int64_t width, const Tensor& keep, const Tensor& owner) {
  return with_arithmetic(problem.boxes, problem.scores, [&](auto type) -> Tensor {
    using A = typename decltype(type)::T;
    const Tensor boxes = converted(problem.boxes, kScalarType<A>), scores = converted(problem.scores, kScalarType<A>);
    const Tensor result = allocate({problem.batch, width, 4}, kScalarType<A>, problem.boxes);
    WeightedNmsMergeParams<A> params{};
    params.batch = problem.batch;
    params.count = problem.count;
    params.slots = width;
    params.boxes = data<A>(boxes);
    params.scores = data<A>(scores);
    params.keep = data<int64_t>(keep);
    params.owner = data<int64_t>(owner);
    params.overlap = overlap_rule<A>(problem.criterion, problem.beta);
    params.merged = mutable_data<A>(result);
    if constexpr (kOnCpu) {
      for_each_image(problem.op, boxes, problem.batch, [&](auto isa, int64_t image, const Parallel&) {
        weighted_nms_merge_cpu<isa.value>(params, image);
      });
    } else if (problem.batch > 0) {
      const Tensor grouped = converted(sorted(owner, false)[1], ScalarType::Long);
      on_device(problem.op, boxes,
                [&](CudaStream stream) { return weighted_nms_merge_cuda(params, data<int64_t>(grouped), stream); });
    }
    return converted(result, problem.boxes.scalar_type());
  });
}

std::tuple<Tensor, Tensor, Tensor> weighted_nms(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs,
                                                double iou_threshold, int64_t max_output, const std::string& criterion,
                                                double beta) {
  const GreedyProblem problem =
      checked_problem("weighted_nms", 2, boxes, scores, idxs, std::nullopt, iou_threshold, criterion, beta);
  const int64_t most = most_rows(problem.count, max_output);
  const Tensor all = allocate({most}, ScalarType::Long, boxes), kept = allocate({1}, ScalarType::Long, boxes);
  const Tensor owner = allocate({problem.count}, ScalarType::Long, boxes);
  greedy(problem, most, all, kept, owner);
  const Tensor keep = first_rows(all, on_host(kept));
  return {torch::stable::view(merged(problem, keep.size(0), keep, owner), {keep.size(0), 4}), keep, owner};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> weighted_nms_padded(const Tensor& boxes, const Tensor& scores,
                                                               const OptionalTensor& idxs, double iou_threshold,
                                                               int64_t max_output, const std::string& criterion,
                                                               double beta) {
  constexpr char op[] = "weighted_nms_padded";
  check_candidates(op, 3, boxes, scores, idxs);
  check_threshold(op, iou_threshold);
  check_width(op, max_output);
  const GreedyProblem problem =
      checked_problem(op, 3, boxes, scores, idxs, std::nullopt, iou_threshold, criterion, beta);
  const Tensor keep = allocate({problem.batch, max_output}, ScalarType::Long, boxes);
  const Tensor kept = allocate({problem.batch}, ScalarType::Long, boxes);
  const Tensor owner = allocate({problem.batch, problem.count}, ScalarType::Long, boxes);
  greedy(problem, max_output, keep, kept, owner);
  return {merged(problem, max_output, keep, owner), keep, kept, owner};
}

void check_keep(const char* op, const Tensor& keep, const Tensor& boxes) {
  if (keep.dim() != 1) reject(op, "keep of shape (M,), got ", shape_text(keep));
  if (keep.scalar_type() != ScalarType::Long) reject(op, "keep of dtype int64, got ", dtype_text(keep.scalar_type()));
  check_same_device(op, "keep", keep, "boxes", boxes);
}

// An index read from a tensor is checked before use; on CUDA by the kernels.
void check_indices(const char* op, const Tensor& keep, int64_t count) {
  if constexpr (!kOnCpu) return;
  const int64_t* const index = data<int64_t>(keep);
  for (int64_t row = 0; row < keep.size(0); ++row) {
    if (index[row] < 0 || index[row] >= count) {
      reject(op, "keep in [0, ", count, "), got ", index[row], " in row ", row);
    }
  }
}

Tensor weighted_nms_vote(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs, const Tensor& keep,
                         const OptionalTensor& variances, double parameter, const std::string& criterion_name,
                         double beta) {
  constexpr char op[] = "weighted_nms_vote";
  check_candidates(op, 2, boxes, scores, idxs);
  check_keep(op, keep, boxes);
  if (variances) {
    check_row_values(op, "variances", *variances, "boxes", boxes, true);
    check_positive(op, "sigma_t", parameter);
  } else {
    check_threshold(op, parameter);
  }
  const OverlapCriterion criterion = checked_criterion(op, criterion_name, beta);
  const Tensor rows = converted(keep, ScalarType::Long);
  check_indices(op, rows, boxes.size(0));
  const OptionalTensor classes = as_int64(idxs);
  return with_arithmetic(boxes, scores, [&](auto type) -> Tensor {
    using A = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<A>), values = converted(scores, kScalarType<A>);
    OptionalTensor spread;
    if (variances) spread = converted(*variances, kScalarType<A>);
    const Tensor voted = allocate({keep.size(0), 4}, kScalarType<A>, boxes);
    WeightedNmsVoteParams<A> params{};
    params.count = boxes.size(0);
    params.slots = keep.size(0);
    params.boxes = data<A>(coordinates);
    params.scores = data<A>(values);
    params.classes = data_or_null(classes);
    params.keep = data<int64_t>(rows);
    params.variances = spread ? data<A>(*spread) : nullptr;
    params.sigma_t = positive_parameter<A>(parameter);
    params.threshold = overlap_threshold<A>(parameter);
    params.overlap = overlap_rule<A>(criterion, beta);
    params.voted = mutable_data<A>(voted);
    if (params.slots > 0) {
      if constexpr (kOnCpu) {
        once([&](auto isa) { weighted_nms_vote_cpu<isa.value>(params, torch_parallel()); });
      } else {
        on_device(op, boxes, [&](CudaStream stream) { return weighted_nms_vote_cuda(params, stream); });
      }
    }
    return converted(voted, boxes.scalar_type());
  });
}

Tensor weighted_nms_penalty(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs, const Tensor& keep,
                            double sigma, const std::string& criterion_name, double beta) {
  constexpr char op[] = "weighted_nms_penalty";
  check_candidates(op, 2, boxes, scores, idxs);
  check_keep(op, keep, boxes);
  check_positive(op, "sigma", sigma);
  const OverlapCriterion criterion = checked_criterion(op, criterion_name, beta);
  const Tensor rows = converted(keep, ScalarType::Long);
  check_indices(op, rows, boxes.size(0));
  const OptionalTensor classes = as_int64(idxs);
  return with_arithmetic(boxes, scores, [&](auto type) -> Tensor {
    using A = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<A>), values = converted(scores, kScalarType<A>);
    const Tensor new_scores = allocate({boxes.size(0)}, kScalarType<A>, boxes);
    WeightedNmsPenaltyParams<A> params{};
    params.count = boxes.size(0);
    params.slots = keep.size(0);
    params.boxes = data<A>(coordinates);
    params.scores = data<A>(values);
    params.classes = data_or_null(classes);
    params.keep = data<int64_t>(rows);
    params.sigma = positive_parameter<A>(sigma);
    params.overlap = overlap_rule<A>(criterion, beta);
    params.new_scores = mutable_data<A>(new_scores);
    if (params.count > 0) {
      if constexpr (kOnCpu) {
        once([&](auto isa) { weighted_nms_penalty_cpu<isa.value>(params, torch_parallel()); });
      } else {
        on_device(op, boxes, [&](CudaStream stream) { return weighted_nms_penalty_cuda(params, stream); });
      }
    }
    return new_scores;
  });
}

}  // namespace

// New scores stay in the arithmetic type: Python rounds them once, and their gradient is exact before that.
CVK_SCHEMAS(m) {
  m.def(
      "weighted_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output, "
      "str criterion, float beta) -> (Tensor merged, Tensor keep, Tensor owner)");
  m.def(
      "weighted_nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output, "
      "str criterion, float beta) -> (Tensor merged, Tensor keep, Tensor count, Tensor owner)");
  m.def(
      "weighted_nms_vote(Tensor boxes, Tensor scores, Tensor? idxs, Tensor keep, Tensor? variances, "
      "float parameter, str criterion, float beta) -> Tensor");
  m.def(
      "weighted_nms_penalty(Tensor boxes, Tensor scores, Tensor? idxs, Tensor keep, float sigma, str criterion, "
      "float beta) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("weighted_nms", TORCH_BOX(&weighted_nms));
  m.impl("weighted_nms_padded", TORCH_BOX(&weighted_nms_padded));
  m.impl("weighted_nms_vote", TORCH_BOX(&weighted_nms_vote));
  m.impl("weighted_nms_penalty", TORCH_BOX(&weighted_nms_penalty));
}

}  // namespace cvk::bindings
