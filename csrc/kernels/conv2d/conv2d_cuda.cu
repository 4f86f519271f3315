// 2-D convolution on CUDA. Contract and method: conv2d.h.
#include "kernels/conv2d/conv2d.h"

#include "gemm/tapped_cuda.cuh"

namespace cvk {

template <class T>
CudaStatus conv2d_forward_cuda(const Conv2dParams<T>& params, CudaStream stream) {
  const TappedProduct<T> product{params.shape,      false,        params.input, params.weight, params.bias,
                                 params.activation, params.output};
  return launch_tapped_product(product, stream);
}

template <class T>
CudaStatus conv2d_weight_cuda(const Conv2dParams<T>& params, CudaStream stream) {
  const TappedWeightGradient<T> gradient{params.shape, params.grad_output, params.input, params.grad_weight, nullptr};
  return launch_tapped_weight(gradient, stream);
}

#define CVK_INSTANTIATE(T)                                                        \
  template CudaStatus conv2d_forward_cuda<T>(const Conv2dParams<T>&, CudaStream); \
  template CudaStatus conv2d_weight_cuda<T>(const Conv2dParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
