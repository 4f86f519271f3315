#include "kernels/soft_nms/soft_nms.h"

#include "bindings/torch/nms_family.h"

namespace cvk::bindings {
namespace {

struct Outputs {
  Tensor keep, new_scores, count;  // [B, width], [B, width], [B]
};

Outputs soft_nms_of(const char* op, int64_t dims, const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs,
                    const std::string& method_name, double iou_threshold, double sigma, double min_score,
                    int64_t max_output, const std::string& criterion_name, double beta) {
  check_candidates(op, dims, boxes, scores, idxs);
  check_threshold(op, iou_threshold);
  check_positive(op, "sigma", sigma);
  check_min_score(op, min_score);
  if (dims == 3) check_width(op, max_output);
  const SoftNmsMethod method =
      chosen<SoftNmsMethod>(op, "method", method_name, std::array<std::string_view, 3>{"linear", "gaussian", "hard"});
  const OverlapCriterion criterion = checked_criterion(op, criterion_name, beta);
  const int64_t batch = dims == 3 ? boxes.size(0) : 1, count = boxes.size(dims - 2);
  const int64_t width = dims == 3 ? max_output : most_rows(count, max_output);
  const OptionalTensor classes = as_int64(idxs);
  return with_arithmetic(boxes, scores, [&](auto type) -> Outputs {
    using A = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<A>), values = converted(scores, kScalarType<A>);
    const Tensor keep = allocate({batch, width}, ScalarType::Long, boxes);
    const Tensor new_scores = allocate({batch, width}, kScalarType<A>, boxes);
    const Tensor kept = allocate({batch}, ScalarType::Long, boxes);
    SoftNmsParams<A> params{};
    params.batch = batch;
    params.count = count;
    params.max_output = width;
    params.boxes = data<A>(coordinates);
    params.scores = data<A>(values);
    params.classes = data_or_null(classes);
    params.method = method;
    params.threshold = overlap_threshold<A>(iou_threshold);
    params.sigma = positive_parameter<A>(sigma);
    params.min_score = score_limit<A>(min_score);
    params.overlap = overlap_rule<A>(criterion, beta);
    params.keep = mutable_data<int64_t>(keep);
    params.new_scores = mutable_data<A>(new_scores);
    params.kept = mutable_data<int64_t>(kept);
    if constexpr (kOnCpu) {
      for_each_image(op, boxes, batch, [&](auto isa, int64_t image, const Parallel& parallel) {
        soft_nms_cpu<isa.value>(params, image, parallel);
      });
    } else if (batch > 0) {
      const Tensor scratch = allocate({soft_nms_scratch_cuda(params)}, ScalarType::Byte, boxes);
      on_device(op, boxes,
                [&](CudaStream stream) { return soft_nms_cuda(params, mutable_data<void>(scratch), stream); });
    }
    return {keep, new_scores, kept};
  });
}

std::tuple<Tensor, Tensor> soft_nms(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs,
                                    const std::string& method, double iou_threshold, double sigma, double min_score,
                                    int64_t max_output, const std::string& criterion, double beta) {
  const Outputs all = soft_nms_of("soft_nms", 2, boxes, scores, idxs, method, iou_threshold, sigma, min_score,
                                  max_output, criterion, beta);
  const int64_t rows = on_host(all.count);
  return {first_rows(torch::stable::view(all.new_scores, {all.keep.size(1)}), rows),
          first_rows(torch::stable::view(all.keep, {all.keep.size(1)}), rows)};
}

std::tuple<Tensor, Tensor, Tensor> soft_nms_padded(const Tensor& boxes, const Tensor& scores,
                                                   const OptionalTensor& idxs, const std::string& method,
                                                   double iou_threshold, double sigma, double min_score,
                                                   int64_t max_output, const std::string& criterion, double beta) {
  const Outputs all = soft_nms_of("soft_nms_padded", 3, boxes, scores, idxs, method, iou_threshold, sigma, min_score,
                                  max_output, criterion, beta);
  return {all.new_scores, all.keep, all.count};
}

}  // namespace

// New scores stay in the arithmetic type: Python rounds them once, and their gradient is exact before that.
// The differentiable result comes first: torch.library.opcheck adds the results up in order.
CVK_SCHEMAS(m) {
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor? idxs, str method, float iou_threshold, float sigma, "
      "float min_score, SymInt max_output, str criterion, float beta) -> (Tensor new_scores, Tensor keep)");
  m.def(
      "soft_nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, str method, float iou_threshold, float sigma, "
      "float min_score, SymInt max_output, str criterion, float beta) "
      "-> (Tensor new_scores, Tensor keep, Tensor count)");
}

CVK_KERNELS(m) {
  m.impl("soft_nms", TORCH_BOX(&soft_nms));
  m.impl("soft_nms_padded", TORCH_BOX(&soft_nms_padded));
}

}  // namespace cvk::bindings
