// Operands of bfloat16 in pairs: a word holds two neighbours of the depth, and AVX512_BF16 multiplies and adds both in one
// instruction, twice what float32 does where that is as fast as one of its own (cpu_bf16_pairs). Rows hold their pairs one after
// another, a panel the pair (2k, 2k + 1) of each column in row k; behind an odd depth follows a zero. Operands that do not lie like
// that in memory are made as float32 and joined here, which is exact. Where a unit multiplies tiles of such words (tiles_cpu.h), it
// does instead of AVX512_BF16.
//
// The instruction rounds both products and sums to nearest even in float32, and takes numbers below 2^-126 for zero.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "common/isa.h"
#include "common/simd.h"
#include "gemm/gemm_cpu.h"

namespace cvk {

// Whether products of T may go in pairs: by what is compiled, and on this machine.
template <Isa isa, class T>
inline constexpr bool kGemmPairs = isa == Isa::kV4 && std::is_same_v<T, bfloat16_t>;
template <Isa isa, class T>
CVK_HD bool gemm_pairs() {
  return kGemmPairs<isa, T> && cpu_bf16_pairs();
}

// As what operands of T are multiplied here, if they can be made in pairs.
template <Isa isa, class T>
CVK_HD ConvOperands gemm_best_operands() {
  if constexpr (kGemmPairs<isa, T>) {
    const Bf16Tiles tiles = cpu_bf16_tiles();
    if (tiles == Bf16Tiles::kAmx) return ConvOperands::kTiles;
    if (tiles == Bf16Tiles::kEmulated) return ConvOperands::kEmulatedTiles;
    if (gemm_pairs<isa, T>()) return ConvOperands::kPairs;
  }
  return ConvOperands::kNumbers;
}

// f(P{}) for the type P of the operands.
template <Isa isa, class T, class F>
CVK_HD void with_operands(ConvOperands operands, F&& f) {
  if constexpr (kGemmPairs<isa, T>) {
    switch (operands) {
      case ConvOperands::kTiles:
        f(tile_word_t<AmxTiles<isa>>{});
        return;
#if defined(CVK_EMULATED_TILES)
      case ConvOperands::kEmulatedTiles:
        f(tile_word_t<EmulatedTiles<isa>>{});
        return;
#endif
      case ConvOperands::kPairs:
        f(word_t{});
        return;
      default:
        break;
    }
  }
  f(Acc<T>{});
}

// The words of two vectors of bfloat16 values, the first in the lower halves.
template <Isa isa>
CVK_HD typename Simd<isa, float>::Vec join_pair(typename Simd<isa, float>::Vec first,
                                                typename Simd<isa, float>::Vec second) {
  using Bits = typename VectorOf<uint32_t, kSimdBytes<isa>>::type;
  const Bits words = ((Bits)first >> 16) | ((Bits)second & 0xffff0000u);
  return (typename Simd<isa, float>::Vec)words;
}

// The same of vectors of their bits.
template <Isa isa>
CVK_HD typename Simd<isa, float>::Vec join_half_words(typename Simd<isa, float>::HalfWordVec first,
                                                      typename Simd<isa, float>::HalfWordVec second) {
  using Bits = typename Simd<isa, float>::WordVec;
  const Bits words = __builtin_convertvector(first, Bits) | __builtin_convertvector(second, Bits) << 16;
  return (typename Simd<isa, float>::Vec)words;
}

// Bits of the chosen lanes of p, as Simd::load_lanes has numbers of them.
template <Isa isa>
CVK_HD typename Simd<isa, float>::HalfWordVec load_half_lanes(typename Simd<isa, float>::HalfWordVec otherwise,
                                                              const bfloat16_t* p, uint32_t lanes) {
#if defined(__AVX512F__)
  if constexpr (isa == Isa::kV4) {
    using Vec = typename Simd<isa, float>::HalfWordVec;
    return Vec(_mm256_mask_loadu_epi16((__m256i)otherwise, static_cast<__mmask16>(lanes), p));
  }
#endif
  for (int i = 0; i < Simd<isa, float>::kLanes; ++i) {
    if ((lanes >> i & 1u) != 0) otherwise[i] = p[i].bits;
  }
  return otherwise;
}

// Every two of `depth` rows of `columns` numbers to one row of words, in whole vectors: zeros fill up the last one.
template <Isa isa, class T>
CVK_HD void pair_rows(const T* from, int64_t from_stride, int depth, int columns, int64_t to_stride, word_t* to) {
  using S = Simd<isa, float>;
  for (int k = 0; k < depth; k += 2, from += 2 * from_stride, to += to_stride) {
    const T* next = from + from_stride;
    const bool both = k + 1 < depth;
    int j = 0;
    for (; j + S::kLanes <= columns; j += S::kLanes) {
      S::store(to + j, join_pair<isa>(S::load(from + j), both ? S::load(next + j) : typename S::Vec{}));
    }
    if (j == columns) continue;
    const int rest = columns - j;
    S::store(to + j,
             join_pair<isa>(S::load_partial(from + j, rest), S::load_partial(both ? next + j : from, both ? rest : 0)));
  }
}

template <Isa isa, int... I>
CVK_HD typename Simd<isa, float>::Vec join_neighbours(typename Simd<isa, float>::Vec low,
                                                      typename Simd<isa, float>::Vec high,
                                                      std::integer_sequence<int, I...>) {
  return join_pair<isa>(__builtin_shufflevector(low, high, (2 * I)...),
                        __builtin_shufflevector(low, high, (2 * I + 1)...));
}

// Every two of a row's `depth` elements to one word. Writes up to a vector past the end; `to` may be where `from` is.
template <Isa isa>
CVK_HD void pair_row(const float* from, int depth, word_t* to) {
  using S = Simd<isa, float>;
  constexpr int kLanes = S::kLanes;
  constexpr auto kAll = std::make_integer_sequence<int, kLanes>{};
  int i = 0;
  for (; i + 2 * kLanes <= depth; i += 2 * kLanes) {
    S::store(to + i / 2, join_neighbours<isa>(S::load(from + i), S::load(from + i + kLanes), kAll));
  }
  if (i >= depth) return;
  const int low = min_of(kLanes, depth - i), high = max_of(0, depth - i - kLanes);
  S::store(to + i / 2, join_neighbours<isa>(S::load_partial(from + i, low),
                                            S::load_partial(from + i + (high > 0 ? kLanes : 0), high), kAll));
}

}  // namespace cvk
