// Matrix NMS: every score decays at once, by the overlaps with better boxes and by how much those are overlapped themselves.
//
// Computes   boxes ranked by score, ties by index; overlaps of box i with a box j of its class ranked after it. compensation_i =
//            the largest overlap of i with a box ranked before it. decay_j = min(1, min over i before j of f(overlap_ij) /
//            f(compensation_i)), f(x) = 1 - x (linear) or exp(-x^2 / sigma) (gaussian). New scores = scores * decay, for all N.
// Edges      NaN score: takes no part, stays NaN. NaN and negative overlaps count as 0. linear skips pairs whose compensation is
//            >= 1 (0/0 in the formula: i is a copy of a better box and says nothing that the better box does not say).
// CPU        Two passes, each over the boxes in reach of a box (common/neighbours.h), vectors of them at a time, in parallel over
//            boxes. A given overlap matrix is read row by row, twice.
// CUDA       One kernel twice: a block has 32 boxes, one per lane, and its warps share the boxes ranked before them, or the rows
//            of the matrix. No sequential loop, no host synchronisation.
// Traffic    From boxes: 24 bytes per box in reach and pass. From a matrix: N^2 / 2 elements twice.
// Bound      CPU: 2 * N * (boxes in reach) / lanes overlaps. CUDA: N^2 overlaps of 14 instructions.
// Determinism exact: minima and maxima do not depend on their order.
// Limits     N < 2^31.
// Source     Wang et al. 2020, SOLOv2 (arXiv 2003.10152).
#pragma once

#include <cstdint>

#include "common/box_overlap.h"
#include "common/cuda_types.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/matrix_nms/matrix_nms_tuning.h"

namespace cvk {

enum class MatrixNmsKernel : int { kLinear, kGaussian };

template <class A>
struct MatrixNmsParams {
  int64_t count;
  const A* boxes;          // [N, 4], or null with overlaps
  const A* overlaps;       // [N, N], or null with boxes; read where row is ranked before column
  const A* scores;         // [N]
  const int64_t* classes;  // [N] or null
  MatrixNmsKernel kernel;
  A sigma;  // > 0
  OverlapRule<A> overlap;
  A* new_scores;  // [N]
};

template <Isa isa, class A>
void matrix_nms_cpu(const MatrixNmsParams<A>& params, const Parallel& parallel);

// `order` [N] lists the boxes by descending score, ties by index, boxes with a NaN score anywhere.
template <class A>
int64_t matrix_nms_scratch_cuda(const MatrixNmsParams<A>& params);
template <class A>
CudaStatus matrix_nms_cuda(const MatrixNmsParams<A>& params, const int64_t* order, void* scratch, CudaStream stream);

}  // namespace cvk
