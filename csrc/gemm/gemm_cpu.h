// The matrix engine on the CPU: out[m, n] = sum over k of left[m, k] * right[k, n], where neither operand need exist as a whole.
//
// Both operands are made block by block of the depth k, in scratch that stays in cache:
//   left   rows, each with its depth contiguous; where they lie in the map like that, the map itself. Or columns of neighbouring
//          rows, a step of the depth after the other
//   right  panels of kColumns columns: row k of a panel at k * stride
// Between them is a register tile of kRows x kColumns sums: values of the left operand are broadcast, rows of the right one are
// vectors. Whether pixels are the rows (channels-last maps) or the columns (planes) is the caller's choice; see README.md.
//
// P is the type of both operands: that of the sums, or word_t, which holds two neighbours of the depth in bfloat16 (pairs_cpu.h),
// or tile_word_t, the same word for a unit that multiplies tiles (tiles_cpu.h).
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/scratch.h"
#include "common/simd.h"
#include "gemm/gemm_tuning.h"
#include "gemm/tiles_cpu.h"

namespace cvk {

// Elements of the depth in one operand, and operands that a depth is multiplied in: tiles take whole ones, behind the last element
// both operands hold zeros (pad_rows, pad_panel).
template <class P>
inline constexpr int kGemmElements = std::is_base_of_v<word_t, P> ? 2 : 1;
template <class P>
CVK_HD int gemm_operands(int depth) {
  return round_up(ceil_div(depth, kGemmElements<P>), kGemmTiles<P> ? kTileSide : 1);
}

// Shape of the register tile. AVX-512 and NEON have 32 registers: 14 x 2 (12 x 2) sums, a row of the panel and a broadcast. Of
// eight tile registers four hold 32 x 32 sums, two the left operand and two the right one.
template <Isa isa, class P>
struct GemmTile {
  static constexpr int kLanes = Simd<isa, Acc<P>>::kLanes;
#if defined(__aarch64__)
  static constexpr int kVectorRows = 12;
#else
  static constexpr int kVectorRows = isa == Isa::kV4 ? 14 : 6;
#endif
  static constexpr int kRows = kGemmTiles<P> ? 2 * kTileSide : kVectorRows;
  static constexpr int kColumns = kGemmTiles<P> ? 2 * kTileSide : 2 * kLanes;
  static constexpr int kRowUnit = kGemmTiles<P> ? kTileSide : 2;  // of which a part of a tile's rows is computed
  static constexpr int kCost = kGemmTiles<P> ? kGemmTilesCost : kGemmTileCost;
  static constexpr int kDepth = kGemmDepth * 4 / static_cast<int>(sizeof(P));  // operands
  static constexpr int kPitch = kGemmPitch * 4 / static_cast<int>(sizeof(P));
  static constexpr int kBlockRows = kGemmRowTiles * kRows;
  static constexpr int kSize = kRows * kColumns;  // sums of a tile, one after another
};

// Where a tile of results goes that needs no more sums, and what is done to them on the way.
template <class T>
struct GemmFinish {
  T* to;  // element (i, j) at to + i * stride + j
  int64_t stride;
  const T* bias;  // of rows or columns, or null
  bool bias_of_rows;
  bool relu;  // the only activation that is done in registers
};

// From row to row of a tile's sums.
template <Isa isa, class P, int vecs>
inline constexpr int kSumsStride = vecs > 2 ? vecs * GemmTile<isa, P>::kLanes : GemmTile<isa, P>::kColumns;

// What a tile does with its sums.
template <class A, class T>
struct GemmTarget {
  A* sums;                      // tile (i, j) of sums; rows of kColumns, or kSumsStride if wider
  bool add;                     // to the sums there are, else from zero
  const GemmFinish<T>* finish;  // null: they stay sums
};

// a * b + c of vectors of operands.
template <Isa isa, class P, class Vec>
CVK_HD Vec gemm_multiply_add(Vec a, Vec b, Vec c) {
  if constexpr (kGemmElements<P> == 2) {
    return Simd<isa, float>::dot_pairs(a, b, c);
  } else {
    return Simd<isa, P>::mul_add(a, b, c);
  }
}

// Sums of a register tile: from zero, and a step of the depth, value(i) times `vecs` vectors at `right` for row i. Loops over
// registers are unrolled before they are placed: else sums go through the stack.
template <Isa isa, class A, int rows, int vecs>
CVK_HD void clear_sums(typename Simd<isa, A>::Vec (&sum)[rows][vecs]) {
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < vecs; ++j) sum[i][j] = typename Simd<isa, A>::Vec{};
  }
}
template <Isa isa, class P, int rows, int vecs, class Value>
CVK_HD void add_products(typename Simd<isa, Acc<P>>::Vec (&sum)[rows][vecs], const P* right, const Value& value) {
  using S = Simd<isa, Acc<P>>;
  typename S::Vec column[vecs];
#pragma GCC unroll 3
  for (int j = 0; j < vecs; ++j) column[j] = S::load(right + j * S::kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    const typename S::Vec factor = S::broadcast(value(i));
#pragma GCC unroll 3
    for (int j = 0; j < vecs; ++j) sum[i][j] = gemm_multiply_add<isa, P>(factor, column[j], sum[i][j]);
  }
}

