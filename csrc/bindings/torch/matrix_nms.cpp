#include "kernels/matrix_nms/matrix_nms.h"

#include "bindings/torch/nms_family.h"

namespace cvk::bindings {
namespace {

MatrixNmsKernel checked_kernel(const char* op, const std::string& kernel) {
  return chosen<MatrixNmsKernel>(op, "kernel", kernel, std::array<std::string_view, 2>{"linear", "gaussian"});
}

// `source` is boxes [N, 4] or overlaps [N, N].
Tensor decayed(const char* op, const Tensor& source, bool from_overlaps, const Tensor& scores,
               const OptionalTensor& idxs, MatrixNmsKernel kernel, double sigma, OverlapCriterion criterion,
               double beta) {
  const OptionalTensor classes = as_int64(idxs);
  return with_arithmetic(source, scores, [&](auto type) -> Tensor {
    using A = typename decltype(type)::T;
    const Tensor values = converted(source, kScalarType<A>), ranking = converted(scores, kScalarType<A>);
    const Tensor new_scores = allocate({source.size(0)}, kScalarType<A>, source);
    MatrixNmsParams<A> params{};
    params.count = source.size(0);
    params.boxes = from_overlaps ? nullptr : data<A>(values);
    params.overlaps = from_overlaps ? data<A>(values) : nullptr;
    params.scores = data<A>(ranking);
    params.classes = data_or_null(classes);
    params.kernel = kernel;
    params.sigma = positive_parameter<A>(sigma);
    params.overlap = overlap_rule<A>(criterion, beta);
    params.new_scores = mutable_data<A>(new_scores);
    if (params.count > 0) {
      if constexpr (kOnCpu) {
        once([&](auto isa) { matrix_nms_cpu<isa.value>(params, torch_parallel()); });
      } else {
        const Tensor order = converted(sorted(ranking, true)[1], ScalarType::Long);
        const Tensor scratch = allocate({matrix_nms_scratch_cuda(params)}, ScalarType::Byte, source);
        on_device(op, source, [&](CudaStream stream) {
          return matrix_nms_cuda(params, data<int64_t>(order), mutable_data<void>(scratch), stream);
        });
      }
    }
    return new_scores;
  });
}

Tensor matrix_nms(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs, const std::string& kernel_name,
                  double sigma, const std::string& criterion_name, double beta) {
  constexpr char op[] = "matrix_nms";
  check_candidates(op, 2, boxes, scores, idxs);
  check_positive(op, "sigma", sigma);
  const MatrixNmsKernel kernel = checked_kernel(op, kernel_name);
  const OverlapCriterion criterion = checked_criterion(op, criterion_name, beta);
  return decayed(op, boxes, false, scores, idxs, kernel, sigma, criterion, beta);
}

Tensor matrix_nms_overlaps(const Tensor& overlaps, const Tensor& scores, const OptionalTensor& idxs,
                           const std::string& kernel_name, double sigma) {
  constexpr char op[] = "matrix_nms_from_overlaps";
  if (overlaps.dim() != 2 || overlaps.size(0) != overlaps.size(1)) {
    reject(op, "overlaps of shape (N, N), got ", shape_text(overlaps));
  }
  check_float(op, "overlaps", overlaps);
  check_scores_and_idxs(op, "overlaps", overlaps, scores, idxs);
  check_positive(op, "sigma", sigma);
  const MatrixNmsKernel kernel = checked_kernel(op, kernel_name);
  return decayed(op, overlaps, true, scores, idxs, kernel, sigma, OverlapCriterion::kIou, 1);
}

}  // namespace

// New scores stay in the arithmetic type: Python rounds them once, and their gradient is exact before that.
CVK_SCHEMAS(m) {
  m.def(
      "matrix_nms(Tensor boxes, Tensor scores, Tensor? idxs, str kernel, float sigma, str criterion, float beta) "
      "-> Tensor");
  m.def("matrix_nms_overlaps(Tensor overlaps, Tensor scores, Tensor? idxs, str kernel, float sigma) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("matrix_nms", TORCH_BOX(&matrix_nms));
  m.impl("matrix_nms_overlaps", TORCH_BOX(&matrix_nms_overlaps));
}

}  // namespace cvk::bindings
