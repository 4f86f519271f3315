// Deformable RoI pooling (Dai et al. 2017; edge rules of mmcv). Without offsets it is RoI Align, aligned, and runs as that.
//
// Computes   output[k, c, i, j] = mean over the samples s of bin (i, j) of box k of bilinear(input[b_k, c], s). Row k is [batch
//            index, x1, y1, x2, y2]; bins and samples are RoI Align's, but each bin is shifted by
//            gamma * (width * offset[k, 0, i, j], height * offset[k, 1, i, j]) pixels, width and height those of the box.
// Edges      Coordinates are shifted by half a pixel, and a box has no least size.
//            sampling_ratio <= 0: ceil(box / bins) samples per bin and axis, at most kRoiMaxGrid.
//            A sample outside [-1, H] x [-1, W] reads 0 and counts in the mean; NaN is outside. A bin without samples is 0.
//            Derivative with respect to an offset: that of the mean as it is computed, so 0 in a coordinate that is clamped
//            (below 0, and from the last pixel's centre on), and to the right at a pixel's centre. mmcv differentiates its
//            bilinear rule with the coordinate not clamped, and there gives other numbers within a pixel of the rim.
//            A bin that reads nothing passes no gradient on, whatever the size of the box.
//            A batch index outside [0, N): CPU, layout reports the row and the binding raises; CUDA, zeros.
// CPU        Plan first: each bin's own taps along both axes, merged. Then the passes of the family (common/roi_passes.h). The
//            offsets' gradient is cut as the forward pass, with the sums of each tile of channels added up in order.
// CUDA       Forward: lanes along channels, samples of the bins in shared memory. Gradient of the input: a first kernel finds how
//            far each box's bins reach, then warps of a tile's block share out its boxes, and add by samples. Gradient of
//            the offsets: a warp per bin, lanes along channels.
// Traffic    input once + output once (+ the plan, 4 to 8 KB a box of 49 bins); CPU NCHW adds a cache-resident copy of the input.
// Bound      max(bytes / memory bandwidth, 2 * taps * C * bins / FMA rate); 4 to 16 taps per bin at sampling_ratio 2. The offsets'
//            gradient takes as much again.
// Determinism forward and backward, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Limits     C, H, W, bins < 2^31, samples of all bins of a box along an axis < 2^30 (CPU); K * C * bins and N * C * H * W up to
//            2^63 elements.
// Source     arXiv 1703.06211; mmcv.ops.deform_roi_pool for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/roi_geometry.h"
#include "common/roi_plan.h"
#include "kernels/deform_roi_pool/deform_roi_pool_tuning.h"

namespace cvk {

template <class T>
struct DeformRoiPoolParams {
  RoiShape shape;
  double gamma;
  const T* input;        // [N, C, H, W]       forward, and backward to the offsets
  const Acc<T>* boxes;   // [K, 5]
  const Acc<T>* offset;  // [K, 2, PH, PW]     x first
  T* output;             // [K, C, PH, PW]     forward
  const T* grad_output;  // [K, C, PH, PW]     backward
  T* grad_input;         // [N, C, H, W]       backward; fully overwritten
  Acc<T>* grad_offset;   // [K, 2, PH, PW]     backward to the offsets; fully overwritten
  Acc<T>* sums;          // [K, parts, 2, PH, PW]  backward to the offsets, CPU only: scratch
  int64_t parts;         // of a box
  RoiPlan plan;          // CPU only
};

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), then a pass (slices of work items).

// As roi_layout (common/roi_plan.h). `slopes`: for the pass backward to the offsets.
template <Isa isa, class T>
int64_t deform_roi_pool_layout_cpu(DeformRoiPoolParams<T>& params, bool slopes);

template <Isa isa, class T>
void deform_roi_pool_plan_cpu(const DeformRoiPoolParams<T>& params, bool slopes, int64_t first, int64_t last);

// Chooses how to cut the work; returns the number of work items.
template <Isa isa, class T>
int64_t deform_roi_pool_forward_items_cpu(DeformRoiPoolParams<T>& params);
template <Isa isa, class T>
void deform_roi_pool_forward_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t deform_roi_pool_backward_items_cpu(const DeformRoiPoolParams<T>& params);
template <Isa isa, class T>
void deform_roi_pool_backward_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last);

// Backward to the offsets: the items, which also set `parts`, leave sums; slices of boxes finish them.
template <Isa isa, class T>
int64_t deform_roi_pool_offset_items_cpu(DeformRoiPoolParams<T>& params);
template <Isa isa, class T>
void deform_roi_pool_offset_sums_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last);
template <Isa isa, class T>
void deform_roi_pool_offset_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. All passes overwrite their output completely, never synchronise and use no atomics. Each has device scratch, its
// bytes in its _scratch_ function: a channels-last copy of a contiguous input, or the boxes' reach.

template <class T>
int64_t deform_roi_pool_forward_scratch_cuda(const DeformRoiPoolParams<T>& params);
template <class T>
CudaStatus deform_roi_pool_forward_cuda(const DeformRoiPoolParams<T>& params, void* scratch, CudaStream stream);

template <class T>
int64_t deform_roi_pool_backward_scratch_cuda(const DeformRoiPoolParams<T>& params);
template <class T>
CudaStatus deform_roi_pool_backward_cuda(const DeformRoiPoolParams<T>& params, void* scratch, CudaStream stream);

template <class T>
int64_t deform_roi_pool_offset_scratch_cuda(const DeformRoiPoolParams<T>& params);
template <class T>
CudaStatus deform_roi_pool_offset_cuda(const DeformRoiPoolParams<T>& params, void* scratch, CudaStream stream);

}  // namespace cvk
