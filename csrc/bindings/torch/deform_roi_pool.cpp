#include "kernels/deform_roi_pool/deform_roi_pool.h"

#include "bindings/torch/roi_family.h"

namespace cvk::bindings {
namespace {

constexpr char kOp[] = "deform_roi_pool";

// The boxes and offsets of a call, in the arithmetic type.
template <class T>
struct Geometry {
  Tensor boxes, offset;

  Geometry(DeformRoiPoolParams<T>& params, const RoiShape& shape, double gamma, const Tensor& rois,
           const Tensor& offsets)
      : boxes(converted(rois, kScalarType<Acc<T>>)), offset(converted(offsets, kScalarType<Acc<T>>)) {
    params.shape = shape;
    params.gamma = gamma;
    params.boxes = data<Acc<T>>(boxes);
    params.offset = data<Acc<T>>(offset);
  }
};

template <class T>
RoiPlanMemory plan(DeformRoiPoolParams<T>& params, const Tensor& on, bool slopes) {
  return RoiPlanMemory(
      kOp, on, params.shape, params.plan, params.boxes, 5,
      [&](auto isa) { return deform_roi_pool_layout_cpu<isa.value>(params, slopes); },
      [&](auto isa, int64_t first, int64_t last) { deform_roi_pool_plan_cpu<isa.value>(params, slopes, first, last); },
      "rois");
}

template <class T>
void forward(DeformRoiPoolParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on, false);  // checks the image indices, also where the output is empty
    if (shape.boxes == 0 || shape.channels == 0) return;
    const int64_t items = once([&](auto isa) { return deform_roi_pool_forward_items_cpu<isa.value>(params); });
    run(
        kOp, on, work_of(items, kRoiOperations * shape.boxes * shape.channels * shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { deform_roi_pool_forward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (shape.boxes == 0 || shape.channels == 0) return;
    const Tensor scratch = allocate({deform_roi_pool_forward_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return deform_roi_pool_forward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class T>
void backward(DeformRoiPoolParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on, false);
    const int64_t items = once([&](auto isa) { return deform_roi_pool_backward_items_cpu<isa.value>(params); });
    run(
        kOp, on,
        work_of(items, shape.channels * (kRoiOperations * shape.boxes * shape.bins() + shape.batch * shape.pixels())),
        [&](auto isa, int64_t first, int64_t last) { deform_roi_pool_backward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    const Tensor scratch = allocate({deform_roi_pool_backward_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return deform_roi_pool_backward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class T>
void backward_offset(DeformRoiPoolParams<T>& params, const Tensor& on) {
  const RoiShape& shape = params.shape;
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = plan(params, on, true);
    if (shape.boxes == 0) return;
    const int64_t items = once([&](auto isa) { return deform_roi_pool_offset_items_cpu<isa.value>(params); });
    const HostScratch<Acc<T>> sums(shape.boxes * params.parts * 2 * shape.bins());
    params.sums = sums.get();
    run(
        kOp, on, work_of(items, kRoiOperations * shape.boxes * shape.channels * shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { deform_roi_pool_offset_sums_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
    run(
        kOp, on, work_of(shape.boxes, 2 * shape.boxes * (params.parts + 1) * shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { deform_roi_pool_offset_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (shape.boxes == 0) return;
    const Tensor scratch = allocate({deform_roi_pool_offset_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return deform_roi_pool_offset_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

void check_gamma(double gamma) {
  if (!is_finite(gamma)) reject(kOp, "gamma to be finite, got ", number_text(gamma));
}

void check_offset(const Tensor& offset, int64_t boxes, int64_t pooled_height, int64_t pooled_width) {
  if (offset.dim() != 4 || offset.size(0) != boxes || offset.size(1) != 2 || offset.size(2) != pooled_height ||
      offset.size(3) != pooled_width) {
    reject(kOp, "offset of shape (", boxes, ", 2, ", pooled_height, ", ", pooled_width, "), got ", shape_text(offset));
  }
}

Tensor deform_roi_pool(const Tensor& input, const Tensor& rois, const Tensor& offset, double spatial_scale,
                       int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, double gamma) {
  check_roi_tensors(kOp, input, rois, 5, "rois");
  check_float(kOp, "offset", offset);
  check_same_device(kOp, "offset", offset, "input", input);
  const RoiShape shape = roi_shape(kOp, input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, true);
  check_gamma(gamma);
  check_offset(offset, rois.size(0), pooled_height, pooled_width);
  const Tensor features = dense(input, shape.channels_last);
  const Tensor output = allocate_pooled(shape, input.scalar_type(), input);
  with_float(kOp, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    DeformRoiPoolParams<T> params{};
    const Geometry<T> geometry(params, shape, gamma, rois, offset);
    params.input = data<T>(features);
    params.output = mutable_data<T>(output);
    forward(params, input);
  });
  return output;
}

// The shape of a backward pass, checked.
RoiShape backward_shape(const Tensor& grad, const Tensor& rois, const Tensor& offset, RoiSizes sizes, double gamma,
                        bool channels_last) {
  check_float(kOp, "grad", grad);
  check_roi_boxes(kOp, rois, "grad", grad, 5, "rois");
  check_float(kOp, "offset", offset);
  check_same_device(kOp, "offset", offset, "grad", grad);
  check_roi_pooled(kOp, "grad", grad, rois.size(0), sizes.channels, sizes.pooled_height, sizes.pooled_width);
  sizes.boxes = rois.size(0);
  sizes.aligned = true;
  const RoiShape shape = roi_shape(kOp, sizes, channels_last);
  check_gamma(gamma);
  check_offset(offset, rois.size(0), sizes.pooled_height, sizes.pooled_width);
  return shape;
}

Tensor deform_roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& offset, double spatial_scale,
                                int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels,
                                int64_t height, int64_t width, int64_t sampling_ratio, double gamma) {
  const RoiSizes sizes{batch_size,    channels,      height,       width,         0,
                       spatial_scale, pooled_height, pooled_width, sampling_ratio};
  const RoiShape shape = backward_shape(grad, rois, offset, sizes, gamma, is_channels_last(grad));
  const Tensor gradient = dense(grad, shape.channels_last);
  const Tensor grad_input =
      allocate({batch_size, channels, height, width}, grad.scalar_type(), grad, shape.channels_last);
  with_float(kOp, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    DeformRoiPoolParams<T> params{};
    const Geometry<T> geometry(params, shape, gamma, rois, offset);
    params.grad_output = data<T>(gradient);
    params.grad_input = mutable_data<T>(grad_input);
    if (grad_input.numel() > 0) backward(params, grad);
  });
  return grad_input;
}

Tensor deform_roi_pool_offset_backward(const Tensor& input, const Tensor& rois, const Tensor& offset,
                                       const Tensor& grad, double spatial_scale, int64_t pooled_height,
                                       int64_t pooled_width, int64_t sampling_ratio, double gamma) {
  check_roi_tensors(kOp, input, rois, 5, "rois");
  const RoiSizes sizes{input.size(0), input.size(1), input.size(2), input.size(3), 0,
                       spatial_scale, pooled_height, pooled_width,  sampling_ratio};
  const RoiShape shape = backward_shape(grad, rois, offset, sizes, gamma, is_channels_last(input));
  check_same_dtype(kOp, "grad", grad, "input", input);
  const Tensor features = dense(input, shape.channels_last), gradient = dense(grad, shape.channels_last);
  return with_float(kOp, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    DeformRoiPoolParams<T> params{};
    const Geometry<T> geometry(params, shape, gamma, rois, offset);
    const Tensor grad_offset = allocate({shape.boxes, 2, pooled_height, pooled_width}, kScalarType<Acc<T>>, input);
    params.input = data<T>(features);
    params.grad_output = data<T>(gradient);
    params.grad_offset = mutable_data<Acc<T>>(grad_offset);
    backward_offset(params, input);
    return converted(grad_offset, offset.scalar_type());
  });
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor offset, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, float gamma) -> Tensor");
  m.def(
      "deform_roi_pool_backward(Tensor grad, Tensor rois, Tensor offset, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
      "float gamma) -> Tensor");
  m.def(
      "deform_roi_pool_offset_backward(Tensor input, Tensor rois, Tensor offset, Tensor grad, float spatial_scale, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, float gamma) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("deform_roi_pool", TORCH_BOX(&deform_roi_pool));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&deform_roi_pool_backward));
  m.impl("deform_roi_pool_offset_backward", TORCH_BOX(&deform_roi_pool_offset_backward));
}

}  // namespace cvk::bindings
