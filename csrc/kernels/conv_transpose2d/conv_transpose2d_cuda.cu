// Transposed 2-D convolution on CUDA. Contract and method: conv_transpose2d.h.
#include "kernels/conv_transpose2d/conv_transpose2d.h"

#include "gemm/convolution.h"

namespace cvk {
namespace {

template <class T>
TappedProduct<T> product_of(const ConvTranspose2dParams<T>& params) {
  return {params.shape, true, params.input, params.weight, params.bias, Activation::kNone, params.output};
}

}  // namespace

template <class T>
int64_t conv_transpose2d_scratch_cuda(const ConvTranspose2dParams<T>& params) {
  return product_scratch_cuda(product_of(params), params.tf32);
}

template <class T>
CudaStatus conv_transpose2d_cuda(const ConvTranspose2dParams<T>& params, void* scratch, CudaStream stream) {
  return product_cuda(product_of(params), params.tf32, scratch, stream);
}

#define CVK_INSTANTIATE(T)                                                            \
  template int64_t conv_transpose2d_scratch_cuda<T>(const ConvTranspose2dParams<T>&); \
  template CudaStatus conv_transpose2d_cuda<T>(const ConvTranspose2dParams<T>&, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
