// The matrix engine on CUDA, by tensor cores: out[m, n] = sum over k of left[m, k] * right[n, k].
//
// Neither operand need exist as a matrix. A gatherer says where chunk (outer, inner) lies, 16 bytes of elements that are
// neighbours along the inner index; what is not there counts as zeros, and its address is not read. The depth k is the inner index
// of an operand (kDepthInner: pixels by channels in a forward pass, weights) or its outer one (both operands of a weight gradient,
// whose depth is pixels).
//
// A block owns a tile of rows and columns. Its operands pass through shared memory in kStages buffers that asynchronous
// copies fill ahead, 16 bytes at a time, in a swizzled order in which neither the copies nor ldmatrix meet bank conflicts; warps
// own parts of the tile in registers. An epilogue takes rows of the finished tile. `splits` blocks may share the depth of a
// tile; each hands its own part to the epilogue.
//
// On sm_90a half formats are multiplied by warpgroups (wgmma): operands are read from shared memory as they lie, and products
// go on while their warps work out addresses. Everything else is the same.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/numeric.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "gemm/gemm_mma_tuning.h"

namespace cvk {

// How products are formed.
enum class GemmMath {
  kHalf,    // half_t or bfloat16_t, sums in float
  kTf32,    // float rounded to 10 bits of mantissa
  k3xTf32,  // float as the sum of two TF32 numbers; what is lost is below float's own rounding
  kDouble,
  kWarpgroup,  // half_t or bfloat16_t, by the four warps of a group together, sums in float; sm_90a
};

// False in code for a GPU that lacks the instructions: kernels are compiled there, but not launched.
template <GemmMath math>
constexpr bool gemm_runs_here() {
  return math != GemmMath::kWarpgroup || kWarpgroupsHere;
}

template <class T, GemmMath math>
struct GemmTraits {
  using Sum = Acc<T>;
  static constexpr int kStepDepth = math == GemmMath::kHalf ? 16 : math == GemmMath::kDouble ? 4 : 8;
  static constexpr int kStepRows = math == GemmMath::kDouble ? 8 : 16;
  static constexpr int kStepColumns = 8;
  static constexpr int kSums = math == GemmMath::kDouble ? 2 : 4;  // of a lane in a step's tile
  static constexpr int kVector = kWide<T>;                         // elements of 16 bytes
};

// Chunk number `index`, of 16 bytes, behind `data`; its address need not exist. Perf: numbers of chunks fit 32 bits up to 32 GiB,
// which halves the arithmetic of addresses and their registers; beyond that the plain kernels do.
CVK_DEVICE const void* gemm_chunk(const void* data, int index) {
  return static_cast<const char*>(data) + int64_t{index} * 16;
}
template <class T>
CVK_HD bool gemm_addressable(int64_t elements) {
  return elements / kWide<T> < (int64_t{1} << 31);
}

// ---- operands in shared memory

// A tile of one operand: `lines` outer indices of `elements` contiguous elements, in chunks of 16 bytes. Lines of more than 128
// bytes are cut into pieces of 128: first the first of all lines, then the second. Chunk c of line l lies at c ^ swizzle(l), so
// that the same chunk of eight lines after one another lies in eight different groups of banks.
template <class T, int lines, int elements>
struct GemmOperand {
  static constexpr int kChunkElements = kWide<T>;
  static constexpr int kChunks = elements / kChunkElements;
  static_assert((kChunks & (kChunks - 1)) == 0, "the swizzle is a bit pattern");
  // Lines that fill 128 bytes, all banks, together.
  static constexpr int kLinesPerRow = kChunks >= 8 ? 1 : 8 / kChunks;
  static constexpr int kPieceChunks = kChunks >= 8 ? 8 : kChunks;
  alignas(16) T values[lines * elements];

