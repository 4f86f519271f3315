// Position-sensitive pooling on CUDA. A kind of axis says what common/roi_taps.cuh wants of it, and
//   roi_pixel_weight(axis, bin, p)     the weight of pixel p in bin `bin`
//   roi_bin_divisor(axis, bin)         what the sum of a bin is divided by along the axis
// Reach::reaches(shape, box, along_y, first, last) says whether the box reads any of the pixels [first, last).
//
// Backward, what was tried: a block met a box together, a warp for each row of the tile and column, behind three barriers: some 2,800
// warp instructions for a box and block (SASS for sm_90a, RoI Align in float32 at sampling_ratio 2), 190 us on an H100 for 490
// channels. Each warp for itself: some 800.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/position_sensitive.h"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_taps.cuh"
#include "common/roi_tuning.h"

namespace cvk {

// Block: one box and kPsBlockOutputs of its values in the order of memory, so that they leave as runs. Every lane reads pixels of
// a channel of its own; those of a row of taps share a sector where the input lies in planes.
template <class T, class Axis>
static __global__ void __launch_bounds__(kRoiBlockThreads, kPsBlocksPerSm)
    ps_forward_kernel(PositionSensitiveParams<T> params, int64_t blocks_of_box) {
  using A = Acc<T>;
  struct Shared {
    SharedAxes<Axis> axes;
    SharedTaps<Tap<A>> y, x;
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const int64_t k = blockIdx.x / blocks_of_box, first = blockIdx.x % blocks_of_box * kPsBlockOutputs;
  const int64_t last = min_of<int64_t>(first + kPsBlockOutputs, shape.channels);
  const int64_t image = roi_batch_index(params.boxes[k * 5], shape.batch);
  if (image < 0) {  // a bad image index reads nothing
    for (int64_t at = first + threadIdx.x; at < last; at += kRoiBlockThreads) {
      params.output[k * shape.channels + at] = from_acc<T>(A(0));
    }
    return;
  }
  compute_axes(shape, params.boxes + k * 5, shared.axes);
  __syncthreads();
  const auto ys = tabulate_taps<Tap<A>>(shared.axes.y, shape.pooled_height, shared.y);
  const auto xs = tabulate_taps<Tap<A>>(shared.axes.x, shape.pooled_width, shared.x);
  __syncthreads();
  const int64_t bins = shape.bins(), out_channels = ps_out_channels(shape);
  for (int64_t at = first + threadIdx.x; at < last; at += kRoiBlockThreads) {
    const int64_t bin = shape.channels_last ? at / out_channels : at % bins;
    const int64_t channel = shape.channels_last ? at % out_channels * bins + bin : at;
    const int bin_y = static_cast<int>(bin / shape.pooled_width), bin_x = static_cast<int>(bin % shape.pooled_width);
    const Pixels<T> pixels = shape.channels_last ? roi_pixels<false>(shape, params.input, image, channel)
                                                 : roi_pixels<true>(shape, params.input, image, channel);
    A sum = A(0);
    const int y_count = ys.count(bin_y), x_count = xs.count(bin_x);
    for (int i = 0; i < y_count; ++i) {
      const Tap<A> y = ys(bin_y, i);
      for (int j = 0; j < x_count; ++j) {
        const Tap<A> x = xs(bin_x, j);
        sum = mul_add(y.weight * x.weight, to_acc(*pixels.at(y.pixel, x.pixel)), sum);
      }
    }
    const A divisor = roi_bin_divisor(shared.axes.y, bin_y) * roi_bin_divisor(shared.axes.x, bin_x);
    params.output[k * shape.channels + at] = from_acc<T>(sum / divisor);
  }
}

// Block: a tile of pixels and channels (common/roi_gather.cuh). Each warp goes through boxes of its own, the sums of the tile in
// registers; a lane has a channel, and so one bin, and works out what this takes from the tile's rows and columns.
template <class T, class Axis, class Reach>
static __global__ void __launch_bounds__(kRoiGatherThreads<Acc<T>>)
    ps_backward_kernel(PositionSensitiveParams<T> params) {
  using A = Acc<T>;
  struct Warp {
    RoiTileSums<A> sums;
    RoiTileRow<A> row;
    SharedAxes<Axis> axes;
  };
  struct Shared {
    Warp warps[kRoiGatherWarps<A>];
    RoiSharedOut<A> stretch;
    RoiTile tile;  // no thread spends registers on it
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const int lane = static_cast<int>(threadIdx.x) % kRoiTileChannels;
  const int warp = static_cast<int>(threadIdx.x) / kRoiTileChannels;
  if (threadIdx.x == 0) shared.tile = roi_tile(shape, blockIdx.x);
  __syncthreads();
  const RoiTile& tile = shared.tile;
  Warp& own = shared.warps[warp];
  // Lanes beyond the last channel do as the last one does, and store nothing.
  const int64_t channel = tile.first_channel + min_of(lane, tile.channels - 1);
  const int64_t bin = channel % shape.bins();
  const int bin_y = static_cast<int>(bin / shape.pooled_width), bin_x = static_cast<int>(bin % shape.pooled_width);
  A sum[kRoiTileHeight][kRoiTileWidth] = {};
  for (int64_t begin = 0; begin < shape.boxes; begin += shared.stretch.kSize) {
    const int total = collect_boxes(begin, shape.boxes, shared.stretch, [&](int64_t k) {
      const A* box = params.boxes + k * 5;
      return roi_batch_index(box[0], shape.batch) == tile.image &&
             Reach::reaches(shape, box, true, tile.y, tile.y + kRoiTileHeight) &&
             Reach::reaches(shape, box, false, tile.x, tile.x + kRoiTileWidth);
    });
    for (int b = warp; b < total; b += kRoiGatherWarps<A>) {
      const int64_t k = shared.stretch.boxes[b];
      __syncwarp();  // the axes of the box before have been read
      if (lane < 2) {
        Axis axis;
        roi_make_axis(shape, params.boxes + k * 5, lane == 0, axis);
        (lane == 0 ? own.axes.y : own.axes.x) = axis;
      }
      __syncwarp();
      A y_weight[kRoiTileHeight], x_weight[kRoiTileWidth];
      roi_pixel_weights(own.axes.y, bin_y, tile.y, y_weight);
      roi_pixel_weights(own.axes.x, bin_x, tile.x, x_weight);
      bool in_rows = false, in_columns = false;
#pragma unroll
      for (int p = 0; p < kRoiTileHeight; ++p) in_rows = in_rows || y_weight[p] != A(0);
#pragma unroll
      for (int p = 0; p < kRoiTileWidth; ++p) in_columns = in_columns || x_weight[p] != A(0);
      if (!in_rows || !in_columns) continue;
      const A divisor = roi_bin_divisor(own.axes.y, bin_y) * roi_bin_divisor(own.axes.x, bin_x);
      const A grad = to_acc(params.grad_output[ps_offset(shape, k, channel / shape.bins(), bin)]) / divisor;
#pragma unroll
      for (int row = 0; row < kRoiTileHeight; ++row) {
        // Edge: a weight of zero passes nothing on, not even an infinite gradient.
        if (y_weight[row] == A(0)) continue;
        const A weighted = grad * y_weight[row];
#pragma unroll
        for (int p = 0; p < kRoiTileWidth; ++p) {
          if (x_weight[p] != A(0)) sum[row][p] = mul_add(x_weight[p], weighted, sum[row][p]);
        }
      }
    }
  }
  keep_sums(sum, own.sums);
  store_sums_of_tile(
      shape, tile, [&](int w) -> const RoiTileSums<A>& { return shared.warps[w].sums; },
      [&](int w) -> RoiTileRow<A>& { return shared.warps[w].row; }, params.grad_input);
}

// ---- launchers

template <class Axis, class T>
CudaStatus ps_forward(const PositionSensitiveParams<T>& params, CudaStream stream) {
  const int64_t blocks_of_box = ceil_div<int64_t>(params.shape.channels, kPsBlockOutputs);
  const int64_t blocks = params.shape.boxes * blocks_of_box;
  cudaError_t status = grid_fits(blocks);
  if (status == cudaSuccess) {
    status = launch(ps_forward_kernel<T, Axis>, {dim3(static_cast<unsigned>(blocks)), dim3(kRoiBlockThreads)}, stream,
                    params, blocks_of_box);
  }
  return static_cast<CudaStatus>(status);
}

template <class Axis, class Reach, class T>
CudaStatus ps_backward(const PositionSensitiveParams<T>& params, CudaStream stream) {
  const int64_t blocks = roi_tiles(params.shape);
  cudaError_t status = grid_fits(blocks);
  if (status == cudaSuccess) {
    status = launch(ps_backward_kernel<T, Axis, Reach>,
                    {dim3(static_cast<unsigned>(blocks)), dim3(kRoiGatherThreads<Acc<T>>)}, stream, params);
  }
  return static_cast<CudaStatus>(status);
}

}  // namespace cvk
