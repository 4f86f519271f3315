// RoI Pool and its relatives on CUDA: the maximum of each bin over the cells of a box, and its gradient. A kind of axis says by
//   roi_bin_cells(axis, bin)     which cells a bin compares,
//   roi_pixel_range(axis, bin)   which pixels it reads (in ascending order of bins),
//   pool_maximum(pixels, y_axis, x_axis, y_cells, x_cells, result, argmax)
//                                the maximum and its index, -1 for none,
//   spread_maximum(y_axis, x_axis, y_cells, x_cells, index, pixels, grad)
//                                adds what the index sends to the pixels of a tile (TilePixels).
//
// Backward, what was tried. Instructions are warp instructions for one box, tile and 32 channels, read off the SASS for sm_90a of
// RoI Pool in float32, for a box whose 7 x 7 bins are 1.5 pixels wide; times are of 512 such boxes on two maps of 256 x 50 x 84.
//   Two threads search the bins that reach the tile, the block stages these, and every row looks at all of them, each lane at all
//   eight columns; five barriers a box: some 4,000 instructions, 270 us on an H100, much of it waiting for the two threads.
//   Each warp goes through boxes of its own and adds to sums of its own in shared memory, where an index leads, so that each bin is
//   looked at once and not by every row; no barriers but for finding boxes: some 1,300 (planes 1,700), of which 25 for each bin.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/roi_cells.h"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_indices.h"
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

// The pixels of a tile and this lane's sums of them.
template <class A>
struct TilePixels {
  RoiTileSums<A>& sums;
  int y, x, rows, columns;  // first pixel, and how many the map has here
  int first;                // flat index of the first pixel
  int further[3];  // how much further it is 4, 2 and 1 rows below; beyond all indices where the tile has no such row

  CVK_DEVICE void add(int row, int column, A value) const {
    sums.values[row * kRoiTileWidth + column][static_cast<int>(threadIdx.x) % 32] += value;
  }
};

template <class A>
CVK_DEVICE TilePixels<A> tile_pixels(const RoiShape& shape, const RoiTile& tile, RoiTileSums<A>& sums) {
  static_assert(kRoiTileHeight == 8, "three halvings");
  const int rows = min_of(kRoiTileHeight, shape.height - tile.y);
  constexpr int kBeyond = 0x7fffffff;
  return {
      sums,
      tile.y,
      tile.x,
      rows,
      min_of(kRoiTileWidth, shape.width - tile.x),
      tile.y * shape.width + tile.x,
      {rows > 4 ? 4 * shape.width : kBeyond, rows > 2 ? 2 * shape.width : kBeyond, rows > 1 ? shape.width : kBeyond}};
}

// A flat index names one pixel.
template <class A>
CVK_DEVICE void spread_pixel(int index, const TilePixels<A>& pixels, A grad) {
  // The row by halving: a division costs more. Invariant: a negative or foreign index does not end in a column of the tile.
  int column = index - pixels.first, row = 0;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (column >= pixels.further[i]) {
      column -= pixels.further[i];
      row += 4 >> i;
    }
  }
  if (static_cast<unsigned>(column) < static_cast<unsigned>(pixels.columns)) pixels.add(row, column, grad);
}

// ---- RoI Pool

template <int count, class T>
CVK_DEVICE void pool_maximum(const Pixels<T>& pixels, const CellAxis<Acc<T>>&, const CellAxis<Acc<T>>&, PixelRange y,
                             PixelRange x, Acc<T> (&result)[count], int (&argmax)[count]) {
  pool_pixels(pixels, y, x, result, argmax);
}

