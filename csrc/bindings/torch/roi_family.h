// What the operators of the RoI family share: checks of their arguments, in the order of cvkernels/_checks/roi.py.
#pragma once

#include <limits>

#include "bindings/torch/dispatch.h"
#include "bindings/torch/run.h"
#include "common/roi_boxes.h"
#include "common/roi_geometry.h"
#include "common/roi_indices.h"
#include "common/roi_plan.h"

namespace cvk::bindings {

// Multiply-adds of one pooled value, roughly.
inline constexpr int64_t kRoiOperations = 8;

inline void check_roi_boxes(const char* op, const Tensor& boxes, const char* with, const Tensor& other,
                            int64_t columns = 5, const char* name = "boxes") {
  if (boxes.dim() != 2 || boxes.size(1) != columns) {
    reject(op, name, " of shape (K, ", columns, "), got ", shape_text(boxes));
  }
  check_float(op, name, boxes);
  check_same_device(op, name, boxes, with, other);
}

inline void check_roi_tensors(const char* op, const Tensor& input, const Tensor& boxes, int64_t columns = 5,
                              const char* name = "boxes") {
  if (input.dim() != 4) reject(op, "input of shape (N, C, H, W), got ", shape_text(input));
  check_float(op, "input", input);
  check_roi_boxes(op, boxes, "input", input, columns, name);
}

// The first tensor of a backward pass, or one that goes with it.
inline void check_roi_pooled(const char* op, const char* argument, const Tensor& tensor, int64_t boxes,
                             int64_t channels, int64_t pooled_height, int64_t pooled_width) {
  if (tensor.dim() != 4 || tensor.size(0) != boxes || tensor.size(1) != channels || tensor.size(2) != pooled_height ||
      tensor.size(3) != pooled_width) {
    reject(op, argument, " of shape (", boxes, ", ", channels, ", ", pooled_height, ", ", pooled_width, "), got ",
           shape_text(tensor));
  }
}

// The indices that go with the gradient of a maximum, 32 bits wide or, where `narrow_too`, 16; `grad` has been checked.
inline void check_roi_argmax(const char* op, const Tensor& argmax, const Tensor& grad, bool narrow_too = false) {
  check_roi_pooled(op, "argmax", argmax, grad.size(0), grad.size(1), grad.size(2), grad.size(3));
  const ScalarType type = argmax.scalar_type();
  if (type != ScalarType::Int && !(narrow_too && type == ScalarType::Short)) {
    reject(op, "argmax of dtype ", narrow_too ? "int16 or int32" : "int32", ", got ", dtype_text(type));
  }
  check_same_device(op, "argmax", argmax, "grad", grad);
}

struct RoiSizes {
  int64_t batch, channels, height, width, boxes;
  double spatial_scale;
  int64_t pooled_height, pooled_width;
  int64_t sampling_ratio = 1;
  bool aligned = false;
};

inline RoiShape roi_shape(const char* op, const RoiSizes& sizes, bool channels_last) {
  constexpr int64_t kIntMax = std::numeric_limits<int>::max();
  if (!is_finite(sizes.spatial_scale) || sizes.spatial_scale <= 0) {
    reject(op, "spatial_scale to be finite and positive, got ", number_text(sizes.spatial_scale));
  }
  if (sizes.pooled_height < 1 || sizes.pooled_width < 1 || sizes.pooled_height > kIntMax ||
      sizes.pooled_width > kIntMax) {
    reject(op, "output_size of positive 32-bit values, got (", sizes.pooled_height, ", ", sizes.pooled_width, ")");
  }
  if (sizes.sampling_ratio > kRoiMaxGrid) {
    reject(op, "sampling_ratio of at most ", kRoiMaxGrid, ", got ", sizes.sampling_ratio);
  }
  if (sizes.batch < 0 || sizes.channels < 0 || sizes.height < 0 || sizes.width < 0) {
    reject(op, "input sizes of at least 0, got (", sizes.batch, ", ", sizes.channels, ", ", sizes.height, ", ",
           sizes.width, ")");
  }
  if (sizes.channels > kIntMax || sizes.height > kIntMax || sizes.width > kIntMax) {
    reject(op, "input of channels, height and width below 2^31, got ", sizes.channels, ", ", sizes.height, ", ",
           sizes.width);
  }
  RoiShape shape;
  shape.batch = sizes.batch;
  shape.channels = sizes.channels;
  shape.height = static_cast<int>(sizes.height);
  shape.width = static_cast<int>(sizes.width);
  shape.boxes = sizes.boxes;
  shape.pooled_height = static_cast<int>(sizes.pooled_height);
  shape.pooled_width = static_cast<int>(sizes.pooled_width);
  shape.spatial_scale = sizes.spatial_scale;
  shape.sampling_ratio = sizes.sampling_ratio > 0 ? static_cast<int>(sizes.sampling_ratio) : 0;
  shape.aligned = sizes.aligned;
  shape.channels_last = channels_last;
  return shape;
}

// The shape of a forward pass.
inline RoiShape roi_shape(const char* op, const Tensor& input, const Tensor& boxes, double spatial_scale,
                          int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio = 1,
                          bool aligned = false) {
  const RoiSizes sizes{input.size(0), input.size(1), input.size(2), input.size(3),  boxes.size(0),
                       spatial_scale, pooled_height, pooled_width,  sampling_ratio, aligned};
  return roi_shape(op, sizes, is_channels_last(input));
}

// Whether the indices of a map fit, 32 bits wide or, if `narrow`, 16. There are `per_pixel` for each of its pixels.
inline void check_roi_pixels(const char* op, const RoiShape& shape, int64_t per_pixel, bool narrow) {
  const int64_t most = (narrow ? kRoiMostNarrow : int64_t{std::numeric_limits<int32_t>::max()}) / per_pixel;
  if (shape.pixels() > most) {
    reject(op, "input of at most ", most, " pixels (height * width)", narrow ? " where narrow" : "", ", got ",
           shape.pixels());
  }
}

// A result [K, C, PH, PW], in the memory format of the shape.
inline Tensor allocate_pooled(const RoiShape& shape, ScalarType type, const Tensor& like) {
  return allocate({shape.boxes, shape.channels, shape.pooled_height, shape.pooled_width}, type, like,
                  shape.channels_last);
}

// The tensor, dense in the memory format that the shape says.
inline Tensor dense(const Tensor& tensor, bool channels_last) {
  if (channels_last ? is_channels_last(tensor) : tensor.is_contiguous()) return tensor;
  return torch::stable::contiguous(tensor, channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                         : torch::headeronly::MemoryFormat::Contiguous);
}

[[noreturn]] inline void reject_image_index(const char* op, double value, int64_t row, int64_t batch,
                                            const char* name = "boxes") {
  reject(op, name, "[:, 0] in [0, ", batch, "), got ", number_text(value), " in row ", row);
}

// The CPU plan of a pass (common/roi_plan.h) and the memory that it lives in. layout(isa) places the records, or says what is
// wrong; plan(isa, first, last) writes those of the boxes [first, last). `given` are levels of the boxes, or null.
class RoiPlanMemory {
 public:
  template <class A, class Layout, class Slice>
  RoiPlanMemory(const char* op, const Tensor& on, const RoiShape& shape, RoiPlan& plan, const A* boxes, int64_t columns,
                Layout&& layout, Slice&& slice, const char* name = "boxes", int levels = 1,
                const int64_t* given = nullptr)
      : indices_(3 * shape.boxes + levels * shape.batch + 2), places_(2 * shape.boxes) {
    constexpr int64_t kGrain = 512;  // a box takes well under a microsecond
    plan.places = places_.get();
    plan.order = indices_.get();
    plan.image_of = plan.order + shape.boxes;
    plan.record_begin = plan.image_of + shape.boxes;
    plan.image_begin = plan.record_begin + shape.boxes + 1;
    const int64_t bytes = once(layout);
    if (bytes == kRoiTooManySamples) reject(op, "fewer than 2^30 samples of a box along an axis, got more");
    if (bytes <= kRoiBadLevel) {
      const int64_t row = kRoiBadLevel - bytes;
      reject(op, "levels in [0, ", levels, "), got ", given[row], " in row ", row);
    }
    if (bytes < 0) {
      const int64_t row = -1 - bytes;
      reject_image_index(op, boxes[row * columns], row, shape.batch, name);
    }
    if (shape.channels == 0) return;  // only the indices wanted checking
    arena_ = std::make_unique<HostScratch<char>>(bytes);
    plan.arena = arena_->get();
    run(op, on, {shape.boxes, kGrain}, slice, [](CudaStream) { return CudaStatus{0}; });
  }

