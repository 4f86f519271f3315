// RoI Pool and its relatives on CUDA: the maximum of each bin over the cells of a box, and its gradient. A kind of axis says by
//   roi_bin_cells(axis, bin)     which cells a bin compares,
//   roi_pixel_range(axis, bin)   which pixels it reads (in ascending order of bins),
//   pool_maximum(pixels, y_axis, x_axis, y_cells, x_cells, result, argmax)
//                                the maximum and its index, -1 for none,
//   spread_maximum(y_axis, x_axis, y_cells, x_cells, index, row, first_pixel, first_column, columns, grad, sum)
//                                what the index sends to the pixels of a row of a tile, from (row, first_column) on.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/roi_cells.h"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_tuning.h"
#include "common/vec.cuh"

namespace cvk {

// Cells that are pixels: the maximum, and its flat index in the map.
template <int count, class T>
CVK_DEVICE void pool_pixels(const Pixels<T>& pixels, PixelRange y, PixelRange x, Acc<T> (&result)[count],
                            int (&argmax)[count]) {
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

// A flat index names one pixel: whether it is one of `columns` from first_pixel on.
template <class A>
CVK_DEVICE void spread_pixel(int index, unsigned first_pixel, unsigned columns, A grad, A (&sum)[kRoiTileWidth]) {
  const unsigned column = static_cast<unsigned>(index) - first_pixel;
  if (column >= columns) return;
#pragma unroll
  for (int p = 0; p < kRoiTileWidth; ++p) {
    if (column == static_cast<unsigned>(p)) sum[p] += grad;
  }
}

// ---- RoI Pool

template <int count, class T>
CVK_DEVICE void pool_maximum(const Pixels<T>& pixels, const CellAxis<Acc<T>>&, const CellAxis<Acc<T>>&, PixelRange y,
                             PixelRange x, Acc<T> (&result)[count], int (&argmax)[count]) {
  pool_pixels(pixels, y, x, result, argmax);
}

template <class A>
CVK_DEVICE void spread_maximum(const CellAxis<A>&, const CellAxis<A>&, PixelRange, PixelRange, int index, int,
                               unsigned first_pixel, int, unsigned columns, A grad, A (&sum)[kRoiTileWidth]) {
  spread_pixel(index, first_pixel, columns, grad, sum);
}

// ---- forward

// The cells of the bins of one axis of the block's box: in shared memory where they fit, else computed at each use.
template <class Axis>
struct AxisCells {
  using Range = decltype(roi_bin_cells(Axis{}, 0));
  const Axis& axis;    // in shared memory
  const Range* table;  // [bins] or null

  CVK_DEVICE Range operator()(int bin) const { return table != nullptr ? table[bin] : roi_bin_cells(axis, bin); }
};

template <class Axis>
CVK_DEVICE AxisCells<Axis> tabulate_cells(const Axis& axis, int bins, typename AxisCells<Axis>::Range* table) {
  if (bins > kRoiSharedBins) return {axis, nullptr};
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += kRoiBlockThreads) table[i] = roi_bin_cells(axis, i);
  return {axis, table};
}

// Block: one box, some channels and bins (common/roi_frame.cuh).
//   kGroup         channels per load: kWide<T> (channels-last input) or 1
//   kPlanarInput   lanes run over bins instead of channels
//   kPlanarOutput  results pass through shared memory and leave as runs of bins
// Params: shape, input, boxes, output, argmax or null.
template <class Params, class Axis, class T, int kGroup, bool kPlanarInput, bool kPlanarOutput>
static __global__ void __launch_bounds__(kRoiBlockThreads, kRoiMaxBlocksPerSm)
    roi_max_forward_kernel(Params params, RoiBlocks blocks) {
  using A = Acc<T>;
  struct Shared {
    SharedAxes<Axis> axes;
    typename AxisCells<Axis>::Range y[kRoiSharedBins];
    typename AxisCells<Axis>::Range x[kRoiSharedBins];
    T values[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
    int indices[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiBlock block = roi_block(shape, blocks, blockIdx.x);
  const int64_t image_index = roi_batch_index(params.boxes[block.k * 5], shape.batch);
  SharedAxes<Axis>& axes = shared.axes;
  compute_axes(shape, params.boxes + block.k * 5, axes);
  if (image_index < 0) {  // a bad image index reads nothing
    if (threadIdx.x == 0) axes.y.size = 0;
    if (threadIdx.x == 32) axes.x.size = 0;
  }
  __syncthreads();
  const AxisCells<Axis> ys = tabulate_cells(axes.y, shape.pooled_height, shared.y);
  const AxisCells<Axis> xs = tabulate_cells(axes.x, shape.pooled_width, shared.x);
  __syncthreads();

  for_each_group<kGroup, kPlanarInput>(block, [&](int group, int local_bin) {
    const int64_t bin = block.first_bin + local_bin;
    const int64_t channel = block.first_channel + group * kGroup;
    const Pixels<T> pixels = roi_pixels<kPlanarInput>(shape, params.input, max_of<int64_t>(image_index, 0), channel);
    const auto y = ys(static_cast<int>(bin / shape.pooled_width)), x = xs(static_cast<int>(bin % shape.pooled_width));
    A result[kGroup];
    int argmax[kGroup];
    if (y.empty() || x.empty()) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        result[c] = A(0);
        argmax[c] = -1;
      }
    } else {
      pool_maximum(pixels, axes.y, axes.x, y, x, result, argmax);
    }
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

// The first of `bins` bins whose pixels hold for `after`, which holds for all bins after one for which it does.
template <class Axis, class After>
CVK_DEVICE int first_bin(const Axis& axis, int bins, After&& after) {
  int low = 0, high = bins;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (after(roi_pixel_range(axis, middle))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Block: a tile of pixels and channels (common/roi_gather.cuh), past which the boxes that reach it go in order. A thread looks at
// the indices of the bins that reach the tile for pixels that it owns.
// Params: shape, boxes, grad_output, saved_argmax, grad_input.
template <class Params, class Axis, class T>
static __global__ void __launch_bounds__(kRoiTileThreads, kRoiMaxBlocksPerSm) roi_max_backward_kernel(Params params) {
  using A = Acc<T>;
  constexpr int kBins = kRoiStagedBins, kLanes = kRoiTileChannels;
  struct Shared {
    A grad[kBins * kBins][kLanes + 1];
    int argmax[kBins * kBins][kLanes + 1];
    RoiTileRows<A> rows;
    SharedAxes<Axis> axes;
    PixelRange bins[2];                                              // that reach the tile: rows of bins, columns
    typename AxisCells<Axis>::Range y_cells[kBins], x_cells[kBins];  // of the bins staged
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
      __syncthreads();  // the axes and bins of the box before have been read
      compute_axes(shape, params.boxes + k * 5, shared.axes);
      __syncthreads();
      if (threadIdx.x == 0 || threadIdx.x == 32) {
        const bool along_y = threadIdx.x == 0;
        const Axis& axis = along_y ? shared.axes.y : shared.axes.x;
        const int bins = along_y ? shape.pooled_height : shape.pooled_width;
        const int low = along_y ? tile.y : tile.x, high = low + (along_y ? kRoiTileHeight : kRoiTileWidth);
        shared.bins[along_y ? 0 : 1] = {first_bin(axis, bins, [&](PixelRange p) { return p.last > low; }),
                                        first_bin(axis, bins, [&](PixelRange p) { return p.first >= high; })};
      }
      __syncthreads();
      const PixelRange bins_y = shared.bins[0], bins_x = shared.bins[1];
      for (int bin_y = bins_y.first; bin_y < bins_y.last; bin_y += kBins) {
        for (int bin_x = bins_x.first; bin_x < bins_x.last; bin_x += kBins) {
          const int y_bins = min_of(kBins, bins_y.last - bin_y), x_bins = min_of(kBins, bins_x.last - bin_x);
          const int staged = y_bins * x_bins;
          __syncthreads();  // the bins staged before have been read
          const int t = static_cast<int>(threadIdx.x);
          if (t < y_bins) shared.y_cells[t] = roi_bin_cells(shared.axes.y, bin_y + t);
          if (t >= 32 && t < 32 + x_bins) shared.x_cells[t - 32] = roi_bin_cells(shared.axes.x, bin_x + t - 32);
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
            spread_maximum(shared.axes.y, shared.axes.x, shared.y_cells[i / x_bins], shared.x_cells[i % x_bins],
                           shared.argmax[i][lane], row, first_pixel, tile.x, columns, shared.grad[i][lane], sum);
          }
        }
      }
    }
  }
  store_tile(shape, tile, sum, shared.rows, params.grad_input);
}

// ---- launchers

template <class Axis, class T, class Params>
CudaStatus roi_max_forward(const Params& params, void* scratch, CudaStream stream) {
  const RoiShape& shape = params.shape;
  const RoiBlocks blocks = roi_blocks<T>(shape);
  const int64_t count = shape.boxes * blocks.per_box();
  cudaError_t status = grid_fits(count);
  Params turned = params;
  if (status == cudaSuccess) status = roi_copy_input(shape, scratch, turned.input, stream);
  if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  const bool wide = shape.channels % kWide<T> == 0 && is_wide_aligned(turned.input) && is_wide_aligned(params.output);
  status = roi_with_layout<T>(shape, wide, [&](auto group, auto planar_input, auto planar_output) {
    constexpr int kGroup = decltype(group)::value;
    constexpr bool kPlanarInput = decltype(planar_input)::value, kPlanarOutput = decltype(planar_output)::value;
    const LaunchConfig config{dim3(static_cast<unsigned>(count)), dim3(kRoiBlockThreads)};
    return launch(roi_max_forward_kernel<Params, Axis, T, kGroup, kPlanarInput, kPlanarOutput>, config, stream, turned,
                  blocks);
  });
  return static_cast<CudaStatus>(status);
}

template <class Axis, class T, class Params>
CudaStatus roi_max_backward(const Params& params, CudaStream stream) {
  const int64_t blocks = roi_tiles(params.shape);
  cudaError_t status = grid_fits(blocks);
  if (status == cudaSuccess) {
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kRoiTileThreads)};
    status = launch(roi_max_backward_kernel<Params, Axis, T>, config, stream, params);
  }
  return static_cast<CudaStatus>(status);
}

}  // namespace cvk
