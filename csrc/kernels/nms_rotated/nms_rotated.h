// Rotated boxes: intersection over union, and hard non-maximum suppression, exact greedy.
//
// Computes   box = (centre x, centre y, width w, height h, angle): |u| <= w / 2 and |v| <= h / 2 in axes (u, v) turned by the
//            angle, in radians; clockwise where y points down, or the other way.
//            nms_rotated_iou: intersection over union, or over the area of the first box, of every pair or row by row.
//            nms_rotated: boxes are visited by descending score, ties by ascending index; a box is kept unless its IoU with
//            a kept box of the same class exceeds the threshold. The result lists the kept indices in that order.
// Edges      IoU 0 for every box with a NaN or infinite value, w or h not above 0, an area that is 0 or infinite in the
//            arithmetic type, or an angle beyond 2^20: kept at a threshold >= 0, like a box alone. Threshold below 0: IoU 0
//            suppresses too, so the first box of a class is all of it. NaN score: never kept, suppresses nothing.
//            Touching boxes: 0, to rounding. Identical boxes: 1 exactly. No result above 1. A kept box k suppresses j by the
//            IoU of (k, j); that of (j, k) may differ in the last bits.
//            float32 (float64 for float64 boxes), no contraction, sine and cosine by our own arithmetic, compared with the
//            threshold as a double: the same bits on every device.
// Method     Green's theorem: the area of b inside a is the integral of clamp(x, -w / 2, w / 2) dy around b over |y| <= h / 2
//            in the frame of a. Four edges, each a closed form without a branch or an array. Continuous in every coordinate,
//            so edges that coincide need no rule. Separating axes decide beforehand whether the boxes meet at all.
// CPU        IoU: SIMD over the second boxes; rows in parallel. NMS: sorted by score, then by class; a class is a segment,
//            segments run in parallel. A box is tested against the bounds of the kept ones, a vector at a time, and what
//            meets is packed into vectors for the exact test. A large segment keeps its boxes in a grid by size and place of
//            their bounds.
// CUDA       IoU: a thread per column over some rows. NMS: chunks in score order; one block decides a chunk, then all later
//            boxes are tested against its kept boxes. O(N) memory, no host synchronisation, graph-capturable.
// Traffic    IoU: the result once. NMS: 130 bytes a box on the CPU; on CUDA 24 bytes per box and chunk still ahead of it.
// Bound      IoU: 200 operations a pair that meets, 60 else. NMS: N * (kept boxes within reach) / lanes tests of bounds on the
//            CPU, kept * N / 2 tests of axes on CUDA.
// Determinism exact, the same bits for any thread count, instruction set and device.
// Limits     N, M < 2^31.
// Source     Conventions of mmcv.ops.nms_rotated and box_iou_rotated 2.2.0; Ma et al. 2018 (arXiv 1703.01086) for rotated NMS.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/nms_rotated/nms_rotated_tuning.h"

namespace cvk {

// A is the arithmetic type, S the type of the scores: float or double.
template <class A, class S>
struct NmsRotatedParams {
  int64_t count;
  const A* boxes;          // [N, 5]
  const S* scores;         // [N]
  const int64_t* classes;  // [N] or null
  A threshold;             // from nms_threshold
  int64_t max_output;      // most boxes to keep, >= 0
  bool clockwise;
  int64_t* keep;  // [min(N, max_output)] kept indices
};

// Returns the number of boxes kept.
template <Isa isa, class A, class S>
int64_t nms_rotated_cpu(const NmsRotatedParams<A, S>& params, const Parallel& parallel);

// T is the type of the result: float, half_t or bfloat16_t with A float, double with A double.
template <class A, class T>
struct NmsRotatedIouParams {
  int64_t rows, columns;
  const A* boxes1;  // [N, 5]
  const A* boxes2;  // [M, 5]
  bool over_first;  // divide by the area of the first box, else by that of the union
  bool aligned;     // pair row with row: N == M
  bool clockwise;
  T* overlaps;  // [N, M], or [N] if aligned
};

template <Isa isa, class A, class T>
void nms_rotated_iou_cpu(const NmsRotatedIouParams<A, T>& params, const Parallel& parallel);

// ---- CUDA

// One problem whose boxes have been sorted by descending score.
template <class A>
struct NmsRotatedOrderedParams {
  int64_t count, max_output;
  const A* boxes;               // [N, 5]
  const int64_t* order;         // [N] box indices by descending score
  const float* ordered_scores;  // [N] scores in that order; only their being NaN matters
  const int64_t* classes;       // [N] or null
  A threshold;
  bool clockwise;
  int64_t* keep;  // [max_output], padded with -1
  int64_t* kept;  // [1]
};

// Bytes of device scratch.
template <class A>
int64_t nms_rotated_scratch_cuda(const NmsRotatedOrderedParams<A>& params);
template <class A>
CudaStatus nms_rotated_cuda(const NmsRotatedOrderedParams<A>& params, void* scratch, CudaStream stream);

template <class A, class T>
int64_t nms_rotated_iou_scratch_cuda(const NmsRotatedIouParams<A, T>& params);
template <class A, class T>
CudaStatus nms_rotated_iou_cuda(const NmsRotatedIouParams<A, T>& params, void* scratch, CudaStream stream);

}  // namespace cvk
