// Rotated RoI Align on CUDA. Contract and method: roi_align_rotated.h. Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_gather_bins.cuh"
#include "common/vec.cuh"
#include "kernels/roi_align_rotated/roi_align_rotated.h"
#include "kernels/roi_align_rotated/roi_align_rotated_math.h"

namespace cvk {
namespace {

// ---- forward

// Block: one box, some channels and bins (common/roi_frame.cuh).
template <class T, int kGroup, bool kPlanarInput, bool kPlanarOutput>
__global__ void __launch_bounds__(kRoiBlockThreads, kRotatedBlocksPerSm)
    roi_align_rotated_forward_kernel(RoiAlignRotatedParams<T> params, RoiBlocks blocks) {
  using A = Acc<T>;
  struct Shared {
    RotatedAxes<A> axes;
    RotatedBounds<A> bounds;
    RotatedSample<A> samples[kRotatedSharedSamples];
    T values[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiBlock block = roi_block(shape, blocks, blockIdx.x);
  const A* box = params.boxes + block.k * 6;
  const int64_t image_index = roi_batch_index(box[0], shape.batch);
  if (threadIdx.x == 0) {
    shared.axes = rotated_axes(shape, params.clockwise, box);
    if (image_index < 0) shared.axes.y.samples = shared.axes.x.samples = 0;  // a bad image index reads nothing
    shared.bounds = rotated_map_bounds(shared.axes);
  }
  __syncthreads();
  const RotatedAxes<A>& axes = shared.axes;
  const int64_t per_bin = int64_t{axes.y.samples} * axes.x.samples;
  const bool tabulated = block.bins * per_bin <= kRotatedSharedSamples;
  if (tabulated) {
    for (int i = static_cast<int>(threadIdx.x); i < block.bins * static_cast<int>(per_bin); i += kRoiBlockThreads) {
      const int64_t bin = block.first_bin + i / static_cast<int>(per_bin);
      const int sample = i % static_cast<int>(per_bin);
      shared.samples[i] =
          rotated_sample(axes, static_cast<int>(bin / shape.pooled_width), static_cast<int>(bin % shape.pooled_width),
                         sample / axes.x.samples, sample % axes.x.samples);
    }
    __syncthreads();
  }

  for_each_group<kGroup, kPlanarInput>(block, [&](int group, int local_bin) {
    const int64_t bin = block.first_bin + local_bin;
    const int64_t channel = block.first_channel + group * kGroup;
    const Pixels<T> pixels = roi_pixels<kPlanarInput>(shape, params.input, max_of<int64_t>(image_index, 0), channel);
    const int bin_y = static_cast<int>(bin / shape.pooled_width), bin_x = static_cast<int>(bin % shape.pooled_width);
    A result[kGroup];
#pragma unroll
    for (int c = 0; c < kGroup; ++c) result[c] = A(0);
    if (tabulated) {
      const int count = static_cast<int>(per_bin);
      for (int s = 0; s < count; ++s) {
        const RotatedSample<A>& sample = shared.samples[local_bin * count + s];
        if (sample.inside()) bilinear_group(pixels, sample.y, sample.x, result);
      }
    } else {
      const RotatedRange range = rotated_range(axes, shared.bounds, bin_y, bin_x);
      for (int i = range.y.first; i < range.y.last; ++i) {
        for (int j = range.x.first; j < range.x.last; ++j) {
          const RotatedSample<A> sample = rotated_sample(axes, bin_y, bin_x, i, j);
          if (sample.inside()) bilinear_group(pixels, sample.y, sample.x, result);
        }
      }
    }
    const A share = axes.y.share * axes.x.share;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) result[c] = result[c] * share;
    if (kPlanarOutput) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) shared.values[local_bin][group * kGroup + c] = from_acc<T>(result[c]);
    } else {
      store_group(params.output + (block.k * shape.bins() + bin) * shape.channels + channel, result);
    }
  });
  if (!kPlanarOutput) return;
  __syncthreads();
  for_each_planar(shape, block,
                  [&](int64_t at, int local_bin, int c) { params.output[at] = shared.values[local_bin][c]; });
}

// ---- backward

// The boxes as the gathering pass (common/roi_gather_bins.cuh) meets them.
template <class T>
struct RotatedGather {
  using A = Acc<T>;
  struct Box {
    RotatedAxes<A> axes;
    RotatedBounds<A> bounds;  // of the samples that reach the tile
  };
  const RoiAlignRotatedParams<T>& params;
  const RoiTile& tile;

