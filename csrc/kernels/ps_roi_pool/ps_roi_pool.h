// Position-sensitive RoI Pool (Dai et al. 2016, R-FCN).
//
// Computes   output[k, o, i, j] = the mean of input[b_k, (o * PH + i) * PW + j] over the pixels of bin (i, j) of box k. Box row k is
//            [batch index, x1, y1, x2, y2].
// Edges      Corners are multiplied by spatial_scale and rounded, halves away from zero; the far corner's pixels do not belong to
//            the box, which is at least 1 pixel wide and high. Bin i of n pixels in p bins is [floor(i * n/p), ceil((i+1) * n/p)):
//            bins may overlap. Arithmetic in Acc<T>, as in torchvision.
//            Bins are cut at the rim of the map, where the last row and column of pixels are never read, as in torchvision and
//            its ancestors; a bin that is empty then is 0.
//            The gradient is the derivative of that; torchvision's backward pass does read the last row and column.
//            The sum runs in row order and is divided by the pixels that are left: torchvision's bits in float32 and float64.
//            A box with a coordinate that is not finite, once scaled, is empty. Beyond +-2^31 rounded coordinates are clamped.
//            The channels are a multiple of PH * PW, or the call is refused.
//            A batch index outside [0, N): CPU, layout reports the row and the binding raises; CUDA, zeros.
// CPU        Forward on NCHW: a work item owns one bin of one image and up to 16 output channels, whose planes stay in L2 while the
//            boxes pass by; on NHWC it owns a box. Backward: a work item owns four planes of one bin (NHWC: 16 channels) and a
//            band of rows. No SIMD: neighbouring values read different planes.
// CUDA       Forward: a block owns a box, its pixels in shared memory, and its values in the order of memory. Backward: a block owns
//            a tile of pixels and 32 channels; its warps share out the boxes that reach it, and their sums are added in order.
// Traffic    input once + output once: output has as many values of a box as the input has channels.
// Bound      max(bytes / memory bandwidth, pixels of a bin * C * K / load rate of the cache).
// Determinism forward and backward, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Limits     C, H, W, bins < 2^31; K * C and N * C * H * W up to 2^63 elements.
// Source     arXiv 1605.06409; torchvision.ops.ps_roi_pool for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/isa.h"
#include "common/position_sensitive.h"

namespace cvk {

template <class T>
using PsRoiPoolParams = PositionSensitiveParams<T>;

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), forward or backward (slices of work items).

// As roi_layout (common/roi_plan.h).
template <Isa isa, class T>
int64_t ps_roi_pool_layout_cpu(PsRoiPoolParams<T>& params);

template <Isa isa, class T>
void ps_roi_pool_plan_cpu(const PsRoiPoolParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t ps_roi_pool_forward_items_cpu(const PsRoiPoolParams<T>& params);
template <Isa isa, class T>
void ps_roi_pool_forward_cpu(const PsRoiPoolParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t ps_roi_pool_backward_items_cpu(const PsRoiPoolParams<T>& params);
template <Isa isa, class T>
void ps_roi_pool_backward_cpu(const PsRoiPoolParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. Both passes overwrite their output completely, never synchronise and use no atomics.

template <class T>
CudaStatus ps_roi_pool_forward_cuda(const PsRoiPoolParams<T>& params, CudaStream stream);
template <class T>
CudaStatus ps_roi_pool_backward_cuda(const PsRoiPoolParams<T>& params, CudaStream stream);

}  // namespace cvk
