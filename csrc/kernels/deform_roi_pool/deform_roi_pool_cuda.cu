// Deformable RoI pooling on CUDA. Contract and method: deform_roi_pool.h. Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_gather_bins.cuh"
#include "common/vec.cuh"
#include "kernels/deform_roi_pool/deform_roi_pool.h"
#include "kernels/deform_roi_pool/deform_roi_pool_math.h"

namespace cvk {
namespace {

// A box in shared memory, and its bins as they are shifted.
template <class T>
struct DeformBins {
  using A = Acc<T>;
  const DeformRoiPoolParams<T>& params;
  const SharedAxes<DeformAxis<A>>& axes;
  int64_t k;

  CVK_DEVICE int y_of(int64_t bin) const { return static_cast<int>(bin) / params.shape.pooled_width; }
  CVK_DEVICE int x_of(int64_t bin) const { return static_cast<int>(bin) % params.shape.pooled_width; }
  CVK_DEVICE RoiAxis<A> y_axis(int64_t bin) const {
    return deform_shifted(axes.y, params.offset[deform_offset_index(params.shape, k, true, bin)]);
  }
  CVK_DEVICE RoiAxis<A> x_axis(int64_t bin) const {
    return deform_shifted(axes.x, params.offset[deform_offset_index(params.shape, k, false, bin)]);
  }
};

// Threads 0 and 32 write; the caller synchronises before and after.
template <class T>
CVK_DEVICE void load_axes(const DeformRoiPoolParams<T>& params, int64_t k, SharedAxes<DeformAxis<Acc<T>>>& axes) {
  if (threadIdx.x != 0 && threadIdx.x != 32) return;
  const bool along_y = threadIdx.x == 0;
  const DeformAxis<Acc<T>> axis = deform_axis(params.shape, params.gamma, params.boxes + k * 5, along_y);
  if (along_y) {
    axes.y = axis;
  } else {
    axes.x = axis;
  }
}

template <class A>
CVK_DEVICE SampleRange samples_on_map(const RoiAxis<A>& axis, int bin) {
  return roi_sample_range(axis, bin, A(-1), static_cast<A>(axis.extent));
}

template <class A>
CVK_DEVICE BilinearAxis<A> sample_of(const RoiAxis<A>& axis, int bin, int sample) {
  return bilinear_axis(roi_sample_coordinate(axis, bin, sample), axis.extent);
}

// ---- forward

// Block: one box, some channels and bins (common/roi_frame.cuh).
template <class T, int kGroup, bool kPlanarInput, bool kPlanarOutput>
__global__ void __launch_bounds__(kRoiBlockThreads, kDeformBlocksPerSm)
    deform_roi_pool_forward_kernel(DeformRoiPoolParams<T> params, RoiBlocks blocks) {
  using A = Acc<T>;
  struct Shared {
    SharedAxes<DeformAxis<A>> axes;
    BilinearAxis<A> y[kDeformSharedSamples];
    BilinearAxis<A> x[kDeformSharedSamples];
    T values[kPlanarOutput ? kRoiBlockBins<T> : 1][kRoiBlockChannels + 1];
  };
  auto& shared = static_shared<Shared>();
  const RoiShape& shape = params.shape;
  const RoiBlock block = roi_block(shape, blocks, blockIdx.x);
  const int64_t image_index = roi_batch_index(params.boxes[block.k * 5], shape.batch);
  load_axes(params, block.k, shared.axes);
  if (image_index < 0) {  // a bad image index reads nothing
    if (threadIdx.x == 0) shared.axes.y.axis.samples = 0;
    if (threadIdx.x == 32) shared.axes.x.axis.samples = 0;
  }
  __syncthreads();
  const DeformBins<T> bins{params, shared.axes, block.k};
  const int grid_y = shared.axes.y.axis.samples, grid_x = shared.axes.x.axis.samples;
  const bool tabulated = int64_t{block.bins} * max_of(grid_y, grid_x) <= kDeformSharedSamples;
  if (tabulated) {
    for (int i = static_cast<int>(threadIdx.x); i < block.bins * grid_y; i += kRoiBlockThreads) {
      const int64_t bin = block.first_bin + i / grid_y;
      shared.y[i] = sample_of(bins.y_axis(bin), bins.y_of(bin), i % grid_y);
    }
    for (int i = static_cast<int>(threadIdx.x); i < block.bins * grid_x; i += kRoiBlockThreads) {
      const int64_t bin = block.first_bin + i / grid_x;
      shared.x[i] = sample_of(bins.x_axis(bin), bins.x_of(bin), i % grid_x);
    }
    __syncthreads();
  }

  for_each_group<kGroup, kPlanarInput>(block, [&](int group, int local_bin) {
    const int64_t bin = block.first_bin + local_bin;
    const int64_t channel = block.first_channel + group * kGroup;
    const Pixels<T> pixels = roi_pixels<kPlanarInput>(shape, params.input, max_of<int64_t>(image_index, 0), channel);
    A result[kGroup];
#pragma unroll
    for (int c = 0; c < kGroup; ++c) result[c] = A(0);
    if (tabulated) {
      for (int i = 0; i < grid_y; ++i) {
        const BilinearAxis<A>& y = shared.y[local_bin * grid_y + i];
        if (!y.inside) continue;
        for (int j = 0; j < grid_x; ++j) {
          const BilinearAxis<A>& x = shared.x[local_bin * grid_x + j];
          if (x.inside) bilinear_group(pixels, y, x, result);
        }
      }
    } else {
      const RoiAxis<A> y_axis = bins.y_axis(bin), x_axis = bins.x_axis(bin);
      const SampleRange y_range = samples_on_map(y_axis, bins.y_of(bin));
      const SampleRange x_range = samples_on_map(x_axis, bins.x_of(bin));
      for (int i = y_range.first; i < y_range.last; ++i) {
        const BilinearAxis<A> y = sample_of(y_axis, bins.y_of(bin), i);
        if (!y.inside) continue;
        for (int j = x_range.first; j < x_range.last; ++j) {
          const BilinearAxis<A> x = sample_of(x_axis, bins.x_of(bin), j);
          if (x.inside) bilinear_group(pixels, y, x, result);
        }
      }
    }
    const A share = shared.axes.y.axis.share * shared.axes.x.axis.share;
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

// ---- gradient of the input

// Where the samples of a box's bins lie at most.
template <class A>
struct DeformReach {
  A y_low, y_high, x_low, x_high;  // low > high: nowhere
};

template <class A>
CVK_DEVICE void extend(const RoiAxis<A>& axis, int bin, A* low, A* high) {
  const A begin = axis.start + static_cast<A>(bin) * axis.bin, end = begin + axis.bin;
  if (!is_finite(begin) || !is_finite(end)) return;
  *low = min_of(*low, min_of(begin, end));
  *high = max_of(*high, max_of(begin, end));
}

template <class A>
CVK_DEVICE A warp_least(A value) {
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) value = min_of(value, __shfl_xor_sync(0xffffffffu, value, delta));
  return value;
}

// One warp per box.
template <class T>
__global__ void __launch_bounds__(kDeformWarpThreads, kDeformBlocksPerSm)
    deform_roi_pool_reach_kernel(DeformRoiPoolParams<T> params, DeformReach<Acc<T>>* reaches) {  // [K]
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t k = (static_cast<int64_t>(blockIdx.x) * kDeformWarpThreads + threadIdx.x) / 32;
  if (k >= shape.boxes) return;  // the same for all lanes
  SharedAxes<DeformAxis<A>> axes;
  axes.y = deform_axis(shape, params.gamma, params.boxes + k * 5, true);
  axes.x = deform_axis(shape, params.gamma, params.boxes + k * 5, false);
  const DeformBins<T> bins{params, axes, k};
  const A most = std::numeric_limits<A>::max();
  DeformReach<A> reach{most, -most, most, -most};
  for (int64_t bin = lane; bin < shape.bins(); bin += 32) {
    extend(bins.y_axis(bin), bins.y_of(bin), &reach.y_low, &reach.y_high);
    extend(bins.x_axis(bin), bins.x_of(bin), &reach.x_low, &reach.x_high);
  }
  reach.y_low = warp_least(reach.y_low);
  reach.y_high = -warp_least(-reach.y_high);
  reach.x_low = warp_least(reach.x_low);
  reach.x_high = -warp_least(-reach.x_high);
  if (lane == 0) reaches[k] = reach;
}

// The boxes as the gathering pass (common/roi_gather_bins.cuh) meets them.
template <class T>
struct DeformGather {
  using A = Acc<T>;
  struct Box {
    SharedAxes<DeformAxis<A>> axes;
    int64_t k;
  };
  const DeformRoiPoolParams<T>& params;
  const DeformReach<A>* reaches;  // [K]
  const RoiTile& tile;

  CVK_DEVICE bool box_reaches(int64_t k) const {
    if (roi_batch_index(params.boxes[k * 5], params.shape.batch) != tile.image) return false;
    const DeformReach<A> reach = reaches[k];
    return reach.y_low <= reach.y_high && reach.x_low <= reach.x_high &&
           span_reaches(RoiSpan<A>{reach.y_low, reach.y_high - reach.y_low}, tile.y, tile.y + kRoiTileHeight) &&
           span_reaches(RoiSpan<A>{reach.x_low, reach.x_high - reach.x_low}, tile.x, tile.x + kRoiTileWidth);
  }
  CVK_DEVICE void load_box(int64_t k, Box& box) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane > 1) return;
    const DeformAxis<A> axis = deform_axis(params.shape, params.gamma, params.boxes + k * 5, lane == 0);
    (lane == 0 ? box.axes.y : box.axes.x) = axis;
    if (lane == 0) box.k = k;
  }
  CVK_DEVICE bool bin_reaches(const Box& box, int bin) const {
    const DeformBins<T> bins{params, box.axes, box.k};
    return span_of_bin_reaches(bins.y_axis(bin), bins.y_of(bin), tile.y, kRoiTileHeight) &&
           span_of_bin_reaches(bins.x_axis(bin), bins.x_of(bin), tile.x, kRoiTileWidth);
  }
  CVK_DEVICE BinSamples samples_of(const Box& box, int bin) const {
    const DeformBins<T> bins{params, box.axes, box.k};
    return {roi_samples_at(bins.y_axis(bin), bins.y_of(bin), tile.y, tile.y + kRoiTileHeight),
            roi_samples_at(bins.x_axis(bin), bins.x_of(bin), tile.x, tile.x + kRoiTileWidth)};
  }
  CVK_DEVICE BinSample<A> sample(const Box& box, int bin, int i, int j) const {
    const DeformBins<T> bins{params, box.axes, box.k};
    return {sample_of(bins.y_axis(bin), bins.y_of(bin), i), sample_of(bins.x_axis(bin), bins.x_of(bin), j)};
  }
  CVK_DEVICE A share(const Box& box) const { return box.axes.y.axis.share * box.axes.x.axis.share; }

  static CVK_DEVICE bool span_of_bin_reaches(const RoiAxis<A>& axis, int bin, int first, int size) {
    return span_reaches(RoiSpan<A>{axis.start + static_cast<A>(bin) * axis.bin, axis.bin}, first, first + size);
  }
};

template <class T>
__global__ void __launch_bounds__(kRoiGatherThreads<Acc<T>>)
    deform_roi_pool_backward_kernel(DeformRoiPoolParams<T> params, const DeformReach<Acc<T>>* reaches) {
  struct Shared {
    GatherShared<Acc<T>, typename DeformGather<T>::Box> gather;
    RoiTile tile;  // no thread spends registers on it
  };
  auto& shared = static_shared<Shared>();
  if (threadIdx.x == 0) shared.tile = roi_tile(params.shape, blockIdx.x);
  __syncthreads();
  const DeformGather<T> boxes{params, reaches, shared.tile};
  gather_bins(params.shape, shared.tile, boxes, shared.gather, params.grad_output, params.grad_input);
}

// ---- gradient of the offsets

// One warp per bin, lanes along groups of channels.
template <class T, int kGroup, bool kPlanarInput, bool kPlanarGrad>
__global__ void __launch_bounds__(kDeformWarpThreads, kDeformBlocksPerSm)
    deform_roi_pool_offset_kernel(DeformRoiPoolParams<T> params) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kDeformWarpThreads + threadIdx.x) / 32;
  if (item >= shape.boxes * shape.bins()) return;  // the same for all lanes
  const int64_t k = item / shape.bins(), bin = item % shape.bins();
  const int64_t image = roi_batch_index(params.boxes[k * 5], shape.batch);
  SharedAxes<DeformAxis<A>> axes;  // in registers
  axes.y = deform_axis(shape, params.gamma, params.boxes + k * 5, true);
  axes.x = deform_axis(shape, params.gamma, params.boxes + k * 5, false);
  const DeformBins<T> bins{params, axes, k};
  const RoiAxis<A> y_axis = bins.y_axis(bin), x_axis = bins.x_axis(bin);
  const int bin_y = bins.y_of(bin), bin_x = bins.x_of(bin);
  const SampleRange y_range = samples_on_map(y_axis, bin_y), x_range = samples_on_map(x_axis, bin_x);
  A along_y = A(0), along_x = A(0);
  for (int64_t channel = int64_t{lane} * kGroup; image >= 0 && channel < shape.channels; channel += 32 * kGroup) {
    A grad[kGroup];
    if constexpr (kPlanarGrad) {
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        grad[c] = to_acc(params.grad_output[(k * shape.channels + channel + c) * shape.bins() + bin]);
      }
    } else {
      load_group(params.grad_output + (k * shape.bins() + bin) * shape.channels + channel, grad);
    }
    const Pixels<T> pixels = roi_pixels<kPlanarInput>(shape, params.input, image, channel);
    const auto product = [&](int y, int x) {
      A value[kGroup];
      load_group(pixels.at(y, x), value);
      A sum = A(0);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) sum = mul_add(grad[c], value[c], sum);
      return sum;
    };
    for (int i = y_range.first; i < y_range.last; ++i) {
      const A y_at = roi_sample_coordinate(y_axis, bin_y, i);
      const BilinearAxis<A> y = bilinear_axis(y_at, shape.height);
      if (!y.inside) continue;
      const A y_slope = bilinear_slope(y_at, y);
      for (int j = x_range.first; j < x_range.last; ++j) {
        const A x_at = roi_sample_coordinate(x_axis, bin_x, j);
        const BilinearAxis<A> x = bilinear_axis(x_at, shape.width);
        if (!x.inside) continue;
        const A x_slope = bilinear_slope(x_at, x);
        const A corner[2][2] = {{product(y.low, x.low), product(y.low, x.high)},
                                {product(y.high, x.low), product(y.high, x.high)}};
        const A left = y.low_weight * corner[0][0] + y.high_weight * corner[1][0];
        const A right = y.low_weight * corner[0][1] + y.high_weight * corner[1][1];
        const A upper = x.low_weight * corner[0][0] + x.high_weight * corner[0][1];
        const A lower = x.low_weight * corner[1][0] + x.high_weight * corner[1][1];
        // Edge: where a coordinate is clamped its two pixels are one, and an infinite one must not give NaN.
        if (x_slope != A(0)) along_x += right - left;
        if (y_slope != A(0)) along_y += lower - upper;
      }
    }
  }
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) {
    along_y += __shfl_xor_sync(0xffffffffu, along_y, delta);
    along_x += __shfl_xor_sync(0xffffffffu, along_x, delta);
  }
  if (lane != 0) return;
  const A share = y_axis.share * x_axis.share;
  params.grad_offset[deform_offset_index(shape, k, false, bin)] = deform_offset_gradient(along_x * share, axes.x.reach);
  params.grad_offset[deform_offset_index(shape, k, true, bin)] = deform_offset_gradient(along_y * share, axes.y.reach);
}