// Results from sums, for the first `count` rows and `columns` columns.
template <Isa isa, class T, int rows, int vecs>
CVK_HD void finish_sums(typename Simd<isa, Acc<T>>::Vec (&sum)[rows][vecs], const GemmFinish<T>& finish, int count,
                        int columns) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  const bool whole = columns == vecs * S::kLanes;
  const uint32_t last = S::lane_range(0, columns - (vecs - 1) * S::kLanes);
  const bool of_rows = finish.bias != nullptr && finish.bias_of_rows;
  if (finish.bias != nullptr && !finish.bias_of_rows) {
#pragma GCC unroll 3
    for (int j = 0; j < vecs; ++j) {
      const T* from = finish.bias + j * S::kLanes;
      const typename S::Vec bias = j < vecs - 1 || whole ? S::load(from) : S::load_lanes(typename S::Vec{}, from, last);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) sum[i][j] = sum[i][j] + bias;
    }
  }
  // Perf: stores without a test for each row. 16 -> 64 channels over 112 x 112 pixels, channels-last: 123 -> 114 us.
  if (whole && count >= rows && !of_rows && !finish.relu) {
    T* to = finish.to;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i, to += finish.stride) {
#pragma GCC unroll 3
      for (int j = 0; j < vecs; ++j) S::store(to + j * S::kLanes, sum[i][j]);
    }
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    if (i >= count) break;
    const typename S::Vec bias = S::broadcast(of_rows ? to_acc(finish.bias[i]) : A(0));
#pragma GCC unroll 3
    for (int j = 0; j < vecs; ++j) {
      typename S::Vec value = of_rows ? sum[i][j] + bias : sum[i][j];  // adding 0 would change the sign of a zero
      if (finish.relu) value = value < typename S::Vec{} ? typename S::Vec{} : value;
      T* to = finish.to + i * finish.stride + j * S::kLanes;
      if (j < vecs - 1 || whole) {
        S::store(to, value);
      } else {
        S::store_lanes(to, value, last);
      }
    }
  }
}

// Sums to where they belong; nothing is added to those there are.
template <Isa isa, class T, int rows, int vecs>
CVK_HD void put_sums(typename Simd<isa, Acc<T>>::Vec (&sum)[rows][vecs], const GemmTarget<Acc<T>, T>& target, int count,
                     int columns) {
  using S = Simd<isa, Acc<T>>;
  if (target.finish != nullptr) {
    finish_sums<isa>(sum, *target.finish, count, columns);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < vecs; ++j)
      S::store(target.sums + i * kSumsStride<isa, Acc<T>, vecs> + j * S::kLanes, sum[i][j]);
  }
}

// Rows of the left operand a fixed number of operands apart: kPitch in scratch.
template <class P>
struct GemmRows {
  const P* at;
  int64_t pitch;
  CVK_HD GemmRows from(int64_t row) const { return {at + row * pitch, pitch}; }
};

// The same where a step of the depth is what is apart, and rows are neighbours. An even number of them is read. Both operands of a step
// are asked for `steps_ahead` steps before, if any.
template <class P, int steps_ahead = 0>
struct GemmColumns {
  const P* at;
  int64_t stride;
  CVK_HD GemmColumns from(int64_t row) const { return {at + row, stride}; }
  CVK_HD P operator()(int i, int p) const { return at[p * stride + i]; }
};
template <class Left>
inline constexpr int kGemmAhead = 0;
template <class P, int steps>
inline constexpr int kGemmAhead<GemmColumns<P, steps>> = steps;

