// CUDA's device functions: barriers, warp collectives, atomics, bit and rounding intrinsics.
#pragma once

#include <math.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulation/execution.h"

// ---- Barriers and fences ------------------------------------------------------------------------
inline void __syncthreads(cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  cvk::emulation::block_barrier(cvk::emulation::Operation::kSyncthreads, false, site);
}
inline int __syncthreads_count(int predicate, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::block_barrier(cvk::emulation::Operation::kSyncthreadsCount, predicate != 0, site);
}
inline int __syncthreads_and(int predicate, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::block_barrier(cvk::emulation::Operation::kSyncthreadsAnd, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::block_barrier(cvk::emulation::Operation::kSyncthreadsOr, predicate != 0, site);
}

// A fence orders memory between threads that do not wait for each other: the place to let others
// run.
inline void __threadfence_block(cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  cvk::emulation::yield(site);
}
inline void __threadfence(cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  cvk::emulation::yield(site);
}
inline void __threadfence_system(cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  cvk::emulation::yield(site);
}
inline void __nanosleep(unsigned, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  cvk::emulation::yield(site);
}
[[noreturn]] inline void __trap() { cvk::emulation::trap("__trap()"); }

// ---- Warp collectives ---------------------------------------------------------------------------
namespace cvk::emulation {

inline int lane_id() { return static_cast<int>(linear_thread() % warpSize); }

template <class T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(Operation operation, unsigned mask, T value, int source_lane, const CallSite& site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "warp shuffles move 4- and 8-byte numbers");
  const uint64_t bits = warp_collective(operation, mask, to_bits(value), source_lane, site);
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  return result;
}

template <class T>
T reduce(Operation operation, unsigned mask, T value, const CallSite& site) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>, "warp reductions take int and unsigned");
  // Widened to 64 bits both types compare as signed numbers.
  return static_cast<T>(warp_collective(operation, mask, static_cast<uint64_t>(static_cast<int64_t>(value)), 0, site));
}

template <class T>
struct NonDeduced {
  using type = T;
};

template <class T, class... Allowed>
inline constexpr bool is_one_of = (std::is_same_v<T, Allowed> || ...);

}  // namespace cvk::emulation

