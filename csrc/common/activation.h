// Activations that a kernel applies to its result before the one rounding to the storage type. V is a number of the
// arithmetic type or a vector of them (simd.h).
#pragma once

#include <type_traits>

#include "common/elementary.h"

namespace cvk {

enum class Activation : int {
  kNone = 0,
  kRelu = 1,      // max(x, 0)
  kSilu = 2,      // x * sigmoid(x)
  kGelu = 3,      // x * (1 + erf(x / sqrt 2)) / 2
  kGeluTanh = 4,  // x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
};

// 1 / (1 + e^-x); 1 for NaN.
template <class V>
CVK_HD V sigmoid(V x) {
  const V one = elementary_constant<V>(1);
  const auto negative = x < V{};
  const V e = exp_of_negative(negative ? x : V{} - x);
  return (negative ? e : one) / (one + e);
}

// NaN gives NaN.
template <class V>
CVK_HD V activate(Activation activation, V x) {
  switch (activation) {
    case Activation::kRelu:
      return x < V{} ? V{} : x;
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kGelu: {
      const auto negative = x < V{};
      const V tail = elementary_constant<V>(0.5) *
                     erfc_of_positive((negative ? V{} - x : x) * elementary_constant<V>(0.70710678118654752));
      return x * (negative ? tail : elementary_constant<V>(1) - tail);
    }
    case Activation::kGeluTanh:
      // (1 + tanh u) / 2 = sigmoid(2 u)
      return x * sigmoid(x * (elementary_constant<V>(1.5957691216057308) +
                              x * x * elementary_constant<V>(0.071354816272600254)));
    default:
      return x;
  }
}

// Calls f(activation) with a constant. Perf: a GPU's loop over results is short then; with the switch in it, one misses the
// instruction cache.
template <class F>
CVK_HD void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
    default:
      return f(std::integral_constant<Activation, Activation::kNone>{});
  }
}

}  // namespace cvk
