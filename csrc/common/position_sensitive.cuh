// Position-sensitive pooling on CUDA. A kind of axis says what common/roi_taps.cuh wants of it, and
//   roi_pixel_weight(axis, bin, p)     the weight of pixel p in bin `bin`
//   roi_bin_divisor(axis, bin)         what the sum of a bin is divided by along the axis
// Reach::reaches(shape, box, along_y, first, last) says whether the box reads any of the pixels [first, last).
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

// Block: a tile of pixels and channels (common/roi_gather.cuh). A channel has one bin, whose weights its lane works out: each warp
// those of its row, and for all warps those of its column.
template <class T, class Axis, class Reach>
static __global__ void __launch_bounds__(kRoiTileThreads, kPsBlocksPerSm)
    ps_backward_kernel(PositionSensitiveParams<T> params) {
  using A = Acc<T>;
  struct Shared {
    A x_weight[kRoiTileWidth][kRoiTileChannels];
    RoiTileRows<A> rows;
    SharedAxes<Axis> axes;
    RoiStretch<> stretch;
  };
  static_assert(kRoiTileWidth == kRoiTileHeight, "a warp for each column");
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const int lane = static_cast<int>(threadIdx.x) % kRoiTileChannels;
  const int warp = static_cast<int>(threadIdx.x) / kRoiTileChannels;
  const RoiTile tile = roi_tile(shape, blockIdx.x);
  // Lanes beyond the last channel do as the last one does, and store nothing.
  const int64_t channel = tile.first_channel + min_of(lane, tile.channels - 1);
  const int64_t bin = channel % shape.bins();
  const int bin_y = static_cast<int>(bin / shape.pooled_width), bin_x = static_cast<int>(bin % shape.pooled_width);
  const int row = tile.y + warp, column = tile.x + warp;

  A sum[kRoiTileWidth];
#pragma unroll
  for (int i = 0; i < kRoiTileWidth; ++i) sum[i] = A(0);

  for (int64_t begin = 0; begin < shape.boxes; begin += kRoiTileThreads) {
    const int total = collect_boxes(begin, shape.boxes, shared.stretch, [&](int64_t k) {
      const A* box = params.boxes + k * 5;
      return roi_batch_index(box[0], shape.batch) == tile.image &&
             Reach::reaches(shape, box, true, tile.y, tile.y + kRoiTileHeight) &&
             Reach::reaches(shape, box, false, tile.x, tile.x + kRoiTileWidth);
    });
    for (int b = 0; b < total; ++b) {
      const int64_t k = shared.stretch.boxes[b];
      __syncthreads();  // axes and weights of the box before have been read
      compute_axes(shape, params.boxes + k * 5, shared.axes);
      __syncthreads();
      const SharedAxes<Axis>& axes = shared.axes;
      shared.x_weight[warp][lane] = column < shape.width ? roi_pixel_weight(axes.x, bin_x, column) : A(0);
      const A y_weight = row < shape.height ? roi_pixel_weight(axes.y, bin_y, row) : A(0);
      __syncthreads();
      if (y_weight == A(0)) continue;
      const A divisor = roi_bin_divisor(axes.y, bin_y) * roi_bin_divisor(axes.x, bin_x);
      const A grad = to_acc(params.grad_output[ps_offset(shape, k, channel / shape.bins(), bin)]) / divisor * y_weight;
#pragma unroll
      for (int i = 0; i < kRoiTileWidth; ++i) {
        // Edge: a weight of zero passes nothing on, not even an infinite gradient.
        const A weight = shared.x_weight[i][lane];
        if (weight != A(0)) sum[i] = mul_add(weight, grad, sum[i]);
      }
    }
  }
  store_tile(shape, tile, sum, shared.rows, params.grad_input);
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
    status = launch(ps_backward_kernel<T, Axis, Reach>, {dim3(static_cast<unsigned>(blocks)), dim3(kRoiTileThreads)},
                    stream, params);
  }
  return static_cast<CudaStatus>(status);
}

}  // namespace cvk
