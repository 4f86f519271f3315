// Transposed 2-D convolution: the gradient of a convolution with respect to its input, as an operator of its own.
//
// Computes   output[n, c, y, x] = bias[c] + sum over o, i, j of weight[o, c, i, j] * input[n, o, v, u], for all kernel elements
//            (i, j) and whole (v, u) with v stride_y + i dilation_y = y + pad_top and u stride_x + j dilation_x = x + pad_left.
//            Within a group: o and c run over those of the group.
//            The shape is that of the convolution it transposes: input has the filters O and OH x OW, output the channels C and
//            H x W, so weight is [O, C / groups, KH, KW] as torch has it for both.
// Edges      As conv2d: a position outside the input counts as 0 and is multiplied all the same in some paths. Output pixels
//            that no kernel element reaches (stride above the kernel, output_padding) are the bias.
// CPU, CUDA  Output pixels fall into stride_y x stride_x phases, by remainder; in each the kernel elements that reach it are a
//            small dense convolution (common/conv_shape.h). No zeros are inserted, no columns are scattered. The rest is as in
//            conv2d.h, which also has Winograd's form, Traffic, Bound and Determinism.
// Limits     As conv2d.
// Source     Dumoulin and Visin 2016 (arithmetic of transposed convolution); torch.nn.functional.conv_transpose2d.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/conv_shape.h"
#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "kernels/conv_transpose2d/conv_transpose2d_math.h"
#include "kernels/conv_transpose2d/conv_transpose2d_tuning.h"

namespace cvk {

template <class T>
struct ConvTranspose2dParams {
  ConvShape shape;  // of the convolution that is transposed
  const T* input;   // [N, O, OH, OW]
  const T* weight;  // [O, C / groups, KH, KW]
  const T* bias;    // [C] or null
  T* output;        // [N, C, H, W]
  ConvCut cut;      // CPU only
  bool tf32;        // CUDA only: float32 factors may be rounded to TF32
};

template <Isa isa, class T>
int64_t conv_transpose2d_items_cpu(ConvTranspose2dParams<T>& params, int threads);
template <Isa isa, class T>
void conv_transpose2d_cpu(const ConvTranspose2dParams<T>& params, int64_t first, int64_t last);

// Bytes of device scratch.
template <class T>
int64_t conv_transpose2d_scratch_cuda(const ConvTranspose2dParams<T>& params);
template <class T>
CudaStatus conv_transpose2d_cuda(const ConvTranspose2dParams<T>& params, void* scratch, CudaStream stream);

}  // namespace cvk
