// Products by dot products, for a matrix with so few columns (or rows) that vectors of them would be mostly empty: vectors run
// along the depth, which must be contiguous in both operands, and nothing is packed.
#pragma once

#include <cstdint>

#include "common/opaque.h"
#include "common/simd.h"
#include "gemm/gemm_cpu.h"

namespace cvk {

// Rows of a tile of dot products. A tile has as many sums as a vector has lanes.
template <Isa isa, class P, int columns>
inline constexpr int kDotRows = Simd<isa, Acc<P>>::kLanes / columns;

// Lane i: the sum of the lanes of row i, by neighbours, by twos, and so on; the same order for each of them. Overwrites rows.
// `step` elements of neighbouring rows' partial sums are side by side.
template <Isa isa, class A, int step = 1>
CVK_HD typename Simd<isa, A>::Vec sums_of_lanes(typename Simd<isa, A>::Vec (&rows)[Simd<isa, A>::kLanes]) {
  using S = Simd<isa, A>;
  if constexpr (step == S::kLanes) {
    return rows[0];
  } else {
    constexpr auto kAll = std::make_integer_sequence<int, S::kLanes>{};
#pragma GCC unroll 8
    for (int i = 0; i < S::kLanes / (2 * step); ++i) {
      const typename S::Vec a = rows[2 * i], b = rows[2 * i + 1];
      if constexpr (step < S::kPart) {
        rows[i] = S::template interleave<step, 0>(a, b, kAll) + S::template interleave<step, 1>(a, b, kAll);
      } else {
        rows[i] = S::template alternate_parts<0>(a, b, kAll) + S::template alternate_parts<1>(a, b, kAll);
      }
    }
    return sums_of_lanes<isa, A, 2 * step>(rows);
  }
}

// sums[c * kDotRows + r] = sum over p < depth of left[r * left_stride + p] * right[c * right_stride + p]. Only `rows` rows
// exist; the others repeat the last. P: as what the operands are multiplied (gemm_cpu.h).
template <Isa isa, class P, int columns, class Left, class Right>
__attribute__((noinline)) typename Simd<isa, Acc<P>>::Vec dot_tile(const Left* left, int64_t left_stride, int rows,
                                                                   const Right* right, int64_t right_stride,
                                                                   int64_t depth) {
  using S = Simd<isa, Acc<P>>;
  constexpr int kRows = kDotRows<isa, P, columns>;
  const Left* row[kRows];
  for (int r = 0; r < kRows; ++r) {
    row[r] = left;
    left += r + 1 < rows ? left_stride : 0;
  }
  typename S::Vec sum[S::kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < S::kLanes; ++i) sum[i] = typename S::Vec{};
  int64_t p = 0;
  for (; p + S::kLanes <= depth; p += S::kLanes) {
    typename S::Vec column[columns];
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) column[c] = S::load(right + c * right_stride + p);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      typename S::Vec value = S::load(row[r] + p);
      opaque_vector(value);
#pragma GCC unroll 2
      for (int c = 0; c < columns; ++c)
        sum[c * kRows + r] = gemm_multiply_add<isa, P>(value, column[c], sum[c * kRows + r]);
    }
  }
  if (p < depth) {
    const int rest = static_cast<int>(depth - p);
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) {
      const typename S::Vec column = S::load_partial(right + c * right_stride + p, rest);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        sum[c * kRows + r] = gemm_multiply_add<isa, P>(S::load_partial(row[r] + p, rest), column, sum[c * kRows + r]);
      }
    }
  }
  return sums_of_lanes<isa, Acc<P>>(sum);
}

}  // namespace cvk
