#include "kernels/roi_align_rotated/roi_align_rotated.h"

#include "bindings/torch/roi_family.h"

namespace cvk::bindings {
namespace {

constexpr char kOp[] = "roi_align_rotated";
constexpr int64_t kColumns = 6;

template <class T>
RoiPlanMemory plan(RoiAlignRotatedParams<T>& params, const Tensor& on) {
  return RoiPlanMemory(
      kOp, on, params.shape, params.plan, params.boxes, kColumns,
      [&](auto isa) { return roi_align_rotated_layout_cpu<isa.value>(params); },
      [&](auto isa, int64_t first, int64_t last) { roi_align_rotated_plan_cpu<isa.value>(params, first, last); },
      "rois");
}

template <class T>
void forward(RoiAlignRotatedParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on);  // checks the image indices, also where the output is empty
    if (shape.boxes == 0 || shape.channels == 0) return;
    const int64_t items = once([&](auto isa) { return roi_align_rotated_forward_items_cpu<isa.value>(params); });
    run(
        kOp, on, work_of(items, kRoiOperations * shape.boxes * shape.channels * shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { roi_align_rotated_forward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (shape.boxes == 0 || shape.channels == 0) return;
    const Tensor scratch = allocate({roi_align_rotated_forward_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_align_rotated_forward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class T>
void backward(RoiAlignRotatedParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on);
    const int64_t items = once([&](auto isa) { return roi_align_rotated_backward_items_cpu<isa.value>(params); });
    run(
        kOp, on,
        work_of(items, shape.channels * (kRoiOperations * shape.boxes * shape.bins() + shape.batch * shape.pixels())),
        [&](auto isa, int64_t first, int64_t last) { roi_align_rotated_backward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_align_rotated_backward_cuda(params, stream); });
  }
}

Tensor roi_align_rotated(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t pooled_height,
                         int64_t pooled_width, int64_t sampling_ratio, bool aligned, bool clockwise) {
  check_roi_tensors(kOp, input, rois, kColumns, "rois");
  const RoiShape shape =
      roi_shape(kOp, input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned);
  const Tensor features = dense(input, shape.channels_last);
  const Tensor output = allocate_pooled(shape, input.scalar_type(), input);
  with_float(kOp, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(rois, kScalarType<Acc<T>>);
    RoiAlignRotatedParams<T> params{};
    params.shape = shape;
    params.clockwise = clockwise;
    params.input = data<T>(features);
    params.boxes = data<Acc<T>>(coordinates);
    params.output = mutable_data<T>(output);
    forward(params, input);
  });
  return output;
}

Tensor roi_align_rotated_backward(const Tensor& grad, const Tensor& rois, double spatial_scale, int64_t pooled_height,
                                  int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height,
                                  int64_t width, int64_t sampling_ratio, bool aligned, bool clockwise) {
  check_float(kOp, "grad", grad);
  check_roi_boxes(kOp, rois, "grad", grad, kColumns, "rois");
  check_roi_pooled(kOp, "grad", grad, rois.size(0), channels, pooled_height, pooled_width);
  const RoiShape shape = roi_shape(kOp,
                                   {batch_size, channels, height, width, rois.size(0), spatial_scale, pooled_height,
                                    pooled_width, sampling_ratio, aligned},
                                   is_channels_last(grad));
  const Tensor gradient = dense(grad, shape.channels_last);
  const Tensor grad_input =
      allocate({batch_size, channels, height, width}, grad.scalar_type(), grad, shape.channels_last);
  with_float(kOp, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(rois, kScalarType<Acc<T>>);
    RoiAlignRotatedParams<T> params{};
    params.shape = shape;
    params.clockwise = clockwise;
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(gradient);
    params.grad_input = mutable_data<T>(grad_input);
    if (grad_input.numel() > 0) backward(params, grad);
  });
  return grad_input;
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "roi_align_rotated(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned, bool clockwise) -> Tensor");
  m.def(
      "roi_align_rotated_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
      "bool aligned, bool clockwise) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("roi_align_rotated", TORCH_BOX(&roi_align_rotated));
  m.impl("roi_align_rotated_backward", TORCH_BOX(&roi_align_rotated_backward));
}

}  // namespace cvk::bindings
