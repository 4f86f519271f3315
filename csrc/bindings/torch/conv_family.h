// What the convolutions share: checks of their arguments, in the order of cvkernels/_checks/conv.py.
#pragma once

#include <limits>
#include <optional>
#include <vector>

#include "bindings/torch/dispatch.h"
#include "bindings/torch/run.h"
#include "common/conv_shape.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv_transpose2d/conv_transpose2d.h"

namespace cvk::bindings {

using Ints = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

inline std::string ints_text(const Ints& values) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < values.size(); ++i) text << (i ? ", " : "") << values[i];
  text << (values.size() == 1 ? ",)" : ")");
  return text.str();
}

inline void check_ints(const char* op, const char* argument, const Ints& values, size_t count, int64_t least) {
  bool good = values.size() == count;
  for (const int64_t value : values) good = good && value >= least && value <= std::numeric_limits<int>::max();
  if (!good) {
    reject(op, argument, " of ", count, " values from ", least, " to 2^31 - 1, got ", ints_text(values));
  }
}

inline void check_map(const char* op, const char* argument, const Tensor& map) {
  if (map.dim() != 4) reject(op, argument, " of shape (N, C, H, W), got ", shape_text(map));
  check_float(op, argument, map);
}

inline void check_like(const char* op, const char* argument, const Tensor& tensor, const char* other_argument,
                       const Tensor& other) {
  if (tensor.scalar_type() != other.scalar_type()) {
    reject(op, argument, " of the dtype of ", other_argument, " (", dtype_text(other.scalar_type()), "), got ",
           dtype_text(tensor.scalar_type()));
  }
  check_same_device(op, argument, tensor, other_argument, other);
}

// Weights [O, C / groups, KH, KW]; `channels` of the map that they meet are on the axis `axis` (0 or 1) of it.
inline void check_weight(const char* op, const Tensor& weight, const char* map_argument, const Tensor& map,
                         int64_t groups, int axis) {
  if (weight.dim() != 4) reject(op, "weight of four dimensions, got ", shape_text(weight));
  check_like(op, "weight", weight, map_argument, map);
  if (groups < 1 || groups > std::numeric_limits<int>::max()) {
    reject(op, "groups from 1 to 2^31 - 1, got ", groups);
  }
  if (weight.size(0) % groups != 0) {
    reject(op, "weight of a multiple of ", groups, " rows (groups), got ", shape_text(weight));
  }
  const int64_t channels = axis == 0 ? weight.size(0) : weight.size(1) * groups;
  if (channels != map.size(1)) {
    reject(op, map_argument, " of ", channels, " channels (weight ", shape_text(weight), ", groups ", groups, "), got ",
           map.size(1));
  }
  if (weight.size(2) < 1 || weight.size(3) < 1) {
    reject(op, "weight of a kernel of at least 1 x 1, got ", shape_text(weight));
  }
}

inline void check_bias(const char* op, const OptionalTensor& bias, int64_t channels, const Tensor& map) {
  if (!bias) return;
  if (bias->dim() != 1 || bias->size(0) != channels) {
    reject(op, "bias of shape (", channels, ",), got ", shape_text(*bias));
  }
  check_like(op, "bias", *bias, "input", map);
}

inline void check_extent(const char* op, const char* what, int64_t height, int64_t width) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  if (height > kMost || width > kMost) reject(op, what, " below 2^31, got (", height, ", ", width, ")");
}

// The geometry of a convolution over maps of height x width; its output sizes too.
inline ConvShape conv_geometry(const char* op, int64_t height, int64_t width, int64_t kernel_height,
                               int64_t kernel_width, const Ints& stride, const Ints& padding, const Ints& dilation,
                               int64_t groups) {
  check_ints(op, "stride", stride, 2, 1);
  check_ints(op, "padding", padding, 4, 0);
  check_ints(op, "dilation", dilation, 2, 1);
  const int64_t padded_height = height + padding[0] + padding[1], padded_width = width + padding[2] + padding[3];
  check_extent(op, "padded sizes", padded_height, padded_width);
  if (kernel_height > std::numeric_limits<int>::max() / kernel_width) {
    reject(op, "a kernel of fewer than 2^31 elements, got (", kernel_height, ", ", kernel_width, ")");
  }
  const int64_t span_height = conv2d_span(kernel_height, dilation[0]);
  const int64_t span_width = conv2d_span(kernel_width, dilation[1]);
  if (span_height > padded_height || span_width > padded_width) {
    reject(op, "a kernel within the padded input of (", padded_height, ", ", padded_width, "), got one that spans (",
           span_height, ", ", span_width, ")");
  }
  ConvShape shape;
  shape.groups = static_cast<int>(groups);
  shape.height = static_cast<int>(height);
  shape.width = static_cast<int>(width);
  shape.out_height =
      static_cast<int>(conv2d_extent(height, padding[0] + padding[1], kernel_height, stride[0], dilation[0]));
  shape.out_width =
      static_cast<int>(conv2d_extent(width, padding[2] + padding[3], kernel_width, stride[1], dilation[1]));
  shape.kernel_height = static_cast<int>(kernel_height);
  shape.kernel_width = static_cast<int>(kernel_width);
  shape.stride_y = static_cast<int>(stride[0]);
  shape.stride_x = static_cast<int>(stride[1]);
  shape.pad_top = static_cast<int>(padding[0]);
  shape.pad_left = static_cast<int>(padding[2]);
  shape.dilation_y = static_cast<int>(dilation[0]);
  shape.dilation_x = static_cast<int>(dilation[1]);
  return shape;
}

