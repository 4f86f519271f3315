// What the bindings of the two position-sensitive operators share. Op is a class of static functions that name the kernels of one:
// layout, plan, forward_items, forward, backward_items, backward <isa>(params, ...) and forward_cuda, backward_cuda.
#pragma once

#include "bindings/torch/roi_family.h"
#include "common/position_sensitive.h"

namespace cvk::bindings {

// `channels` is the input's.
inline void check_ps_channels(const char* op, const RoiShape& shape) {
  if (shape.channels % shape.bins() != 0) {
    reject(op, "input of channels divisible by the bins (", shape.bins(), "), got ", shape.channels);
  }
}

template <class Op, class T>
RoiPlanMemory ps_plan(PositionSensitiveParams<T>& params, const Tensor& on) {
  return RoiPlanMemory(
      Op::kName, on, params.shape, params.plan, params.boxes, 5,
      [&](auto isa) { return Op::template layout<isa.value>(params); },
      [&](auto isa, int64_t first, int64_t last) { Op::template plan<isa.value>(params, first, last); });
}

template <class Op>
Tensor ps_forward(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                  int64_t pooled_width, int64_t sampling_ratio) {
  check_roi_tensors(Op::kName, input, boxes);
  const RoiShape shape =
      roi_shape(Op::kName, input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, true);
  check_ps_channels(Op::kName, shape);
  const Tensor features = dense(input, shape.channels_last);
  RoiShape pooled = shape;
  pooled.channels = ps_out_channels(shape);
  const Tensor output = allocate_pooled(pooled, input.scalar_type(), input);
  with_float(Op::kName, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    PositionSensitiveParams<T> params{};
    params.shape = shape;
    params.input = data<T>(features);
    params.boxes = data<Acc<T>>(coordinates);
    params.output = mutable_data<T>(output);
    const bool empty = shape.boxes == 0 || shape.channels == 0;
    if constexpr (kOnCpu) {
      const RoiPlanMemory memory =
          ps_plan<Op>(params, input);  // checks the image indices, also where the output is empty
      if (empty) return;
      const int64_t items = once([&](auto isa) { return Op::template forward_items<isa.value>(params); });
      run(
          Op::kName, input, work_of(items, kRoiOperations * shape.boxes * shape.channels),
          [&](auto isa, int64_t first, int64_t last) { Op::template forward<isa.value>(params, first, last); },
          [](CudaStream) { return CudaStatus{0}; });
    } else if (!empty) {
      run(
          Op::kName, input, {}, [](auto, int64_t, int64_t) {},
          [&](CudaStream stream) { return Op::forward_cuda(params, stream); });
    }
  });
  return output;
}

template <class Op>
Tensor ps_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                   int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                   int64_t sampling_ratio) {
  check_float(Op::kName, "grad", grad);
  check_roi_boxes(Op::kName, boxes, "grad", grad);
  const RoiShape shape = roi_shape(Op::kName,
                                   {batch_size, channels, height, width, boxes.size(0), spatial_scale, pooled_height,
                                    pooled_width, sampling_ratio, true},
                                   is_channels_last(grad));
  check_ps_channels(Op::kName, shape);
  check_roi_pooled(Op::kName, "grad", grad, shape.boxes, ps_out_channels(shape), pooled_height, pooled_width);
  const Tensor gradient = dense(grad, shape.channels_last);
  const Tensor grad_input =
      allocate({batch_size, channels, height, width}, grad.scalar_type(), grad, shape.channels_last);
  if (grad_input.numel() == 0) return grad_input;
  with_float(Op::kName, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    PositionSensitiveParams<T> params{};
    params.shape = shape;
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(gradient);
    params.grad_input = mutable_data<T>(grad_input);
    if constexpr (kOnCpu) {
      const RoiPlanMemory memory = ps_plan<Op>(params, grad);
      const int64_t items = once([&](auto isa) { return Op::template backward_items<isa.value>(params); });
      run(
          Op::kName, grad,
          work_of(items, shape.channels * (kRoiOperations * shape.boxes + shape.batch * shape.pixels())),
          [&](auto isa, int64_t first, int64_t last) { Op::template backward<isa.value>(params, first, last); },
          [](CudaStream) { return CudaStatus{0}; });
    } else {
      run(
          Op::kName, grad, {}, [](auto, int64_t, int64_t) {},
          [&](CudaStream stream) { return Op::backward_cuda(params, stream); });
    }
  });
  return grad_input;
}

}  // namespace cvk::bindings
