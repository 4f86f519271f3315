// Transposed 2-D convolution on the CPU. Contract and method: conv_transpose2d.h.
#include "kernels/conv_transpose2d/conv_transpose2d.h"

#include "gemm/convolution.h"

namespace cvk {
namespace {

template <class T>
CVK_HD TappedProduct<T> product_of(const ConvTranspose2dParams<T>& params) {
  return {params.shape, true, params.input, params.weight, params.bias, Activation::kNone, params.output};
}

}  // namespace

template <Isa isa, class T>
int64_t conv_transpose2d_items_cpu(ConvTranspose2dParams<T>& params, int threads) {
  return product_items<isa>(product_of(params), threads, params.cut);
}

template <Isa isa, class T>
void conv_transpose2d_cpu(const ConvTranspose2dParams<T>& params, int64_t first, int64_t last) {
  product_slice<isa>(product_of(params), params.cut, first, last);
}

#define CVK_INSTANTIATE(T)                                                                      \
  template int64_t conv_transpose2d_items_cpu<Isa::CVK_ISA, T>(ConvTranspose2dParams<T>&, int); \
  template void conv_transpose2d_cpu<Isa::CVK_ISA, T>(const ConvTranspose2dParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
