// Levels of boxes on CUDA. Contract: multiscale_roi_align.h; pooling is RoI Align's (kernels/roi_align).
#include "common/launch.cuh"
#include "kernels/multiscale_roi_align/multiscale_roi_align.h"
#include "kernels/multiscale_roi_align/multiscale_roi_align_tuning.h"

namespace cvk {
namespace {

// The least areas are indexed at run time, which only a parameter in constant memory allows without a copy on the stack.
template <class A>
__global__ void __launch_bounds__(kMultiscaleLevelsThreads)
    multiscale_roi_align_levels_kernel(__grid_constant__ const MultiscaleRoiAlignLevelsParams<A> params) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kMultiscaleLevelsThreads + threadIdx.x;
  if (k >= params.count) return;
  params.output[k] = roi_level_of_area(roi_level_area(params.boxes + k * 5), params.least_area, params.levels);
}

}  // namespace

template <class A>
CudaStatus multiscale_roi_align_levels_cuda(const MultiscaleRoiAlignLevelsParams<A>& params, CudaStream stream) {
  const int64_t blocks = ceil_div<int64_t>(params.count, kMultiscaleLevelsThreads);
  cudaError_t status = grid_fits(blocks);
  if (status == cudaSuccess) {
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kMultiscaleLevelsThreads)};
    status = launch(multiscale_roi_align_levels_kernel<A>, config, stream, params);
  }
  return static_cast<CudaStatus>(status);
}

template CudaStatus multiscale_roi_align_levels_cuda<float>(const MultiscaleRoiAlignLevelsParams<float>&, CudaStream);
template CudaStatus multiscale_roi_align_levels_cuda<double>(const MultiscaleRoiAlignLevelsParams<double>&, CudaStream);

}  // namespace cvk