// Rows of a tile of the left operand, as the loop over the depth reads them.
template <int rows, class P>
struct TileRows {
  // Three rows share a pointer: what is added to it fits into an address, and so many pointers into registers.
  CVK_HD explicit TileRows(const GemmRows<P>& left) : pitch(left.pitch) {
#pragma GCC unroll 8
    for (int i = 0; i < (rows + 2) / 3; ++i) row[i] = left.at + 3 * i * left.pitch;
  }
  CVK_HD P operator()(int i, int p) const { return *at(i, p); }
  CVK_HD const P* at(int i, int p) const { return row[i / 3] + (i % 3 * pitch + p); }
  const P* row[(rows + 2) / 3];
  int64_t pitch;
};
template <int rows, class P>
CVK_HD TileRows<rows, P> tile_left(const GemmRows<P>& left) {
  return TileRows<rows, P>(left);
}

// Rows whose steps of the depth lie where places say, the same for each row.
template <class P>
struct GemmPlacedRows {
  GemmRows<P> rows;
  const int* places;
};
template <int rows, class P>
struct TilePlacedRows {
  CVK_HD P operator()(int i, int p) const { return tile(i, places[p]); }
  TileRows<rows, P> tile;
  const int* places;
};
template <int rows, class P>
CVK_HD TilePlacedRows<rows, P> tile_left(const GemmPlacedRows<P>& left) {
  return {TileRows<rows, P>(left.rows), left.places};
}
template <int rows, class P, int ahead>
CVK_HD GemmColumns<P, ahead> tile_left(const GemmColumns<P, ahead>& left) {
  return left;
}

// Rows of the right operand a fixed number of operands apart.
template <class P>
struct GemmPanel {
  const P* at;
  int64_t stride;
  CVK_HD const P* operator()(int p) const { return at + p * stride; }
};

// The same, each where its place says.
template <class P>
struct GemmPlaces {
  const P* at;
  const int* places;
  CVK_HD const P* operator()(int p) const { return at + places[p]; }
};

// The sums over p < depth of left[i, p] * right(p)[j], for `rows` rows and `vecs` vectors; the first `count` rows and `columns`
// columns are wanted where they are finished. `depth` counts operands.
template <Isa isa, class P, class T, int rows, int vecs, class Left, class Right>
__attribute__((noinline)) void gemm_tile(const Left left, const Right right, int depth,
                                         const GemmTarget<Acc<P>, T>& target, int count, int columns) {
  using S = Simd<isa, Acc<P>>;
  typename S::Vec sum[rows][vecs];
  clear_sums<isa, Acc<P>>(sum);
  const auto values = tile_left<rows>(left);
  for (int p = 0; p < depth; ++p) {
    if constexpr (kGemmAhead<Left> > 0) {
      const int ahead = p + kGemmAhead<Left>;
      __builtin_prefetch(left.at + ahead * left.stride);
      __builtin_prefetch(left.at + ahead * left.stride + rows - 1);
      for (int j = 0; j < vecs; ++j) __builtin_prefetch(right(ahead) + j * S::kLanes);
    }
    add_products<isa>(sum, right(p), [&](int i) { return values(i, p); });
  }
  // A block's sums begin from zero and are added as a whole: of 2,304 products the error is a third of one long sum's.
  if (target.add) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 3
      for (int j = 0; j < vecs; ++j) sum[i][j] += S::load(target.sums + i * kSumsStride<isa, P, vecs> + j * S::kLanes);
    }
  }
  put_sums<isa>(sum, target, count, columns);
}

// The same for any number of rows up to a tile's; an odd one computes a row more, of whatever follows.
template <Isa isa, class P, class T, int vecs, int rows = GemmTile<isa, P>::kRows, class Left, class Right>
CVK_HD void gemm_rows_of(const Left& left, const Right& right, int depth, const GemmTarget<Acc<P>, T>& target,
                         int count, int columns) {
  if constexpr (rows > 2) {
    if (count <= rows - 2) {
      gemm_rows_of<isa, P, T, vecs, rows - 2>(left, right, depth, target, count, columns);
      return;
    }
  }
  gemm_tile<isa, P, T, rows, vecs>(left, right, depth, target, count, columns);
}

// And for any number of columns.
template <Isa isa, class P, class T, class Left, class Right>
CVK_HD void gemm_vectors_of(const Left& left, const Right& right, int depth, const GemmTarget<Acc<P>, T>& target,
                            int count, int columns) {
  if (columns > GemmTile<isa, P>::kLanes) {
    gemm_rows_of<isa, P, T, 2>(left, right, depth, target, count, columns);
  } else {
    gemm_rows_of<isa, P, T, 1>(left, right, depth, target, count, columns);
  }
}

