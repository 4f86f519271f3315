// Filters as the rows of a register tile, where they lie in memory; what they are multiplied by is vectors of pixels
// (in few_pixels_cpu.h pixels are the rows, and vectors are of weights).
//
// The tile has few rows and three vectors, not 14 and two: filters are often a power of two apart, and more of them would not stay
// in a set of L1. Its sums leave for either layout from here as well.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "gemm/dot_cpu.h"
#include "gemm/gemm_cpu.h"

namespace cvk {

#if defined(__aarch64__)
template <Isa isa>
inline constexpr int kFilterRows = 8;
#else
template <Isa isa>
inline constexpr int kFilterRows = isa == Isa::kV4 ? 8 : 4;
#endif
inline constexpr int kFilterVectors = 3;

// Of `left` filters, those of the next tile. One alone is computed twice.
template <Isa isa>
CVK_HD int filter_rows(int left) {
  return left >= kFilterRows<isa> ? kFilterRows<isa> : left > 1 ? left / 2 * 2 : 1;
}

// Whether those of `pixels` pixels that fill no vector are dot products with the filters, not a vector partly filled. Perf: nine pixels
// alone, 512 -> 512 1 x 1, take 66 us as a vector and 44 as dot products; behind a vector, 3 x 3, 970 and 1037 (Xeon, a thread).
template <Isa isa, class A>
CVK_HD bool filters_by_dots(int64_t pixels) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  return pixels % kLanes <= (pixels < kLanes ? kLanes * 3 / 4 : kLanes / 2);
}

// From filter to filter of the sums of such a tile.
template <Isa isa, class A>
CVK_HD int filter_sums_stride(int pixels) {
  return pixels > 2 * Simd<isa, A>::kLanes ? kSumsStride<isa, A, kFilterVectors> : kSumsStride<isa, A, 1>;
}

// `count` filters, as filter_rows says, the rows of `left`, by the vectors that hold `pixels` pixels.
template <Isa isa, class A, class T, class Left, class Panel>
CVK_HD void multiply_filter_rows(const Left& left, int count, const Panel& panel, int pixels, int depth,
                                 const GemmTarget<A, T>& target) {
  switch (ceil_div(pixels, Simd<isa, A>::kLanes)) {
    case 1:
      gemm_rows_of<isa, A, T, 1, kFilterRows<isa>>(left, panel, depth, target, count, pixels);
      break;
    case 2:
      gemm_rows_of<isa, A, T, 2, kFilterRows<isa>>(left, panel, depth, target, count, pixels);
      break;
    default:
      gemm_rows_of<isa, A, T, kFilterVectors, kFilterRows<isa>>(left, panel, depth, target, count, pixels);
  }
}
// The same for filters of contiguous depth, each `pitch` from the last.
template <Isa isa, class A, class T>
CVK_HD void multiply_filters(const A* filters, int64_t pitch, int count, const GemmPanel<A>& panel, int pixels,
                             int depth, const GemmTarget<A, T>& target) {
  multiply_filter_rows<isa>(GemmRows<A>{filters, count > 1 ? pitch : 0}, count, panel, pixels, depth, target);
}

// ---- what becomes of their sums

// Where results go: of filter j and pixel i to to[j * filter + i * pixel].
template <class T>
struct FilterResults {
  T* to;
  int64_t filter, pixel;
  const T* bias;  // or null
  Activation activation;
};

// A vector of filters [j, j + count).
template <Isa isa, class T, class Vec>
CVK_HD Vec finish_filters(const FilterResults<T>& results, Vec value, int j, int count) {
  if (results.bias != nullptr) value = value + Simd<isa, Acc<T>>::load_partial(results.bias + j, count);
  return activate(results.activation, value);
}

// Neighbouring pixels of a plane. sums(j): those of filter j; what follows them in their vector is read.
template <Isa isa, class T, class Sums>
CVK_HD void store_filters(const FilterResults<T>& results, int filters, int pixels, const Sums& sums) {
  using S = Simd<isa, Acc<T>>;
  using Vec = typename S::Vec;
  constexpr int kLanes = S::kLanes;
  const int rest = pixels % kLanes, whole = pixels - rest;
  const uint32_t last = S::lane_range(0, rest);
  const auto store = [&](const auto& finish) {
    T* to = results.to;
    for (int j = 0; j < filters; ++j, to += results.filter) {
      const Acc<T>* from = sums(j);
      if (results.pixel == 1) {
        for (int i = 0; i < whole; i += kLanes) S::store(to + i, finish(S::load(from + i), j));
        if (rest > 0) S::store_lanes(to + whole, finish(S::load(from + whole), j), last);
        continue;
      }
      for (int i = 0; i < pixels; i += kLanes) {
        const Vec value = finish(S::load(from + i), j);
        for (int k = 0; k < min_of(kLanes, pixels - i); ++k) to[(i + k) * results.pixel] = from_acc<T>(value[k]);
      }
    }
  };
  if (results.bias == nullptr && results.activation == Activation::kNone) {
    store([](Vec value, int) { return value; });
  } else {
    store([&](Vec value, int j) {
      if (results.bias != nullptr) value = value + S::broadcast(to_acc(results.bias[j]));
      return activate(results.activation, value);
    });
  }
}
// Channels-last pixels: a vector of them of as many filters, turned.
template <Isa isa, class T, class Sums>
CVK_HD void store_filters_turned(const FilterResults<T>& results, int filters, int pixels, const Sums& sums) {
  using S = Simd<isa, Acc<T>>;
  using Vec = typename S::Vec;
  constexpr int kLanes = S::kLanes;
  const auto store = [&](const auto& finish) {
    for (int j = 0; j < filters; j += kLanes) {
      const int count = min_of(kLanes, filters - j);
      for (int i = 0; i < pixels; i += kLanes) {
        Vec block[kLanes];
        for (int k = 0; k < kLanes; ++k) block[k] = S::load(sums(j + min_of(k, count - 1)) + i);
        S::transpose(block);
        T* to = results.to + i * results.pixel + j;
        for (int k = 0; k < min_of(kLanes, pixels - i); ++k, to += results.pixel) {
          S::store_partial(to, finish(block[k], j, count), count);
        }
      }
    }
  };
  if (results.bias == nullptr && results.activation == Activation::kNone) {
    store([](Vec value, int, int) { return value; });
  } else {
    store([&](Vec value, int j, int count) { return finish_filters<isa>(results, value, j, count); });
  }
}

}  // namespace cvk
