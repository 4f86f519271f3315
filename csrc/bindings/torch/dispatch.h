// From a tensor's dtype to a C++ type: with_float(op, tensor, [&](auto type) { using T = typename decltype(type)::T; ... }).
#pragma once

#include "bindings/torch/checks.h"
#include "common/dtype.h"

namespace cvk::bindings {

template <class Type>
struct TypeTag {
  using T = Type;
};

template <class F>
auto with_float(const char* op, const char* argument, const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Half:
      return f(TypeTag<half_t>{});
    case ScalarType::BFloat16:
      return f(TypeTag<bfloat16_t>{});
    case ScalarType::Double:
      return f(TypeTag<double>{});
    default:
      check_float(op, argument, tensor);  // throws
      throw std::logic_error("unreachable");
  }
}

template <class T>
inline constexpr ScalarType kScalarType = std::is_same_v<T, float>    ? ScalarType::Float
                                          : std::is_same_v<T, double> ? ScalarType::Double
                                          : std::is_same_v<T, half_t> ? ScalarType::Half
                                                                      : ScalarType::BFloat16;

}  // namespace cvk::bindings