// Blocks of warps, one warp for each item.
int64_t warp_blocks(int64_t items) { return ceil_div<int64_t>(items, kDeformWarpThreads / 32); }

}  // namespace

template <class T>
int64_t deform_roi_pool_forward_scratch_cuda(const DeformRoiPoolParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus deform_roi_pool_forward_cuda(const DeformRoiPoolParams<T>& call, void* scratch, CudaStream stream) {
  DeformRoiPoolParams<T> params = call;
  const RoiShape& shape = params.shape;
  const RoiBlocks blocks = roi_blocks<T>(shape);
  const int64_t grid = shape.boxes * blocks.per_box();
  cudaError_t status = grid_fits(grid);
  if (status == cudaSuccess) status = roi_copy_input(shape, scratch, params.input, stream);
  if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  const bool wide = shape.channels % kWide<T> == 0 && is_wide_aligned(params.input) && is_wide_aligned(params.output);
  const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kRoiBlockThreads)};
  status = roi_with_layout<T>(shape, wide, [&](auto group, auto planar_input, auto planar_output) {
    return launch(deform_roi_pool_forward_kernel<T, decltype(group)::value, decltype(planar_input)::value,
                                                 decltype(planar_output)::value>,
                  config, stream, params, blocks);
  });
  return static_cast<CudaStatus>(status);
}

