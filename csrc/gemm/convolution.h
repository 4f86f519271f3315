// The passes of a convolution, which conv2d and conv_transpose2d share; compiled once, in product_*.* and weight_gradient_*.*.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "common/cuda_types.h"
#include "common/isa.h"
#include "gemm/tapped.h"

namespace cvk {

// ---- CPU. How many work items a pass has, and by what form (kept in `cut`); then slices of them.

template <Isa isa, class T>
int64_t product_items(const TappedProduct<T>& p, int threads, ConvCut& cut);
template <Isa isa, class T>
void product_slice(const TappedProduct<T>& p, const ConvCut& cut, int64_t first, int64_t last);

template <Isa isa, class T>
int64_t weight_gradient_items(const TappedWeightGradient<T>& p, ConvCut& cut);
template <Isa isa, class T>
void weight_gradient_slice(const TappedWeightGradient<T>& p, const ConvCut& cut, int64_t first, int64_t last);
// Sums the parts of weights [first, last), in their order.
template <Isa isa, class T>
void sum_weight_parts(const TappedWeightGradient<T>& p, int64_t parts, int64_t first, int64_t last);

// ---- CUDA. How many bytes of device scratch a pass takes, and the pass; `tf32`: float32 factors may be rounded to TF32.

template <class T>
int64_t product_scratch_cuda(const TappedProduct<T>& p, bool tf32);
template <class T>
CudaStatus product_cuda(const TappedProduct<T>& p, bool tf32, void* scratch, CudaStream stream);

template <class T>
int64_t weight_gradient_scratch_cuda(const TappedWeightGradient<T>& p, bool tf32);
template <class T>
CudaStatus weight_gradient_cuda(const TappedWeightGradient<T>& p, bool tf32, void* scratch, CudaStream stream);

}  // namespace cvk
