#include "kernels/nms/nms.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "bindings/torch/dispatch.h"
#include "bindings/torch/run.h"
#include "kernels/nms/nms_math.h"

namespace cvk::bindings {
namespace {

constexpr int64_t kIntMax = std::numeric_limits<int32_t>::max();

// "(N,)" or "(B, N)" of boxes [..., 4]
std::string rows_text(const Tensor& boxes) {
  std::ostringstream text;
  text << '(' << boxes.size(0);
  if (boxes.dim() == 3)
    text << ", " << boxes.size(1) << ')';
  else
    text << ",)";
  return text.str();
}

bool has_rows(const Tensor& tensor, const Tensor& boxes) {
  if (tensor.dim() != boxes.dim() - 1) return false;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) != boxes.size(i)) return false;
  }
  return true;
}

void check(const char* op, int64_t dims, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
           double iou_threshold) {
  if (boxes.dim() != dims || boxes.size(dims - 1) != 4) {
    reject(op, "boxes of shape ", dims == 3 ? "(B, N, 4)" : "(N, 4)", ", got ", shape_text(boxes));
  }
  check_float(op, "boxes", boxes);
  if (!has_rows(scores, boxes)) reject(op, "scores of shape ", rows_text(boxes), ", got ", shape_text(scores));
  check_float(op, "scores", scores);
  check_same_device(op, "scores", scores, "boxes", boxes);
  if (idxs) {
    if (!has_rows(*idxs, boxes)) reject(op, "idxs of shape ", rows_text(boxes), ", got ", shape_text(*idxs));
    if (!is_integer(idxs->scalar_type())) {
      reject(op, "idxs of dtype uint8, int8, int16, int32 or int64, got ", dtype_text(idxs->scalar_type()));
    }
    check_same_device(op, "idxs", *idxs, "boxes", boxes);
  }
  if (!is_finite(iou_threshold)) reject(op, "iou_threshold to be finite, got ", number_text(iou_threshold));
  if (boxes.size(dims - 2) > kIntMax) reject(op, "fewer than 2^31 boxes, got ", boxes.size(dims - 2));
}

// Calls f with tags of the arithmetic type of the boxes and the type of the scores.
template <class F>
void with_types(const Tensor& boxes, const Tensor& scores, F&& f) {
  const bool wide_boxes = boxes.scalar_type() == ScalarType::Double;
  const bool wide_scores = scores.scalar_type() == ScalarType::Double;
  if (wide_boxes) {
    if (wide_scores)
      f(TypeTag<double>{}, TypeTag<double>{});
    else
      f(TypeTag<double>{}, TypeTag<float>{});
  } else {
    if (wide_scores)
      f(TypeTag<float>{}, TypeTag<double>{});
    else
      f(TypeTag<float>{}, TypeTag<float>{});
  }
}

std::optional<Tensor> as_int64(const std::optional<Tensor>& idxs) {
  if (!idxs) return std::nullopt;
  return converted(*idxs, ScalarType::Long);
}

// B problems on the CPU: the kept indices of image b from keep[b * keep_stride] on, kept[b] of them.
void nms_on_cpu(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                double iou_threshold, int64_t batch, int64_t keep_stride, int64_t* keep, int64_t* kept) {
  with_types(boxes, scores, [&](auto box_type, auto score_type) {
    using A = typename decltype(box_type)::T;
    using S = typename decltype(score_type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<A>), values = converted(scores, kScalarType<S>);
    const int64_t count = boxes.size(boxes.dim() - 2);
    const auto one = [&](auto isa, int64_t image, const Parallel& parallel) {
      const NmsParams<A, S> params{count,
                                   data<A>(coordinates) + image * count * 4,
                                   data<S>(values) + image * count,
                                   idxs ? data<int64_t>(*idxs) + image * count : nullptr,
                                   nms_threshold<A>(iou_threshold),
                                   std::min(count, keep_stride),
                                   keep + image * keep_stride};
      kept[image] = nms_cpu<isa.value>(params, parallel);
    };
    if (batch == 1) {
      once([&](auto isa) { one(isa, 0, torch_parallel()); });
      return;
    }
    run(
        op, boxes, {batch},
        [&](auto isa, int64_t begin, int64_t end) {
          for (int64_t image = begin; image < end; ++image) one(isa, image, Parallel{});
        },
        [](CudaStream) { return CudaStatus{0}; });
  });
}

