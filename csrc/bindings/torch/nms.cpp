#include "kernels/nms/nms.h"

#include "bindings/torch/nms_greedy.h"

namespace cvk::bindings {
namespace {

Tensor nms(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs, double iou_threshold,
           int64_t max_output, const std::string& criterion, double beta, const OptionalTensor& densities) {
  const char* op = densities ? "adaptive_nms" : idxs ? "batched_nms" : "nms";
  const GreedyProblem problem = checked_problem(op, 2, boxes, scores, idxs, densities, iou_threshold, criterion, beta);
  const int64_t most = most_rows(problem.count, max_output);
  if (most == 0) return allocate({0}, ScalarType::Long, boxes);
  if constexpr (kOnCpu) {
    const HostScratch<int64_t> keep(most);
    int64_t kept = 0;
    greedy_on_cpu(problem, most, keep.get(), &kept, nullptr);
    const Tensor result = allocate({kept}, ScalarType::Long, boxes);
    if (kept > 0) std::memcpy(mutable_data<int64_t>(result), keep.get(), static_cast<size_t>(kept) * sizeof(int64_t));
    return result;
  } else {
    const Tensor keep = allocate({most}, ScalarType::Long, boxes);
    const Tensor kept = allocate({1}, ScalarType::Long, boxes);
    greedy_on_cuda(problem, most, keep, kept, std::nullopt);
    return first_rows(keep, on_host(kept));
  }
}

std::tuple<Tensor, Tensor> nms_clusters(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs,
                                        double iou_threshold, int64_t max_output, const std::string& criterion,
                                        double beta) {
  const GreedyProblem problem =
      checked_problem("nms_clusters", 2, boxes, scores, idxs, std::nullopt, iou_threshold, criterion, beta);
  const int64_t most = most_rows(problem.count, max_output);
  const Tensor keep = allocate({most}, ScalarType::Long, boxes), kept = allocate({1}, ScalarType::Long, boxes);
  const Tensor owner = allocate({problem.count}, ScalarType::Long, boxes);
  greedy(problem, most, keep, kept, owner);
  return {first_rows(keep, on_host(kept)), owner};
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs,
                                      double iou_threshold, int64_t max_output, const std::string& criterion,
                                      double beta) {
  constexpr char op[] = "nms_padded";
  check_candidates(op, 3, boxes, scores, idxs);
  check_threshold(op, iou_threshold);
  check_width(op, max_output);
  const GreedyProblem problem =
      checked_problem(op, 3, boxes, scores, idxs, std::nullopt, iou_threshold, criterion, beta);
  const Tensor keep = allocate({problem.batch, max_output}, ScalarType::Long, boxes);
  const Tensor kept = allocate({problem.batch}, ScalarType::Long, boxes);
  greedy(problem, max_output, keep, kept, std::nullopt);
  return {keep, kept};
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output, "
      "str criterion, float beta, Tensor? densities) -> Tensor");
  m.def(
      "nms_clusters(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output, "
      "str criterion, float beta) -> (Tensor keep, Tensor owner)");
  m.def(
      "nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output, "
      "str criterion, float beta) -> (Tensor keep, Tensor count)");
}

CVK_KERNELS(m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("nms_clusters", TORCH_BOX(&nms_clusters));
  m.impl("nms_padded", TORCH_BOX(&nms_padded));
}

}  // namespace cvk::bindings