  static CVK_DEVICE int offset(int line, int chunk) {
    const int place = chunk & (kPieceChunks - 1), piece = chunk - place;
    return (piece * lines + line * kPieceChunks + (place ^ (line / kLinesPerRow & (kPieceChunks - 1)))) *
           kChunkElements;
  }
  CVK_DEVICE T* chunk(int line, int chunk) { return values + offset(line, chunk); }
  CVK_DEVICE const T* chunk(int line, int chunk) const { return values + offset(line, chunk); }
  CVK_DEVICE T element(int line, int index) const {
    return values[offset(line, index / kChunkElements) + index % kChunkElements];
  }
};

// What a thread copies of a tile: one chunk of every kStride-th line.
template <class Operand, int lines, int threads>
struct GemmCopy {
  static constexpr int kChunks = Operand::kChunks;
  static_assert(threads % kChunks == 0, "a thread keeps its chunk");
  static constexpr int kStride = threads / kChunks;
  static constexpr int kLines = (lines + kStride - 1) / kStride;  // of a thread

  static CVK_DEVICE int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  static CVK_DEVICE int line(int i) { return static_cast<int>(threadIdx.x) / kChunks + i * kStride; }
};

// Brings an operand's tiles, one after another along the depth, into shared memory.
//
// Perf: nothing here branches, so that a step of the engine is one block of code, in which the compiler puts the addresses between
// the products. (With branches, a warp worked out its addresses first and multiplied afterwards: 1.5 times the time on an H100.)
template <class Gatherer, bool kDepthInner, int lines, int elements, int threads>
class GemmStream {
 public:
  using T = typename Gatherer::Element;
  using Operand = GemmOperand<T, lines, elements>;
  using Copy = GemmCopy<Operand, lines, threads>;

  // From depth `first_depth` on; `first_index` is the first row (or column) of the tile.
  CVK_DEVICE GemmStream(const Gatherer& gatherer, int64_t first_index, int64_t first_depth) : gatherer_(gatherer) {
    // Perf: all that is gathered has 32-bit numbers, and a GPU divides those in a fifth of the instructions.
    const auto first = static_cast<unsigned>(first_index), depth = static_cast<unsigned>(first_depth);
    inner_ = gatherer.inner((kDepthInner ? depth : first) / Operand::kChunkElements + Copy::chunk());
    outer_[0] = gatherer.outer((kDepthInner ? first : depth) + Copy::line(0));
    outer_step_ = gatherer.outer_step(Copy::kLines > 1 ? Copy::kStride : lines);
#pragma unroll
    for (int i = 1; i < kOuters; ++i) {
      outer_[i] = outer_[i - 1];
      gatherer.advance_outer(outer_[i], outer_step_);
    }
    if (kDepthInner) inner_step_ = gatherer.inner_step(Copy::kChunks);
  }

  // Starts the copies of the next tile; where it is not `wanted`, copies zeros.
  CVK_DEVICE void fetch(Operand& to, bool wanted) {
#pragma unroll
    for (int i = 0; i < Copy::kLines; ++i) {
      auto& outer = outer_[kDepthInner ? i : 0];
      const int line = Copy::line(i);
      const bool there = gatherer_.there(outer, inner_) && wanted;
      if (Copy::kStride <= lines || line < lines) {
        if constexpr (Gatherer::kInParts) {
          copy_async_part(to.chunk(line, Copy::chunk()), gatherer_.at(outer, inner_), there ? inner_.bytes : 0,
                          gatherer_.cached);
        } else {
          copy_async<16>(to.chunk(line, Copy::chunk()), gatherer_.at(outer, inner_), there);
        }
      }
      if constexpr (!kDepthInner) gatherer_.advance_outer(outer, outer_step_);
    }
    if constexpr (kDepthInner) gatherer_.advance_inner(inner_, inner_step_);
  }

