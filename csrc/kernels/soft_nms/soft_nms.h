// Soft-NMS: scores decay with overlap instead of boxes being removed.
//
// Computes   repeatedly selects the box with the highest current score, ties by ascending index, and multiplies the scores of
//            the other boxes of its class by a weight of their overlap with it (soft_nms_math.h). A box whose current score is
//            not >= min_score is dropped for good. The result lists indices and current scores in the order of selection.
// Edges      NaN score: not >= min_score, dropped. NaN overlap, no overlap, inert box: weight 1. An infinite score times weight 0
//            is NaN: dropped. Negative overlap of a criterion counts as 0. method hard removes at overlap > threshold, whatever
//            min_score. Selected scores do not increase, so the classes' sequences are merged by (score, index).
// CPU        Boxes of a class lie in the cells of a grid by size and place, so a selected box meets only those it can overlap,
//            as whole vectors; decay and the maximum of a block of scores are one pass, and the next selection is a walk down a
//            tree of block maxima. Small classes skip the grid. Classes and images run in parallel.
// CUDA       One launch. An image belongs to one block, or to several that meet at a barrier in global memory once a step; each
//            thread owns boxes, multiplies their scores by the weight of the last selected box and offers its best.
// Traffic    CPU: about 60 bytes a box, and per step the boxes in reach. CUDA: per step 20 bytes a box, from L1 or L2.
// Bound      Selected boxes * (boxes in reach / lanes + depth of the tree). CUDA: selected boxes * (barrier + N / threads).
// Determinism exact: the same indices and scores for any number of threads, on every device.
// Limits     N < 2^31.
// Source     Bodla et al. 2017 (arXiv 1704.04503).
#pragma once

#include <cstdint>

#include "common/box_overlap.h"
#include "common/cuda_types.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/soft_nms/soft_nms_tuning.h"

namespace cvk {

enum class SoftNmsMethod : int { kLinear, kGaussian, kHard };

// B independent problems. A is float or double, for boxes and scores.
template <class A>
struct SoftNmsParams {
  int64_t batch, count, max_output;
  const A* boxes;          // [B, N, 4]
  const A* scores;         // [B, N]
  const int64_t* classes;  // [B, N] or null
  SoftNmsMethod method;
  A threshold;  // from overlap_threshold
  A sigma;      // > 0
  A min_score;  // >= 0
  OverlapRule<A> overlap;
  int64_t* keep;  // [B, max_output], padded with -1
  A* new_scores;  // [B, max_output], padded with 0
  int64_t* kept;  // [B]
};

template <Isa isa, class A>
void soft_nms_cpu(const SoftNmsParams<A>& params, int64_t image, const Parallel& parallel);

// Bytes of device scratch.
template <class A>
int64_t soft_nms_scratch_cuda(const SoftNmsParams<A>& params);
template <class A>
CudaStatus soft_nms_cuda(const SoftNmsParams<A>& params, void* scratch, CudaStream stream);
// With a plan of the caller's, for tests and measurements: within the limits of soft_nms_tuning.h and of the device.
template <class A>
CudaStatus soft_nms_cuda(const SoftNmsParams<A>& params, const SoftNmsPlan& plan, void* scratch, CudaStream stream);

}  // namespace cvk
