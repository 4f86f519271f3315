// RoI Pool (Girshick 2015, Fast R-CNN).
//
// Computes   output[k, c, i, j] = the maximum of input[b_k, c] over the pixels of bin (i, j) of box k, and argmax, the flat index
//            y * W + x of that pixel. Box row k is [batch index, x1, y1, x2, y2].
// Edges      Corners are multiplied by spatial_scale and rounded, halves away from zero; both corner pixels belong to the box,
//            which is at least 1 pixel wide and high. Bin i of n pixels in p bins is [floor(i * n/p), ceil((i+1) * n/p)): bins
//            may overlap, and a box smaller than the grid repeats its pixels. Arithmetic in Acc<T>, as in torchvision.
//            Bins are cut at the rim of the map; one that is empty then is 0, argmax -1.
//            Of equal maxima the first in row order wins. NaN is greater than numbers, as in torch.max, and the first NaN wins;
//            torchvision skips NaN. A bin of -inf gives -inf (torchvision: the lowest float32).
//            A box with a coordinate that is not finite, once scaled, is empty. Beyond +-2^31 rounded coordinates are clamped.
//            A batch index outside [0, N): CPU, layout reports the row and the binding raises; CUDA, zeros and argmax -1.
// CPU        Forward on NCHW carries tiles of channels through a channels-last scratch (common/roi_passes.h), on NHWC reads in
//            place; value and index stay in vector registers. Backward: a work item owns one image, one tile of channels and a
//            band of rows, and adds in the order of boxes and bins.
// CUDA       Forward: lanes along channels, the ranges of the bins in shared memory. Backward: a block owns a tile of pixels and
//            32 channels; its warps share out the boxes that reach it, and their sums are added in order.
// Traffic    input once + output and argmax once; CPU NCHW adds a cache-resident copy of the input. argmax takes 16 bits where every
//            index fits, and without a gradient to come none is written.
// Bound      max(bytes / memory bandwidth, 3 * pixels of all bins * C / vector rate): on the CPU the results' bytes.
// Determinism forward and backward, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Limits     H * W < 2^31 (argmax of 32 bits, as torchvision's) or < 2^15 (of 16); C, bins < 2^31; K * C * bins and
//            N * C * H * W up to 2^63.
// Source     arXiv 1504.08083; torchvision.ops.roi_pool for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/numeric.h"
#include "common/roi_geometry.h"
#include "common/roi_indices.h"
#include "common/roi_plan.h"
#include "kernels/roi_pool/roi_pool_tuning.h"

namespace cvk {

template <class T>
struct RoiPoolParams {
  RoiShape shape;
  const T* input;                       // [N, C, H, W]           forward
  const Acc<T>* boxes;                  // [K, 5]
  T* output;                            // [K, C, PH, PW]         forward
  RoiIndices<void> argmax;              // [K, C, PH, PW]         forward; null: not wanted
  const T* grad_output;                 // [K, C, PH, PW]         backward
  RoiIndices<const void> saved_argmax;  // [K, C, PH, PW]         backward
  T* grad_input;                        // [N, C, H, W]           backward; fully overwritten
  RoiPlan plan;                         // CPU only
};

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), forward or backward (slices of work items).

// As roi_layout (common/roi_plan.h).
template <Isa isa, class T>
int64_t roi_pool_layout_cpu(RoiPoolParams<T>& params);

template <Isa isa, class T>
void roi_pool_plan_cpu(const RoiPoolParams<T>& params, int64_t first, int64_t last);

// Chooses how to cut the work; returns the number of work items.
template <Isa isa, class T>
int64_t roi_pool_forward_items_cpu(RoiPoolParams<T>& params);
template <Isa isa, class T>
void roi_pool_forward_cpu(const RoiPoolParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t roi_pool_backward_items_cpu(const RoiPoolParams<T>& params);
template <Isa isa, class T>
void roi_pool_backward_cpu(const RoiPoolParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. Both passes overwrite their results completely, never synchronise and use no atomics.

// Bytes of device scratch that the forward pass wants (a channels-last copy of a contiguous input; 0 for NHWC or few boxes).
template <class T>
int64_t roi_pool_forward_scratch_cuda(const RoiPoolParams<T>& params);
template <class T>
CudaStatus roi_pool_forward_cuda(const RoiPoolParams<T>& params, void* scratch, CudaStream stream);
template <class T>
CudaStatus roi_pool_backward_cuda(const RoiPoolParams<T>& params, CudaStream stream);

}  // namespace cvk
