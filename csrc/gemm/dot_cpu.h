// Products by dot products, for a matrix with so few columns (or rows) that vectors of them would be mostly empty: vectors run
// along the depth, which must be contiguous in both operands, and nothing is packed.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "gemm/gemm_cpu.h"

namespace cvk {

// Rows of a tile of dot products. A tile has as many sums as a vector has lanes.
template <Isa isa, class P, int columns>
inline constexpr int kDotRows = Simd<isa, Acc<P>>::kLanes / columns;

// sums[c * kDotRows + r] = sum over p < depth of left[r * left_stride + p] * right[c * right_stride + p]. Only `rows` rows
// exist; the others repeat the last. P: as what the operands are multiplied (gemm_cpu.h).
template <Isa isa, class P, int columns, class Left, class Right>
CVK_HD typename Simd<isa, Acc<P>>::Vec dot_tile(const Left* left, int64_t left_stride, int rows, const Right* right,
                                                int64_t right_stride, int64_t depth) {
  using S = Simd<isa, Acc<P>>;
  constexpr int kRows = kDotRows<isa, P, columns>;
  const Left* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = left + min_of(r, rows - 1) * left_stride;
  typename S::Vec sum[S::kLanes] = {};
  int64_t p = 0;
  for (; p + S::kLanes <= depth; p += S::kLanes) {
    typename S::Vec column[columns];
    for (int c = 0; c < columns; ++c) column[c] = S::load(right + c * right_stride + p);
    for (int r = 0; r < kRows; ++r) {
      const typename S::Vec value = S::load(row[r] + p);
      for (int c = 0; c < columns; ++c)
        sum[c * kRows + r] = gemm_multiply_add<isa, P>(value, column[c], sum[c * kRows + r]);
    }
  }
  if (p < depth) {
    const int rest = static_cast<int>(depth - p);
    for (int c = 0; c < columns; ++c) {
      const typename S::Vec column = S::load_partial(right + c * right_stride + p, rest);
      for (int r = 0; r < kRows; ++r) {
        sum[c * kRows + r] = gemm_multiply_add<isa, P>(S::load_partial(row[r] + p, rest), column, sum[c * kRows + r]);
      }
    }
  }
  // Each lane of the result adds up one sum, in the order of its lanes.
  S::transpose(sum);
  for (int width = S::kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sum[i] = sum[i] + sum[i + width];
  }
  return sum[0];
}

}  // namespace cvk