template <class T>
int64_t deform_roi_pool_backward_scratch_cuda(const DeformRoiPoolParams<T>& params) {
  return params.shape.boxes * static_cast<int64_t>(sizeof(DeformReach<Acc<T>>));
}

template <class T>
CudaStatus deform_roi_pool_backward_cuda(const DeformRoiPoolParams<T>& params, void* scratch, CudaStream stream) {
  const RoiShape& shape = params.shape;
  auto* const reaches = static_cast<DeformReach<Acc<T>>*>(scratch);
  const int64_t blocks = roi_tiles(shape), reach_blocks = warp_blocks(shape.boxes);
  cudaError_t status = grid_fits(max_of(blocks, reach_blocks));
  if (status == cudaSuccess) {
    status = launch(deform_roi_pool_reach_kernel<T>,
                    {dim3(static_cast<unsigned>(reach_blocks)), dim3(kDeformWarpThreads)}, stream, params, reaches);
  }
  if (status == cudaSuccess) {
    status = launch(deform_roi_pool_backward_kernel<T>,
                    {dim3(static_cast<unsigned>(blocks)), dim3(kRoiGatherThreads<Acc<T>>)}, stream, params,
                    static_cast<const DeformReach<Acc<T>>*>(reaches));
  }
  return static_cast<CudaStatus>(status);
}

