// Position-sensitive RoI Align on CUDA. Contract and method: ps_roi_align.h. Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "common/position_sensitive.cuh"
#include "kernels/ps_roi_align/ps_roi_align.h"
#include "kernels/ps_roi_align/ps_roi_align_math.h"
#include "kernels/ps_roi_align/ps_roi_align_tuning.h"

namespace cvk {
namespace {

struct Reach {
  template <class A>
  static CVK_DEVICE bool reaches(const RoiShape& shape, const A* box, bool along_y, int first, int last) {
    const RoiSpan<A> span = roi_span(along_y ? box[2] : box[1], along_y ? box[4] : box[3],
                                     static_cast<A>(shape.spatial_scale), shape.aligned);
    return span_reaches(span, first, last);
  }
};

}  // namespace

template <class T>
CudaStatus ps_roi_align_forward_cuda(const PsRoiAlignParams<T>& params, CudaStream stream) {
  return ps_forward<RoiAxis<Acc<T>>>(params, stream);
}

template <class T>
CudaStatus ps_roi_align_backward_cuda(const PsRoiAlignParams<T>& params, CudaStream stream) {
  return ps_backward<RoiAxis<Acc<T>>, Reach>(params, stream);
}

#define CVK_INSTANTIATE(T)                                                                  \
  template CudaStatus ps_roi_align_forward_cuda<T>(const PsRoiAlignParams<T>&, CudaStream); \
  template CudaStatus ps_roi_align_backward_cuda<T>(const PsRoiAlignParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
