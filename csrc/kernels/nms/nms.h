// Hard non-maximum suppression, exact greedy.
//
// Computes   boxes are visited by descending score, ties by ascending index; a box is kept unless its overlap (IoU, or another
//            criterion of common/box_overlap.h) with a kept box of the same class exceeds the threshold. The result lists the kept
//            indices in that order. With densities the threshold of a kept box is the larger of the threshold and its density.
//            With owner, every box also learns which kept box suppressed it: the first that does, in that order.
// Edges      NaN score: never kept, suppresses nothing. NaN or infinite coordinate, or no extent: overlaps nothing, kept
//            (threshold >= 0). Threshold below 0: disjoint boxes (IoU 0) suppress too; 0/0 is no overlap.
//            IoU = inter / (area_a + area_b - inter) in float32 (float64 for float64 boxes), no contraction, compared with
//            the threshold as a double: the same bits on every device and in torchvision's CPU kernel. NaN density: none.
//            Owner: the row of that box in keep; a kept box owns itself; -1 for a NaN score and for boxes that no kept box
//            suppresses (max_output); boxes ranked after the last kept one still find their owners.
// CPU        Radix sort by score, then by class: a class is a contiguous segment, segments run in parallel. A small segment
//            scans its kept boxes with SIMD. In a larger one boxes lie in cells by size and position: two boxes with IoU > t
//            have sides within a factor t and centres within (w_a + w_b) / 2 - t max(w_a, w_b), so a kept box claims what it
//            suppresses in a few runs of cells, and only kept boxes look around. A huge segment is decided in the order of
//            places, in parallel: a box asks its neighbours, which may have to ask theirs first (nms_places.h).
// CUDA       Boxes in score order, in chunks: one block decides a chunk (a warp at a time, in registers), then all later
//            boxes are tested against the chunk's kept boxes. O(N) memory, no host synchronisation, graph-capturable.
// Traffic    about 100 bytes a box on the CPU; on CUDA 17 bytes per box and chunk still ahead of it.
// Bound      CPU: N log-free sort passes + N * (kept boxes within reach) / lanes; CUDA: kept * N / 2 pair tests of 14
//            instructions, and N / 32 dependent steps.
// Determinism exact, the same indices for any thread count and device.
// Limits     N < 2^31.
// Source     Girshick et al. 2014 (arXiv 1311.2524); torchvision.ops.nms for the conventions. The grid is ours; the idea of
//            pruning by geometry is in BOE-NMS (NeurIPS 2024).
#pragma once

#include <cstdint>

#include "common/box_overlap.h"
#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/nms/nms_tuning.h"

namespace cvk {

// A is the arithmetic type of the boxes, S the type of the scores: float or double.
template <class A, class S>
struct NmsParams {
  int64_t count;
  const A* boxes;          // [N, 4]
  const S* scores;         // [N]
  const int64_t* classes;  // [N] or null
  const A* densities;      // [N] or null
  A threshold;             // from overlap_threshold
  OverlapRule<A> overlap;
  int64_t max_output;  // most boxes to keep, >= 0
  int64_t* keep;       // [min(N, max_output)] kept indices
  int64_t* owner;      // [N] or null
};

// Returns the number of boxes kept.
template <Isa isa, class A, class S>
int64_t nms_cpu(const NmsParams<A, S>& params, const Parallel& parallel);

// ---- CUDA: B independent problems whose boxes have been sorted by descending score.
template <class A>
struct NmsBatchParams {
  int64_t batch, count, max_output;
  const A* boxes;               // [B, N, 4]
  const int64_t* order;         // [B, N] box indices by descending score
  const float* ordered_scores;  // [B, N] scores in that order; only their being NaN matters
  const int64_t* classes;       // [B, N] or null
  const A* densities;           // [B, N] or null
  A threshold;
  OverlapRule<A> overlap;
  int64_t* keep;   // [B, max_output], padded with -1
  int64_t* kept;   // [B]
  int64_t* owner;  // [B, N] or null
};

// Bytes of device scratch.
template <class A>
int64_t nms_scratch_cuda(const NmsBatchParams<A>& params);
template <class A>
CudaStatus nms_cuda(const NmsBatchParams<A>& params, void* scratch, CudaStream stream);

}  // namespace cvk
