#include "kernels/roi_pool/roi_pool.h"

#include "bindings/torch/roi_family.h"

namespace cvk::bindings {
namespace {

constexpr char kOp[] = "roi_pool";

template <class T>
RoiPlanMemory plan(RoiPoolParams<T>& params, const Tensor& on) {
  return RoiPlanMemory(
      kOp, on, params.shape, params.plan, params.boxes, 5,
      [&](auto isa) { return roi_pool_layout_cpu<isa.value>(params); },
      [&](auto isa, int64_t first, int64_t last) { roi_pool_plan_cpu<isa.value>(params, first, last); });
}

template <class T>
void forward(RoiPoolParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on);  // checks the image indices, also where the output is empty
    if (shape.boxes == 0 || shape.channels == 0) return;
    const int64_t items = once([&](auto isa) { return roi_pool_forward_items_cpu<isa.value>(params); });
    run(
        kOp, on, work_of(items, kRoiOperations * shape.boxes * shape.channels * shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { roi_pool_forward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (shape.boxes == 0 || shape.channels == 0) return;
    const Tensor scratch = allocate({roi_pool_forward_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_pool_forward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class T>
void backward(RoiPoolParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on);
    const int64_t items = once([&](auto isa) { return roi_pool_backward_items_cpu<isa.value>(params); });
    run(
        kOp, on, work_of(items, shape.channels * (shape.boxes * shape.bins() + shape.batch * shape.pixels())),
        [&](auto isa, int64_t first, int64_t last) { roi_pool_backward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_pool_backward_cuda(params, stream); });
  }
}

struct Forward {
  Tensor output, argmax;
};

Forward forward_checked(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                        int64_t pooled_width, bool indices) {
  check_roi_tensors(kOp, input, boxes);
  const RoiShape shape = roi_shape(kOp, input, boxes, spatial_scale, pooled_height, pooled_width);
  check_roi_pixels(kOp, shape);
  const Tensor features = dense(input, shape.channels_last);
  Forward result;
  result.output = allocate_pooled(shape, input.scalar_type(), input);
  if (indices) result.argmax = allocate_pooled(shape, ScalarType::Int, input);
  with_float(kOp, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    RoiPoolParams<T> params{};
    params.shape = shape;
    params.input = data<T>(features);
    params.boxes = data<Acc<T>>(coordinates);
    params.output = mutable_data<T>(result.output);
    params.argmax = indices ? mutable_data<int32_t>(result.argmax) : nullptr;
    forward(params, input);
  });
  return result;
}

Tensor roi_pool(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                int64_t pooled_width) {
  return forward_checked(input, boxes, spatial_scale, pooled_height, pooled_width, false).output;
}

std::tuple<Tensor, Tensor> roi_pool_argmax(const Tensor& input, const Tensor& boxes, double spatial_scale,
                                           int64_t pooled_height, int64_t pooled_width) {
  const Forward result = forward_checked(input, boxes, spatial_scale, pooled_height, pooled_width, true);
  return {result.output, result.argmax};
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& argmax, const Tensor& boxes, double spatial_scale,
                         int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels,
                         int64_t height, int64_t width) {
  check_float(kOp, "grad", grad);
  check_roi_boxes(kOp, boxes, "grad", grad);
  check_roi_pooled(kOp, "grad", grad, boxes.size(0), channels, pooled_height, pooled_width);
  check_roi_argmax(kOp, argmax, grad);
  const RoiShape shape =
      roi_shape(kOp, {batch_size, channels, height, width, boxes.size(0), spatial_scale, pooled_height, pooled_width},
                is_channels_last(grad));
  check_roi_pixels(kOp, shape);
  const Tensor gradient = dense(grad, shape.channels_last);
  const Tensor indices = dense(argmax, shape.channels_last);
  const Tensor grad_input =
      allocate({batch_size, channels, height, width}, grad.scalar_type(), grad, shape.channels_last);
  with_float(kOp, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    RoiPoolParams<T> params{};
    params.shape = shape;
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(gradient);
    params.saved_argmax = data<int32_t>(indices);
    params.grad_input = mutable_data<T>(grad_input);
    if (grad_input.numel() > 0) backward(params, grad);
  });
  return grad_input;
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "roi_pool(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> Tensor");
  m.def(
      "roi_pool_argmax(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> "
      "(Tensor output, Tensor argmax)");
  m.def(
      "roi_pool_backward(Tensor grad, Tensor argmax, Tensor boxes, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool));
  m.impl("roi_pool_argmax", TORCH_BOX(&roi_pool_argmax));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward));
}

}  // namespace cvk::bindings
