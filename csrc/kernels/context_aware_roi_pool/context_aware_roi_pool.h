// Context-aware RoI Pool (Hu et al. 2019, SINet): RoI Pool in which a box smaller than its grid is enlarged by a deconvolution with a
// bilinear kernel, where RoI Pool would repeat its pixels.
//
// Computes   Box k is rounded to pixels as in RoI Pool (roi_pool.h). Along an axis let it have n pixels and p bins.
//            n >= p: its cells are its pixels. n < p: it is enlarged by the whole number s = ceil(p / n), so that it has s * n >= p
//            cells: a transposed convolution of stride s with the bilinear kernel of 2 * s - s % 2 taps. Cell g of the axis (pixel y
//            has cells s * y ... s * y + s - 1) interpolates at (g + 0.5) / s - 0.5 between the centres of pixels; the outermost of
//            the pixels that the box has on the map continue beyond its rim, so that a constant stays constant.
//            output[k, c, i, j] = the maximum of the cells of bin (i, j); argmax says which. Each axis goes by itself: a box may be
//            enlarged along one and only divided along the other.
//            Bin i of the m cells of an axis is [floor(i * m/p), ceil((i+1) * m/p)), cut at the rim of the map, as in RoI Pool.
// Edges      All of RoI Pool's: rounding, empty bins (0 and argmax -1), boxes that are not finite, bad batch indices. A box that is
//            enlarged along no axis gives RoI Pool's bits and its argmax, the flat index y * W + x; of one that is, argmax is the
//            number of the cell within its bin, in row order.
//            Of equal maxima the first in row order wins; NaN is greater than numbers, and the first NaN wins. A pixel of weight 0
//            is not read, so that NaN and infinities do not reach beyond the cells that they have a part in.
//            The authors' own layer resizes bilinearly to exactly p cells and pools no further; the two are the same where p is a
//            multiple of n, and along an axis where n >= p.
// CPU        The passes of the family (common/roi_passes.h): tiles of channels carried through a channels-last scratch (NCHW) or read
//            in place (NHWC), value and index in vector registers; backward by image, tile of channels and band of rows.
// CUDA       RoI Pool's kernels (common/roi_max.cuh) on enlarged axes.
// Traffic    input once + output and argmax once; CPU NCHW adds a cache-resident copy of the input. argmax takes 16 bits where every
//            index fits, and without a gradient to come none is written.
// Bound      max(bytes / memory bandwidth, 3 * pixels of all bins * C / vector rate), of enlarged boxes 4 to 36 multiply-adds a bin.
// Determinism forward and backward, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Limits     3 * H * W < 2^31 (argmax of 32 bits) or < 2^15 (of 16); C, bins < 2^31; K * C * bins and N * C * H * W
//            up to 2^63.
// Source     arXiv 1804.00433, section III-A.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/roi_geometry.h"
#include "common/roi_indices.h"
#include "common/roi_plan.h"

namespace cvk {

template <class T>
struct ContextAwareRoiPoolParams {
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

// Indices that there are for each pixel of the map: a bin along an enlarged axis has up to three cells.
constexpr int64_t kContextAwareIndicesPerPixel = 3;

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), forward or backward (slices of work items).

// As roi_layout (common/roi_plan.h).
template <Isa isa, class T>
int64_t context_aware_roi_pool_layout_cpu(ContextAwareRoiPoolParams<T>& params);

template <Isa isa, class T>
void context_aware_roi_pool_plan_cpu(const ContextAwareRoiPoolParams<T>& params, int64_t first, int64_t last);

// Chooses how to cut the work; returns the number of work items.
template <Isa isa, class T>
int64_t context_aware_roi_pool_forward_items_cpu(ContextAwareRoiPoolParams<T>& params);
template <Isa isa, class T>
void context_aware_roi_pool_forward_cpu(const ContextAwareRoiPoolParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t context_aware_roi_pool_backward_items_cpu(const ContextAwareRoiPoolParams<T>& params);
template <Isa isa, class T>
void context_aware_roi_pool_backward_cpu(const ContextAwareRoiPoolParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. Both passes overwrite their results completely, never synchronise and use no atomics.

// Bytes of device scratch that the forward pass wants (a channels-last copy of a contiguous input; 0 for NHWC or few boxes).
template <class T>
int64_t context_aware_roi_pool_forward_scratch_cuda(const ContextAwareRoiPoolParams<T>& params);
template <class T>
CudaStatus context_aware_roi_pool_forward_cuda(const ContextAwareRoiPoolParams<T>& params, void* scratch,
                                               CudaStream stream);
template <class T>
CudaStatus context_aware_roi_pool_backward_cuda(const ContextAwareRoiPoolParams<T>& params, CudaStream stream);

}  // namespace cvk