// aten::sort.stable, descending: (values, indices). NaN comes first.
std::array<Tensor, 2> sorted(const Tensor& scores) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(scores),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{-1}), torch::stable::detail::from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// B problems on CUDA or its emulation, into keep [B, max_output] and kept [B].
void nms_on_cuda(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                 double iou_threshold, int64_t batch, int64_t max_output, const Tensor& keep, const Tensor& kept) {
  const auto [ordered_scores, order] = sorted(scores);
  const Tensor verdict = converted(ordered_scores, ScalarType::Float);
  const Tensor ranks = converted(order, ScalarType::Long);
  with_types(boxes, scores, [&](auto box_type, auto) {
    using A = typename decltype(box_type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<A>);
    NmsBatchParams<A> params{};
    params.batch = batch;
    params.count = boxes.size(boxes.dim() - 2);
    params.max_output = max_output;
    params.boxes = data<A>(coordinates);
    params.order = data<int64_t>(ranks);
    params.ordered_scores = data<float>(verdict);
    params.classes = idxs ? data<int64_t>(*idxs) : nullptr;
    params.threshold = nms_threshold<A>(iou_threshold);
    params.keep = mutable_data<int64_t>(keep);
    params.kept = mutable_data<int64_t>(kept);
    if constexpr (!kOnCpu) {
      const Tensor scratch = allocate({nms_scratch_cuda(params)}, ScalarType::Byte, boxes);
      run(
          op, boxes, {}, [](auto, int64_t, int64_t) {},
          [&](CudaStream stream) { return nms_cuda(params, mutable_data<void>(scratch), stream); });
    }
  });
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, double iou_threshold,
           int64_t max_output) {
  const char* op = idxs ? "batched_nms" : "nms";
  check(op, 2, boxes, scores, idxs, iou_threshold);
  const int64_t count = boxes.size(0);
  const int64_t most = max_output < 0 ? count : std::min(count, max_output);
  const std::optional<Tensor> classes = as_int64(idxs);
  if (most == 0) return allocate({0}, ScalarType::Long, boxes);
  if constexpr (kOnCpu) {
    const HostScratch<int64_t> keep(most);
    int64_t kept = 0;
    nms_on_cpu(op, boxes, scores, classes, iou_threshold, 1, most, keep.get(), &kept);
    const Tensor result = allocate({kept}, ScalarType::Long, boxes);
    if (kept > 0) std::memcpy(mutable_data<int64_t>(result), keep.get(), static_cast<size_t>(kept) * sizeof(int64_t));
    return result;
  } else {
    const Tensor keep = allocate({most}, ScalarType::Long, boxes);
    const Tensor kept = allocate({1}, ScalarType::Long, boxes);
    nms_on_cuda(op, boxes, scores, classes, iou_threshold, 1, most, keep, kept);
    // The one wait for the device: the size of the result.
    const Tensor on_host = kBackend == Backend::kCuda
                               ? torch::stable::to(kept, std::nullopt, std::nullopt,
                                                   torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                                   std::nullopt, false, false, std::nullopt)
                               : kept;
    Tensor whole = keep;
    return torch::stable::clone(torch::stable::narrow(whole, 0, 0, data<int64_t>(on_host)[0]));
  }
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                                      double iou_threshold, int64_t max_output) {
  constexpr char op[] = "nms_padded";
  check(op, 3, boxes, scores, idxs, iou_threshold);
  if (max_output < 0) reject(op, "max_output to be at least 0, got ", max_output);
  const int64_t batch = boxes.size(0), count = boxes.size(1);
  const std::optional<Tensor> classes = as_int64(idxs);
  const Tensor keep = allocate({batch, max_output}, ScalarType::Long, boxes);
  const Tensor kept = allocate({batch}, ScalarType::Long, boxes);
  if (batch == 0) return {keep, kept};
  if constexpr (kOnCpu) {
    int64_t* const rows = mutable_data<int64_t>(keep);
    int64_t* const counts = mutable_data<int64_t>(kept);
    nms_on_cpu(op, boxes, scores, classes, iou_threshold, batch, max_output, rows, counts);
    for (int64_t image = 0; image < batch; ++image) {
      std::fill(rows + image * max_output + counts[image], rows + (image + 1) * max_output, int64_t{-1});
    }
  } else {
    nms_on_cuda(op, boxes, scores, classes, iou_threshold, batch, max_output, keep, kept);
  }
  return {keep, kept};
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output) -> Tensor");
  m.def(
      "nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output) "
      "-> (Tensor keep, Tensor count)");
}

CVK_KERNELS(m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("nms_padded", TORCH_BOX(&nms_padded));
}

}  // namespace cvk::bindings
