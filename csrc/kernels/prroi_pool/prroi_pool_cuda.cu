// Precise RoI Pooling on CUDA. Contract and method: prroi_pool.h. Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "common/roi_boxes.cuh"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_gather_grid.cuh"
#include "common/roi_taps.cuh"
#include "common/vec.cuh"
#include "kernels/prroi_pool/prroi_pool.h"
#include "kernels/prroi_pool/prroi_pool_math.h"

namespace cvk {
namespace {

// Block: one box, some channels and bins (common/roi_frame.cuh).
//   kGroup         channels per load: kWide<T> (channels-last input) or 1
//   kPlanarInput   lanes run over bins instead of channels
//   kPlanarOutput  results pass through shared memory and leave as runs of bins
template <class T, int kGroup, bool kPlanarInput, bool kPlanarOutput>
__global__ void __launch_bounds__(kRoiBlockThreads, kPrRoIPoolBlocksPerSm)
    prroi_pool_forward_kernel(PrRoIPoolParams<T> params, RoiBlocks blocks) {
  using A = Acc<T>;
  struct Shared {
    SharedAxes<PrRoIAxis<A>> axes;
    SharedTaps<Tap<A>> y, x;
    T values[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiBlock block = roi_block(shape, blocks, blockIdx.x);
  const int64_t image = roi_batch_index(params.boxes[block.k * 5], shape.batch);
  compute_axes(shape, params.boxes + block.k * 5, shared.axes);
  if (image < 0) {  // a bad image index reads nothing
    if (threadIdx.x == 0) shared.axes.y.bin = A(0);
    if (threadIdx.x == 32) shared.axes.x.bin = A(0);
  }
  __syncthreads();
  const auto ys = tabulate_taps(shared.axes.y, shape.pooled_height, shared.y);
  const auto xs = tabulate_taps(shared.axes.x, shape.pooled_width, shared.x);
  __syncthreads();

  for_each_group<kGroup, kPlanarInput>(block, [&](int group, int local_bin) {
    const int64_t bin = block.first_bin + local_bin, channel = block.first_channel + group * kGroup;
    const Pixels<T> pixels = roi_pixels<kPlanarInput>(shape, params.input, max_of<int64_t>(image, 0), channel);
    const int bin_y = static_cast<int>(bin / shape.pooled_width), bin_x = static_cast<int>(bin % shape.pooled_width);
    const int y_count = ys.count(bin_y), x_count = xs.count(bin_x);
    A sum[kGroup] = {};
    for (int i = 0; i < y_count; ++i) {
      const Tap<A> y = ys(bin_y, i);
      for (int j = 0; j < x_count; ++j) {
        const Tap<A> x = xs(bin_x, j);
        const A weight = y.weight * x.weight;
        A value[kGroup];
        load_group(pixels.at(y.pixel, x.pixel), value);
#pragma unroll
        for (int c = 0; c < kGroup; ++c) sum[c] = mul_add(weight, value[c], sum[c]);
      }
    }
    if (kPlanarOutput) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) shared.values[local_bin][group * kGroup + c] = from_acc<T>(sum[c]);
    } else {
      store_group(params.output + (block.k * shape.bins() + bin) * shape.channels + channel, sum);
    }
  });
  if (!kPlanarOutput) return;
  __syncthreads();
  for_each_planar(shape, block,
                  [&](int64_t at, int local_bin, int c) { params.output[at] = shared.values[local_bin][c]; });
}

// Block: a tile of pixels and channels (common/roi_gather.cuh), past which the boxes that reach it go in order.
template <class T, bool kPlanar>
__global__ void __launch_bounds__(kRoiTileThreads, kRoiGridBlocksPerSm<T>)
    prroi_pool_backward_kernel(PrRoIPoolParams<T> params) {
  using A = Acc<T>;
  struct Shared {
    union {  // one after the other
      GridShared<PrRoIAxis<A>, A, kPlanar, false> grid;
      RoiTileRows<A> rows;
    };
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiTile tile = roi_tile(shape, blockIdx.x);
  const A scale = static_cast<A>(shape.spatial_scale);
  A sum[kRoiTileWidth] = {};
  gather_grid(
      shape, tile, params.boxes, params.grad_output, nullptr, shared.grid,
      [&](int64_t k) {
        const A* box = params.boxes + k * 5;
        return roi_batch_index(box[0], shape.batch) == tile.image &&
               span_reaches(prroi_span(box[2], box[4], scale), tile.y, tile.y + kRoiTileHeight) &&
               span_reaches(prroi_span(box[1], box[3], scale), tile.x, tile.x + kRoiTileWidth);
      },
      sum);
  __syncthreads();
  store_tile(shape, tile, sum, shared.rows, params.grad_input);
}

}  // namespace

template <class T>
int64_t prroi_pool_forward_scratch_cuda(const PrRoIPoolParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus prroi_pool_forward_cuda(const PrRoIPoolParams<T>& call, void* scratch, CudaStream stream) {
  PrRoIPoolParams<T> params = call;
  const RoiShape& shape = params.shape;
  const RoiBlocks blocks = roi_blocks<T>(shape);
  const int64_t grid = shape.boxes * blocks.per_box();
  cudaError_t status = grid_fits(grid);
  if (status == cudaSuccess) status = roi_copy_input(shape, scratch, params.input, stream);
  if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  const bool wide = shape.channels % kWide<T> == 0 && is_wide_aligned(params.input) && is_wide_aligned(params.output);
  const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kRoiBlockThreads)};
  status = roi_with_layout<T>(shape, wide, [&](auto group, auto planar_input, auto planar_output) {
    return launch(prroi_pool_forward_kernel<T, decltype(group)::value, decltype(planar_input)::value,
                                            decltype(planar_output)::value>,
                  config, stream, params, blocks);
  });
  return static_cast<CudaStatus>(status);
}

template <class T>
CudaStatus prroi_pool_backward_cuda(const PrRoIPoolParams<T>& params, CudaStream stream) {
  const RoiShape& shape = params.shape;
  const int64_t grid = roi_tiles(shape);
  cudaError_t status = grid_fits(grid);
  if (status == cudaSuccess) status = grid_bins_fit(shape);
  if (status == cudaSuccess) {
    const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kRoiTileThreads)};
    status = shape.channels_last ? launch(prroi_pool_backward_kernel<T, false>, config, stream, params)
                                 : launch(prroi_pool_backward_kernel<T, true>, config, stream, params);
  }
  return static_cast<CudaStatus>(status);
}

