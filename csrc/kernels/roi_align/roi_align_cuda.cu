// RoI Align on CUDA. Contract and method: roi_align.h.
//
// What was tried: on an H100 nothing else yet; the structure follows the bounds (wide loads along channels, weights once per box,
// gather in the backward pass).
#include "common/launch.cuh"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_gather_grid.cuh"
#include "common/vec.cuh"
#include "kernels/roi_align/roi_align.h"
#include "kernels/roi_align/roi_align_math.h"

namespace cvk {
namespace {

// ---- forward

// The samples of one axis of the block's box: in shared memory where they fit, else computed at each use.
template <class A>
struct AxisSamples {
  const RoiAxis<A>& axis;        // in shared memory
  const BilinearAxis<A>* table;  // [bins * samples] or null

  CVK_DEVICE BilinearAxis<A> operator()(int bin, int sample) const {
    if (table != nullptr) return table[bin * axis.samples + sample];
    return bilinear_axis(roi_sample_coordinate(axis, bin, sample), axis.extent);
  }
};

template <class A>
CVK_DEVICE AxisSamples<A> tabulate(const RoiAxis<A>& axis, int bins, BilinearAxis<A>* table) {
  if (int64_t{bins} * axis.samples > kRoiAlignSharedSamples) return {axis, nullptr};
  for (int i = static_cast<int>(threadIdx.x); i < bins * axis.samples; i += kRoiBlockThreads) {
    table[i] = bilinear_axis(roi_sample_coordinate(axis, i / axis.samples, i % axis.samples), axis.extent);
  }
  return {axis, table};
}

// One bin, `count` channels: the mean.
template <int count, class T>
CVK_DEVICE void pool_mean(const Pixels<T>& pixels, const AxisSamples<Acc<T>>& ys, const AxisSamples<Acc<T>>& xs,
                          int bin_y, int bin_x, Acc<T> (&result)[count]) {
  using A = Acc<T>;
#pragma unroll
  for (int i = 0; i < count; ++i) result[i] = A(0);
  const SampleRange y_range = roi_sample_range(ys.axis, bin_y, A(-1), static_cast<A>(ys.axis.extent));
  const SampleRange x_range = roi_sample_range(xs.axis, bin_x, A(-1), static_cast<A>(xs.axis.extent));
  for (int i = y_range.first; i < y_range.last; ++i) {
    const BilinearAxis<A> y = ys(bin_y, i);
    if (!y.inside) continue;
    for (int j = x_range.first; j < x_range.last; ++j) {
      const BilinearAxis<A> x = xs(bin_x, j);
      if (x.inside) bilinear_group(pixels, y, x, result);
    }
  }
  const A share = ys.axis.share * xs.axis.share;
#pragma unroll
  for (int i = 0; i < count; ++i) result[i] = result[i] * share;
}

// One bin, `count` channels: the maximum and the sample that it came from.
template <int count, class T>
CVK_DEVICE void pool_maximum(const Pixels<T>& pixels, const AxisSamples<Acc<T>>& ys, const AxisSamples<Acc<T>>& xs,
                             int bin_y, int bin_x, Acc<T> (&result)[count], int (&argmax)[count]) {
  using A = Acc<T>;
  const int grid_y = ys.axis.samples, grid_x = xs.axis.samples;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    result[i] = A(0);
    argmax[i] = -1;
  }
  if (grid_y <= 0 || grid_x <= 0) return;
  const SampleRange y_range = roi_sample_range(ys.axis, bin_y, A(-1), static_cast<A>(ys.axis.extent));
  const SampleRange x_range = roi_sample_range(xs.axis, bin_x, A(-1), static_cast<A>(xs.axis.extent));
  // First outside sample in index order, as in the CPU kernel: it competes with the value 0.
  int y_gap = 0, x_gap = 0;
  bool started = false;
  for (int i = y_range.first; i < y_range.last; ++i) {
    const BilinearAxis<A> y = ys(bin_y, i);
    if (!y.inside) continue;
    if (y_gap == i) ++y_gap;
    int gap = 0;
    for (int j = x_range.first; j < x_range.last; ++j) {
      const BilinearAxis<A> x = xs(bin_x, j);
      if (!x.inside) continue;
      if (gap == j) ++gap;
      A value[count];
#pragma unroll
      for (int c = 0; c < count; ++c) value[c] = A(0);
      bilinear_group(pixels, y, x, value);
#pragma unroll
      for (int c = 0; c < count; ++c) {
        const bool better = !started || value[c] > result[c] || (value[c] != value[c] && result[c] == result[c]);
        if (better) {
          result[c] = value[c];
          argmax[c] = i * grid_x + j;
        }
      }
      started = true;
    }
    x_gap = gap;
  }
  if (!started) return;  // all samples outside: 0, no gradient
  int outside = y_gap < grid_y ? y_gap * grid_x : -1;
  if (x_gap < grid_x && (outside < 0 || x_gap < outside)) outside = x_gap;
  if (outside < 0) return;
#pragma unroll
  for (int c = 0; c < count; ++c) {
    if (A(0) > result[c] || (result[c] == A(0) && argmax[c] > outside)) {
      result[c] = A(0);
      argmax[c] = -1;
    }
  }
}

// Block: one box, some channels and bins (common/roi_frame.cuh).
//   kGroup         channels per load: kWide<T> (channels-last input) or 1
//   kPlanarInput   lanes run over bins instead of channels
//   kPlanarOutput  results pass through shared memory and leave as runs of bins
template <class T, int kGroup, bool kPlanarInput, bool kPlanarOutput, bool kMaximum>
__global__ void __launch_bounds__(kRoiBlockThreads, kRoiAlignBlocksPerSm)
    roi_align_forward_kernel(RoiAlignParams<T> params, RoiBlocks blocks) {
  using A = Acc<T>;
  struct Shared {
    SharedAxes<RoiAxis<A>> axes;
    BilinearAxis<A> y[kRoiAlignSharedSamples];
    BilinearAxis<A> x[kRoiAlignSharedSamples];
    T values[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
    int indices[kPlanarOutput && kMaximum ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
  };
  auto& shared = static_shared<Shared>();
  const RoiBlock block = roi_block(params.shape, blocks, blockIdx.x);
  const A* box = params.boxes + block.k * 5;
  const int64_t image_index = roi_batch_index(box[0], params.shape.batch);
  const int box_level = roi_level(params.levels, box, block.k), level = max_of(box_level, 0);
  const RoiShape shape = params.shape_of(level);
  SharedAxes<RoiAxis<A>>& axes = shared.axes;
  compute_axes(shape, box, axes);
  if (image_index < 0 || box_level < 0) {  // a box of no image or of no level reads nothing
    if (threadIdx.x == 0) axes.y.samples = 0;
    if (threadIdx.x == 32) axes.x.samples = 0;
  }
  __syncthreads();
  const AxisSamples<A> ys = tabulate(axes.y, shape.pooled_height, shared.y);
  const AxisSamples<A> xs = tabulate(axes.x, shape.pooled_width, shared.x);
  __syncthreads();

  for_each_group<kGroup, kPlanarInput>(block, [&](int group, int local_bin) {
    const int64_t bin = block.first_bin + local_bin;
    const int64_t channel = block.first_channel + group * kGroup;
    const Pixels<T> pixels =
        roi_pixels<kPlanarInput>(shape, params.levels.maps[level].input, max_of<int64_t>(image_index, 0), channel);
    const int bin_y = static_cast<int>(bin / shape.pooled_width), bin_x = static_cast<int>(bin % shape.pooled_width);
    A result[kGroup];
    int argmax[kGroup];
    if (kMaximum) {
      pool_maximum(pixels, ys, xs, bin_y, bin_x, result, argmax);
    } else {
      pool_mean(pixels, ys, xs, bin_y, bin_x, result);
    }
    if (kPlanarOutput) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        shared.values[local_bin][group * kGroup + c] = from_acc<T>(result[c]);
        if (kMaximum) shared.indices[local_bin][group * kGroup + c] = argmax[c];
      }
    } else {
      const int64_t at = (block.k * shape.bins() + bin) * shape.channels + channel;
      store_group(params.output + at, result);
      if (kMaximum) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c) params.argmax[at + c] = argmax[c];
      }
    }
  });
  if (!kPlanarOutput) return;
  __syncthreads();
  for_each_planar(shape, block, [&](int64_t at, int local_bin, int c) {
    params.output[at] = shared.values[local_bin][c];
    if (kMaximum) params.argmax[at] = shared.indices[local_bin][c];
  });
}

