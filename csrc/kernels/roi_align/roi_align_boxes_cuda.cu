// RoI Align on CUDA: the gradient with respect to the boxes. Contract: roi_align.h; method: common/roi_boxes.h. Ran on an
// H100 (2026-11-26).
#include "common/launch.cuh"
#include "common/roi_boxes.cuh"
#include "kernels/roi_align/roi_align.h"
#include "kernels/roi_align/roi_align_math.h"

namespace cvk {
namespace {

// Of the maximum: each value follows its own sample. Lanes run along channels, or along bins over planes.
template <class T, bool kPlanar>
__global__ void __launch_bounds__(kRoiBlockThreads, kRoiBoxesBlocksPerSm)
    roi_align_boxes_max_kernel(RoiBoxesParams<T> params, RoiBlocks blocks) {
  using A = Acc<T>;
  struct Shared {
    SharedAxes<RoiAxis<A>> axes;
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiBlock block = roi_block(shape, blocks, blockIdx.x);
  const int64_t image = roi_batch_index(params.boxes[block.k * 5], shape.batch);
  A sums[kRoiSums] = {};
  if (image >= 0) {  // the same for all threads
    compute_axes(shape, params.boxes + block.k * 5, shared.axes);
    __syncthreads();
    for_each_group<1, kPlanar>(block, [&](int group, int local_bin) {
      const int64_t bin = block.first_bin + local_bin, channel = block.first_channel + group;
      const Pixels<T> pixels = roi_pixels<kPlanar>(shape, params.input, image, channel);
      const int64_t at = kPlanar ? (block.k * shape.channels + channel) * shape.bins() + bin
                                 : (block.k * shape.bins() + bin) * shape.channels + channel;
      add_maximum(
          shared.axes.y, shared.axes.x, static_cast<int>(bin / shape.pooled_width),
          static_cast<int>(bin % shape.pooled_width), params.saved_argmax[at], to_acc(params.grad_output[at]),
          [&](int y, int x) { return to_acc(*pixels.at(y, x)); }, sums);
    });
  }
  store_sums(sums, params.sums);
}

}  // namespace

template <class T>
int64_t roi_align_boxes_sums_cuda(const RoiBoxesParams<T>& params) {
  return roi_boxes_sums_bytes<T>(params.shape);
}

template <class T>
int64_t roi_align_boxes_copy_cuda(const RoiBoxesParams<T>& params) {
  return params.saved_argmax != nullptr ? 0 : roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus roi_align_boxes_backward_cuda(const RoiBoxesParams<T>& call, void* sums, void* copy, CudaStream stream) {
  using Axis = RoiAxis<Acc<T>>;
  if (call.saved_argmax == nullptr) return static_cast<CudaStatus>(roi_boxes_backward<Axis>(call, sums, copy, stream));
  RoiBoxesParams<T> params = call;
  const RoiBlocks blocks = roi_blocks<T>(params.shape);
  const int64_t grid = params.shape.boxes * blocks.per_box();
  params.parts = blocks.per_box();
  params.sums = static_cast<Acc<T>*>(sums);
  cudaError_t status = grid_fits(grid);
  const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kRoiBlockThreads)};
  if (status == cudaSuccess) {
    status = params.shape.channels_last ? launch(roi_align_boxes_max_kernel<T, false>, config, stream, params, blocks)
                                        : launch(roi_align_boxes_max_kernel<T, true>, config, stream, params, blocks);
  }
  if (status == cudaSuccess) status = roi_boxes_finish<Axis>(params, stream);
  return static_cast<CudaStatus>(status);
}

#define CVK_INSTANTIATE(T)                                                 \
  template int64_t roi_align_boxes_sums_cuda<T>(const RoiBoxesParams<T>&); \
  template int64_t roi_align_boxes_copy_cuda<T>(const RoiBoxesParams<T>&); \
  template CudaStatus roi_align_boxes_backward_cuda<T>(const RoiBoxesParams<T>&, void*, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