inline void __syncwarp(unsigned mask = 0xffffffffu, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  cvk::emulation::warp_collective(cvk::emulation::Operation::kSyncwarp, mask, 0, 0, site);
}
inline unsigned __activemask(cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::active_mask(site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return static_cast<unsigned>(
      cvk::emulation::warp_collective(cvk::emulation::Operation::kBallot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return static_cast<int>(
      cvk::emulation::warp_collective(cvk::emulation::Operation::kAny, mask, predicate != 0, 0, site));
}
inline int __all_sync(unsigned mask, int predicate, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return static_cast<int>(
      cvk::emulation::warp_collective(cvk::emulation::Operation::kAll, mask, predicate != 0, 0, site));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "__match_any_sync compares 4- and 8-byte numbers");
  return static_cast<unsigned>(cvk::emulation::warp_collective(cvk::emulation::Operation::kMatchAny, mask,
                                                               cvk::emulation::to_bits(value), 0, site));
}

// A shuffle reads within groups of width lanes; where the source lies outside the group, the lane
// keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  const int first = cvk::emulation::lane_id() & ~(width - 1);
  return cvk::emulation::shuffle(cvk::emulation::Operation::kShfl, mask, value, first | (source & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  const int lane = cvk::emulation::lane_id(), first = lane & ~(width - 1);
  const bool inside = delta <= static_cast<unsigned>(lane - first);
  return cvk::emulation::shuffle(cvk::emulation::Operation::kShflUp, mask, value,
                                 inside ? lane - static_cast<int>(delta) : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  const int lane = cvk::emulation::lane_id(), last = lane | (width - 1);
  const bool inside = delta <= static_cast<unsigned>(last - lane);
  return cvk::emulation::shuffle(cvk::emulation::Operation::kShflDown, mask, value,
                                 inside ? lane + static_cast<int>(delta) : lane, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  const int lane = cvk::emulation::lane_id(), last = lane | (width - 1);
  const int source = (lane ^ lane_mask) & (warpSize - 1);
  return cvk::emulation::shuffle(cvk::emulation::Operation::kShflXor, mask, value, source <= last ? source : lane,
                                 site);
}

template <class T>
T __reduce_add_sync(unsigned mask, T value, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::reduce(cvk::emulation::Operation::kReduceAdd, mask, value, site);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::reduce(cvk::emulation::Operation::kReduceMin, mask, value, site);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::reduce(cvk::emulation::Operation::kReduceMax, mask, value, site);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value,
                                  cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::reduce(cvk::emulation::Operation::kReduceAnd, mask, value, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                 cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::reduce(cvk::emulation::Operation::kReduceOr, mask, value, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value,
                                  cvk::emulation::CallSite site = cvk::emulation::CallSite::here()) {
  return cvk::emulation::reduce(cvk::emulation::Operation::kReduceXor, mask, value, site);
}

// ---- Atomics: threads change only where they wait, so plain code is atomic ----------------------
template <class T>
T atomicAdd(T* address, typename cvk::emulation::NonDeduced<T>::type value) {
  static_assert(cvk::emulation::is_one_of<T, int, unsigned, unsigned long long, float, double>,
                "atomicAdd takes int, unsigned, unsigned long long, float and double");
  const T old = *address;
  if constexpr (std::is_same_v<T, int>) {  // wraps, as on the device
    *address = static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));
  } else {
    *address = old + value;
  }
  return old;
}
template <class T>
T atomicMin(T* address, typename cvk::emulation::NonDeduced<T>::type value) {
  static_assert(cvk::emulation::is_one_of<T, int, unsigned, long long, unsigned long long>,
                "atomicMin takes int, unsigned and their 64-bit forms");
  const T old = *address;
  *address = value < old ? value : old;
  return old;
}
template <class T>
T atomicMax(T* address, typename cvk::emulation::NonDeduced<T>::type value) {
  static_assert(cvk::emulation::is_one_of<T, int, unsigned, long long, unsigned long long>,
                "atomicMax takes int, unsigned and their 64-bit forms");
  const T old = *address;
  *address = value > old ? value : old;
  return old;
}
template <class T>
T atomicAnd(T* address, typename cvk::emulation::NonDeduced<T>::type value) {
  static_assert(cvk::emulation::is_one_of<T, int, unsigned, unsigned long long>,
                "atomicAnd takes int, unsigned and unsigned long long");
  const T old = *address;
  *address = old & value;
  return old;
}
template <class T>
T atomicOr(T* address, typename cvk::emulation::NonDeduced<T>::type value) {
  static_assert(cvk::emulation::is_one_of<T, int, unsigned, unsigned long long>,
                "atomicOr takes int, unsigned and unsigned long long");
  const T old = *address;
  *address = old | value;
  return old;
}
template <class T>
T atomicExch(T* address, typename cvk::emulation::NonDeduced<T>::type value) {
  static_assert(cvk::emulation::is_one_of<T, int, unsigned, unsigned long long, float>,
                "atomicExch takes int, unsigned, unsigned long long and float");
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
T atomicCAS(T* address, typename cvk::emulation::NonDeduced<T>::type compare,
            typename cvk::emulation::NonDeduced<T>::type value) {
  static_assert(cvk::emulation::is_one_of<T, int, unsigned, unsigned long long>,
                "atomicCAS takes int, unsigned and unsigned long long");
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}

// ---- Cached and streaming accesses --------------------------------------------------------------
template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
void __stcs(T* pointer, typename cvk::emulation::NonDeduced<T>::type value) {
  *pointer = value;
}

// ---- Bits ---------------------------------------------------------------------------------------
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned long long __brevll(unsigned long long x) {
  x = ((x >> 1) & 0x5555555555555555u) | ((x & 0x5555555555555555u) << 1);
  x = ((x >> 2) & 0x3333333333333333u) | ((x & 0x3333333333333333u) << 2);
  x = ((x >> 4) & 0x0f0f0f0f0f0f0f0fu) | ((x & 0x0f0f0f0f0f0f0f0fu) << 4);
  return __builtin_bswap64(x);
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }

namespace cvk::emulation {
template <class To, class From>
To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "reinterpret keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Numerics: hides a rounded result from the optimiser, so that no compiler flag can fuse it into a
// later operation.
template <class T>
inline T rounded(T value) {
#if defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  volatile T stored = value;
  value = stored;
#endif
  return value;
}

// Float to integer as the device does it: NaN gives 0, what is out of range gives the nearest
// limit. value is integral.
inline int saturate_to_int(float value) {
  if (!(value == value)) return 0;
  if (value >= 0x1p31f) return 0x7fffffff;
  if (value < -0x1p31f) return -0x7fffffff - 1;
  return static_cast<int>(value);
}
}  // namespace cvk::emulation

inline int __float_as_int(float x) { return cvk::emulation::reinterpret<int>(x); }
inline unsigned __float_as_uint(float x) { return cvk::emulation::reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return cvk::emulation::reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return cvk::emulation::reinterpret<float>(x); }
inline long long __double_as_longlong(double x) { return cvk::emulation::reinterpret<long long>(x); }
inline double __longlong_as_double(long long x) { return cvk::emulation::reinterpret<double>(x); }

// ---- Arithmetic with a named rounding -----------------------------------------------------------
inline float __fadd_rn(float a, float b) { return cvk::emulation::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return cvk::emulation::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return cvk::emulation::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return cvk::emulation::rounded(a / b); }
inline float __fsqrt_rn(float a) { return cvk::emulation::rounded(std::sqrt(a)); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return cvk::emulation::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return cvk::emulation::rounded(a - b); }
inline double __dmul_rn(double a, double b) { return cvk::emulation::rounded(a * b); }
inline double __ddiv_rn(double a, double b) { return cvk::emulation::rounded(a / b); }
inline double __dsqrt_rn(double a) { return cvk::emulation::rounded(std::sqrt(a)); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline int __float2int_rz(float x) { return cvk::emulation::saturate_to_int(std::trunc(x)); }
inline int __float2int_rn(float x) { return cvk::emulation::saturate_to_int(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return cvk::emulation::saturate_to_int(std::floor(x)); }
inline int __float2int_ru(float x) { return cvk::emulation::saturate_to_int(std::ceil(x)); }

// CUDA's global min and max; for floating point they are fmin and fmax.
template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
