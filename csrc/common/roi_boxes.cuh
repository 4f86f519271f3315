// The gradient with respect to the boxes on CUDA. Method: roi_boxes.h. A block leaves the four sums of its box, channels and
// bins; no atomics, and sums in a fixed order.
#pragma once

#include <cstdint>

#include "common/roi_boxes.h"
#include "common/roi_frame.cuh"
#include "common/roi_taps.cuh"

namespace cvk {

// Adds up the threads' sums and stores them as those of the block. The whole block calls it once.
template <class A>
CVK_DEVICE void store_sums(const A (&sums)[kRoiSums],
                           A* to) {  // [blocks, kRoiSums]
  constexpr int kWarps = kRoiBlockThreads / 32;
  struct Shared {
    A values[kWarps][kRoiSums];
  };
  auto& shared = static_shared<Shared>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < kRoiSums; ++i) {
    A sum = sums[i];
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, delta);
    if (lane == 0) shared.values[warp][i] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kRoiSums) {
    A sum = A(0);
    for (int w = 0; w < kWarps; ++w) sum += shared.values[w][threadIdx.x];
    to[static_cast<int64_t>(blockIdx.x) * kRoiSums + threadIdx.x] = sum;
  }
}

// Of the mean. Static, as all kernels here: every .cu file launches its own copy.
template <class Axis, class T, int kGroup, bool kPlanarInput, bool kPlanarGrad>
static __global__ void __launch_bounds__(kRoiBlockThreads, kRoiBoxesBlocksPerSm)
    roi_boxes_kernel(RoiBoxesParams<T> params, RoiBlocks blocks) {
  using A = Acc<T>;
  using Entry = SlopedTap<A>;
  constexpr bool kStaged = kPlanarGrad && !kPlanarInput;  // lanes along channels, gradient in planes
  struct Shared {
    SharedAxes<Axis> axes;
    SharedTaps<Entry> y, x;
    T grad[kStaged ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiBlock block = roi_block(shape, blocks, blockIdx.x);
  const int64_t image = roi_batch_index(params.boxes[block.k * 5], shape.batch);
  A sums[kRoiSums] = {};
  if (image >= 0) {  // a bad image index reads nothing; the same for all threads
    compute_axes(shape, params.boxes + block.k * 5, shared.axes);
    if (kStaged) {
      for_each_planar(shape, block,
                      [&](int64_t at, int local_bin, int c) { shared.grad[local_bin][c] = params.grad_output[at]; });
    }
    __syncthreads();
    const AxisTaps<Axis, Entry> ys = tabulate_taps(shared.axes.y, shape.pooled_height, shared.y);
    const AxisTaps<Axis, Entry> xs = tabulate_taps(shared.axes.x, shape.pooled_width, shared.x);
    __syncthreads();
    for_each_group<kGroup, kPlanarInput>(block, [&](int group, int local_bin) {
      const int64_t bin = block.first_bin + local_bin, channel = block.first_channel + group * kGroup;
      const Pixels<T> pixels = roi_pixels<kPlanarInput>(shape, params.input, image, channel);
      A grad[kGroup];
      if constexpr (kStaged) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c) grad[c] = to_acc(shared.grad[local_bin][group * kGroup + c]);
      } else if constexpr (kPlanarGrad) {
        grad[0] = to_acc(params.grad_output[(block.k * shape.channels + channel) * shape.bins() + bin]);
      } else {
        load_group(params.grad_output + (block.k * shape.bins() + bin) * shape.channels + channel, grad);
      }
      const int bin_y = static_cast<int>(bin / shape.pooled_width), bin_x = static_cast<int>(bin % shape.pooled_width);
      const int y_count = ys.count(bin_y), x_count = xs.count(bin_x);
      for (int i = 0; i < y_count; ++i) {
        const Entry y = ys(bin_y, i);
        A weighted = A(0), by_start = A(0), by_bin = A(0);
        for (int j = 0; j < x_count; ++j) {
          const Entry x = xs(bin_x, j);
          A value[kGroup];
          load_group(pixels.at(y.pixel, x.pixel), value);
          A product = A(0);
#pragma unroll
          for (int c = 0; c < kGroup; ++c) product = mul_add(grad[c], value[c], product);
          weighted = mul_add(x.weight, product, weighted);
          by_start = mul_add(x.start_slope, product, by_start);
          by_bin = mul_add(x.bin_slope, product, by_bin);
        }
        sums[kYStart] = mul_add(y.start_slope, weighted, sums[kYStart]);
        sums[kYBin] = mul_add(y.bin_slope, weighted, sums[kYBin]);
        sums[kXStart] = mul_add(y.weight, by_start, sums[kXStart]);
        sums[kXBin] = mul_add(y.weight, by_bin, sums[kXBin]);
      }
    });
  }
  store_sums(sums, params.sums);
}

// One thread per box.
template <class Axis, class T>
static __global__ void __launch_bounds__(kRoiBlockThreads) roi_boxes_finish_kernel(RoiBoxesParams<T> params) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kRoiBlockThreads + threadIdx.x;
  if (k < params.shape.boxes) roi_finish_box<Axis>(params, k);
}

// ---- on the host

// Scratch in bytes: the sums, and before them the copy of the input where there is one.
template <class T>
int64_t roi_boxes_sums_bytes(const RoiShape& shape) {
  return shape.boxes * roi_blocks<T>(shape).per_box() * kRoiSums * static_cast<int64_t>(sizeof(Acc<T>));
}

template <class Axis, class T>
cudaError_t roi_boxes_finish(const RoiBoxesParams<T>& params, CudaStream stream) {
  const int64_t grid = ceil_div<int64_t>(params.shape.boxes, kRoiBlockThreads);
  const cudaError_t status = grid_fits(grid);
  if (status != cudaSuccess) return status;
  return launch(roi_boxes_finish_kernel<Axis, T>, {dim3(static_cast<unsigned>(grid)), dim3(kRoiBlockThreads)}, stream,
                params);
}

// Both passes of the mean. `sums` and `copy` are scratch of roi_boxes_sums_bytes and roi_copy_bytes.
template <class Axis, class T>
cudaError_t roi_boxes_backward(RoiBoxesParams<T> params, void* sums, void* copy, CudaStream stream) {
  const RoiShape& shape = params.shape;
  const RoiBlocks blocks = roi_blocks<T>(shape);
  const int64_t grid = shape.boxes * blocks.per_box();
  params.parts = blocks.per_box();
  params.sums = static_cast<Acc<T>*>(sums);
  cudaError_t status = grid_fits(grid);
  if (status == cudaSuccess) status = roi_copy_input(shape, copy, params.input, stream);
  if (status != cudaSuccess) return status;
  const bool wide =
      shape.channels % kWide<T> == 0 && is_wide_aligned(params.input) && is_wide_aligned(params.grad_output);
  const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kRoiBlockThreads)};
  status = roi_with_layout<T>(shape, wide, [&](auto group, auto planar_input, auto planar_grad) {
    return launch(
        roi_boxes_kernel<Axis, T, decltype(group)::value, decltype(planar_input)::value, decltype(planar_grad)::value>,
        config, stream, params, blocks);
  });
  return status == cudaSuccess ? roi_boxes_finish<Axis>(params, stream) : status;
}

}  // namespace cvk