  // By the circle around the box: its angle costs more than the boxes that the circle lets through.
  CVK_DEVICE bool box_reaches(int64_t k) const {
    const A* box = params.boxes + k * 6;
    const A scale = static_cast<A>(params.shape.spatial_scale), offset = params.shape.aligned ? A(0.5) : A(0);
    if (roi_batch_index(box[0], params.shape.batch) != tile.image) return false;
    const A least = params.shape.aligned ? A(0) : A(1);
    const A width = max_of(least, magnitude(box[3] * scale)), height = max_of(least, magnitude(box[4] * scale));
    const A radius = (width + height) / A(2);  // at least half of the diagonal
    const A y = box[2] * scale - offset, x = box[1] * scale - offset;
    return span_reaches(RoiSpan<A>{y - radius, radius + radius}, tile.y, tile.y + kRoiTileHeight) &&
           span_reaches(RoiSpan<A>{x - radius, radius + radius}, tile.x, tile.x + kRoiTileWidth);
  }
  CVK_DEVICE void load_box(int64_t k, Box& box) const {
    if (threadIdx.x % 32 != 0) return;
    const RoiShape& shape = params.shape;
    box.axes = rotated_axes(shape, params.clockwise, params.boxes + k * 6);
    // Samples beyond the rim read the rim pixel, so the outermost tiles look further out.
    const auto low = [](int first) { return static_cast<A>(first - 1); };
    const auto high = [](int first, int size, int extent) {
      return static_cast<A>(first + size < extent ? first + size : extent);
    };
    box.bounds = rotated_bounds(box.axes, low(tile.y), high(tile.y, kRoiTileHeight, shape.height), low(tile.x),
                                high(tile.x, kRoiTileWidth, shape.width));
  }
  CVK_DEVICE bool bin_reaches(const Box& box, int bin) const {
    const PixelRectangle pixels = rotated_pixels(box.axes, range_of(box, bin), bin_y(bin), bin_x(bin));
    return !pixels.empty() && pixels.y_first < tile.y + kRoiTileHeight && pixels.y_last > tile.y &&
           pixels.x_first < tile.x + kRoiTileWidth && pixels.x_last > tile.x;
  }
  CVK_DEVICE BinSamples samples_of(const Box& box, int bin) const {
    const RotatedRange range = range_of(box, bin);
    return {range.y, range.x};
  }
  CVK_DEVICE BinSample<A> sample(const Box& box, int bin, int i, int j) const {
    const RotatedSample<A> sample = rotated_sample(box.axes, bin_y(bin), bin_x(bin), i, j);
    return {sample.y, sample.x};
  }
  CVK_DEVICE A share(const Box& box) const { return box.axes.y.share * box.axes.x.share; }

  CVK_DEVICE int bin_y(int bin) const { return bin / params.shape.pooled_width; }
  CVK_DEVICE int bin_x(int bin) const { return bin % params.shape.pooled_width; }
  CVK_DEVICE RotatedRange range_of(const Box& box, int bin) const {
    return rotated_range(box.axes, box.bounds, bin_y(bin), bin_x(bin));
  }
};

template <class T>
__global__ void __launch_bounds__(kRoiGatherThreads<Acc<T>>)
    roi_align_rotated_backward_kernel(RoiAlignRotatedParams<T> params) {
  struct Shared {
    GatherShared<Acc<T>, typename RotatedGather<T>::Box> gather;
    RoiTile tile;  // no thread spends registers on it
  };
  auto& shared = static_shared<Shared>();
  if (threadIdx.x == 0) shared.tile = roi_tile(params.shape, blockIdx.x);
  __syncthreads();
  const RotatedGather<T> boxes{params, shared.tile};
  gather_bins(params.shape, shared.tile, boxes, shared.gather, params.grad_output, params.grad_input);
}

}  // namespace

template <class T>
int64_t roi_align_rotated_forward_scratch_cuda(const RoiAlignRotatedParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus roi_align_rotated_forward_cuda(const RoiAlignRotatedParams<T>& call, void* scratch, CudaStream stream) {
  RoiAlignRotatedParams<T> params = call;
  const RoiShape& shape = params.shape;
  const RoiBlocks blocks = roi_blocks<T>(shape);
  const int64_t grid = shape.boxes * blocks.per_box();
  cudaError_t status = grid_fits(grid);
  if (status == cudaSuccess) status = roi_copy_input(shape, scratch, params.input, stream);
  if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  const bool wide = shape.channels % kWide<T> == 0 && is_wide_aligned(params.input) && is_wide_aligned(params.output);
  const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kRoiBlockThreads)};
  status = roi_with_layout<T>(shape, wide, [&](auto group, auto planar_input, auto planar_output) {
    return launch(roi_align_rotated_forward_kernel<T, decltype(group)::value, decltype(planar_input)::value,
                                                   decltype(planar_output)::value>,
                  config, stream, params, blocks);
  });
  return static_cast<CudaStatus>(status);
}

template <class T>
CudaStatus roi_align_rotated_backward_cuda(const RoiAlignRotatedParams<T>& params, CudaStream stream) {
  const int64_t blocks = roi_tiles(params.shape);
  cudaError_t status = grid_fits(blocks);
  if (status == cudaSuccess) {
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kRoiGatherThreads<Acc<T>>)};
    status = launch(roi_align_rotated_backward_kernel<T>, config, stream, params);
  }
  return static_cast<CudaStatus>(status);
}

#define CVK_INSTANTIATE(T)                                                                                   \
  template int64_t roi_align_rotated_forward_scratch_cuda<T>(const RoiAlignRotatedParams<T>&);               \
  template CudaStatus roi_align_rotated_forward_cuda<T>(const RoiAlignRotatedParams<T>&, void*, CudaStream); \
  template CudaStatus roi_align_rotated_backward_cuda<T>(const RoiAlignRotatedParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
