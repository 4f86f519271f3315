// Argument checks of the operators, and the one way of saying no: std::invalid_argument, which Python sees as ValueError,
// with the text "<operator>: expected <argument> ..., got ...". cvkernels/_checks says the same words for fake tensors
// and references; tests/harness.py holds the two to each other.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace cvk::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] inline void reject(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": expected ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// A number as Python's format(value, "g") writes it.
inline std::string number_text(double value) {
  if (value != value) return "nan";
  std::ostringstream text;
  text << value;
  return text.str();
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << '(';
  const int64_t dims = tensor.dim();
  for (int64_t i = 0; i < dims; ++i) text << (i ? ", " : "") << tensor.size(i);
  text << (dims == 1 ? ",)" : ")");
  return text.str();
}

inline const char* dtype_text(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline bool is_float(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
         type == ScalarType::Double;
}

inline bool is_integer(ScalarType type) {
  return type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Short || type == ScalarType::Char ||
         type == ScalarType::Byte;
}

inline void check_float(const char* op, const char* argument, const Tensor& tensor) {
  if (!is_float(tensor.scalar_type())) {
    reject(op, argument, " of dtype float16, bfloat16, float32 or float64, got ", dtype_text(tensor.scalar_type()));
  }
}

inline void check_integer(const char* op, const char* argument, const Tensor& tensor) {
  if (!is_integer(tensor.scalar_type())) {
    reject(op, argument, " of dtype uint8, int8, int16, int32 or int64, got ", dtype_text(tensor.scalar_type()));
  }
}

inline std::string device_text(const Tensor& tensor) {
  return tensor.is_cpu() ? "cpu" : "cuda:" + std::to_string(tensor.get_device_index());
}

inline void check_same_device(const char* op, const char* argument, const Tensor& tensor, const char* other_argument,
                              const Tensor& other) {
  if (tensor.is_cpu() != other.is_cpu() || tensor.get_device_index() != other.get_device_index()) {
    reject(op, argument, " on the device of ", other_argument, " (", device_text(other), "), got ",
           device_text(tensor));
  }
}

inline void check_same_dtype(const char* op, const char* argument, const Tensor& tensor, const char* other_argument,
                             const Tensor& other) {
  if (tensor.scalar_type() != other.scalar_type()) {
    reject(op, argument, " of the dtype of ", other_argument, " (", dtype_text(other.scalar_type()), "), got ",
           dtype_text(tensor.scalar_type()));
  }
}

// The tensor with the dtype wanted, contiguous; itself where it is so already.
inline Tensor converted(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() != type) return torch::stable::contiguous(torch::stable::to(tensor, type));
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Dense channels-last strides that are not contiguous as well. The stride of a dimension of size 1 says nothing.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.is_contiguous()) return false;
  const int64_t c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  const auto has = [&](int64_t dim, int64_t stride) { return tensor.size(dim) == 1 || tensor.stride(dim) == stride; };
  return has(1, 1) && has(3, c) && has(2, w * c) && has(0, h * w * c);
}

}  // namespace cvk::bindings
