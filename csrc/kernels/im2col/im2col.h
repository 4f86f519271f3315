// im2col and its adjoint: the explicit column matrix of a convolution.
//
// Computes   columns[n, (c KH + i) KW + j, y OW + x] = input[n, c, y stride_y - pad_top + i dilation_y,
//            x stride_x - pad_left + j dilation_x], 0 outside.
//            Adjoint: output[n, c, v, u] = sum of the columns that read that pixel, over i, then j, ascending.
// Edges      Columns are contiguous. The map may be channels-last for im2col; the adjoint's is contiguous. A pixel that no
//            column reads is 0. Half formats add in float32 and round once.
// CPU        im2col: an item is a row of output pixels of a plane (of all channels where the map is channels-last, transposed
//            tile by tile). Adjoint: an item is a row of a plane and adds the rows of columns that reach it.
// CUDA       A thread is an element of the result; the adjoint gathers.
// Traffic    input + columns, KH KW times the input; that is its point as a reference and its fault as a method (conv2d.h).
// Bound      bytes / memory bandwidth.
// Determinism bitwise; no atomics.
// Limits     As conv2d; N * C * KH * KW * OH * OW up to 2^63 elements.
// Source     Chellapilla et al. 2006; torch.nn.functional.unfold and fold.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "common/cuda_types.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "kernels/im2col/im2col_math.h"
#include "kernels/im2col/im2col_tuning.h"

namespace cvk {

template <class T>
struct Im2colParams {
  ConvShape shape;  // filters and groups are not used
  const T* from;    // the map [N, C, H, W], or columns [N, C KH KW, OH OW] for the adjoint
  T* to;            // columns, or the map
};

template <class T>
int64_t im2col_items(const Im2colParams<T>& params) {
  const ConvShape& s = params.shape;
  return s.batch * s.out_height * (s.channels_last ? 1 : s.channels * s.kernel_size());
}
template <Isa isa, class T>
void im2col_cpu(const Im2colParams<T>& params, int64_t first, int64_t last);

template <class T>
int64_t im2col_backward_items(const Im2colParams<T>& params) {
  return params.shape.batch * params.shape.channels * params.shape.height;
}
template <Isa isa, class T>
void im2col_backward_cpu(const Im2colParams<T>& params, int64_t first, int64_t last);

template <class T>
CudaStatus im2col_cuda(const Im2colParams<T>& params, CudaStream stream);
template <class T>
CudaStatus im2col_backward_cuda(const Im2colParams<T>& params, CudaStream stream);

}  // namespace cvk
