// Tapped products on CUDA, on tensor cores where the shape suits them.
#include "gemm/convolution.h"
#include "gemm/tapped_cuda.cuh"
#include "gemm/tapped_mma.cuh"

namespace cvk {

template <class T>
int64_t product_scratch_cuda(const TappedProduct<T>& p, bool tf32) {
  int64_t used = 0;
  if (suits_mma(p)) tapped_product_mma(p, gemm_units<T>(tf32), nullptr, nullptr, &used);
  return used;
}
template <class T>
CudaStatus product_cuda(const TappedProduct<T>& p, bool tf32, void* scratch, CudaStream stream) {
  if (suits_mma(p)) return tapped_product_mma(p, gemm_units<T>(tf32), scratch, stream, nullptr);
  return launch_tapped_product(p, stream);
}

#define CVK_INSTANTIATE(T)                                                 \
  template int64_t product_scratch_cuda<T>(const TappedProduct<T>&, bool); \
  template CudaStatus product_cuda<T>(const TappedProduct<T>&, bool, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