// ---- backward

// How the tiles of all levels are numbered.
struct LevelTiles {
  int64_t first[kRoiMaxLevels + 1];
};

// Block: a tile of pixels and channels of one level (common/roi_gather.cuh), past which the boxes that reach it go in order.
template <class T, bool kPlanar, bool kMaximum>
__global__ void __launch_bounds__(kRoiTileThreads, kRoiGridBlocksPerSm<T>)
    roi_align_backward_kernel(RoiAlignParams<T> params, LevelTiles tiles) {
  using A = Acc<T>;
  struct Shared {
    union {  // one after the other
      GridShared<RoiAxis<A>, A, kPlanar, kMaximum> grid;
      RoiTileRows<A> rows;
    };
    RoiShape shape;  // of the level: no thread spends registers on it, nor on the tile
    RoiTile tile;
  };
  auto& shared = static_shared<Shared>();
  int level = 0;
  int64_t first_tile = 0;
#pragma unroll
  for (int i = 1; i < kRoiMaxLevels; ++i) {
    if (i >= params.levels.count || blockIdx.x < tiles.first[i]) continue;
    level = i;
    first_tile = tiles.first[i];
  }
  if (threadIdx.x == 0) {
    shared.shape = params.shape_of(level);
    shared.tile = roi_tile(shared.shape, blockIdx.x - first_tile);
  }
  __syncthreads();
  const RoiShape& shape = shared.shape;
  const RoiTile& tile = shared.tile;
  A sum[kRoiTileWidth] = {};
  gather_grid(
      shape, tile, params.boxes, params.grad_output, params.saved_argmax, shared.grid,
      [&](int64_t k) {
        const A* box = params.boxes + k * 5;
        const A scale = static_cast<A>(shape.spatial_scale);
        return roi_batch_index(box[0], shape.batch) == tile.image && roi_level(params.levels, box, k) == level &&
               span_reaches(roi_span(box[2], box[4], scale, shape.aligned), tile.y, tile.y + kRoiTileHeight) &&
               span_reaches(roi_span(box[1], box[3], scale, shape.aligned), tile.x, tile.x + kRoiTileWidth);
      },
      sum);
  __syncthreads();
  store_tile(shape, tile, sum, shared.rows, params.levels.maps[level].grad_input);
}