 private:
  HostScratch<int64_t> indices_;
  HostScratch<Keyed<uint32_t>> places_;
  std::unique_ptr<HostScratch<char>> arena_;
};

// The gradient of a pass that is given its input, too.
inline void check_roi_grad(const char* op, const Tensor& grad, const Tensor& input, const RoiShape& shape) {
  check_roi_pooled(op, "grad", grad, shape.boxes, shape.channels, shape.pooled_height, shape.pooled_width);
  check_same_dtype(op, "grad", grad, "input", input);
  check_same_device(op, "grad", grad, "input", input);
}

// The gradient with respect to boxes (common/roi_boxes.h), in their dtype, of arguments that have been checked. The passes are
// called with (isa, params) or, for a slice, (isa, params, first, last); on CUDA with (params) for bytes of scratch and last with
// (params, sums, copy, stream).
template <class Layout, class Plan, class Items, class Backward, class Finish, class Sums, class Copy, class Launch>
Tensor roi_boxes_backward(const char* op, const RoiShape& shape, const Tensor& input, const Tensor& boxes,
                          const Tensor& grad, const int32_t* argmax, Layout&& layout, Plan&& plan, Items&& items,
                          Backward&& backward, Finish&& finish, Sums&& sums_bytes, Copy&& copy_bytes, Launch&& launch) {
  const Tensor features = dense(input, shape.channels_last), gradient = dense(grad, shape.channels_last);
  return with_float(op, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    const Tensor grad_boxes = allocate({shape.boxes, 5}, kScalarType<Acc<T>>, input);
    RoiBoxesParams<T> params{};
    params.shape = shape;
    params.input = data<T>(features);
    params.boxes = data<Acc<T>>(coordinates);
    params.grad_output = data<T>(gradient);
    params.saved_argmax = argmax;
    params.grad_boxes = mutable_data<Acc<T>>(grad_boxes);
    if (shape.boxes == 0) return converted(grad_boxes, boxes.scalar_type());
    if constexpr (kOnCpu) {
      const auto no_launch = [](CudaStream) { return CudaStatus{0}; };
      const RoiPlanMemory memory(
          op, input, shape, params.plan, params.boxes, 5, [&](auto isa) { return layout(isa, params); },
          [&](auto isa, int64_t first, int64_t last) { plan(isa, params, first, last); });
      const HostScratch<Acc<T>> sums(shape.boxes * params.parts * kRoiSums);
      params.sums = sums.get();
      if (shape.channels > 0) {
        const int64_t count = once([&](auto isa) { return items(isa, params); });
        run(
            op, input, work_of(count, 2 * kRoiOperations * shape.boxes * shape.channels * shape.bins()),
            [&](auto isa, int64_t first, int64_t last) { backward(isa, params, first, last); }, no_launch);
      }
      run(
          op, input, work_of(shape.boxes, shape.boxes * params.parts * kRoiSums),
          [&](auto isa, int64_t first, int64_t last) { finish(isa, params, first, last); }, no_launch);
    } else {
      const Tensor sums = allocate({sums_bytes(params)}, ScalarType::Byte, input);
      const Tensor copy = allocate({copy_bytes(params)}, ScalarType::Byte, input);
      run(
          op, input, {}, [](auto, int64_t, int64_t) {},
          [&](CudaStream stream) {
            return launch(params, mutable_data<void>(sums), mutable_data<void>(copy), stream);
          });
    }
    return converted(grad_boxes, boxes.scalar_type());
  });
}

}  // namespace cvk::bindings
