// RoI Pool on CUDA. Contract and method: roi_pool.h.
//
// What was tried: nothing on a GPU yet; the structure follows the bounds (wide loads along channels, ranges of the bins once per
// box, gather in the backward pass).
#include "common/launch.cuh"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/vec.cuh"
#include "kernels/roi_pool/roi_pool.h"
#include "kernels/roi_pool/roi_pool_math.h"

namespace cvk {
namespace {

// ---- forward

// The pixels of the bins of one axis of the block's box: in shared memory where they fit, else computed at each use.
template <class A>
struct AxisRanges {
  const CellAxis<A>& axis;  // in shared memory
  const PixelRange* table;  // [bins] or null

  CVK_DEVICE PixelRange operator()(int bin) const { return table != nullptr ? table[bin] : pixel_range(axis, bin); }
};

template <class A>
CVK_DEVICE AxisRanges<A> tabulate(const CellAxis<A>& axis, int bins, PixelRange* table) {
  if (bins > kRoiPoolSharedBins) return {axis, nullptr};
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += kRoiBlockThreads) table[i] = pixel_range(axis, i);
  return {axis, table};
}

// One bin, `count` channels: the maximum and the pixel that it came from.
template <int count, class T>
CVK_DEVICE void pool_maximum(const Pixels<T>& pixels, PixelRange y, PixelRange x, Acc<T> (&result)[count],
                             int (&argmax)[count]) {
#pragma unroll
  for (int c = 0; c < count; ++c) {
    result[c] = Acc<T>(0);
    argmax[c] = -1;
  }
  if (y.empty() || x.empty()) return;
  load_group(pixels.at(y.first, x.first), result);
#pragma unroll
  for (int c = 0; c < count; ++c) argmax[c] = y.first * pixels.width + x.first;
  for (int row = y.first; row < y.last; ++row) {
    for (int column = x.first; column < x.last; ++column) {
      Acc<T> value[count];
      load_group(pixels.at(row, column), value);
#pragma unroll
      for (int c = 0; c < count; ++c) {
        if (is_greater(value[c], result[c])) {
          result[c] = value[c];
          argmax[c] = row * pixels.width + column;
        }
      }
    }
  }
}

// Block: one box, some channels and bins (common/roi_frame.cuh).
//   kGroup         channels per load: kWide<T> (channels-last input) or 1
//   kPlanarInput   lanes run over bins instead of channels
//   kPlanarOutput  results pass through shared memory and leave as runs of bins
template <class T, int kGroup, bool kPlanarInput, bool kPlanarOutput>
__global__ void __launch_bounds__(kRoiBlockThreads, kRoiPoolBlocksPerSm)
    roi_pool_forward_kernel(RoiPoolParams<T> params, RoiBlocks blocks) {
  using A = Acc<T>;
  struct Shared {
    SharedAxes<CellAxis<A>> axes;
    PixelRange y[kRoiPoolSharedBins];
    PixelRange x[kRoiPoolSharedBins];
    T values[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
    int indices[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiBlock block = roi_block(shape, blocks, blockIdx.x);
  const int64_t image_index = roi_batch_index(params.boxes[block.k * 5], shape.batch);
  SharedAxes<CellAxis<A>>& axes = shared.axes;
  compute_axes(shape, params.boxes + block.k * 5, axes);
  if (image_index < 0) {  // a bad image index reads nothing
    if (threadIdx.x == 0) axes.y.size = 0;
    if (threadIdx.x == 32) axes.x.size = 0;
  }
  __syncthreads();
  const AxisRanges<A> ys = tabulate(axes.y, shape.pooled_height, shared.y);
  const AxisRanges<A> xs = tabulate(axes.x, shape.pooled_width, shared.x);
  __syncthreads();

  for_each_group<kGroup, kPlanarInput>(block, [&](int group, int local_bin) {
    const int64_t bin = block.first_bin + local_bin;
    const int64_t channel = block.first_channel + group * kGroup;
    const Pixels<T> pixels = roi_pixels<kPlanarInput>(shape, params.input, max_of<int64_t>(image_index, 0), channel);
    A result[kGroup];
    int argmax[kGroup];
    pool_maximum(pixels, ys(static_cast<int>(bin / shape.pooled_width)), xs(static_cast<int>(bin % shape.pooled_width)),
                 result, argmax);
    if (kPlanarOutput) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        shared.values[local_bin][group * kGroup + c] = from_acc<T>(result[c]);
        shared.indices[local_bin][group * kGroup + c] = argmax[c];
      }
    } else {
      const int64_t at = (block.k * shape.bins() + bin) * shape.channels + channel;
      store_group(params.output + at, result);
      if (params.argmax != nullptr) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c) params.argmax[at + c] = argmax[c];
      }
    }
  });
  if (!kPlanarOutput) return;
  __syncthreads();
  for_each_planar(shape, block, [&](int64_t at, int local_bin, int c) {
    params.output[at] = shared.values[local_bin][c];
    if (params.argmax != nullptr) params.argmax[at] = shared.indices[local_bin][c];
  });
}