 private:
  static_assert(Copy::kStride >= lines || lines % Copy::kStride == 0, "a thread's lines are evenly apart");
  const Gatherer& gatherer_;
  typename Gatherer::Inner inner_;
  typename Gatherer::InnerStep inner_step_;
  typename Gatherer::OuterStep outer_step_;
  // Registers: along the outer index, a thread's lines of a tile are stations of one walk.
  static constexpr int kOuters = kDepthInner ? Copy::kLines : 1;
  typename Gatherer::Outer outer_[kOuters];
};

// ---- fragments

namespace detail {

// The element (row, k) of an operand's tile.
template <bool kDepthInner, class Operand>
CVK_DEVICE auto gemm_element(const Operand& operand, int row, int k) {
  return kDepthInner ? operand.element(row, k) : operand.element(k, row);
}

// Where lane l finds its row for ldmatrix of the 16 rows from `row` and the depths from `k`: matrices of rows 0-7 and 8-15
// of the first 16 bytes of depth, then of the next. 16 bytes are 8 halves or, since an element of a matrix may be any
// 4 bytes for two halves, 4 floats.
template <bool kDepthInner, class Operand>
CVK_DEVICE const void* gemm_left_row(const Operand& operand, int row, int k, int lane) {
  constexpr int kVector = Operand::kChunkElements;
  return kDepthInner ? operand.chunk(row + lane % 16, k / kVector + lane / 16)
                     : operand.chunk(k + lane / 16 * 8 + lane % 8, row / kVector + lane / 8 % 2);
}
// For the right operand: two steps' columns, 0-7 and 8-15 from `column`, each with both halves of the depth.
template <bool kDepthInner, class Operand>
CVK_DEVICE const void* gemm_right_row(const Operand& operand, int column, int k, int lane) {
  constexpr int kVector = Operand::kChunkElements;
  return kDepthInner ? operand.chunk(column + lane / 16 * 8 + lane % 8, k / kVector + lane / 8 % 2)
                     : operand.chunk(k + lane % 16, column / kVector + lane / 16);
}

template <bool kDepthInner>
CVK_DEVICE void gemm_load(const void* row, uint32_t (&registers)[4]) {
  if (kDepthInner)
    cvk::load_matrices(row, registers);
  else
    cvk::load_matrices_transposed(row, registers);
}

CVK_DEVICE bool is_finite_bits(uint32_t bits) { return (bits & 0x7f800000u) != 0x7f800000u; }

// A float as the sum of two TF32 numbers.
CVK_DEVICE void split_tf32(uint32_t bits, uint32_t& leading, uint32_t& rest) {
  leading = to_tf32(bit_cast<float>(bits));
  const float missing = bit_cast<float>(bits) - bit_cast<float>(leading);
  rest = is_finite_bits(leading) ? to_tf32(missing) : 0u;
}
// Edge: a rest that is 0 must not meet an infinity.
CVK_DEVICE uint32_t finite_or_zero(uint32_t bits) { return is_finite_bits(bits) ? bits : 0u; }

}  // namespace detail

// What the warps of a block hold of its tile, and how they add the products of a stage to it. publish() makes what this thread has
// copied visible to products behind the next barrier; begin() starts with them, end() does what is left; between the two is the
// time to start copies. A stage may be written again kOverlap steps after its end().
template <class T, GemmMath math, class Shape, bool kLeftDepthInner, bool kRightDepthInner>
class GemmRegisters {
 public:
  static constexpr int kOverlap = 0;

