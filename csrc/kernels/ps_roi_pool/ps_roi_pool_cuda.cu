// Position-sensitive RoI Pool on CUDA. Contract and method: ps_roi_pool.h. Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "common/position_sensitive.cuh"
#include "kernels/ps_roi_pool/ps_roi_pool.h"
#include "kernels/ps_roi_pool/ps_roi_pool_math.h"
#include "kernels/ps_roi_pool/ps_roi_pool_tuning.h"

namespace cvk {
namespace {

struct Reach {
  template <class A>
  static CVK_DEVICE bool reaches(const RoiShape& shape, const A* box, bool along_y, int first, int last) {
    OpenAxis<A> axis;
    roi_make_axis(shape, box, along_y, axis);
    return axis.first < last && axis.last > first;
  }
};

}  // namespace

template <class T>
CudaStatus ps_roi_pool_forward_cuda(const PsRoiPoolParams<T>& params, CudaStream stream) {
  return ps_forward<OpenAxis<Acc<T>>>(params, stream);
}

template <class T>
CudaStatus ps_roi_pool_backward_cuda(const PsRoiPoolParams<T>& params, CudaStream stream) {
  return ps_backward<OpenAxis<Acc<T>>, Reach>(params, stream);
}

#define CVK_INSTANTIATE(T)                                                                \
  template CudaStatus ps_roi_pool_forward_cuda<T>(const PsRoiPoolParams<T>&, CudaStream); \
  template CudaStatus ps_roi_pool_backward_cuda<T>(const PsRoiPoolParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
