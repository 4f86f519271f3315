// Precise RoI Pooling (Jiang et al. 2018, IoU-Net).
//
// Computes   output[k, c, i, j] = integral over bin (i, j) of box k of the bilinear interpolation of input[b_k, c], divided by the
//            bin's area. Box row k is [batch index, x1, y1, x2, y2]. The interpolation is a sum of products of one-dimensional
//            kernels, so the integral is sum_y sum_x wy[i, y] * wx[j, x] * input[b_k, c, y, x] with the weights of
//            prroi_pool_math.h: the separable pooling of RoI Align over other taps. The gradients with respect to input and boxes
//            are exact, too: in every cell between pixel centres the integral is that of a linear function.
// Edges      Coordinates are multiplied by spatial_scale and not shifted: whole numbers are pixel centres. Pixels outside the map
//            are 0, so the map fades out over one pixel. A box with x2 <= x1 or y2 <= y1 has no area and gives 0, and no gradient;
//            so does one with NaN, or infinite in the arithmetic type. A bin too small for the arithmetic has the value of its
//            point. The image index gets the gradient 0; one outside [0, N): CPU, layout reports the row and the binding raises;
//            CUDA, zeros.
// CPU        As RoI Align (common/roi_plan.h, roi_passes.h).
// CUDA       Forward: lanes along channels, taps of the box in shared memory. Backward: gathered by tiles of pixels, as RoI
//            Align's. Boxes: a block leaves partial sums of a box (common/roi_boxes.h).
// Traffic    input once + output once (+ the plan, 100 to 500 bytes a box); CPU NCHW adds a cache-resident copy of the input.
// Bound      max(bytes / memory bandwidth, 2 * taps * C * bins / FMA rate); a bin b pixels wide and high has (b + 2)^2 taps at
//            most, one larger than the map no more than the map has pixels.
// Determinism all passes, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Limits     C, H, W, bins < 2^31, pixels of the bins of a box along an axis < 2^30 (CPU); K * C * bins and N * C * H * W up to
//            2^63 elements.
// Source     arXiv 1807.11590; mmcv.ops.prroi_pool for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/roi_boxes.h"
#include "common/roi_geometry.h"
#include "common/roi_plan.h"
#include "kernels/prroi_pool/prroi_pool_tuning.h"

namespace cvk {

template <class T>
struct PrRoIPoolParams {
  RoiShape shape;
  const T* input;        // [N, C, H, W]    forward
  const Acc<T>* boxes;   // [K, 5]
  T* output;             // [K, C, PH, PW]  forward
  const T* grad_output;  // [K, C, PH, PW]  backward
  T* grad_input;         // [N, C, H, W]    backward; fully overwritten
  RoiPlan plan;          // CPU only
};

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), forward or backward (slices of work items).

// As roi_layout (common/roi_plan.h); the bins of a box may not have 2^30 pixels along an axis.
template <Isa isa, class T>
int64_t prroi_pool_layout_cpu(PrRoIPoolParams<T>& params);
template <Isa isa, class T>
void prroi_pool_plan_cpu(const PrRoIPoolParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t prroi_pool_forward_items_cpu(PrRoIPoolParams<T>& params);
template <Isa isa, class T>
void prroi_pool_forward_cpu(const PrRoIPoolParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t prroi_pool_backward_items_cpu(const PrRoIPoolParams<T>& params);
template <Isa isa, class T>
void prroi_pool_backward_cpu(const PrRoIPoolParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. All passes overwrite their output completely, never synchronise and use no atomics.

// Bytes of device scratch that the forward pass wants (a channels-last copy of a contiguous input; 0 for NHWC or few boxes).
template <class T>
int64_t prroi_pool_forward_scratch_cuda(const PrRoIPoolParams<T>& params);
template <class T>
CudaStatus prroi_pool_forward_cuda(const PrRoIPoolParams<T>& params, void* scratch, CudaStream stream);
template <class T>
CudaStatus prroi_pool_backward_cuda(const PrRoIPoolParams<T>& params, CudaStream stream);

// ---- Gradient with respect to the boxes (common/roi_boxes.h).

// CPU. Order of calls: layout, which sets `parts`; plan; backward in `items` items; finish in slices of boxes.
template <Isa isa, class T>
int64_t prroi_pool_boxes_layout_cpu(RoiBoxesParams<T>& params);
template <Isa isa, class T>
void prroi_pool_boxes_plan_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last);
template <Isa isa, class T>
int64_t prroi_pool_boxes_items_cpu(RoiBoxesParams<T>& params);
template <Isa isa, class T>
void prroi_pool_boxes_backward_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last);
template <Isa isa, class T>
void prroi_pool_boxes_finish_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last);

// CUDA. Scratch: the sums, and the channels-last copy of the input (0 bytes where there is none).
template <class T>
int64_t prroi_pool_boxes_sums_cuda(const RoiBoxesParams<T>& params);
template <class T>
int64_t prroi_pool_boxes_copy_cuda(const RoiBoxesParams<T>& params);
template <class T>
CudaStatus prroi_pool_boxes_backward_cuda(const RoiBoxesParams<T>& params, void* sums, void* copy, CudaStream stream);

}  // namespace cvk