  CVK_DEVICE GemmRegisters()
      : row_(static_cast<int>(threadIdx.x) / 32 / kWarpsAcross * Shape::kWarpRows),
        column_(static_cast<int>(threadIdx.x) / 32 % kWarpsAcross * Shape::kWarpColumns) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int s = 0; s < Traits::kSums; ++s) sums[i][j][s] = Sum(0);
      }
    }
  }

  static CVK_DEVICE void publish() {}
  template <class Stage>
  CVK_DEVICE void begin(const Stage& stage, bool) {
    multiply(stage.left, stage.right, 0);
  }
  template <class Stage>
  CVK_DEVICE void end(const Stage& stage) {
#pragma unroll
    for (int k = Traits::kStepDepth; k < Shape::kDepth; k += Traits::kStepDepth) multiply(stage.left, stage.right, k);
  }
  CVK_DEVICE void finish() {}

  // Calls visit(row, column, value, value of column + 1) for the lane's sums.
  template <class Visit>
  CVK_DEVICE void for_each(Visit&& visit) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int s = 0; s < Traits::kSums; s += 2) {
          visit(row_ + i * Traits::kStepRows + g + s / 2 * 8, column_ + j * 8 + 2 * t, sums[i][j][s],
                sums[i][j][s + 1]);
        }
      }
    }
  }

 private:
  using Traits = GemmTraits<T, math>;
  using Sum = typename Traits::Sum;
  static_assert(Shape::kDepth % Traits::kStepDepth == 0 && Shape::kWarpRows % Traits::kStepRows == 0, "whole steps");
  static constexpr int kRows = Shape::kWarpRows / Traits::kStepRows, kColumns = Shape::kWarpColumns / 8;
  static constexpr int kWarpsAcross = Shape::kColumns / Shape::kWarpColumns;
  int row_, column_;  // the warp's first
  Sum sums[kRows][kColumns][Traits::kSums];

  // Adds the depths [k, k + kStepDepth) of the tiles.
  template <class Left, class Right>
  CVK_DEVICE void multiply(const Left& left, const Right& right, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4, row = row_, column = column_;
    if constexpr (math == GemmMath::kDouble) {
      double a[kRows], b[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) a[i] = detail::gemm_element<kLeftDepthInner>(left, row + 8 * i + g, k + t);
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        b[j] = detail::gemm_element<kRightDepthInner>(right, column + 8 * j + g, k + t);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) matrix_multiply(a[i], b[j], sums[i][j]);
      }
    } else {
      constexpr bool kHalf = math == GemmMath::kHalf;
      static_assert(kColumns % 2 == 0, "ldmatrix brings the columns of two steps");
      uint32_t a[kRows][4], b[kColumns][2];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if constexpr (kHalf || kLeftDepthInner) {
          detail::gemm_load<kLeftDepthInner>(detail::gemm_left_row<kLeftDepthInner>(left, row + 16 * i, k, lane), a[i]);
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            a[i][e] = bit_cast<uint32_t>(left.element(k + t + e / 2 * 4, row + 16 * i + g + e % 2 * 8));
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        if constexpr (kHalf || kRightDepthInner) {
          uint32_t both[4];
          detail::gemm_load<kRightDepthInner>(detail::gemm_right_row<kRightDepthInner>(right, column + 8 * j, k, lane),
                                              both);
          b[j][0] = both[0];
          b[j][1] = both[1];
          b[j + 1][0] = both[2];
          b[j + 1][1] = both[3];
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            b[j + e / 2][e % 2] = bit_cast<uint32_t>(right.element(k + t + e % 2 * 4, column + 8 * (j + e / 2) + g));
          }
        }
      }
      if constexpr (kHalf) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) matrix_multiply(a[i], b[j], sums[i][j], T{});
        }
      } else if constexpr (math == GemmMath::kTf32) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) a[i][e] = to_tf32(bit_cast<float>(a[i][e]));
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) b[j][e] = to_tf32(bit_cast<float>(b[j][e]));
#pragma unroll
          for (int i = 0; i < kRows; ++i) matrix_multiply_tf32(a[i], b[j], sums[i][j]);
        }
      } else {
        uint32_t b_rest[kColumns][2], b_finite[kColumns][2];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            detail::split_tf32(b[j][e], b[j][e], b_rest[j][e]);
            b_finite[j][e] = detail::finite_or_zero(b[j][e]);
          }
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          uint32_t a_rest[4], a_finite[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            detail::split_tf32(a[i][e], a[i][e], a_rest[e]);
            a_finite[e] = detail::finite_or_zero(a[i][e]);
          }
          // Numerics: the small products first; the product of both rests is below the rounding of the sum.
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            matrix_multiply_tf32(a_rest, b_finite[j], sums[i][j]);
            matrix_multiply_tf32(a_finite, b_rest[j], sums[i][j]);
            matrix_multiply_tf32(a[i], b[j], sums[i][j]);
          }
        }
      }
    }
  }
};

