// 2-D convolution on CUDA. Contract and method: conv2d.h.
#include "kernels/conv2d/conv2d.h"

#include "gemm/convolution.h"

namespace cvk {
namespace {

template <class T>
TappedProduct<T> product_of(const Conv2dParams<T>& params) {
  return {params.shape, false, params.input, params.weight, params.bias, params.activation, params.output};
}
template <class T>
TappedWeightGradient<T> gradient_of(const Conv2dParams<T>& params) {
  return {params.shape, params.grad_output, params.input, params.grad_weight, nullptr};
}

}  // namespace

template <class T>
int64_t conv2d_forward_scratch_cuda(const Conv2dParams<T>& params) {
  return product_scratch_cuda(product_of(params), params.tf32);
}

template <class T>
CudaStatus conv2d_forward_cuda(const Conv2dParams<T>& params, void* scratch, CudaStream stream) {
  return product_cuda(product_of(params), params.tf32, scratch, stream);
}

template <class T>
int64_t conv2d_weight_scratch_cuda(const Conv2dParams<T>& params) {
  return weight_gradient_scratch_cuda(gradient_of(params), params.tf32);
}

template <class T>
CudaStatus conv2d_weight_cuda(const Conv2dParams<T>& params, void* scratch, CudaStream stream) {
  return weight_gradient_cuda(gradient_of(params), params.tf32, scratch, stream);
}

#define CVK_INSTANTIATE(T)                                                               \
  template int64_t conv2d_forward_scratch_cuda<T>(const Conv2dParams<T>&);               \
  template CudaStatus conv2d_forward_cuda<T>(const Conv2dParams<T>&, void*, CudaStream); \
  template int64_t conv2d_weight_scratch_cuda<T>(const Conv2dParams<T>&);                \
  template CudaStatus conv2d_weight_cuda<T>(const Conv2dParams<T>&, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
