// Small arithmetic that kernels share. Contraction of a*b+c into a fused operation is off in every build
// (-ffp-contract=off, -fmad=false), so that coordinates and overlaps round alike on every device; loops that want the
// fused form say so with mul_add.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace cvk {

// a * b + c, fused where the target has the instruction (one rounding), else in two roundings.
CVK_HD float mul_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__CUDACC__) || defined(__aarch64__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
CVK_HD double mul_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__CUDACC__) || defined(__aarch64__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

// max and min for finite operands; where an operand is NaN the second is returned, as in torchvision's CPU kernels
// (std::max(b, a)), and comparisons downstream are written so that NaN fails them.
template <class T>
CVK_HD T max_of(T a, T b) {
  return a > b ? a : b;
}
template <class T>
CVK_HD T min_of(T a, T b) {
  return a < b ? a : b;
}

// |value|, of a vector too. Invariant: of both zeros +0, by which a slope may be divided.
template <class V>
CVK_HD V magnitude(V value) {
  return value > V{} ? value : V{} - value;
}

template <class T>
CVK_HD T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// a / b rounded down, b > 0.
template <class T>
CVK_HD T floor_div(T a, T b) {
  return a >= 0 ? a / b : -ceil_div(-a, b);
}

// a / b of numbers that are not negative. Perf: a GPU divides 32 bits in a fifth of the instructions of 64.
CVK_HD int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

template <class T>
CVK_HD T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

template <class T>
CVK_HD bool is_finite(T value) {
  return value - value == T(0);
}

}  // namespace cvk
