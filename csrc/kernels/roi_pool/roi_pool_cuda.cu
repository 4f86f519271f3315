// RoI Pool on CUDA. Contract and method: roi_pool.h; kernels: common/roi_max.cuh.
//
// What was tried: on an H100 nothing else yet; the structure follows the bounds (wide loads along channels, ranges of the bins once per
// box, gather in the backward pass).
#include "common/launch.cuh"
#include "common/roi_max.cuh"
#include "kernels/roi_pool/roi_pool.h"
#include "kernels/roi_pool/roi_pool_math.h"
#include "kernels/roi_pool/roi_pool_tuning.h"

namespace cvk {

template <class T>
int64_t roi_pool_forward_scratch_cuda(const RoiPoolParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus roi_pool_forward_cuda(const RoiPoolParams<T>& params, void* scratch, CudaStream stream) {
  return roi_max_forward<CellAxis<Acc<T>>, T>(params, scratch, stream);
}

template <class T>
CudaStatus roi_pool_backward_cuda(const RoiPoolParams<T>& params, CudaStream stream) {
  return roi_max_backward<CellAxis<Acc<T>>, T>(params, stream);
}

#define CVK_INSTANTIATE(T)                                                                  \
  template int64_t roi_pool_forward_scratch_cuda<T>(const RoiPoolParams<T>&);               \
  template CudaStatus roi_pool_forward_cuda<T>(const RoiPoolParams<T>&, void*, CudaStream); \
  template CudaStatus roi_pool_backward_cuda<T>(const RoiPoolParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
