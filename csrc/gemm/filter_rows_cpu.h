// Filters as the rows of a register tile, where they lie in memory; what they are multiplied by is vectors of pixels.
//
// The tile has few rows and three vectors, not 14 and two: filters are often a power of two apart, and more of them would not stay
// in a set of L1.
#pragma once

#include <cstdint>

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

}  // namespace cvk