// ---- backward

// The first of `bins` whose range ends beyond `pixel`; ranges end in ascending order.
template <class A>
CVK_DEVICE int first_bin_beyond(const CellAxis<A>& axis, int bins, int pixel) {
  int low = 0, high = bins;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (pixel_range(axis, middle).last > pixel) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The first of `bins` whose range begins at `pixel` or beyond.
template <class A>
CVK_DEVICE int first_bin_from(const CellAxis<A>& axis, int bins, int pixel) {
  int low = 0, high = bins;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (pixel_range(axis, middle).first >= pixel) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Block: a tile of pixels and channels (common/roi_gather.cuh), past which the boxes that reach it go in order. A thread compares
// the indices of the bins that reach the tile with the pixels that it owns.
template <class T>
__global__ void __launch_bounds__(kRoiTileThreads, kRoiPoolBlocksPerSm)
    roi_pool_backward_kernel(RoiPoolParams<T> params) {
  using A = Acc<T>;
  constexpr int kBins = kRoiPoolStagedBins, kLanes = kRoiTileChannels;
  struct Shared {
    A grad[kBins * kBins][kLanes + 1];
    int argmax[kBins * kBins][kLanes + 1];
    RoiTileRows<A> rows;
    PixelRange bins[2];  // that reach the tile: rows of bins, columns
    RoiStretch stretch;
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const RoiTile tile = roi_tile(shape, blockIdx.x);
  const int row = tile.y + warp;
  const unsigned first_pixel = static_cast<unsigned>(row) * static_cast<unsigned>(shape.width) + tile.x;
  const unsigned columns = static_cast<unsigned>(min_of(kRoiTileWidth, shape.width - tile.x));

  A sum[kRoiTileWidth];
#pragma unroll
  for (int i = 0; i < kRoiTileWidth; ++i) sum[i] = A(0);

  for (int64_t begin = 0; begin < shape.boxes; begin += kRoiTileThreads) {
    const int total = collect_boxes(begin, shape.boxes, shared.stretch, [&](int64_t k) {
      const A* box = params.boxes + k * 5;
      if (roi_batch_index(box[0], shape.batch) != tile.image) return false;
      CellAxis<A> y, x;
      roi_make_axis(shape, box, true, y);
      roi_make_axis(shape, box, false, x);
      return y.first < tile.y + kRoiTileHeight && y.last > tile.y && x.first < tile.x + kRoiTileWidth &&
             x.last > tile.x;
    });
    for (int b = 0; b < total; ++b) {
      const int64_t k = shared.stretch.boxes[b];
      __syncthreads();  // the bins of the box before have been read
      if (threadIdx.x == 0 || threadIdx.x == 32) {
        const bool along_y = threadIdx.x == 0;
        CellAxis<A> axis;
        roi_make_axis(shape, params.boxes + k * 5, along_y, axis);
        const int bins = along_y ? shape.pooled_height : shape.pooled_width;
        const int low = along_y ? tile.y : tile.x;
        shared.bins[along_y ? 0 : 1] = {first_bin_beyond(axis, bins, low),
                                        first_bin_from(axis, bins, low + (along_y ? kRoiTileHeight : kRoiTileWidth))};
      }
      __syncthreads();
      const PixelRange bins_y = shared.bins[0], bins_x = shared.bins[1];
      for (int bin_y = bins_y.first; bin_y < bins_y.last; bin_y += kBins) {
        for (int bin_x = bins_x.first; bin_x < bins_x.last; bin_x += kBins) {
          const int y_bins = min_of(kBins, bins_y.last - bin_y), x_bins = min_of(kBins, bins_x.last - bin_x);
          const int staged = y_bins * x_bins;
          __syncthreads();  // the bins staged before have been read
          for (int i = static_cast<int>(threadIdx.x); i < staged * kLanes; i += kRoiTileThreads) {
            const int c = shape.channels_last ? i % kLanes : i / staged;
            const int local = shape.channels_last ? i / kLanes : i % staged;
            if (c >= tile.channels) continue;
            const int64_t bin =
                static_cast<int64_t>(bin_y + local / x_bins) * shape.pooled_width + bin_x + local % x_bins;
            const int64_t channel = tile.first_channel + c;
            const int64_t at = shape.channels_last ? (k * shape.bins() + bin) * shape.channels + channel
                                                   : (k * shape.channels + channel) * shape.bins() + bin;
            shared.grad[local][c] = to_acc(params.grad_output[at]);
            shared.argmax[local][c] = params.saved_argmax[at];
          }
          __syncthreads();
          if (lane >= tile.channels) continue;
          for (int i = 0; i < staged; ++i) {
            const unsigned column = static_cast<unsigned>(shared.argmax[i][lane]) - first_pixel;
            if (column >= columns) continue;
            const A grad = shared.grad[i][lane];
#pragma unroll
            for (int p = 0; p < kRoiTileWidth; ++p) {
              if (column == static_cast<unsigned>(p)) sum[p] += grad;
            }
          }
        }
      }
    }
  }
  store_tile(shape, tile, sum, shared.rows, params.grad_input);
}

}  // namespace

// ---- launchers

template <class T>
int64_t roi_pool_forward_scratch_cuda(const RoiPoolParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus roi_pool_forward_cuda(const RoiPoolParams<T>& params, void* scratch, CudaStream stream) {
  const RoiShape& shape = params.shape;
  const RoiBlocks blocks = roi_blocks<T>(shape);
  const int64_t count = shape.boxes * blocks.per_box();
  cudaError_t status = grid_fits(count);
  RoiPoolParams<T> turned = params;
  if (status == cudaSuccess) status = roi_copy_input(shape, scratch, turned.input, stream);
  if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  const bool wide = shape.channels % kWide<T> == 0 && is_wide_aligned(turned.input) && is_wide_aligned(params.output);
  status = roi_with_layout<T>(shape, wide, [&](auto group, auto planar_input, auto planar_output) {
    constexpr int kGroup = decltype(group)::value;
    constexpr bool kPlanarInput = decltype(planar_input)::value, kPlanarOutput = decltype(planar_output)::value;
    const LaunchConfig config{dim3(static_cast<unsigned>(count)), dim3(kRoiBlockThreads)};
    return launch(roi_pool_forward_kernel<T, kGroup, kPlanarInput, kPlanarOutput>, config, stream, turned, blocks);
  });
  return static_cast<CudaStatus>(status);
}

template <class T>
CudaStatus roi_pool_backward_cuda(const RoiPoolParams<T>& params, CudaStream stream) {
  const int64_t blocks = roi_tiles(params.shape);
  cudaError_t status = grid_fits(blocks);
  if (status == cudaSuccess) {
    status = launch(roi_pool_backward_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kRoiTileThreads)}, stream,
                    params);
  }
  return static_cast<CudaStatus>(status);
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
