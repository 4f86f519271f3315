// RoI Align (He et al. 2017, Mask R-CNN; bilinear rule of Detectron).
//
// Computes   output[k, c, i, j] = mean (or max) over the samples s of bin (i, j) of box k of bilinear(input[b_k, c], s).
//            Box row k is [batch index, x1, y1, x2, y2]. The mean's weights are separable, so bin (i, j) is
//            sum_y sum_x wy[i, y] * wx[j, x] * input[b_k, c, y, x].
//            With respect to boxes: each sample's coordinate is linear in them (common/roi_boxes.h).
// Edges      aligned = false: a box is at least 1 pixel wide and high, and coordinates are not shifted by half a pixel.
//            sampling_ratio <= 0: ceil(box / bins) samples per bin and axis, at most kRoiMaxGrid.
//            A sample outside [-1, H] x [-1, W] reads 0 (and takes part in a maximum as 0); NaN coordinates are outside.
//            A bin without samples is 0. Maximum: the first of equal samples wins, NaN wins over numbers (as in torch).
//            Gradient with respect to boxes: of a coordinate at a pixel's centre, the derivative to the right; 0 where the
//            coordinate is clamped, [-1, 0) and [extent - 1, extent]; the number of samples is constant; a box that aligned =
//            false stretches moves with its first corner only; the image index gets 0.
//            A batch index outside [0, N): CPU, layout reports the row and the binding raises; CUDA, zeros.
// Levels     A call may have several maps (common/roi_levels.h), and pools each box from one of them: RoI Align is the case of one,
//            several are those of kernels/multiscale_roi_align. A box of no level reads nothing.
// CPU        Plan first: the merged taps of every box and axis. Boxes are worked on by level and image, and in these neighbours
//            after each other, so that one finds in cache what another read. Forward on NCHW carries tiles of channels through a
//            channels-last scratch, forward on NHWC reads in place; the sum of a bin stays in vector registers. Backward: a work
//            item owns one image, one tile of channels and a band of rows.
// CUDA       All levels in one launch. Forward: lanes along channels, taps of the box in shared memory. Backward: a block owns a tile of pixels
//            and 32 channels; its warps share out the boxes that reach it. Boxes: a block leaves partial sums of a box.
// Traffic    input once + output once (+ the plan, 100 to 500 bytes a box); CPU NCHW adds a cache-resident copy of the input.
// Bound      max(bytes / memory bandwidth, 2 * taps * C * bins / FMA rate); 4 to 16 taps per bin at sampling_ratio 2.
// Determinism forward and backward, CPU and CUDA: bitwise equal for any thread count; no atomics.
// Measured   Stride-4 map of 800 x 1344, 637 boxes, float32 NCHW, one thread of an EPYC 9005: 12 ms with boxes as they came and
//            results through the caches, 10.5 with boxes in Z-order, 6.9 with results past the caches, 5.9 with a transposition
//            that fetches ahead, 5.5 with x taps in registers. Slower: the rows of planes summed in place and only the sums turned
//            (12.2; with permutations in place of turning 7.9: a vector of a row is two cache lines, again for each row of bins);
//            only those parts of the map turned that boxes reach (11.2 in tiles, 6.6 in rows). Tiles of 16 channels: the same.
// Limits     C, H, W, bins < 2^31, samples of a box along an axis < 2^30 (CPU); K * C * bins and N * C * H * W up to 2^63 elements.
// Source     arXiv 1703.06870; torchvision.ops.roi_align and mmcv.ops.roi_align for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/numeric.h"
#include "common/roi_boxes.h"
#include "common/roi_geometry.h"
#include "common/roi_levels.h"
#include "common/roi_plan.h"
#include "kernels/roi_align/roi_align_tuning.h"

namespace cvk {

template <class T>
struct RoiAlignParams {
  RoiShape shape;               // of level 0; see shape_of
  RoiLevels<T> levels;          // the maps and their gradients
  const Acc<T>* boxes;          // [K, 5]
  T* output;                    // [K, C, PH, PW]         forward
  int32_t* argmax;              // [K, C, PH, PW]         maximum: sample index in the bin, -1 for none; else null
  const T* grad_output;         // [K, C, PH, PW]         backward
  const int32_t* saved_argmax;  // [K, C, PH, PW]      backward of the maximum; else null
  RoiPlan plan;                 // CPU only

  CVK_HD bool maximum() const { return argmax != nullptr || saved_argmax != nullptr; }
  CVK_HD RoiShape shape_of(int level) const { return roi_shape_of(shape, levels.maps[level]); }

  // A single map.
  void set_map(const T* input, T* grad_input) {
    levels.count = 1;
    levels.maps[0] = {input, grad_input, shape.height, shape.width, shape.spatial_scale};
  }
  // Pixels of all images and levels.
  CVK_HD int64_t pixels() const {
    int64_t sum = 0;
    for (int level = 0; level < levels.count; ++level) sum += shape_of(level).pixels();
    return shape.batch * sum;
  }
};

// ---- CPU. Order of calls: layout (once, serial), plan (slices of boxes), forward or backward (slices of work items).

// As roi_layout (common/roi_plan.h); a box may not have 2^30 samples along an axis.
template <Isa isa, class T>
int64_t roi_align_layout_cpu(RoiAlignParams<T>& params);

template <Isa isa, class T>
void roi_align_plan_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last);

// Chooses how to cut the work; returns the number of work items.
template <Isa isa, class T>
int64_t roi_align_forward_items_cpu(RoiAlignParams<T>& params);
template <Isa isa, class T>
void roi_align_forward_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t roi_align_backward_items_cpu(const RoiAlignParams<T>& params);
template <Isa isa, class T>
void roi_align_backward_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. Both passes overwrite their output completely, never synchronise and use no atomics.

// Bytes of device scratch that the forward pass wants (a channels-last copy of contiguous maps; 0 for NHWC or few boxes).
template <class T>
int64_t roi_align_forward_scratch_cuda(const RoiAlignParams<T>& params);
template <class T>
CudaStatus roi_align_forward_cuda(const RoiAlignParams<T>& params, void* scratch, CudaStream stream);
template <class T>
CudaStatus roi_align_backward_cuda(const RoiAlignParams<T>& params, CudaStream stream);

// ---- Gradient with respect to the boxes (common/roi_boxes.h), of the mean or, with saved_argmax, of the maximum.

// CPU. Order of calls: layout, which sets `parts`; plan; backward in `items` items; finish in slices of boxes.
template <Isa isa, class T>
int64_t roi_align_boxes_layout_cpu(RoiBoxesParams<T>& params);
template <Isa isa, class T>
void roi_align_boxes_plan_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last);
template <Isa isa, class T>
int64_t roi_align_boxes_items_cpu(RoiBoxesParams<T>& params);
template <Isa isa, class T>
void roi_align_boxes_backward_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last);
template <Isa isa, class T>
void roi_align_boxes_finish_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last);

// CUDA. Scratch: the sums, and the channels-last copy of the input (0 bytes where there is none).
template <class T>
int64_t roi_align_boxes_sums_cuda(const RoiBoxesParams<T>& params);
template <class T>
int64_t roi_align_boxes_copy_cuda(const RoiBoxesParams<T>& params);
template <class T>
CudaStatus roi_align_boxes_backward_cuda(const RoiBoxesParams<T>& params, void* sums, void* copy, CudaStream stream);

}  // namespace cvk
