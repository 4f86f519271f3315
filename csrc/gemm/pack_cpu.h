// Making blocks of an operand that lies in memory as a matrix: copies of rows, and panels by transposition.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "gemm/gemm_cpu.h"

namespace cvk {

// Whether the pixels of a channels-last map are so near to one another that a tile may read them there.
template <class T>
CVK_HD bool near_in_map(int64_t channels) {
  return channels * static_cast<int64_t>(sizeof(T)) <= kGemmMapRowBytes;
}

// to[0, count) = from, converted. Writes up to a vector less one element past the end of `to`.
template <Isa isa, class A, class T>
CVK_HD void copy_row(const T* from, int count, A* to) {
  using S = Simd<isa, Acc<A>>;
  int i = 0;
  for (; i + S::kLanes <= count; i += S::kLanes) S::store(to + i, S::load(from + i));
  if (i < count) S::store(to + i, S::load_partial(from + i, count - i));
}

// Zeros, with the same licence.
template <Isa isa, class A>
CVK_HD void clear_row(int count, A* to) {
  using S = Simd<isa, Acc<A>>;
  for (int i = 0; i < count; i += S::kLanes) S::store(to + i, typename S::Vec{});
}

// Zeros behind the last of `words` words of the depth, up to the whole tiles that are multiplied (gemm_operands): in each of `rows`
// rows of a left operand, and in a panel.
template <Isa isa, class P>
CVK_HD void pad_rows(int rows, int words, P* to) {
  if constexpr (kGemmTiles<P>) {
    const int rest = round_up(words, kTileSide) - words;
    for (int i = 0; rest > 0 && i < rows; ++i) clear_row<isa>(rest, to + int64_t{i} * GemmTile<isa, P>::kPitch + words);
  }
}
template <Isa isa, class P>
CVK_HD void pad_panel(int words, int columns, P* to) {
  if constexpr (kGemmTiles<P>) {
    const int64_t stride = GemmTile<isa, P>::kColumns;
    for (int k = words; k % kTileSide != 0; ++k) clear_row<isa>(columns, to + k * stride);
  }
}

// Turns a square: element (i, j) of `square` is from[j * stride + i], for j < rows and i < count; zeros for other j. Asks for what is
// `ahead` elements further.
template <Isa isa, class A, class T>
CVK_HD void turn_square(const T* from, int64_t stride, int rows, int count,
                        typename Simd<isa, A>::Vec (&square)[Simd<isa, A>::kLanes], int64_t ahead = 0) {
  using S = Simd<isa, A>;
  for (int j = 0; j < S::kLanes; ++j) {
    const T* p = from + j * stride;
    // Perf: the hardware does not follow short pieces of many rows. Weights of 9.4 MB from memory, bfloat16: 185 -> 266 GFLOP/s.
    if (ahead != 0) __builtin_prefetch(p + ahead);
    square[j] = j >= rows ? typename S::Vec{} : count == S::kLanes ? S::load(p) : S::load_partial(p, count);
  }
  S::transpose(square);
}

// to[place(i) * to_stride + j] = from[j * from_stride + i] for i < length and j < columns, zeros for columns <= j < kColumns:
// rows of `from` become columns of a panel. An element with place(i) < 0 is left out; each vector of columns asks a copy of `place`,
// in order, so that it may count. Asks for what is `ahead` elements further.
template <Isa isa, class A, class T, class Place>
CVK_HD void transpose_into_panel(const T* from, int64_t from_stride, int columns, int length, int64_t to_stride,
                                 const Place& place, A* to, int64_t ahead = 0) {
  using S = Simd<isa, Acc<A>>;
  constexpr int kLanes = S::kLanes;
  for (int j = 0; j < GemmTile<isa, A>::kColumns; j += kLanes) {
    Place next = place;
    for (int i = 0; i < length; i += kLanes) {
      const int count = min_of(kLanes, length - i);
      typename S::Vec block[kLanes];
      turn_square<isa, Acc<A>>(from + j * from_stride + i, from_stride, columns - j, count, block, ahead);
      for (int row = 0; row < count; ++row) {
        const int64_t at = next(i + row);
        if (at >= 0) S::store(to + at * to_stride + j, block[row]);
      }
    }
  }
}

}  // namespace cvk
