// Transposed 2-D convolution on CUDA. Contract and method: conv_transpose2d.h.
#include "kernels/conv_transpose2d/conv_transpose2d.h"

#include "gemm/tapped_cuda.cuh"

namespace cvk {

template <class T>
CudaStatus conv_transpose2d_cuda(const ConvTranspose2dParams<T>& params, CudaStream stream) {
  const TappedProduct<T> product{params.shape,      true,         params.input, params.weight, params.bias,
                                 Activation::kNone, params.output};
  return launch_tapped_product(product, stream);
}

#define CVK_INSTANTIATE(T) template CudaStatus conv_transpose2d_cuda<T>(const ConvTranspose2dParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