template <class T>
int64_t prroi_pool_boxes_sums_cuda(const RoiBoxesParams<T>& params) {
  return roi_boxes_sums_bytes<T>(params.shape);
}

template <class T>
int64_t prroi_pool_boxes_copy_cuda(const RoiBoxesParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus prroi_pool_boxes_backward_cuda(const RoiBoxesParams<T>& params, void* sums, void* copy, CudaStream stream) {
  return static_cast<CudaStatus>(roi_boxes_backward<PrRoIAxis<Acc<T>>>(params, sums, copy, stream));
}

#define CVK_INSTANTIATE(T)                                                                      \
  template int64_t prroi_pool_forward_scratch_cuda<T>(const PrRoIPoolParams<T>&);               \
  template CudaStatus prroi_pool_forward_cuda<T>(const PrRoIPoolParams<T>&, void*, CudaStream); \
  template CudaStatus prroi_pool_backward_cuda<T>(const PrRoIPoolParams<T>&, CudaStream);       \
  template int64_t prroi_pool_boxes_sums_cuda<T>(const RoiBoxesParams<T>&);                     \
  template int64_t prroi_pool_boxes_copy_cuda<T>(const RoiBoxesParams<T>&);                     \
  template CudaStatus prroi_pool_boxes_backward_cuda<T>(const RoiBoxesParams<T>&, void*, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
