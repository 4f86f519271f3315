#include "kernels/roi_align/roi_align.h"

#include <limits>

#include "bindings/torch/dispatch.h"
#include "bindings/torch/run.h"
#include "kernels/roi_align/roi_align_math.h"

namespace cvk::bindings {
namespace {

constexpr char kOp[] = "roi_align";

// Boxes that a thread should get at least when plans are made; a plan takes well under a microsecond.
constexpr int64_t kPlanGrain = 512;

// Multiply-adds of one pooled value, roughly.
constexpr int64_t kOperations = 8;

void check_boxes(const Tensor& boxes, const char* with, const Tensor& other) {
  if (boxes.dim() != 2 || boxes.size(1) != 5) reject(kOp, "boxes of shape (K, 5), got ", shape_text(boxes));
  check_float(kOp, "boxes", boxes);
  check_same_device(kOp, "boxes", boxes, with, other);
}

RoiShape check_shape(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t boxes,
                     double spatial_scale, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                     bool aligned, bool channels_last) {
  constexpr int64_t kIntMax = std::numeric_limits<int>::max();
  if (!is_finite(spatial_scale) || spatial_scale <= 0) {
    reject(kOp, "spatial_scale to be finite and positive, got ", number_text(spatial_scale));
  }
  if (pooled_height < 1 || pooled_width < 1 || pooled_height > kIntMax || pooled_width > kIntMax) {
    reject(kOp, "output_size of positive 32-bit values, got (", pooled_height, ", ", pooled_width, ")");
  }
  if (sampling_ratio > kRoiMaxGrid) {
    reject(kOp, "sampling_ratio of at most ", kRoiMaxGrid, ", got ", sampling_ratio);
  }
  if (channels > kIntMax || height > kIntMax || width > kIntMax) {
    reject(kOp, "input of channels, height and width below 2^31, got ", channels, ", ", height, ", ", width);
  }
  RoiShape shape;
  shape.batch = batch;
  shape.channels = channels;
  shape.height = static_cast<int>(height);
  shape.width = static_cast<int>(width);
  shape.boxes = boxes;
  shape.pooled_height = static_cast<int>(pooled_height);
  shape.pooled_width = static_cast<int>(pooled_width);
  shape.spatial_scale = spatial_scale;
  shape.sampling_ratio = sampling_ratio > 0 ? static_cast<int>(sampling_ratio) : 0;
  shape.aligned = aligned;
  shape.channels_last = channels_last;
  return shape;
}

// The CPU plan and the memory that it lives in.
template <class T>
class PlanMemory {
 public:
  explicit PlanMemory(RoiAlignParams<T>& params, const Tensor& on)
      : indices_(3 * params.shape.boxes + params.shape.batch + 2) {
    const RoiShape& shape = params.shape;
    RoiAlignPlan& plan = params.plan;
    plan.order = indices_.get();
    plan.image_of = plan.order + shape.boxes;
    plan.record_begin = plan.image_of + shape.boxes;
    plan.image_begin = plan.record_begin + shape.boxes + 1;
    const int64_t bytes = once([&](auto isa) { return roi_align_layout_cpu<isa.value>(params); });
    if (bytes == kRoiAlignTooManySamples) {
      reject(kOp, "fewer than 2^30 samples of a box along an axis, got more");
    }
    if (bytes < 0) {
      const int64_t row = -1 - bytes;
      reject(kOp, "boxes[:, 0] in [0, ", shape.batch, "), got ", number_text(params.boxes[row * 5]), " in row ", row);
    }
    if (shape.channels == 0) return;  // only the image indices wanted checking
    arena_ = std::make_unique<HostScratch<char>>(bytes);
    plan.arena = arena_->get();
    run(
        kOp, on, {shape.boxes, kPlanGrain},
        [&](auto isa, int64_t first, int64_t last) { roi_align_plan_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  }

 private:
  HostScratch<int64_t> indices_;
  std::unique_ptr<HostScratch<char>> arena_;
};

template <class T>
void forward(RoiAlignParams<T>& params, const Tensor& on) {
  if constexpr (kOnCpu) {
    const PlanMemory<T> memory(params, on);  // checks the image indices, also where the output is empty
    if (params.shape.boxes == 0 || params.shape.channels == 0) return;
    const int64_t items = once([&](auto isa) { return roi_align_forward_items_cpu<isa.value>(params); });
    run(
        kOp, on, work_of(items, kOperations * params.shape.boxes * params.shape.channels * params.shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { roi_align_forward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (params.shape.boxes == 0 || params.shape.channels == 0) return;
    const Tensor scratch = allocate({roi_align_forward_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_align_forward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class T>
void backward(RoiAlignParams<T>& params, const Tensor& on) {
  if constexpr (kOnCpu) {
    const PlanMemory<T> memory(params, on);
    const int64_t items = once([&](auto isa) { return roi_align_backward_items_cpu<isa.value>(params); });
    const RoiShape& shape = params.shape;
    run(
        kOp, on,
        work_of(items, shape.channels * (kOperations * shape.boxes * shape.bins() + shape.batch * shape.pixels())),
        [&](auto isa, int64_t first, int64_t last) { roi_align_backward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    run(
        kOp, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_align_backward_cuda(params, stream); });
  }
}

struct Forward {
  Tensor output, argmax;
};

Forward forward_checked(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                        int64_t pooled_width, int64_t sampling_ratio, bool aligned, bool maximum) {
  if (input.dim() != 4) reject(kOp, "input of shape (N, C, H, W), got ", shape_text(input));
  check_float(kOp, "input", input);
  check_boxes(boxes, "input", input);
  const bool channels_last = is_channels_last(input);
  const RoiShape shape =
      check_shape(input.size(0), input.size(1), input.size(2), input.size(3), boxes.size(0), spatial_scale,
                  pooled_height, pooled_width, sampling_ratio, aligned, channels_last);
  const Tensor dense = channels_last || input.is_contiguous() ? input : torch::stable::contiguous(input);
  Forward result;
  result.output =
      allocate({shape.boxes, shape.channels, pooled_height, pooled_width}, input.scalar_type(), input, channels_last);
  if (maximum) {
    result.argmax =
        allocate({shape.boxes, shape.channels, pooled_height, pooled_width}, ScalarType::Int, input, channels_last);
  }
  with_float(kOp, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    RoiAlignParams<T> params{};
    params.shape = shape;
    params.input = data<T>(dense);
    params.boxes = data<Acc<T>>(coordinates);
    params.output = mutable_data<T>(result.output);
    params.argmax = maximum ? mutable_data<int32_t>(result.argmax) : nullptr;
    forward(params, input);
  });
  return result;
}

Tensor backward_checked(const Tensor& grad, const Tensor* argmax, const Tensor& boxes, double spatial_scale,
                        int64_t pooled_height, int64_t pooled_width, int64_t batch, int64_t channels, int64_t height,
                        int64_t width, int64_t sampling_ratio, bool aligned) {
  check_float(kOp, "grad", grad);
  check_boxes(boxes, "grad", grad);
  if (batch < 0 || channels < 0 || height < 0 || width < 0) {
    reject(kOp, "input sizes of at least 0, got (", batch, ", ", channels, ", ", height, ", ", width, ")");
  }
  const auto check_pooled = [&](const char* argument, const Tensor& tensor) {
    if (tensor.dim() != 4 || tensor.size(0) != boxes.size(0) || tensor.size(1) != channels ||
        tensor.size(2) != pooled_height || tensor.size(3) != pooled_width) {
      reject(kOp, argument, " of shape (", boxes.size(0), ", ", channels, ", ", pooled_height, ", ", pooled_width,
             "), got ", shape_text(tensor));
    }
  };
  check_pooled("grad", grad);
  const bool channels_last = is_channels_last(grad);
  Tensor dense = channels_last || grad.is_contiguous() ? grad : torch::stable::contiguous(grad);
  Tensor dense_argmax;
  if (argmax != nullptr) {
    check_pooled("argmax", *argmax);
    if (argmax->scalar_type() != ScalarType::Int) {
      reject(kOp, "argmax of dtype int32, got ", dtype_text(argmax->scalar_type()));
    }
    check_same_device(kOp, "argmax", *argmax, "grad", grad);
    dense_argmax = *argmax;
    // Both are read with one set of strides.
    if (channels_last != is_channels_last(dense_argmax) || (!channels_last && !dense_argmax.is_contiguous())) {
      dense_argmax =
          torch::stable::contiguous(dense_argmax, channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                                : torch::headeronly::MemoryFormat::Contiguous);
    }
  }
  const RoiShape shape = check_shape(batch, channels, height, width, boxes.size(0), spatial_scale, pooled_height,
                                     pooled_width, sampling_ratio, aligned, channels_last);
  const Tensor grad_input = allocate({batch, channels, height, width}, grad.scalar_type(), grad, channels_last);
  with_float(kOp, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    RoiAlignParams<T> params{};
    params.shape = shape;
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(dense);
    params.saved_argmax = argmax != nullptr ? data<int32_t>(dense_argmax) : nullptr;
    params.grad_input = mutable_data<T>(grad_input);
    if (grad_input.numel() > 0) backward(params, grad);
  });
  return grad_input;
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
      "roi_align_max_backward(Tensor grad, Tensor argmax, Tensor boxes, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
      "bool aligned) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_max", TORCH_BOX(&roi_align_max));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
  m.impl("roi_align_max_backward", TORCH_BOX(&roi_align_max_backward));
}

}  // namespace cvk::bindings