template <class T>
int64_t deform_roi_pool_offset_scratch_cuda(const DeformRoiPoolParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus deform_roi_pool_offset_cuda(const DeformRoiPoolParams<T>& call, void* scratch, CudaStream stream) {
  DeformRoiPoolParams<T> params = call;
  const RoiShape& shape = params.shape;
  const int64_t grid = warp_blocks(shape.boxes * shape.bins());
  cudaError_t status = grid_fits(grid);
  if (status == cudaSuccess) status = roi_copy_input(shape, scratch, params.input, stream);
  if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  const bool wide =
      shape.channels % kWide<T> == 0 && is_wide_aligned(params.input) && is_wide_aligned(params.grad_output);
  const LaunchConfig config{dim3(static_cast<unsigned>(grid)), dim3(kDeformWarpThreads)};
  status = roi_with_layout<T>(shape, wide, [&](auto group, auto planar_input, auto planar_grad) {
    return launch(deform_roi_pool_offset_kernel<T, decltype(group)::value, decltype(planar_input)::value,
                                                decltype(planar_grad)::value>,
                  config, stream, params);
  });
  return static_cast<CudaStatus>(status);
}

#define CVK_INSTANTIATE(T)                                                                                \
  template int64_t deform_roi_pool_forward_scratch_cuda<T>(const DeformRoiPoolParams<T>&);                \
  template CudaStatus deform_roi_pool_forward_cuda<T>(const DeformRoiPoolParams<T>&, void*, CudaStream);  \
  template int64_t deform_roi_pool_backward_scratch_cuda<T>(const DeformRoiPoolParams<T>&);               \
  template CudaStatus deform_roi_pool_backward_cuda<T>(const DeformRoiPoolParams<T>&, void*, CudaStream); \
  template int64_t deform_roi_pool_offset_scratch_cuda<T>(const DeformRoiPoolParams<T>&);                 \
  template CudaStatus deform_roi_pool_offset_cuda<T>(const DeformRoiPoolParams<T>&, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