template <class A>
CVK_DEVICE void spread_maximum(const CellAxis<A>&, const CellAxis<A>&, PixelRange, PixelRange, int index,
                               const TilePixels<A>& pixels, A grad) {
  spread_pixel(index, pixels, grad);
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

// The indices of a group of channels, in stores of 16 bytes at most.
template <class Index, int count>
CVK_DEVICE void store_indices(Index* to, const int (&indices)[count]) {
  constexpr int kEach = count < kWide<Index> ? count : kWide<Index>;
#pragma unroll
  for (int first = 0; first < count; first += kEach) {
    Group<Index, kEach> group;
#pragma unroll
    for (int i = 0; i < kEach; ++i) group.values[i] = static_cast<Index>(indices[first + i]);
    *reinterpret_cast<Group<Index, kEach>*>(to + first) = group;
  }
}

// Block: one box, some channels and bins (common/roi_frame.cuh).
//   kGroup         channels per load: kWide<T> (channels-last input) or 1
//   kPlanarInput   lanes run over bins instead of channels
//   kPlanarOutput  results pass through shared memory and leave as runs of bins
// Params: shape, input, boxes, output, argmax.
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
      if (params.argmax.data == nullptr) return;
      if (params.argmax.narrow) {
        store_indices(params.argmax.template as<int16_t>() + at, argmax);
      } else {
        store_indices(params.argmax.template as<int32_t>() + at, argmax);
      }
    }
  });
  if (!kPlanarOutput) return;
  __syncthreads();
  for_each_planar(shape, block, [&](int64_t at, int local_bin, int c) {
    params.output[at] = shared.values[local_bin][c];
    if (params.argmax.data != nullptr) params.argmax.store(at, shared.indices[local_bin][c]);
  });
}

// ---- backward

