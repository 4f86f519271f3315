// Position-sensitive RoI Align (R-FCN's pooling with the samples of RoI Align).
//
// Computes   output[k, o, i, j] = mean over the samples s of bin (i, j) of box k of bilinear(input[b_k, (o * PH + i) * PW + j], s).
//            Box row k is [batch index, x1, y1, x2, y2].
// Edges      Samples are those of RoI Align with aligned = true (common/roi_geometry.h): coordinates are shifted by half a pixel,
//            a box may be narrower than a pixel. The bilinear rule is the family's (common/bilinear.h).
//            sampling_ratio <= 0: ceil(box / bins) samples per bin and axis, at most kRoiMaxGrid.
//            A bin without samples (an adaptive grid over a box of no size) is 0; torchvision divides by zero there: NaN.
//            NaN coordinates are outside. The channels are a multiple of PH * PW, or the call is refused.
//            A batch index outside [0, N): CPU, layout reports the row and the binding raises; CUDA, zeros.
// CPU        Plan first: the merged taps of every box and axis. Forward on NCHW: a work item owns one bin of one image and up to 16
//            output channels, whose planes stay in L2 while the boxes pass by; on NHWC it owns a box. Backward: a work item owns
//            four planes of one bin (NHWC: 16 channels) and a band of rows. No SIMD: neighbouring values read different planes.
// CUDA       Forward: a block owns a box, its taps in shared memory, and its values in the order of memory. Backward: a block owns a
//            tile of pixels and 32 channels; its warps share out the boxes that reach it, and their sums are added in order.
// Traffic    input once + output once: output has as many values of a box as the input has channels.
// Bound      max(bytes / memory bandwidth, taps * C * K / load rate of the cache).
// Determinism forward and backward, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Limits     C, H, W, bins < 2^31, samples of a box along an axis < 2^30 (CPU); K * C and N * C * H * W up to 2^63 elements.
// Source     arXiv 1605.06409; torchvision.ops.ps_roi_align for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/isa.h"
#include "common/position_sensitive.h"

namespace cvk {

template <class T>
using PsRoiAlignParams = PositionSensitiveParams<T>;  // shape.aligned is true

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), forward or backward (slices of work items).

// As roi_layout (common/roi_plan.h); a box may not have 2^30 samples along an axis.
template <Isa isa, class T>
int64_t ps_roi_align_layout_cpu(PsRoiAlignParams<T>& params);

template <Isa isa, class T>
void ps_roi_align_plan_cpu(const PsRoiAlignParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t ps_roi_align_forward_items_cpu(const PsRoiAlignParams<T>& params);
template <Isa isa, class T>
void ps_roi_align_forward_cpu(const PsRoiAlignParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t ps_roi_align_backward_items_cpu(const PsRoiAlignParams<T>& params);
template <Isa isa, class T>
void ps_roi_align_backward_cpu(const PsRoiAlignParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. Both passes overwrite their output completely, never synchronise and use no atomics.

template <class T>
CudaStatus ps_roi_align_forward_cuda(const PsRoiAlignParams<T>& params, CudaStream stream);
template <class T>
CudaStatus ps_roi_align_backward_cuda(const PsRoiAlignParams<T>& params, CudaStream stream);

}  // namespace cvk
