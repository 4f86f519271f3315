#include "kernels/prroi_pool/prroi_pool.h"

#include "bindings/torch/roi_family.h"

namespace cvk::bindings {
namespace {

constexpr char kOp[] = "prroi_pool";

template <class T>
RoiPlanMemory plan(PrRoIPoolParams<T>& params, const Tensor& on) {
  return RoiPlanMemory(
      kOp, on, params.shape, params.plan, params.boxes, 5,
      [&](auto isa) { return prroi_pool_layout_cpu<isa.value>(params); },
      [&](auto isa, int64_t first, int64_t last) { prroi_pool_plan_cpu<isa.value>(params, first, last); });
}

template <class T>
void forward(PrRoIPoolParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on);  // checks the image indices, also where the output is empty
    if (shape.boxes == 0 || shape.channels == 0) return;
    const int64_t items = once([&](auto isa) { return prroi_pool_forward_items_cpu<isa.value>(params); });
    run(
        kOp, on, work_of(items, kRoiOperations * shape.boxes * shape.channels * shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { prroi_pool_forward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (shape.boxes == 0 || shape.channels == 0) return;
    const Tensor scratch = allocate({prroi_pool_forward_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return prroi_pool_forward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class T>
void backward(PrRoIPoolParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on);
    const int64_t items = once([&](auto isa) { return prroi_pool_backward_items_cpu<isa.value>(params); });
    run(
        kOp, on,
        work_of(items, shape.channels * (kRoiOperations * shape.boxes * shape.bins() + shape.batch * shape.pixels())),
        [&](auto isa, int64_t first, int64_t last) { prroi_pool_backward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return prroi_pool_backward_cuda(params, stream); });
  }
}

Tensor prroi_pool(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                  int64_t pooled_width) {
  check_roi_tensors(kOp, input, boxes);
  const RoiShape shape = roi_shape(kOp, input, boxes, spatial_scale, pooled_height, pooled_width);
  const Tensor features = dense(input, shape.channels_last);
  const Tensor output = allocate_pooled(shape, input.scalar_type(), input);
  with_float(kOp, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    PrRoIPoolParams<T> params{};
    params.shape = shape;
    params.input = data<T>(features);
    params.boxes = data<Acc<T>>(coordinates);
    params.output = mutable_data<T>(output);
    forward(params, input);
  });
  return output;
}

Tensor prroi_pool_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                           int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width) {
  check_float(kOp, "grad", grad);
  check_roi_boxes(kOp, boxes, "grad", grad);
  check_roi_pooled(kOp, "grad", grad, boxes.size(0), channels, pooled_height, pooled_width);
  const RoiShape shape =
      roi_shape(kOp, {batch_size, channels, height, width, boxes.size(0), spatial_scale, pooled_height, pooled_width},
                is_channels_last(grad));
  const Tensor gradient = dense(grad, shape.channels_last);
  const Tensor grad_input =
      allocate({batch_size, channels, height, width}, grad.scalar_type(), grad, shape.channels_last);
  with_float(kOp, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    PrRoIPoolParams<T> params{};
    params.shape = shape;
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(gradient);
    params.grad_input = mutable_data<T>(grad_input);
    if (grad_input.numel() > 0) backward(params, grad);
  });
  return grad_input;
}

Tensor prroi_pool_boxes_backward(const Tensor& input, const Tensor& boxes, const Tensor& grad, double spatial_scale,
                                 int64_t pooled_height, int64_t pooled_width) {
  check_roi_tensors(kOp, input, boxes);
  const RoiShape shape = roi_shape(kOp, input, boxes, spatial_scale, pooled_height, pooled_width);
  check_roi_grad(kOp, grad, input, shape);
  return roi_boxes_backward(
      kOp, shape, input, boxes, grad, nullptr,
      [](auto isa, auto& params) { return prroi_pool_boxes_layout_cpu<isa.value>(params); },
      [](auto isa, auto& params, auto... slice) { prroi_pool_boxes_plan_cpu<isa.value>(params, slice...); },
      [](auto isa, auto& params) { return prroi_pool_boxes_items_cpu<isa.value>(params); },
      [](auto isa, auto& params, auto... slice) { prroi_pool_boxes_backward_cpu<isa.value>(params, slice...); },
      [](auto isa, auto& params, auto... slice) { prroi_pool_boxes_finish_cpu<isa.value>(params, slice...); },
      [](auto& params) { return prroi_pool_boxes_sums_cuda(params); },
      [](auto& params) { return prroi_pool_boxes_copy_cuda(params); },
      [](auto& params, auto... rest) { return prroi_pool_boxes_backward_cuda(params, rest...); });
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "prroi_pool(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> "
      "Tensor");
  m.def(
      "prroi_pool_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor");
  m.def(
      "prroi_pool_boxes_backward(Tensor input, Tensor boxes, Tensor grad, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("prroi_pool", TORCH_BOX(&prroi_pool));
  m.impl("prroi_pool_backward", TORCH_BOX(&prroi_pool_backward));
  m.impl("prroi_pool_boxes_backward", TORCH_BOX(&prroi_pool_boxes_backward));
}

}  // namespace cvk::bindings