// The same by warpgroups, one below the other, each with all columns of its rows.
template <class T, class Shape, bool kLeftDepthInner, bool kRightDepthInner>
class GemmRegisters<T, GemmMath::kWarpgroup, Shape, kLeftDepthInner, kRightDepthInner> {
 public:
  static constexpr int kOverlap = Shape::kOverlap;

  static CVK_DEVICE void publish() { warpgroup_publish(); }
  // The first products of all do not add to sums, but are them.
  template <class Stage>
  CVK_DEVICE void begin(const Stage& stage, bool adds) {
    // 64 lines of 128 bytes each.
    const WarpgroupOperand left(stage.left.values + row() * 64, 64 * 128), right(stage.right.values, 64 * 128);
    warpgroup_begin();
#pragma unroll
    for (int k = 0; k < Shape::kDepth; k += 16) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        warpgroup_multiply<!kLeftDepthInner, !kRightDepthInner>(
            left.plus(i * 64 * 128 + k * (kLeftDepthInner ? 2 : 128)), right.plus(k * (kRightDepthInner ? 2 : 128)),
            adds || k > 0, sums[i], T{});
      }
    }
    warpgroup_commit();
  }
  template <class Stage>
  CVK_DEVICE void end(const Stage&) {
    warpgroup_wait<kOverlap>();
  }
  CVK_DEVICE void finish() {
    warpgroup_wait<0>();
#pragma unroll
    for (int i = 0; i < kRows; ++i) warpgroup_finished(sums[i]);
  }

  template <class Visit>
  CVK_DEVICE void for_each(Visit&& visit) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int s = 0; s < kSums; s += 2) {
        visit(row() + 64 * i + 16 * warp + lane / 4 + s / 2 % 2 * 8, s / 4 * 8 + lane % 4 * 2, sums[i][s],
              sums[i][s + 1]);
      }
    }
  }

 private:
  static_assert(Shape::kDepth == 64, "lines of 128 bytes");
  static constexpr int kRows = Shape::kGroupRows / 64, kSums = Shape::kColumns / 2;
  float sums[kRows][kSums];

  // The group's first.
  static CVK_DEVICE int row() { return static_cast<int>(threadIdx.x) / 128 * Shape::kGroupRows; }
};

// ---- the kernel

// A tile of kRows x kColumns, kDepth deep at a time; a warp has kWarpRows x kWarpColumns of it.
template <int rows, int columns, int depth, int warp_rows, int warp_columns, int stages, int blocks, int alone,
          int busy>
struct GemmShape {
  static constexpr int kRows = rows, kColumns = columns, kDepth = depth;
  static constexpr int kWarpRows = warp_rows, kWarpColumns = warp_columns, kStages = stages;
  static constexpr int kThreads = 32 * (rows / warp_rows) * (columns / warp_columns);
  static constexpr int kBlocksPerSm = blocks;
  static constexpr double kAlone = alone / 100.0, kBusy = busy / 100.0, kWeightCost = kGemmMmaWeightCost;
};

// A tile for warpgroups of kGroupRows; the products of kOverlap steps may be under way when the next begins.
template <int rows, int columns, int group_rows, int stages, int overlap, int blocks, int alone, int busy, int weight>
struct GemmWarpgroupShape {
  static constexpr int kRows = rows, kColumns = columns, kDepth = 64;
  static constexpr int kGroupRows = group_rows, kStages = stages, kOverlap = overlap;
  static constexpr int kThreads = 128 * (rows / group_rows);
  static constexpr int kBlocksPerSm = blocks;
  static constexpr double kAlone = alone / 100.0, kBusy = busy / 100.0, kWeightCost = weight / 100.0;
};