// The gradient of a convolution's output, whose shape the geometry says.
inline void check_grad(const char* op, const Tensor& grad, int64_t batch, int64_t filters, const ConvShape& shape) {
  if (grad.size(0) != batch || grad.size(1) != filters || grad.size(2) != shape.out_height ||
      grad.size(3) != shape.out_width) {
    reject(op, "grad of shape (", batch, ", ", filters, ", ", shape.out_height, ", ", shape.out_width, "), got ",
           shape_text(grad));
  }
}

// The tensor, dense in the memory format wanted.
inline Tensor in_format(const Tensor& tensor, bool channels_last) {
  if (channels_last ? is_channels_last(tensor) : tensor.is_contiguous()) return tensor;
  return torch::stable::contiguous(tensor, channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                         : torch::headeronly::MemoryFormat::Contiguous);
}

inline Activation activation_of(const char* op, const std::string& name) {
  constexpr const char* kNames[] = {"none", "relu", "silu", "gelu", "gelu_tanh"};
  for (int i = 0; i < 5; ++i) {
    if (name == kNames[i]) return static_cast<Activation>(i);
  }
  reject(op, "activation to be None, 'relu', 'silu', 'gelu' or 'gelu_tanh', got '", name, "'");
}

// Weights as the kernels take them: in either format over channels-last maps, contiguous over planes.
inline Tensor dense_weight(const Tensor& weight, ConvShape& shape) {
  shape.weight_channels_last = shape.channels_last && is_channels_last(weight);
  return in_format(weight, shape.weight_channels_last);
}

// From the filters' side of a convolution to its channels' side: conv_transpose2d, and conv2d's gradient. All is checked;
// shape has its channels, filters and format.
inline Tensor transposed_product(const char* op, const Tensor& map, const Tensor& weight, const OptionalTensor& bias,
                                 ConvShape shape, bool tf32) {
  const Tensor source = in_format(map, shape.channels_last), weights = dense_weight(weight, shape);
  const Tensor result =
      allocate({shape.batch, shape.channels, shape.height, shape.width}, map.scalar_type(), map, shape.channels_last);
  if (result.numel() == 0) return result;
  with_float(op, "input", map, [&](auto type) {
    using T = typename decltype(type)::T;
    const OptionalTensor addend = bias ? OptionalTensor(converted(*bias, bias->scalar_type())) : std::nullopt;
    ConvTranspose2dParams<T> params{};
    params.shape = shape;
    params.input = data<T>(source);
    params.weight = data<T>(weights);
    params.bias = addend ? data<T>(*addend) : nullptr;
    params.output = mutable_data<T>(result);
    params.tf32 = tf32;
    Work work{};
    if constexpr (kOnCpu) {
      const int threads = torch_parallel().threads;
      work = work_of(once([&](auto isa) { return conv_transpose2d_items_cpu<isa.value>(params, threads); }),
                     shape.products());
    }
    run(
        op, map, work,
        [&](auto isa, int64_t first, int64_t last) { conv_transpose2d_cpu<isa.value>(params, first, last); },
        [&](CudaStream stream) {  // on the tensors' device, whose kind decides how much scratch it takes
          const Tensor scratch = allocate({conv_transpose2d_scratch_cuda(params)}, ScalarType::Byte, map);
          return conv_transpose2d_cuda(params, mutable_data<void>(scratch), stream);
        });
  });
  return result;
}

}  // namespace cvk::bindings
