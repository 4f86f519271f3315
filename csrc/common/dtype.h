// Storage types and the arithmetic type that goes with each.
//
// half_t and bfloat16_t are two-byte structs of ours under every compiler, so that a launcher built by nvcc has the name
// that a binding built by the host compiler asks for, and the host needs no CUDA header. Arithmetic never happens in
// them: load with to_acc, store with from_acc.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace cvk {

struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};
static_assert(sizeof(half_t) == 2 && sizeof(bfloat16_t) == 2, "two-byte storage types");

// Arithmetic type of a storage type: float64 for float64, float32 for the rest.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

template <class To, class From>
CVK_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

#if !defined(__CUDACC__)
namespace detail {

// IEEE binary16 -> binary32. Numerics: exact for every input, subnormals, infinities and NaN included.
CVK_HD float half_bits_to_float(uint32_t h) {
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t sign = (h & 0x8000u) << 16;
  // The exponent field moves from bias 15 to bias 127 by a multiplication, which also normalises subnormals.
  const float scaled = bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | sign);
}

// binary32 -> binary16, round to nearest even; overflow gives infinity, NaN stays NaN.
CVK_HD uint16_t float_to_half_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal range: rebias by integer subtraction and round in the 13 bits that fall off.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal range: adding 0.5 aligns the binary point, so the float unit does the rounding.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return static_cast<uint16_t>(result | sign);
}

CVK_HD float bfloat16_bits_to_float(uint32_t b) { return bit_cast<float>(b << 16); }

// binary32 -> bfloat16, round to nearest even; NaN stays NaN.
CVK_HD uint16_t float_to_bfloat16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

}  // namespace detail
#endif

CVK_HD float to_acc(float value) { return value; }
CVK_HD double to_acc(double value) { return value; }
#if defined(__CUDACC__)
CVK_HD float to_acc(half_t value) { return __half2float(bit_cast<__half>(value)); }
CVK_HD float to_acc(bfloat16_t value) { return __bfloat162float(bit_cast<__nv_bfloat16>(value)); }
#else
CVK_HD float to_acc(half_t value) { return detail::half_bits_to_float(value.bits); }
CVK_HD float to_acc(bfloat16_t value) { return detail::bfloat16_bits_to_float(value.bits); }
#endif

template <class T>
CVK_HD T from_acc(Acc<T> value) {
  return value;
}
template <>
CVK_HD half_t from_acc<half_t>(float value) {
#if defined(__CUDACC__)
  return bit_cast<half_t>(__float2half_rn(value));
#else
  return half_t{detail::float_to_half_bits(value)};
#endif
}
template <>
CVK_HD bfloat16_t from_acc<bfloat16_t>(float value) {
#if defined(__CUDACC__)
  return bit_cast<bfloat16_t>(__float2bfloat16_rn(value));
#else
  return bfloat16_t{detail::float_to_bfloat16_bits(value)};
#endif
}

}  // namespace cvk