// The same where a unit of tiles multiplies: 16 or 32 rows by 16 or 32 columns, in registers 0..3, of the left operand in 4 and 5 and
// the right one in 6 and 7. What is computed past `count` and `columns` is of whatever the scratch holds, and dropped.
template <Isa isa, class P, class T, int row_tiles, int column_tiles>
__attribute__((noinline)) void gemm_unit_tile(const GemmRows<P>& rows, const P* right, int64_t right_stride, int depth,
                                              const GemmTarget<Acc<P>, T>& target, int count, int columns) {
  using A = Acc<P>;
  using S = Simd<isa, A>;
  using Tile = GemmTile<isa, P>;
  using Unit = typename P::Unit;
  constexpr int64_t kSumsStride = Tile::kColumns * sizeof(A);
  const int64_t left_stride = rows.pitch * static_cast<int64_t>(sizeof(P));
  const P* left = rows.at;
  constexpr bool kLower = row_tiles == 2, kRight = column_tiles == 2;
  const int64_t panel_stride = right_stride * static_cast<int64_t>(sizeof(P));
  A* const sums = target.sums;
  A* const lower = sums + kTileSide * Tile::kColumns;
  if (target.add) {
    Unit::template load<0>(sums, kSumsStride);
    if constexpr (kRight) Unit::template load<1>(sums + kTileSide, kSumsStride);
    if constexpr (kLower) Unit::template load<2>(lower, kSumsStride);
    if constexpr (kLower && kRight) Unit::template load<3>(lower + kTileSide, kSumsStride);
  } else {
    Unit::template zero<0>();
    if constexpr (kRight) Unit::template zero<1>();
    if constexpr (kLower) Unit::template zero<2>();
    if constexpr (kLower && kRight) Unit::template zero<3>();
  }
  for (int p = 0; p < depth; p += kTileSide, left += kTileSide, right += kTileSide * right_stride) {
    Unit::template load<6>(right, panel_stride);
    Unit::template load<4>(left, left_stride);
    Unit::template multiply<0, 4, 6>();
    if constexpr (kRight) {
      Unit::template load<7>(right + kTileSide, panel_stride);
      Unit::template multiply<1, 4, 7>();
    }
    if constexpr (kLower) {
      Unit::template load<5>(left + kTileSide * rows.pitch, left_stride);
      Unit::template multiply<2, 5, 6>();
    }
    if constexpr (kLower && kRight) Unit::template multiply<3, 5, 7>();
  }
  Unit::template store<0>(sums, kSumsStride);
  if constexpr (kRight) Unit::template store<1>(sums + kTileSide, kSumsStride);
  if constexpr (kLower) Unit::template store<2>(lower, kSumsStride);
  if constexpr (kLower && kRight) Unit::template store<3>(lower + kTileSide, kSumsStride);
  if (target.finish == nullptr) return;
  const GemmFinish<T> all = *target.finish;
  for (int i = 0; i < count; i += 2) {  // by rows: those of a target of many channels fall into few sets of a cache
    for (int j = 0; j < columns; j += S::kLanes) {
      const A* from = sums + i * Tile::kColumns + j;
      typename S::Vec sum[2][1] = {{S::load(from)}, {S::load(from + Tile::kColumns)}};
      GemmFinish<T> finish = all;
      finish.to += i * all.stride + j;
      if (all.bias != nullptr) finish.bias += all.bias_of_rows ? i : j;
      finish_sums<isa>(sum, finish, count - i, min_of(S::kLanes, columns - j));
    }
  }
}

// A tile by whichever multiplies P.
template <Isa isa, class P, class T, class Left>
CVK_HD void gemm_tile_of(const Left& left, const P* right, int64_t right_stride, int depth,
                         const GemmTarget<Acc<P>, T>& target, int count, int columns) {
  if constexpr (kGemmTiles<P>) {
    const auto call = [&](auto tile) { tile(left, right, right_stride, depth, target, count, columns); };
    if (count > kTileSide) {
      call(columns > kTileSide ? gemm_unit_tile<isa, P, T, 2, 2> : gemm_unit_tile<isa, P, T, 2, 1>);
    } else {
      call(columns > kTileSide ? gemm_unit_tile<isa, P, T, 1, 2> : gemm_unit_tile<isa, P, T, 1, 1>);
    }
  } else {
    gemm_vectors_of<isa, P>(left, GemmPanel<P>{right, right_stride}, depth, target, count, columns);
  }
}

