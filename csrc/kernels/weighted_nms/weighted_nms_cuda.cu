// Merge rules on CUDA. Contract and method: weighted_nms.h. Ran on an H100 (2026-11-26).
#include "common/box_reader.cuh"
#include "common/launch.cuh"
#include "kernels/weighted_nms/weighted_nms.h"
#include "kernels/weighted_nms/weighted_nms_math.h"

namespace cvk {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Overlap as a weight; 0 without an intersection, whatever the criterion.
template <class A>
CVK_DEVICE A overlap_weight(const Box<A>& a, const Box<A>& b, const OverlapRule<A>& rule) {
  const A intersection = box_intersection(a, b);
  if (!(intersection > A(0))) return A(0);
  const A united = box_union(box_area(a), box_area(b), intersection);
  return weight_of_overlap(box_overlap(a, b, intersection, united, rule));
}

// The sum over the lanes, the same in all of them, in an order that never changes.
template <class A>
CVK_DEVICE A sum_of_warp(A value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// The first of `count` places whose owner is at least `row`; owners ascend. All lanes of a warp look at once.
CVK_DEVICE int64_t first_place(const int64_t* owner, const int64_t* grouped, int64_t count, int64_t row) {
  const int lane = threadIdx.x % kWarp;
  int64_t low = 0, high = count;  // before `low` owners are below row, from `high` on they are not
  while (low < high) {
    const int64_t step = ceil_div<int64_t>(high - low, kWarp), place = low + lane * step;
    const int below = __popc(__ballot_sync(kAllLanes, place < high && owner[grouped[place]] < row));
    if (below == 0) break;
    high = min_of(low + below * step, high);
    low += (below - 1) * step + 1;
  }
  return low;
}

// One warp per slot, its lanes over the members.
template <class A>
__global__ void __launch_bounds__(kWeightedNmsThreads)
    weighted_nms_merge_kernel(WeightedNmsMergeParams<A> params, const int64_t* grouped) {  // [B, N]
  const int lane = threadIdx.x % kWarp;
  const int64_t slot = (static_cast<int64_t>(blockIdx.x) * kWeightedNmsThreads + threadIdx.x) / kWarp;
  if (slot >= params.batch * params.slots) return;  // the whole warp
  const int64_t image = slot / params.slots, row = slot % params.slots;
  const int64_t count = params.count, k = params.keep[slot];
  A* const merged = params.merged + 4 * slot;
  if (k < 0) {
    if (lane < 4) merged[lane] = A(0);
    return;
  }
  const BoxReader<A> boxes(params.boxes + image * count * 4);
  const A* const scores = params.scores + image * count;
  const int64_t* const owner = params.owner + image * count;
  const int64_t* const members = grouped + image * count;
  const Box<A> kept = boxes(k);
  A x1 = A(0), y1 = A(0), x2 = A(0), y2 = A(0), weights = A(0);
  for (int64_t place = first_place(owner, members, count, row) + lane; place < count; place += kWarp) {
    const int64_t j = members[place];
    if (owner[j] != row) break;
    if (j == k) {
      weights += scores[k];
      continue;
    }
    const Box<A> box = boxes(j);
    const A overlap = overlap_weight(kept, box, params.overlap);
    if (!(overlap > A(0))) continue;  // Edge: 0 * infinity
    const A weight = scores[j] * overlap;
    x1 += weight * (box.x1 - kept.x1);
    y1 += weight * (box.y1 - kept.y1);
    x2 += weight * (box.x2 - kept.x2);
    y2 += weight * (box.y2 - kept.y2);
    weights += weight;
  }
  x1 = sum_of_warp(x1);
  y1 = sum_of_warp(y1);
  x2 = sum_of_warp(x2);
  y2 = sum_of_warp(y2);
  weights = sum_of_warp(weights);
  if (lane == 0) {
    merged[0] = weighted_nms_moved(kept.x1, x1, weights);
    merged[1] = weighted_nms_moved(kept.y1, y1, weights);
    merged[2] = weighted_nms_moved(kept.x2, x2, weights);
    merged[3] = weighted_nms_moved(kept.y2, y2, weights);
  }
}

// One warp per kept box, its lanes over all boxes.
template <class A, bool by_variance>
__global__ void __launch_bounds__(kWeightedNmsThreads, kWeightedNmsBlocksPerSm)
    weighted_nms_vote_kernel(WeightedNmsVoteParams<A> params) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kWeightedNmsThreads + threadIdx.x) / kWarp;
  if (row >= params.slots) return;  // the whole warp
  const int64_t k = params.keep[row];
  A* const voted = params.voted + 4 * row;
  if (k < 0 || k >= params.count) {  // Edge: an index of nothing gives zeros
    if (lane < 4) voted[lane] = A(0);
    return;
  }
  const BoxReader<A> boxes(params.boxes);
  const Box<A> kept = boxes(k);
  const A kept_score = params.scores[k];
  const int64_t kept_class = params.classes != nullptr ? params.classes[k] : 0;
  const OverlapRule<A> rule = by_variance ? OverlapRule<A>{} : params.overlap;
  A differences[4] = {}, weights[4] = {};  // weights[0] is that of all coordinates, without variances
  const int64_t voters = kept_score == kept_score ? params.count : 0;  // Edge: a box with a NaN score stays as it is
  for (int64_t j = lane; j < voters; j += kWarp) {
    const Box<A> box = boxes(j);
    const A overlap = overlap_weight(kept, box, rule);
    if (!(overlap > A(0)) || j == k || (params.classes != nullptr && params.classes[j] != kept_class)) continue;
    const A score = params.scores[j];
    const A apart[4] = {box.x1 - kept.x1, box.y1 - kept.y1, box.x2 - kept.x2, box.y2 - kept.y2};
    if (by_variance) {
      if (!(score == score)) continue;
      const A weight = weighted_nms_vote_weight(overlap, params.sigma_t);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const A vote = weighted_nms_vote_of(weight, params.variances[4 * j + c]);
        differences[c] += vote * apart[c];
        weights[c] += vote;
      }
    } else {
      if (!(overlap > params.threshold) || !weighted_nms_ranked_after(score, j, kept_score, k)) continue;
      const A weight = score * overlap;
#pragma unroll
      for (int c = 0; c < 4; ++c) differences[c] += weight * apart[c];
      weights[0] += weight;
    }
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const A difference = sum_of_warp(differences[c]);
    const A weight = sum_of_warp(weights[by_variance ? c : 0]);
    const A coordinate = c == 0 ? kept.x1 : c == 1 ? kept.y1 : c == 2 ? kept.x2 : kept.y2;
    const A own = by_variance ? weighted_nms_vote_of(A(1), params.variances[4 * k + c]) : kept_score;
    if (lane == 0) voted[c] = weighted_nms_moved(coordinate, difference, weight + own);
  }
}

