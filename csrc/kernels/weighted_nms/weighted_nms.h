// The merge rules of the NMS family: what the boxes that a kept box stands for do to its place and its score.
//
// Computes   merge: a kept box k becomes b_k + sum_j w_j (b_j - b_k) / sum_j w_j over the boxes j that it owns (owner of
//            kernels/nms) and itself, w_j = score_j * overlap(b_k, b_j), own overlap 1.
//            vote: the same mean over other voters. With variances, over every box of its class that it overlaps at all and
//            per coordinate c, w_jc = exp(-(1 - IoU)^2 / sigma_t) / variance_jc. Without, over every box of its class ranked
//            after it with overlap > threshold, weights as in merge.
//            penalty: score_j * exp(-sum_k overlap(k, j)^2 / sigma) over the kept boxes k ranked before j in its class.
// Edges      A box with a NaN score votes nowhere and has NaN as its penalised score. Negative and NaN overlaps weigh 0. A variance
//            that is not positive and finite does not vote. Where the weights sum to nothing positive the box stays as it is.
//            Rank: score descending, ties by index.
// CPU        Merge is one pass over the boxes in rank order. Vote and penalty look only at boxes within reach (the grid of
//            common/neighbours.h), vectors of them at a time, in parallel over kept boxes.
// CUDA       Merge: one warp per kept box over its members in a fixed order. Vote: one warp per kept box over all boxes. Penalty:
//            a block has 32 boxes, one per lane, and its warps share the kept ones. No atomics, no host synchronisation. An
//            index outside [0, N) in keep: the vote gives zeros, the penalty ignores it.
// Traffic    Merge: 40 bytes a box. Vote, penalty: the boxes in reach of each.
// Bound      Merge: one overlap per box. Vote, penalty on CUDA: M * N overlaps.
// Determinism the same bits for any number of threads on a given instruction set or device; sums differ in rounding between them.
// Limits     N < 2^31.
// Source     Zhou et al. 2017 (CAD: scale invariant framework, weighted NMS), He et al. 2019 (arXiv 1809.08545), Zheng et al. 2020
//            (arXiv 2005.03572).
#pragma once

#include <cstdint>

#include "common/box_overlap.h"
#include "common/cuda_types.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/weighted_nms/weighted_nms_tuning.h"

namespace cvk {

// B independent problems.
template <class A>
struct WeightedNmsMergeParams {
  int64_t batch, count, slots;
  const A* boxes;        // [B, N, 4]
  const A* scores;       // [B, N]
  const int64_t* keep;   // [B, slots] kept indices, then -1
  const int64_t* owner;  // [B, N] slot of the box that stands for this one (a kept box: its own), or -1
  OverlapRule<A> overlap;
  A* merged;  // [B, slots, 4], padded with 0
};

template <class A>
struct WeightedNmsVoteParams {
  int64_t count, slots;
  const A* boxes;          // [N, 4]
  const A* scores;         // [N]
  const int64_t* classes;  // [N] or null
  const int64_t* keep;     // [slots] kept indices, each in [0, N)
  const A* variances;      // [N, 4] or null
  A sigma_t;               // > 0, with variances
  A threshold;             // from overlap_threshold, without
  OverlapRule<A> overlap;  // without variances
  A* voted;                // [slots, 4]
};

template <class A>
struct WeightedNmsPenaltyParams {
  int64_t count, slots;
  const A* boxes;          // [N, 4]
  const A* scores;         // [N]
  const int64_t* classes;  // [N] or null
  const int64_t* keep;     // [slots] kept indices, each in [0, N)
  A sigma;                 // > 0
  OverlapRule<A> overlap;
  A* new_scores;  // [N]
};

template <Isa isa, class A>
void weighted_nms_merge_cpu(const WeightedNmsMergeParams<A>& params, int64_t image);
template <Isa isa, class A>
void weighted_nms_vote_cpu(const WeightedNmsVoteParams<A>& params, const Parallel& parallel);
template <Isa isa, class A>
void weighted_nms_penalty_cpu(const WeightedNmsPenaltyParams<A>& params, const Parallel& parallel);

// `grouped` [B, N] lists each image's boxes by ascending owner, ties by rank (score descending, then index).
template <class A>
CudaStatus weighted_nms_merge_cuda(const WeightedNmsMergeParams<A>& params, const int64_t* grouped, CudaStream stream);
template <class A>
CudaStatus weighted_nms_vote_cuda(const WeightedNmsVoteParams<A>& params, CudaStream stream);
template <class A>
CudaStatus weighted_nms_penalty_cuda(const WeightedNmsPenaltyParams<A>& params, CudaStream stream);

}  // namespace cvk