// Block: a tile of pixels and channels (common/roi_gather.cuh). Each warp takes boxes that reach it, and adds the gradients of the
// bins that do to sums of its own, at the pixels that their indices name; a lane has a channel.
// Params: shape, boxes, grad_output, saved_argmax, grad_input.
template <class Params, class Axis, class T, bool kPlanar>
static __global__ void __launch_bounds__(kRoiGatherThreads<Acc<T>>) roi_max_backward_kernel(Params params) {
  using A = Acc<T>;
  constexpr int kBins = kRoiStagedBins, kLanes = kRoiTileChannels, kWarps = kRoiGatherWarps<A>;
  constexpr int kTogether = kRoiGatherTogether;
  static_assert(kBins == kRoiTileWidth && 2 * kBins <= 32,
                "a lane for each bin, and rows of bins as wide as those of pixels");
  struct Warp {
    RoiTileSums<A> sums;
    RoiTileRow<A> grad;  // of a row of bins, where they lie in planes; in the end a row of pixels
    int argmax[kPlanar ? kBins : 1][kLanes + 1];
    SharedAxes<Axis> axes;
    typename AxisCells<Axis>::Range y_cells[kBins], x_cells[kBins];
  };
  struct Shared {
    Warp warps[kWarps];
    RoiSharedOut<A> stretch;
    RoiTile tile;  // no thread spends registers on it
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  if (threadIdx.x == 0) shared.tile = roi_tile(shape, blockIdx.x);
  __syncthreads();
  const RoiTile& tile = shared.tile;
  const int channel = min_of(lane, tile.channels - 1);  // lanes beyond the last one do as it does, and store nothing
  Warp& own = shared.warps[warp];
  const TilePixels<A> pixels = tile_pixels(shape, tile, own.sums);
  clear_sums(own.sums);

  // Of the box at hand a lane has one bin along one axis.
  const bool along_y = lane % (2 * kBins) < kBins;
  const int local = lane % kBins;
  for (int64_t begin = 0; begin < shape.boxes; begin += shared.stretch.kSize) {
    const int total = collect_boxes(begin, shape.boxes, shared.stretch, [&](int64_t k) {
      const A* box = params.boxes + k * 5;
      if (roi_batch_index(box[0], shape.batch) != tile.image) return false;
      CellAxis<A> y, x;
      roi_make_axis(shape, box, true, y);
      roi_make_axis(shape, box, false, x);
      return y.first < tile.y + kRoiTileHeight && y.last > tile.y && x.first < tile.x + kRoiTileWidth &&
             x.last > tile.x;
    });
    for (int b = warp; b < total; b += kWarps) {
      const int64_t k = shared.stretch.boxes[b];
      Axis axis;
      roi_make_axis(shape, params.boxes + k * 5, along_y, axis);
      for (int bin_y = 0; bin_y < shape.pooled_height; bin_y += kBins) {
        for (int bin_x = 0; bin_x < shape.pooled_width; bin_x += kBins) {
          __syncwarp();  // axes and cells before have been read
          if (lane == 0) own.axes.y = axis;
          if (lane == kBins) own.axes.x = axis;
          const int bin = (along_y ? bin_y : bin_x) + local, first = along_y ? tile.y : tile.x;
          bool reaches = false;
          if (bin < (along_y ? shape.pooled_height : shape.pooled_width)) {
            const PixelRange range = roi_pixel_range(axis, bin);
            reaches = range.first < first + (along_y ? kRoiTileHeight : kRoiTileWidth) && range.last > first;
            if (lane < 2 * kBins) (along_y ? own.y_cells : own.x_cells)[local] = roi_bin_cells(axis, bin);
          }
          const unsigned found = __ballot_sync(0xffffffffu, reaches);
          __syncwarp();
          constexpr unsigned kMask = (1u << kBins) - 1u;
          const unsigned x_bins = found >> kBins & kMask;
          const int x_first = __ffs(static_cast<int>(x_bins)) - 1, x_last = 32 - __clz(static_cast<int>(x_bins));
          if (x_bins == 0) continue;
          for (unsigned y_bins = found & kMask; y_bins != 0; y_bins &= y_bins - 1) {
            const int i = __ffs(static_cast<int>(y_bins)) - 1;
            const int64_t first_bin = static_cast<int64_t>(bin_y + i) * shape.pooled_width + bin_x;
            if constexpr (kPlanar) {
              const int64_t at = (k * shape.channels + tile.first_channel) * shape.bins() + first_bin;
              turn_bins(shape, tile, params.grad_output, params.saved_argmax, at, x_first, x_last, own);
            }
            // Where lanes run along channels, gradients are read where they lie.
            int64_t at = (k * shape.bins() + first_bin + x_first) * shape.channels + tile.first_channel + channel;
            for (int j = x_first; j < x_last; j += kTogether) {
              A grad[kTogether];
              int index[kTogether];
#pragma unroll
              for (int n = 0; n < kTogether; ++n) {
                const bool exists = j + n < x_last;
                if constexpr (kPlanar) {
                  grad[n] = exists ? own.grad[j + n][channel] : A(0);
                  index[n] = exists ? own.argmax[j + n][channel] : -1;
                } else {
                  grad[n] = exists ? to_acc(params.grad_output[at]) : A(0);
                  index[n] = exists ? params.saved_argmax.load(at) : -1;
                  at += shape.channels;
                }
              }
#pragma unroll
              for (int n = 0; n < kTogether; ++n) {
                if (j + n >= x_last) continue;
                spread_maximum(own.axes.y, own.axes.x, own.y_cells[i], own.x_cells[j + n], index[n], pixels, grad[n]);
              }
            }
          }
        }
      }
    }
  }
  store_sums_of_tile(
      shape, tile, [&](int w) -> const RoiTileSums<A>& { return shared.warps[w].sums; },
      [&](int w) -> RoiTileRow<A>& { return shared.warps[w].grad; }, params.grad_input);
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
  const bool wide = shape.channels % kWide<T> == 0 && is_wide_aligned(turned.input) && is_wide_aligned(params.output) &&
                    is_wide_aligned(params.argmax.data);
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
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kRoiGatherThreads<Acc<T>>)};
    status = params.shape.channels_last
                 ? launch(roi_max_backward_kernel<Params, Axis, T, false>, config, stream, params)
                 : launch(roi_max_backward_kernel<Params, Axis, T, true>, config, stream, params);
  }
  return static_cast<CudaStatus>(status);
}

}  // namespace cvk
