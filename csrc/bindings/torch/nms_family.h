// What the operators of the NMS family share: checks of their arguments, in the order of cvkernels/_checks, dtypes, and
// results whose size is known only afterwards.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string_view>

#include "bindings/torch/dispatch.h"
#include "bindings/torch/run.h"
#include "common/box_overlap.h"

namespace cvk::bindings {

using OptionalTensor = std::optional<Tensor>;

// "(N,)" or "(B, N)" of boxes [..., 4], and the shape of boxes itself with `columns`.
inline std::string rows_text(const Tensor& boxes, bool columns = false) {
  std::ostringstream text;
  const int64_t dims = boxes.dim() - (columns ? 0 : 1);
  text << '(';
  for (int64_t i = 0; i < dims; ++i) text << (i ? ", " : "") << boxes.size(i);
  text << (dims == 1 ? ",)" : ")");
  return text.str();
}

inline bool has_rows(const Tensor& tensor, const Tensor& boxes, bool columns = false) {
  const int64_t dims = boxes.dim() - (columns ? 0 : 1);
  if (tensor.dim() != dims) return false;
  for (int64_t i = 0; i < dims; ++i) {
    if (tensor.size(i) != boxes.size(i)) return false;
  }
  return true;
}

// A float tensor with a value per box; with `columns`, one per coordinate.
inline void check_row_values(const char* op, const char* name, const Tensor& value, const char* boxes_name,
                             const Tensor& boxes, bool columns = false) {
  if (!has_rows(value, boxes, columns)) {
    reject(op, name, " of shape ", rows_text(boxes, columns), ", got ", shape_text(value));
  }
  check_float(op, name, value);
  check_same_device(op, name, value, boxes_name, boxes);
}

inline void check_scores_and_idxs(const char* op, const char* boxes_name, const Tensor& boxes, const Tensor& scores,
                                  const OptionalTensor& idxs) {
  constexpr int64_t kIntMax = std::numeric_limits<int32_t>::max();
  check_row_values(op, "scores", scores, boxes_name, boxes);
  if (idxs) {
    if (!has_rows(*idxs, boxes)) reject(op, "idxs of shape ", rows_text(boxes), ", got ", shape_text(*idxs));
    check_integer(op, "idxs", *idxs);
    check_same_device(op, "idxs", *idxs, boxes_name, boxes);
  }
  if (boxes.size(boxes.dim() - 2) > kIntMax) {
    reject(op, "fewer than 2^31 boxes, got ", boxes.size(boxes.dim() - 2));
  }
}

// Boxes [N, 4], or [B, N, 4] with dims 3, and what comes with them.
inline void check_candidates(const char* op, int64_t dims, const Tensor& boxes, const Tensor& scores,
                             const OptionalTensor& idxs) {
  if (boxes.dim() != dims || boxes.size(dims - 1) != 4) {
    reject(op, "boxes of shape ", dims == 3 ? "(B, N, 4)" : "(N, 4)", ", got ", shape_text(boxes));
  }
  check_float(op, "boxes", boxes);
  check_scores_and_idxs(op, "boxes", boxes, scores, idxs);
}

inline void check_threshold(const char* op, double iou_threshold) {
  if (!is_finite(iou_threshold)) reject(op, "iou_threshold to be finite, got ", number_text(iou_threshold));
}

inline void check_positive(const char* op, const char* name, double value) {
  if (!(is_finite(value) && value > 0)) reject(op, name, " to be finite and positive, got ", number_text(value));
}

inline void check_min_score(const char* op, double min_score) {
  if (!(is_finite(min_score) && min_score >= 0)) {
    reject(op, "min_score to be finite and at least 0, got ", number_text(min_score));
  }
}

inline void check_width(const char* op, int64_t max_output) {
  if (max_output < 0) reject(op, "max_output to be at least 0, got ", max_output);
}

// The place of `choice` among `choices`; an enumeration lists them in the same order.
template <class Choice, size_t count>
Choice chosen(const char* op, const char* name, const std::string& choice,
              const std::array<std::string_view, count>& choices) {
  std::ostringstream text;
  for (size_t i = 0; i < count; ++i) {
    if (choice == choices[i]) return static_cast<Choice>(i);
    text << (i == 0 ? "'" : i + 1 == count ? " or '" : ", '") << choices[i] << '\'';
  }
  reject(op, name, " to be ", text.str(), ", got '", choice, "'");
}

inline OverlapCriterion checked_criterion(const char* op, const std::string& criterion, double beta) {
  const auto result = chosen<OverlapCriterion>(op, "criterion", criterion,
                                               std::array<std::string_view, 4>{"iou", "giou", "diou", "ciou"});
  check_positive(op, "beta", beta);
  return result;
}

template <class A>
OverlapRule<A> overlap_rule(OverlapCriterion criterion, double beta) {
  return {criterion, positive_parameter<A>(beta)};
}

// Calls f with a tag of the arithmetic type: float64 where boxes or scores are, else float32.
template <class F>
auto with_arithmetic(const Tensor& boxes, const Tensor& scores, F&& f) {
  if (boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double) {
    return f(TypeTag<double>{});
  }
  return f(TypeTag<float>{});
}

inline OptionalTensor as_int64(const OptionalTensor& idxs) {
  if (!idxs) return std::nullopt;
  return converted(*idxs, ScalarType::Long);
}

inline const int64_t* data_or_null(const OptionalTensor& tensor) { return tensor ? data<int64_t>(*tensor) : nullptr; }

// aten::sort.stable over the last dimension: (values, indices). NaN counts as the largest.
inline std::array<Tensor, 2> sorted(const Tensor& values, bool descending) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(values),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{-1}), torch::stable::detail::from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// The number in a tensor [1]. On CUDA this waits for the device: the size of a result must be known here.
inline int64_t on_host(const Tensor& number) {
  if (kBackend != Backend::kCuda) return data<int64_t>(number)[0];
  return data<int64_t>(torch::stable::to(number, std::nullopt, std::nullopt,
                                         torch::stable::Device(torch::headeronly::DeviceType::CPU), std::nullopt, false,
                                         false, std::nullopt))[0];
}

// A copy of the first `rows`, so that a short result does not hold the memory of a long one; the tensor itself where that is
// all.
inline Tensor first_rows(const Tensor& tensor, int64_t rows) {
  if (tensor.size(0) == rows) return tensor;
  Tensor whole = tensor;
  return torch::stable::clone(torch::stable::narrow(whole, 0, 0, rows));
}

// As many rows as a result without padding can have.
inline int64_t most_rows(int64_t count, int64_t max_output) {
  return max_output < 0 ? count : std::min(count, max_output);
}

// cpu(isa, image, parallel) for every image: a single one with torch's threads lent to it, several side by side.
template <class F>
void for_each_image(const char* op, const Tensor& boxes, int64_t batch, F&& cpu) {
  if (batch == 1) {
    once([&](auto isa) { cpu(isa, int64_t{0}, torch_parallel()); });
    return;
  }
  run(
      op, boxes, {batch},
      [&](auto isa, int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) cpu(isa, image, Parallel{});
      },
      [](CudaStream) { return CudaStatus{0}; });
}

// Launches on CUDA or its emulation; nothing on the CPU.
template <class F>
void on_device(const char* op, const Tensor& boxes, F&& launch) {
  if constexpr (!kOnCpu) run(op, boxes, {}, [](auto, int64_t, int64_t) {}, launch);
}

}  // namespace cvk::bindings