// A block has 32 boxes, one per lane; its warps share the kept ones.
template <class A>
__global__ void __launch_bounds__(kWeightedNmsThreads, kWeightedNmsBlocksPerSm)
    weighted_nms_penalty_kernel(WeightedNmsPenaltyParams<A> params) {
  constexpr int kWarps = kWeightedNmsThreads / kWarp;
  struct Shared {
    A squares[kWarps][kWarp];
  };
  auto& shared = static_shared<Shared>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const bool present = place < params.count;
  const int64_t j = present ? place : 0;
  const BoxReader<A> boxes(params.boxes);
  const Box<A> box = boxes(j);
  const A score = params.scores[j];
  const int64_t its_class = params.classes != nullptr ? params.classes[j] : 0;
  A squares = A(0);
  for (int64_t row = warp; row < params.slots; row += kWarps) {
    const int64_t k = params.keep[row];
    if (k < 0 || k >= params.count) continue;
    const A overlap = overlap_weight(boxes(k), box, params.overlap);
    if (!(overlap > A(0)) || (params.classes != nullptr && params.classes[k] != its_class)) continue;
    if (weighted_nms_ranked_after(score, j, params.scores[k], k)) squares += overlap * overlap;
  }
  shared.squares[warp][lane] = squares;
  __syncthreads();
  if (warp != 0 || !present) return;
  for (int other = 1; other < kWarps; ++other) squares += shared.squares[other][lane];
  params.new_scores[j] = weighted_nms_penalised(score, squares, params.sigma);
}

// Blocks that have a warp for each of so many results.
CVK_HD int64_t blocks_of(int64_t warps) { return ceil_div<int64_t>(warps, kWeightedNmsThreads / kWarp); }

}  // namespace

template <class A>
CudaStatus weighted_nms_merge_cuda(const WeightedNmsMergeParams<A>& params, const int64_t* grouped, CudaStream stream) {
  const int64_t blocks = blocks_of(params.batch * params.slots);
  if (blocks > 0x7fffffffLL) return static_cast<CudaStatus>(cudaErrorInvalidConfiguration);
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kWeightedNmsThreads)};
  return static_cast<CudaStatus>(launch(weighted_nms_merge_kernel<A>, config, stream, params, grouped));
}

template <class A>
CudaStatus weighted_nms_vote_cuda(const WeightedNmsVoteParams<A>& params, CudaStream stream) {
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks_of(params.slots))), dim3(kWeightedNmsThreads)};
  return static_cast<CudaStatus>(params.variances != nullptr
                                     ? launch(weighted_nms_vote_kernel<A, true>, config, stream, params)
                                     : launch(weighted_nms_vote_kernel<A, false>, config, stream, params));
}

template <class A>
CudaStatus weighted_nms_penalty_cuda(const WeightedNmsPenaltyParams<A>& params, CudaStream stream) {
  const LaunchConfig config{dim3(static_cast<unsigned>(ceil_div<int64_t>(params.count, kWarp))),
                            dim3(kWeightedNmsThreads)};
  return static_cast<CudaStatus>(launch(weighted_nms_penalty_kernel<A>, config, stream, params));
}

template CudaStatus weighted_nms_merge_cuda<float>(const WeightedNmsMergeParams<float>&, const int64_t*, CudaStream);
template CudaStatus weighted_nms_merge_cuda<double>(const WeightedNmsMergeParams<double>&, const int64_t*, CudaStream);
template CudaStatus weighted_nms_vote_cuda<float>(const WeightedNmsVoteParams<float>&, CudaStream);
template CudaStatus weighted_nms_vote_cuda<double>(const WeightedNmsVoteParams<double>&, CudaStream);
template CudaStatus weighted_nms_penalty_cuda<float>(const WeightedNmsPenaltyParams<float>&, CudaStream);
template CudaStatus weighted_nms_penalty_cuda<double>(const WeightedNmsPenaltyParams<double>&, CudaStream);

}  // namespace cvk
