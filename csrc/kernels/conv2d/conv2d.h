// 2-D convolution (cross-correlation), its gradient with respect to the weights, and what else of it is not a transposition.
//
// Computes   output[n, o, y, x] = act(bias[o] + sum over c, i, j of weight[o, c, i, j] *
//            input[n, g(o) C/groups + c, y stride_y - pad_top + i dilation_y, x stride_x - pad_left + j dilation_x]).
//            grad_weight[o, c, i, j] = sum over n, y, x of grad_output[n, o, y, x] * that element of input.
//            act: none, relu, silu, gelu (erf) or gelu_tanh.
// Edges      A tap outside the input counts as 0. It is multiplied all the same in some paths, so an infinite or NaN weight
//            may, or may not, make the result NaN there (torch's backends differ in this as well), and an element of grad_output
//            the weight's gradient.
//            Input of no images or channels: output = act(bias), grad_weight = 0. All sums from zero, then bias, then act.
//            act of NaN is NaN.
// CPU        The matrix engine (gemm/README.md): maps are gathered block by block, the column matrix never exists. Channels-last
//            maps: pixels are rows of the product; planes: pixels are its columns. Weights are packed block by block as well, so
//            nothing is cached from call to call. A filter for each channel: gemm/depthwise_cpu.h. 3 x 3 taps of stride 1 and
//            32 channels, not in float64: gemm/winograd_cpu.h where that pays; the gradient of their weights from 16 channels on:
//            gemm/winograd_weight_cpu.h. In float32 or float64, 1 x 1 over planes:
//            gemm/plane_map_cpu.h and gemm/plane_weight_cpu.h; few pixels: gemm/small_map_cpu.h. Eight pixels in all or fewer:
//            gemm/few_pixels_cpu.h. Few channels: gemm/thin_map_cpu.h; in groups: gemm/grouped_cpu.h and
//            gemm/grouped_weight_cpu.h. bfloat16 with AVX512_BF16 or AMX: gemm/pairs_cpu.h and gemm/tiles_cpu.h, which take
//            numbers below 2^-126 for 0.
// CUDA       gemm/gemm_mma.cuh: a tiled product on tensor cores with the gather in its copies. float32 as three products of TF32
//            numbers, within float32's rounding, or one where `tf32` allows it. Few columns or little depth:
//            gemm/gemm_cuda.cuh, plain multiply-adds. A filter for each channel: a thread for each result.
// Traffic    input, weight and output once; per thread less than 4 MiB of scratch on the CPU, 6 if results are not finite.
// Bound      max(bytes / memory bandwidth, 2 N O OH OW C/groups KH KW / FMA rate); in Winograd's form 4/9 of the products.
// Determinism bitwise but for the sign of NaN, for any number of threads: the order of a sum depends on the shape alone (CUDA: and
//            on whether the GPU has warpgroup products); no atomics.
//            On that of one image, but for a 1 x 1 kernel over eight pixels in all or fewer (CPU).
// Limits     H, W, OH, OW, KH, KW < 2^31, padded sizes too; N * C * H * W and N * O * OH * OW up to 2^63 elements.
// Source     Chellapilla et al. 2006 (convolution as a product), Goto and van de Geijn 2008 (blocking); semantics of
//            torch.nn.functional.conv2d.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/conv_shape.h"
#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "kernels/conv2d/conv2d_math.h"
#include "kernels/conv2d/conv2d_tuning.h"

namespace cvk {

template <class T>
struct Conv2dParams {
  ConvShape shape;
  const T* input;         // [N, C, H, W]
  const T* weight;        // [O, C / groups, KH, KW]       forward
  const T* bias;          // [O] or null                   forward
  Activation activation;  //                               forward
  T* output;              // [N, O, OH, OW]                forward
  const T* grad_output;   // [N, O, OH, OW]                weight gradient
  T* grad_weight;         // [O, C / groups, KH, KW]       weight gradient; fully overwritten
  Acc<T>* partials;       // [parts, O * C / groups * KH * KW]    weight gradient, CPU; null for one part
  ConvCut cut;            // CPU only
  bool tf32;              // CUDA only: float32 factors may be rounded to TF32
};

// ---- CPU: items (once), then slices of the work items [0, items).

template <Isa isa, class T>
int64_t conv2d_forward_items_cpu(Conv2dParams<T>& params, int threads);
template <Isa isa, class T>
void conv2d_forward_cpu(const Conv2dParams<T>& params, int64_t first, int64_t last);

// Sets params.cut; with cut.parts > 1 the caller allocates partials and sums them afterwards, in slices of the weights.
template <Isa isa, class T>
int64_t conv2d_weight_items_cpu(Conv2dParams<T>& params);
template <Isa isa, class T>
void conv2d_weight_cpu(const Conv2dParams<T>& params, int64_t first, int64_t last);
template <Isa isa, class T>
void conv2d_weight_sum_cpu(const Conv2dParams<T>& params, int64_t first, int64_t last);

// ---- CUDA. Both passes overwrite their result completely, never synchronise and use no atomics.

// Bytes of device scratch: a channels-last copy of planes, weights in the order of the depth, parts of sums.
template <class T>
int64_t conv2d_forward_scratch_cuda(const Conv2dParams<T>& params);
template <class T>
CudaStatus conv2d_forward_cuda(const Conv2dParams<T>& params, void* scratch, CudaStream stream);
template <class T>
int64_t conv2d_weight_scratch_cuda(const Conv2dParams<T>& params);
template <class T>
CudaStatus conv2d_weight_cuda(const Conv2dParams<T>& params, void* scratch, CudaStream stream);

}  // namespace cvk