struct GemmExtent {
  int64_t rows, columns, depth;
  int64_t row_tiles, column_tiles;
  int64_t split_depth;  // of one split, a multiple of the tile's depth
  int splits;
};

template <class Shape>
GemmExtent gemm_extent(int64_t rows, int64_t columns, int64_t depth, int splits) {
  GemmExtent extent{
      rows, columns, depth, ceil_div<int64_t>(rows, Shape::kRows), ceil_div<int64_t>(columns, Shape::kColumns), 0, 1};
  const int64_t steps = max_of<int64_t>(1, ceil_div<int64_t>(depth, Shape::kDepth));
  const int64_t each = ceil_div<int64_t>(steps, max_of(1, splits));
  extent.splits = static_cast<int>(ceil_div<int64_t>(steps, each));
  extent.split_depth = each * Shape::kDepth;
  return extent;
}

// What a block works on.
struct GemmBlock {
  int64_t first_row, first_column;
  int split;
};

// Blocks after one another share their rows (the operand that is gathered), then their columns.
template <class Shape>
CVK_DEVICE GemmBlock gemm_block(const GemmExtent& extent, unsigned index) {
  const auto across = static_cast<unsigned>(extent.column_tiles), down = static_cast<unsigned>(extent.row_tiles);
  GemmBlock block;
  block.first_column = int64_t{index % across} * Shape::kColumns;
  block.first_row = int64_t{index / across % down} * Shape::kRows;
  block.split = static_cast<int>(index / across / down);
  return block;
}

template <class T, class Shape, bool kLeftDepthInner, bool kRightDepthInner>
struct alignas(1024) GemmStage {  // as the swizzle of warpgroup products counts
  GemmOperand<T, kLeftDepthInner ? Shape::kRows : Shape::kDepth, kLeftDepthInner ? Shape::kDepth : Shape::kRows> left;
  GemmOperand<T, kRightDepthInner ? Shape::kColumns : Shape::kDepth, kRightDepthInner ? Shape::kDepth : Shape::kColumns>
      right;
};

// A finished tile; a row is padded against bank conflicts of the stores.
template <class U, class Shape>
struct GemmResult {
  static constexpr int kPitch = Shape::kColumns + 16 / static_cast<int>(sizeof(U));
  alignas(16) U values[Shape::kRows][kPitch];
};

// The shared memory of a block.
template <class T, class Shape, bool kLeftDepthInner, bool kRightDepthInner>
union GemmShared {
  GemmStage<T, Shape, kLeftDepthInner, kRightDepthInner> stages[Shape::kStages];
  GemmResult<Acc<T>, Shape> result;
  GemmResult<T, Shape> rounded;
};

// How `blocks` blocks are launched whose shared memory is a Shared.
template <GemmMath math, class Shape, class Shared>
LaunchConfig gemm_config(int64_t blocks) {
  return {dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), sizeof(Shared),
          math == GemmMath::kWarpgroup ? 90 : 80};
}

