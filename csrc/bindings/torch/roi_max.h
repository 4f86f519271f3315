// What the bindings of RoI Pool and context-aware RoI Pool share. Op is a class of static functions that name the kernels of one:
// layout, plan, forward_items, forward, backward_items, backward <isa>(params, ...), scratch, forward_cuda and backward_cuda; with
// its Params<T>, its name and how many indices there are for each pixel of the map.
#pragma once

#include "bindings/torch/roi_family.h"

namespace cvk::bindings {

template <class Op, class P>
RoiPlanMemory max_plan(P& params, const Tensor& on) {
  return RoiPlanMemory(
      Op::kName, on, params.shape, params.plan, params.boxes, 5,
      [&](auto isa) { return Op::template layout<isa.value>(params); },
      [&](auto isa, int64_t first, int64_t last) { Op::template plan<isa.value>(params, first, last); });
}

template <class Op, class P>
void max_forward(P& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = max_plan<Op>(params, on);  // checks the image indices, also where the output is empty
    if (shape.boxes == 0 || shape.channels == 0) return;
    const int64_t items = once([&](auto isa) { return Op::template forward_items<isa.value>(params); });
    run(
        Op::kName, on, work_of(items, kRoiOperations * shape.boxes * shape.channels * shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { Op::template forward<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (shape.boxes == 0 || shape.channels == 0) return;
    const Tensor scratch = allocate({Op::scratch(params)}, ScalarType::Byte, on);
    run(
        Op::kName, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return Op::forward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class Op, class P>
void max_backward(P& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = max_plan<Op>(params, on);
    const int64_t items = once([&](auto isa) { return Op::template backward_items<isa.value>(params); });
    run(
        Op::kName, on, work_of(items, shape.channels * (shape.boxes * shape.bins() + shape.batch * shape.pixels())),
        [&](auto isa, int64_t first, int64_t last) { Op::template backward<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    run(
        Op::kName, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return Op::backward_cuda(params, stream); });
  }
}

enum class MaxIndices { kNone, kNarrow, kWide };

struct MaxForward {
  Tensor output, argmax;
};

template <class Op>
MaxForward max_forward_checked(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                               int64_t pooled_width, MaxIndices indices) {
  check_roi_tensors(Op::kName, input, boxes);
  const RoiShape shape = roi_shape(Op::kName, input, boxes, spatial_scale, pooled_height, pooled_width);
  const bool narrow = indices == MaxIndices::kNarrow;
  check_roi_pixels(Op::kName, shape, Op::kIndicesPerPixel, narrow);
  const Tensor features = dense(input, shape.channels_last);
  MaxForward result;
  result.output = allocate_pooled(shape, input.scalar_type(), input);
  if (indices != MaxIndices::kNone) {
    result.argmax = allocate_pooled(shape, narrow ? ScalarType::Short : ScalarType::Int, input);
  }
  with_float(Op::kName, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    typename Op::template Params<T> params{};
    params.shape = shape;
    params.input = data<T>(features);
    params.boxes = data<Acc<T>>(coordinates);
    params.output = mutable_data<T>(result.output);
    params.argmax = {indices != MaxIndices::kNone ? mutable_data<void>(result.argmax) : nullptr, narrow};
    max_forward<Op>(params, input);
  });
  return result;
}

// ---- the operators: values, values with their indices, and the gradient

template <class Op>
Tensor max_values(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                  int64_t pooled_width) {
  return max_forward_checked<Op>(input, boxes, spatial_scale, pooled_height, pooled_width, MaxIndices::kNone).output;
}

template <class Op>
std::tuple<Tensor, Tensor> max_argmax(const Tensor& input, const Tensor& boxes, double spatial_scale,
                                      int64_t pooled_height, int64_t pooled_width, bool narrow) {
  const MaxForward result = max_forward_checked<Op>(input, boxes, spatial_scale, pooled_height, pooled_width,
                                                    narrow ? MaxIndices::kNarrow : MaxIndices::kWide);
  return {result.output, result.argmax};
}

template <class Op>
Tensor max_gradient(const Tensor& grad, const Tensor& argmax, const Tensor& boxes, double spatial_scale,
                    int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height,
                    int64_t width) {
  check_float(Op::kName, "grad", grad);
  check_roi_boxes(Op::kName, boxes, "grad", grad);
  check_roi_pooled(Op::kName, "grad", grad, boxes.size(0), channels, pooled_height, pooled_width);
  check_roi_argmax(Op::kName, argmax, grad, true);
  const RoiShape shape = roi_shape(
      Op::kName, {batch_size, channels, height, width, boxes.size(0), spatial_scale, pooled_height, pooled_width},
      is_channels_last(grad));
  // Narrow indices of a map that is too large for them are foreign ones.
  check_roi_pixels(Op::kName, shape, Op::kIndicesPerPixel, false);
  const Tensor gradient = dense(grad, shape.channels_last);
  const Tensor indices = dense(argmax, shape.channels_last);
  const Tensor grad_input =
      allocate({batch_size, channels, height, width}, grad.scalar_type(), grad, shape.channels_last);
  with_float(Op::kName, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    typename Op::template Params<T> params{};
    params.shape = shape;
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(gradient);
    params.saved_argmax = {data<void>(indices), indices.scalar_type() == ScalarType::Short};
    params.grad_input = mutable_data<T>(grad_input);
    if (grad_input.numel() > 0) max_backward<Op>(params, grad);
  });
  return grad_input;
}

}  // namespace cvk::bindings