// ---- launchers

// Whether planes are turned to channels-last first.
template <class T>
bool copies_maps(const RoiAlignParams<T>& params) {
  const RoiShape& shape = params.shape;
  return !shape.channels_last && shape.boxes * shape.bins() * kRoiCopyGain >= params.pixels();
}

// Turns the maps into `scratch` in one launch and lets the params point there.
template <class T>
cudaError_t copy_maps(RoiAlignParams<T>& params, T* scratch, CudaStream stream) {
  PlaneMaps<T> maps{};
  static_assert(PlaneMaps<T>::kMost >= kRoiMaxLevels, "all levels in one launch");
  maps.count = params.levels.count;
  for (int level = 0; level < maps.count; ++level) {
    maps.from[level] = params.levels.maps[level].input;
    maps.to[level] = scratch;
    maps.pixels[level] = params.shape_of(level).pixels();
    params.levels.maps[level].input = scratch;
    scratch += params.shape.batch * params.shape.channels * maps.pixels[level];
  }
  return planes_to_channels_last(maps, params.shape.batch, params.shape.channels, stream);
}

}  // namespace

template <class T>
int64_t roi_align_forward_scratch_cuda(const RoiAlignParams<T>& params) {
  if (!copies_maps(params)) return 0;
  return params.shape.channels * params.pixels() * static_cast<int64_t>(sizeof(T));
}

template <class T>
CudaStatus roi_align_forward_cuda(const RoiAlignParams<T>& call, void* scratch, CudaStream stream) {
  RoiAlignParams<T> params = call;
  const RoiShape& shape = params.shape;
  const RoiBlocks blocks = roi_blocks<T>(shape);
  const int64_t grid = shape.boxes * blocks.per_box();
  const bool copied = copies_maps(params);
  cudaError_t status = grid_fits(grid);
  if (status == cudaSuccess && copied) status = copy_maps(params, static_cast<T*>(scratch), stream);
  if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  bool wide = shape.channels % kWide<T> == 0 && is_wide_aligned(params.output);
  for (int level = 0; level < params.levels.count; ++level) {
    wide = wide && is_wide_aligned(params.levels.maps[level].input);
  }
  const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kRoiBlockThreads)};
  status =
      roi_with_layout<T>(shape.channels_last, copied, wide, [&](auto group, auto planar_input, auto planar_output) {
        constexpr int kGroup = decltype(group)::value;
        constexpr bool kPlanarInput = decltype(planar_input)::value, kPlanarOutput = decltype(planar_output)::value;
        return params.maximum() ? launch(roi_align_forward_kernel<T, kGroup, kPlanarInput, kPlanarOutput, true>, config,
                                         stream, params, blocks)
                                : launch(roi_align_forward_kernel<T, kGroup, kPlanarInput, kPlanarOutput, false>,
                                         config, stream, params, blocks);
      });
  return static_cast<CudaStatus>(status);
}

template <class T>
CudaStatus roi_align_backward_cuda(const RoiAlignParams<T>& params, CudaStream stream) {
  LevelTiles tiles{};
  for (int level = 0; level < params.levels.count; ++level) {
    tiles.first[level + 1] = tiles.first[level] + roi_tiles(params.shape_of(level));
  }
  const int64_t blocks = tiles.first[params.levels.count];
  cudaError_t status = grid_fits(blocks);
  if (status == cudaSuccess) status = grid_bins_fit(params.shape);
  if (status == cudaSuccess) {
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kRoiTileThreads)};
    const auto launch_as = [&](auto planar) {
      constexpr bool kPlanar = decltype(planar)::value;
      return params.maximum() ? launch(roi_align_backward_kernel<T, kPlanar, true>, config, stream, params, tiles)
                              : launch(roi_align_backward_kernel<T, kPlanar, false>, config, stream, params, tiles);
    };
    status = params.shape.channels_last ? launch_as(std::false_type{}) : launch_as(std::true_type{});
  }
  return static_cast<CudaStatus>(status);
}

#define CVK_INSTANTIATE(T)                                                                    \
  template int64_t roi_align_forward_scratch_cuda<T>(const RoiAlignParams<T>&);               \
  template CudaStatus roi_align_forward_cuda<T>(const RoiAlignParams<T>&, void*, CudaStream); \
  template CudaStatus roi_align_backward_cuda<T>(const RoiAlignParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