// Adds the products of the block's tile to `sums`. The whole block calls it; the stages are free once it returns.
template <class Shape, bool kLeftDepthInner, bool kRightDepthInner, class Shared, class Sums, class Left, class Right>
CVK_DEVICE void gemm_multiply(Shared& shared, Sums& sums, const Left& left, const Right& right,
                              const GemmExtent& extent, const GemmBlock& block) {
  constexpr int kThreads = Shape::kThreads, kStages = Shape::kStages;
  constexpr int kAhead = kStages - 1 - Sums::kOverlap;  // steps that a tile is fetched before
  auto& stages = shared.stages;
  const int64_t begin = block.split * extent.split_depth;
  const int64_t end = min_of(extent.depth, begin + extent.split_depth);
  const int steps = static_cast<int>(max_of<int64_t>(ceil_div<int64_t>(end - begin, Shape::kDepth), 1));  // or zeros
  GemmStream<Left, kLeftDepthInner, kLeftDepthInner ? Shape::kRows : Shape::kDepth,
             kLeftDepthInner ? Shape::kDepth : Shape::kRows, kThreads>
      left_stream(left, block.first_row, begin);
  GemmStream<Right, kRightDepthInner, kRightDepthInner ? Shape::kColumns : Shape::kDepth,
             kRightDepthInner ? Shape::kDepth : Shape::kColumns, kThreads>
      right_stream(right, block.first_column, begin);
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    left_stream.fetch(stages[s].left, s < steps);
    right_stream.fetch(stages[s].right, s < steps);
    copy_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kAhead - 1>();
    Sums::publish();
    __syncthreads();  // the copies of all threads are there, and nobody reads the buffer that is filled next
    const auto& stage = stages[step % kStages];
    sums.begin(stage, step > 0);
    // Perf: between the products, so that addresses are worked out while they are under way.
    auto& next = stages[(step + kAhead) % kStages];
    const bool wanted = step + kAhead < steps;
    left_stream.fetch(next.left, wanted);
    right_stream.fetch(next.right, wanted);
    copy_async_commit();
    sums.end(stage);
  }
  sums.finish();
  copy_async_wait<0>();
  __syncthreads();  // the operands have been read: results may take their place
}

template <class Sums, class Result>
CVK_DEVICE void gemm_store(const Sums& sums, Result& result) {
  sums.for_each([&](int row, int column, auto first, auto second) {
    const decltype(first) both[2] = {first, second};
    store_group(&result.values[row][column], both);
  });
}

// Computes the block's tile into shared memory, where it is once this returns, for all threads. The whole block calls it.
template <GemmMath math, class Shape, bool kLeftDepthInner, bool kRightDepthInner, class Left, class Right>
CVK_DEVICE auto& gemm_tile(const Left& left, const Right& right, const GemmExtent& extent, const GemmBlock& block) {
  using T = typename Left::Element;
  auto& shared = *dynamic_shared<GemmShared<T, Shape, kLeftDepthInner, kRightDepthInner>>();
  GemmRegisters<T, math, Shape, kLeftDepthInner, kRightDepthInner> sums;
  gemm_multiply<Shape, kLeftDepthInner, kRightDepthInner>(shared, sums, left, right, extent, block);
  gemm_store(sums, shared.result);
  __syncthreads();
  return shared.result;
}

// ---- a matrix in memory, as the simplest gatherer

template <class T>
struct DenseGatherer {
  using Element = T;
  struct Outer {
    int index, offset;
  };
  using OuterStep = Outer;
  using Inner = int;
  using InnerStep = int;
  static constexpr bool kInParts = false;
  const T* data;  // [outers, chunks], aligned
  int outers;
  int chunks;  // of 16 bytes
  int stride;  // chunks from one outer index to the next

  CVK_DEVICE Outer outer(unsigned index) const {
    return {static_cast<int>(index), static_cast<int>(index * static_cast<unsigned>(stride))};
  }
  CVK_DEVICE Inner inner(unsigned chunk) const { return static_cast<int>(chunk); }
  CVK_DEVICE OuterStep outer_step(unsigned count) const { return outer(count); }
  CVK_DEVICE InnerStep inner_step(int count) const { return count; }
  CVK_DEVICE void advance_outer(Outer& outer, const OuterStep& step) const {
    outer.index += step.index;
    outer.offset += step.offset;
  }
  CVK_DEVICE void advance_inner(Inner& inner, InnerStep step) const { inner += step; }
  CVK_DEVICE bool there(const Outer& outer, Inner inner) const { return outer.index < outers && inner < chunks; }
  CVK_DEVICE const void* at(const Outer& outer, Inner inner) const { return gemm_chunk(data, outer.offset + inner); }
};

}  // namespace cvk
