// Rotated RoI Align (Ma et al. 2017; edge rules of mmcv and Detectron2).
//
// Computes   output[k, c, i, j] = mean over the samples s of bin (i, j) of box k of bilinear(input[b_k, c], s). Row k is
//            [batch index, centre x, centre y, width, height, angle]; the bins and their samples are RoI Align's, laid about
//            the centre and turned by the angle.
// Edges      A sample at (v, u) from the centre, v along the height and u along the width, lies at y = v cos - u sin + centre
//            y, x = v sin + u cos + centre x. y points down, so a positive angle turns counter-clockwise; clockwise = true
//            negates it.
//            aligned = false: a box is at least 1 pixel wide and high, about its centre, which is not shifted by half a pixel.
//            sampling_ratio <= 0: ceil(side / bins) samples per bin and axis, at most kRoiMaxGrid.
//            A sample outside [-1, H] x [-1, W] reads 0 and counts in the mean. A bin without samples is 0.
//            A box with a number that is not finite or an angle beyond kMostAngle gives zeros.
//            A batch index outside [0, N): CPU, layout reports the row and the binding raises; CUDA, zeros.
// CPU        Plan first: each bin as runs of neighbouring pixels with their weights, samples merged. Then the passes of the
//            family (common/roi_passes.h), SIMD along channels.
// CUDA       Forward: lanes along channels, samples of the bins in shared memory. Backward: a block owns a tile of pixels and
//            32 channels; its warps share out the boxes that reach it, and add by samples.
// Traffic    input once + output once (+ the plan, 5 to 15 KB a box of 49 bins); CPU NCHW adds a cache-resident copy of the input.
// Bound      max(bytes / memory bandwidth, 2 * pixels * C * bins / FMA rate); 8 to 16 pixels per bin at sampling_ratio 2.
// Determinism forward and backward, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Limits     C, H, W, bins < 2^31, pixels of all bins of a box < 2^30 (CPU); K * C * bins and N * C * H * W up to 2^63 elements.
// Source     arXiv 1703.01086; mmcv.ops.roi_align_rotated for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/roi_geometry.h"
#include "common/roi_plan.h"
#include "kernels/roi_align_rotated/roi_align_rotated_tuning.h"

namespace cvk {

template <class T>
struct RoiAlignRotatedParams {
  RoiShape shape;
  bool clockwise;
  const T* input;        // [N, C, H, W]       forward
  const Acc<T>* boxes;   // [K, 6]
  T* output;             // [K, C, PH, PW]     forward
  const T* grad_output;  // [K, C, PH, PW]     backward
  T* grad_input;         // [N, C, H, W]       backward; fully overwritten
  RoiPlan plan;          // CPU only
};

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), forward or backward (slices of work items).

// As roi_layout (common/roi_plan.h).
template <Isa isa, class T>
int64_t roi_align_rotated_layout_cpu(RoiAlignRotatedParams<T>& params);

template <Isa isa, class T>
void roi_align_rotated_plan_cpu(const RoiAlignRotatedParams<T>& params, int64_t first, int64_t last);

// Chooses how to cut the work; returns the number of work items.
template <Isa isa, class T>
int64_t roi_align_rotated_forward_items_cpu(RoiAlignRotatedParams<T>& params);
template <Isa isa, class T>
void roi_align_rotated_forward_cpu(const RoiAlignRotatedParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t roi_align_rotated_backward_items_cpu(const RoiAlignRotatedParams<T>& params);
template <Isa isa, class T>
void roi_align_rotated_backward_cpu(const RoiAlignRotatedParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. Both passes overwrite their output completely, never synchronise and use no atomics.

// Bytes of device scratch that the forward pass wants (a channels-last copy of a contiguous input; 0 for NHWC or few boxes).
template <class T>
int64_t roi_align_rotated_forward_scratch_cuda(const RoiAlignRotatedParams<T>& params);
template <class T>
CudaStatus roi_align_rotated_forward_cuda(const RoiAlignRotatedParams<T>& params, void* scratch, CudaStream stream);
template <class T>
CudaStatus roi_align_rotated_backward_cuda(const RoiAlignRotatedParams<T>& params, CudaStream stream);

}  // namespace cvk
