// The matrix engine on CUDA: out[m, n] = sum over k of left[m, k] * right[k, n] for one tile of a block, where neither operand
// need exist as a whole. Exact arithmetic: float32 (also for half inputs) or float64, fused multiply-adds.
//
// An operand is a class that answers for one element, so that a gather is as good as a matrix:
//   struct Line;                                      what is known of a row (column) before its depth
//   Line line(int64_t index) const                    index may be past the end: elements of it are 0
//   Acc<T> at(const Line& line, int64_t k) const
//   bool along_depth() const                          whether neighbours in memory are neighbours in k
// A block stages kGemmStage of the depth of kGemmTile lines of both in shared memory; a thread owns kGemmThreadTile squared
// sums. What runs on tensor cores takes the place of gemm_tile_product and keeps the operands.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/numeric.h"
#include "common/vec.cuh"
#include "gemm/gemm_tuning.h"

namespace cvk {

template <class A>
struct PlainStage {
  static constexpr int kPitch = kGemmTile + 4;  // a row of the stage begins in another bank
  alignas(16) A left[kGemmStage][kPitch];
  alignas(16) A right[kGemmStage][kPitch];
};

// The elements of a stage that a thread moves: those of kCount lines, or kCount depths of one line.
template <class Operand>
class GemmLoader {
 public:
  static constexpr int kCount = kGemmTile * kGemmStage / kGemmThreads;

  CVK_DEVICE GemmLoader(const Operand& operand, int64_t first)
      : operand_(operand), along_depth_(operand.along_depth()) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) line_[i] = operand.line(first + place(i).line);
  }
  template <class A>
  CVK_DEVICE void load(int64_t k, int64_t depth, A (&stage)[kGemmStage][PlainStage<A>::kPitch]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Place at = place(i);
      stage[at.k][at.line] = k + at.k < depth ? operand_.at(line_[i], k + at.k) : A(0);
    }
  }

 private:
  struct Place {
    int line, k;
  };
  CVK_DEVICE Place place(int i) const {
    const int element = static_cast<int>(threadIdx.x) + i * kGemmThreads;
    Place place;
    place.line = along_depth_ ? element / kGemmStage : element % kGemmTile;
    place.k = along_depth_ ? element % kGemmStage : element / kGemmTile;
    return place;
  }

  const Operand& operand_;
  bool along_depth_;
  typename Operand::Line line_[kCount];
};

// The sums of this thread: rows first_row + row() + i, columns first_column + column() + j.
template <class A>
struct GemmSums {
  A value[kGemmThreadTile][kGemmThreadTile];

  static CVK_DEVICE int row() {
    return static_cast<int>(threadIdx.x) / (kGemmTile / kGemmThreadTile) * kGemmThreadTile;
  }
  static CVK_DEVICE int column() {
    return static_cast<int>(threadIdx.x) % (kGemmTile / kGemmThreadTile) * kGemmThreadTile;
  }
};

template <class A, class Left, class Right>
CVK_DEVICE void gemm_tile_product(PlainStage<A>& stage, const Left& left, int64_t first_row, const Right& right,
                                  int64_t first_column, int64_t depth, GemmSums<A>& sums) {
  const GemmLoader<Left> left_loader(left, first_row);
  const GemmLoader<Right> right_loader(right, first_column);
#pragma unroll
  for (int i = 0; i < kGemmThreadTile; ++i) {
#pragma unroll
    for (int j = 0; j < kGemmThreadTile; ++j) sums.value[i][j] = A(0);
  }
  for (int64_t k = 0; k < depth; k += kGemmStage) {
    __syncthreads();  // the stage before has been read
    left_loader.load(k, depth, stage.left);
    right_loader.load(k, depth, stage.right);
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kGemmStage; ++p) {
      const auto rows = *reinterpret_cast<const Group<A, kGemmThreadTile>*>(&stage.left[p][sums.row()]);
      const auto columns = *reinterpret_cast<const Group<A, kGemmThreadTile>*>(&stage.right[p][sums.column()]);
#pragma unroll
      for (int i = 0; i < kGemmThreadTile; ++i) {
#pragma unroll
        for (int j = 0; j < kGemmThreadTile; ++j) {
          sums.value[i][j] = mul_add(rows.values[i], columns.values[j], sums.value[i][j]);
        }
      }
    }
  }
}

}  // namespace cvk
