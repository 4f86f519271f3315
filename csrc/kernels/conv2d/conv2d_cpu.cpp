// 2-D convolution on the CPU. Contract and method: conv2d.h.
#include "kernels/conv2d/conv2d.h"

#include "gemm/convolution.h"

namespace cvk {
namespace {

template <class T>
CVK_HD TappedProduct<T> product_of(const Conv2dParams<T>& params) {
  return {params.shape, false, params.input, params.weight, params.bias, params.activation, params.output};
}

template <class T>
CVK_HD TappedWeightGradient<T> gradient_of(const Conv2dParams<T>& params) {
  return {params.shape, params.grad_output, params.input, params.grad_weight, params.partials};
}

}  // namespace

template <Isa isa, class T>
int64_t conv2d_forward_items_cpu(Conv2dParams<T>& params, int threads) {
  return product_items<isa>(product_of(params), threads, params.cut);
}

template <Isa isa, class T>
void conv2d_forward_cpu(const Conv2dParams<T>& params, int64_t first, int64_t last) {
  product_slice<isa>(product_of(params), params.cut, first, last);
}

template <Isa isa, class T>
int64_t conv2d_weight_items_cpu(Conv2dParams<T>& params) {
  return weight_gradient_items<isa>(gradient_of(params), params.cut);
}

template <Isa isa, class T>
void conv2d_weight_cpu(const Conv2dParams<T>& params, int64_t first, int64_t last) {
  weight_gradient_slice<isa>(gradient_of(params), params.cut, first, last);
}

template <Isa isa, class T>
void conv2d_weight_sum_cpu(const Conv2dParams<T>& params, int64_t first, int64_t last) {
  sum_weight_parts<isa>(gradient_of(params), params.cut.parts, first, last);
}

#define CVK_INSTANTIATE(T)                                                                     \
  template int64_t conv2d_forward_items_cpu<Isa::CVK_ISA, T>(Conv2dParams<T>&, int);           \
  template void conv2d_forward_cpu<Isa::CVK_ISA, T>(const Conv2dParams<T>&, int64_t, int64_t); \
  template int64_t conv2d_weight_items_cpu<Isa::CVK_ISA, T>(Conv2dParams<T>&);                 \
  template void conv2d_weight_cpu<Isa::CVK_ISA, T>(const Conv2dParams<T>&, int64_t, int64_t);  \
  template void conv2d_weight_sum_cpu<Isa::CVK_ISA, T>(const Conv2dParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
