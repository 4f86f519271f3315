#include <optional>

#include "bindings/torch/roi_align_run.h"

namespace cvk::bindings {
namespace {

constexpr char kOp[] = "roi_align";

struct Forward {
  Tensor output, argmax;
};

Forward forward_checked(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                        int64_t pooled_width, int64_t sampling_ratio, bool aligned, bool maximum) {
  check_roi_tensors(kOp, input, boxes);
  const RoiShape shape =
      roi_shape(kOp, input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned);
  const Tensor features = dense(input, shape.channels_last);
  Forward result;
  result.output = allocate_pooled(shape, input.scalar_type(), input);
  if (maximum) result.argmax = allocate_pooled(shape, ScalarType::Int, input);
  with_float(kOp, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    RoiAlignParams<T> params{};
    params.shape = shape;
    params.set_map(data<T>(features), nullptr);
    params.boxes = data<Acc<T>>(coordinates);
    params.output = mutable_data<T>(result.output);
    params.argmax = maximum ? mutable_data<int32_t>(result.argmax) : nullptr;
    run_roi_align_forward(kOp, params, input);
  });
  return result;
}

Tensor backward_checked(const Tensor& grad, const Tensor* argmax, const Tensor& boxes, double spatial_scale,
                        int64_t pooled_height, int64_t pooled_width, int64_t batch, int64_t channels, int64_t height,
                        int64_t width, int64_t sampling_ratio, bool aligned) {
  check_float(kOp, "grad", grad);
  check_roi_boxes(kOp, boxes, "grad", grad);
  check_roi_pooled(kOp, "grad", grad, boxes.size(0), channels, pooled_height, pooled_width);
  if (argmax != nullptr) check_roi_argmax(kOp, *argmax, grad);
  const RoiShape shape = roi_shape(kOp,
                                   {batch, channels, height, width, boxes.size(0), spatial_scale, pooled_height,
                                    pooled_width, sampling_ratio, aligned},
                                   is_channels_last(grad));
  const Tensor gradient = dense(grad, shape.channels_last);
  const Tensor indices = argmax != nullptr ? dense(*argmax, shape.channels_last) : gradient;
  const Tensor grad_input = allocate({batch, channels, height, width}, grad.scalar_type(), grad, shape.channels_last);
  with_float(kOp, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    RoiAlignParams<T> params{};
    params.shape = shape;
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(gradient);
    params.saved_argmax = argmax != nullptr ? data<int32_t>(indices) : nullptr;
    params.set_map(nullptr, mutable_data<T>(grad_input));
    if (grad_input.numel() > 0) run_roi_align_backward(kOp, params, grad);
  });
  return grad_input;
}

Tensor roi_align_boxes_backward(const Tensor& input, const Tensor& boxes, const Tensor& grad,
                                const std::optional<Tensor>& argmax, double spatial_scale, int64_t pooled_height,
                                int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  check_roi_tensors(kOp, input, boxes);
  const RoiShape shape =
      roi_shape(kOp, input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned);
  check_roi_grad(kOp, grad, input, shape);
  if (argmax) check_roi_argmax(kOp, *argmax, grad);
  const Tensor indices = argmax ? dense(*argmax, shape.channels_last) : grad;
  return roi_boxes_backward(
      kOp, shape, input, boxes, grad, argmax ? data<int32_t>(indices) : nullptr,
      [](auto isa, auto& params) { return roi_align_boxes_layout_cpu<isa.value>(params); },
      [](auto isa, auto& params, auto... slice) { roi_align_boxes_plan_cpu<isa.value>(params, slice...); },
      [](auto isa, auto& params) { return roi_align_boxes_items_cpu<isa.value>(params); },
      [](auto isa, auto& params, auto... slice) { roi_align_boxes_backward_cpu<isa.value>(params, slice...); },
      [](auto isa, auto& params, auto... slice) { roi_align_boxes_finish_cpu<isa.value>(params, slice...); },
      [](auto& params) { return roi_align_boxes_sums_cuda(params); },
      [](auto& params) { return roi_align_boxes_copy_cuda(params); },
      [](auto& params, auto... rest) { return roi_align_boxes_backward_cuda(params, rest...); });
}

Tensor roi_align(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                 int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  return forward_checked(input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned, false)
      .output;
}

std::tuple<Tensor, Tensor> roi_align_max(const Tensor& input, const Tensor& boxes, double spatial_scale,
                                         int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                                         bool aligned) {
  Forward result =
      forward_checked(input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned, true);
  return {result.output, result.argmax};
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                          int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                          int64_t sampling_ratio, bool aligned) {
  return backward_checked(grad, nullptr, boxes, spatial_scale, pooled_height, pooled_width, batch_size, channels,
                          height, width, sampling_ratio, aligned);
}

Tensor roi_align_max_backward(const Tensor& grad, const Tensor& argmax, const Tensor& boxes, double spatial_scale,
                              int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels,
                              int64_t height, int64_t width, int64_t sampling_ratio, bool aligned) {
  return backward_checked(grad, &argmax, boxes, spatial_scale, pooled_height, pooled_width, batch_size, channels,
                          height, width, sampling_ratio, aligned);
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "roi_align(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_align_max(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned) -> (Tensor output, Tensor argmax)");
  m.def(
      "roi_align_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_align_boxes_backward(Tensor input, Tensor boxes, Tensor grad, Tensor? argmax, float spatial_scale, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_align_max_backward(Tensor grad, Tensor argmax, Tensor boxes, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
      "bool aligned) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_max", TORCH_BOX(&roi_align_max));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
  m.impl("roi_align_boxes_backward", TORCH_BOX(&roi_align_boxes_backward));
  m.impl("roi_align_max_backward", TORCH_BOX(&roi_align_max_backward));
}

}  // namespace cvk::bindings