// `rows` x `columns` sums in tiles; tile (i, j) begins at sums + (i * tile_stride + j) * kSize. Panel j of the right operand
// begins at right + j * panel_stride. With `finish` the block's results leave for it.
template <Isa isa, class P, class T, class Left = GemmRows<P>>
CVK_HD void gemm_block(int rows, int columns, int depth, const Left& left, const P* right, int64_t right_stride,
                       int64_t panel_stride, Acc<P>* sums, int64_t tile_stride, bool add, const GemmFinish<T>* finish) {
  using A = Acc<P>;
  using Tile = GemmTile<isa, P>;
  for (int j = 0; j * Tile::kColumns < columns; ++j) {
    const P* panel = right + j * panel_stride;
    const int width = min_of(Tile::kColumns, columns - j * Tile::kColumns);
    for (int i = 0; i * Tile::kRows < rows; ++i) {
      const int count = min_of(Tile::kRows, rows - i * Tile::kRows);
      GemmTarget<A, T> target{sums + (i * tile_stride + j) * Tile::kSize, add, nullptr};
      GemmFinish<T> own;
      if (finish != nullptr) {
        own = *finish;
        own.to += int64_t{i} * Tile::kRows * own.stride + j * Tile::kColumns;
        if (own.bias != nullptr) own.bias += own.bias_of_rows ? i * Tile::kRows : j * Tile::kColumns;
        target.finish = &own;
      }
      gemm_tile_of<isa, P>(left.from(int64_t{i} * Tile::kRows), panel, right_stride, depth, target, count, width);
    }
  }
}

// Sums as gemm_block leaves them: tile (i, j) begins at tiles + (i * row_step + j * column_step) * kSize.
template <Isa isa, class P>
struct GemmSums {
  using Tile = GemmTile<isa, P>;
  Acc<P>* tiles;
  int64_t row_step, column_step;
  CVK_HD Acc<P>* at(int row, int column) const {
    return tiles + (row / Tile::kRows * row_step + column / Tile::kColumns * column_step) * Tile::kSize +
           row % Tile::kRows * Tile::kColumns + column % Tile::kColumns;
  }
};

// ---- the depth of a convolution: channels times taps, cut into blocks that fit

// Block b holds the channels [c, c + channels) and the taps [t, t + taps) of these; all taps unless there are more than a block
// is deep. The order within a block is the gatherer's; one of planes has two.
struct DepthBlock {
  int64_t c;
  int channels, t, taps;
  bool by_taps = false;  // planes of numbers: a tap of all channels, then the next, not all taps of a channel
  CVK_HD int depth() const { return channels * taps; }
};

template <Isa isa, class P>
struct DepthBlocks {
  // Elements, where GemmTile counts operands.
  static constexpr int kMost = GemmTile<isa, P>::kDepth * kGemmElements<P>;
  static constexpr int kUnit = GemmTile<isa, P>::kLanes * kGemmElements<P>;  // a vector of operands

  CVK_HD DepthBlocks(int64_t channels, int taps) : channels_(channels), taps_(taps) {
    const int fit = max_of(1, kMost / max_of(taps, 1));
    const int unit = fit >= kUnit ? kUnit : fit >= kGemmElements<P> ? kGemmElements<P> : 1;
    channel_blocks_ = ceil_div<int64_t>(channels, fit / unit * unit);
    block_channels_ = channel_blocks_ > 1 ? round_up<int64_t>(ceil_div(channels, channel_blocks_), unit) : channels;
    tap_blocks_ = ceil_div(max_of(taps, 1), kMost);
    block_taps_ = ceil_div(taps, tap_blocks_);
  }

  CVK_HD int64_t count() const { return taps_ > 0 ? channel_blocks_ * tap_blocks_ : 0; }
  CVK_HD DepthBlock operator[](int64_t b) const {
    DepthBlock block;
    block.c = b / tap_blocks_ * block_channels_;
    block.channels = static_cast<int>(min_of(block_channels_, channels_ - block.c));
    block.t = static_cast<int>(b % tap_blocks_) * block_taps_;
    block.taps = min_of(block_taps_, taps_ - block.t);
    return block;
  }

 private:
  int64_t channels_, block_channels_, channel_blocks_;
  int taps_, block_taps_, tap_blocks_;
};

}  // namespace cvk
