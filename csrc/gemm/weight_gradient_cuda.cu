// Gradients of weights on CUDA, on tensor cores where the shape suits them.
#include "gemm/convolution.h"
#include "gemm/tapped_cuda.cuh"
#include "gemm/tapped_mma.cuh"

namespace cvk {

template <class T>
int64_t weight_gradient_scratch_cuda(const TappedWeightGradient<T>& p, bool tf32) {
  int64_t used = plain_weight_scratch(p);
  if (suits_mma(p)) tapped_weight_mma(p, gemm_units<T>(tf32), nullptr, nullptr, &used);
  return used;
}
template <class T>
CudaStatus weight_gradient_cuda(const TappedWeightGradient<T>& p, bool tf32, void* scratch, CudaStream stream) {
  if (suits_mma(p)) return tapped_weight_mma(p, gemm_units<T>(tf32), scratch, stream, nullptr);
  return launch_tapped_weight(p, scratch, stream);
}

#define CVK_INSTANTIATE(T)                                                                \
  template int64_t weight_gradient_scratch_cuda<T>(const TappedWeightGradient<T>&, bool); \
  template CudaStatus weight_gradient_cuda<T>(const TappedWeightGradient<T>&, bool, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
