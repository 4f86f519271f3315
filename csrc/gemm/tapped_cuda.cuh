// Tapped products (tapped.h) on CUDA: the operands of a convolution for the matrix engine, and its kernels; depthwise_cuda.cuh has what is no product.
#pragma once

#include <cstdint>

#include "gemm/depthwise_cuda.cuh"
#include "gemm/gemm_cuda.cuh"
#include "gemm/tapped.h"

namespace cvk {

// ---- operands

// Pixels of a phase by channels and taps: lines are pixels. The depth runs over taps, then channels where the map is
// channels-last, else over channels, then taps.
template <class T>
struct PixelOperand {
  const T* map;  // the group's first channel
  TapGrid grid;
  int64_t pixels, channels, group_channels;
  bool channels_last;

  struct Line {
    const T* image;  // null past the end
    int64_t y, x;    // source pixel of the first tap
  };
  CVK_DEVICE int64_t plane() const { return int64_t{grid.y.extent} * grid.x.extent; }
  CVK_DEVICE bool along_depth() const { return channels_last; }
  CVK_DEVICE Line line(int64_t pixel) const {
    if (pixel >= pixels) return {nullptr, 0, 0};
    const int64_t image = pixel / grid.pixels(), rest = pixel % grid.pixels();
    return {map + image * channels * plane(), rest / grid.x.grid * grid.y.source_step + grid.y.first_offset,
            rest % grid.x.grid * grid.x.source_step + grid.x.first_offset};
  }
  CVK_DEVICE Acc<T> at(const Line& line, int64_t k) const {
    const int64_t c = channels_last ? k % group_channels : k / grid.taps();
    const int t = static_cast<int>(channels_last ? k / group_channels : k % grid.taps());
    const int64_t y = line.y + int64_t{t / grid.x.taps} * grid.y.offset_step;
    const int64_t x = line.x + int64_t{t % grid.x.taps} * grid.x.offset_step;
    if (line.image == nullptr || y < 0 || y >= grid.y.extent || x < 0 || x >= grid.x.extent) return Acc<T>(0);
    const int64_t pixel = y * grid.x.extent + x;
    return to_acc(line.image[channels_last ? pixel * channels + c : c * plane() + pixel]);
  }
};

// The same with lines and depth exchanged: lines are channels and taps, the depth is pixels.
template <class T>
struct TapOperand {
  PixelOperand<T> pixels;

  struct Line {
    int64_t k;
  };
  CVK_DEVICE bool along_depth() const { return !pixels.along_depth(); }
  CVK_DEVICE Line line(int64_t k) const { return {k < pixels.group_channels * pixels.grid.taps() ? k : -1}; }
  CVK_DEVICE Acc<T> at(const Line& line, int64_t pixel) const {
    return line.k < 0 ? Acc<T>(0) : pixels.at(pixels.line(pixel), line.k);
  }
};

// Weights of a group: lines are columns, the depth is that of PixelOperand.
template <class T>
struct WeightOperand {
  const T* weights;  // of the group
  typename TappedProduct<T>::Strides strides;
  TapGrid grid;
  int64_t columns, channels;
  int kernel_width;
  bool channels_last;  // the map, which decides the order of the depth

  struct Line {
    const T* column;  // null past the end
  };
  CVK_DEVICE bool along_depth() const { return strides.column != 1; }
  CVK_DEVICE Line line(int64_t j) const { return {j < columns ? weights + j * strides.column : nullptr}; }
  CVK_DEVICE Acc<T> at(const Line& line, int64_t k) const {
    if (line.column == nullptr) return Acc<T>(0);
    const int64_t c = channels_last ? k % channels : k / grid.taps();
    const int t = static_cast<int>(channels_last ? k / channels : k % grid.taps());
    return to_acc(line.column[c * strides.channel + kernel_of(grid, kernel_width, t) * strides.tap]);
  }
};

// grad_output of a group: lines are filters, the depth is pixels.
template <class T>
struct FilterOperand {
  const T* grad;  // the group's first filter
  int64_t filters, group_filters, plane;
  bool channels_last;

  struct Line {
    int64_t filter;
  };
  CVK_DEVICE bool along_depth() const { return !channels_last; }
  CVK_DEVICE Line line(int64_t filter) const { return {filter < group_filters ? filter : -1}; }
  CVK_DEVICE Acc<T> at(const Line& line, int64_t pixel) const {
    if (line.filter < 0) return Acc<T>(0);
    return to_acc(grad[channels_last ? pixel * filters + line.filter
                                     : (pixel / plane * filters + line.filter) * plane + pixel % plane]);
  }
};

// ---- kernels. Static: every .cu file launches its own copy.

// A block: a tile of pixels by columns, of one group of one phase.
template <class T>
static __global__ void __launch_bounds__(kGemmThreads)
    tapped_product_kernel(TappedProduct<T> p, int64_t pixel_tiles, int64_t column_tiles) {
  using A = Acc<T>;
  struct Shared {
    PlainStage<A> stage;
    TapGrid grid;
  };
  auto& shared = static_shared<Shared>();
  const int64_t block = blockIdx.x;
  const int64_t group = block / column_tiles / pixel_tiles % p.shape.groups;
  if (threadIdx.x == 0) shared.grid = p.grid(block / column_tiles / pixel_tiles / p.shape.groups);
  __syncthreads();
  const TapGrid grid = shared.grid;
  const int64_t pixels = p.shape.batch * grid.pixels(), channels = p.group_channels(), columns = p.group_columns();
  const int64_t first_pixel = block / column_tiles % pixel_tiles * kGemmTile,
                first_column = block % column_tiles * kGemmTile;
  if (first_pixel >= pixels) return;  // a later phase may have fewer
  const bool last = p.shape.channels_last;
  const auto strides = p.strides();
  const PixelOperand<T> left{
      p.source + group * channels * (last ? 1 : p.source_plane()), grid, pixels, p.channels(), channels, last};
  const WeightOperand<T> right{
      p.weights + group * strides.group, strides, grid, columns, channels, p.shape.kernel_width, last};
  GemmSums<A> sums;
  gemm_tile_product(shared.stage, left, first_pixel, right, first_column, channels * grid.taps(), sums);
#pragma unroll
  for (int i = 0; i < kGemmThreadTile; ++i) {
    const int64_t pixel = first_pixel + sums.row() + i;
    if (pixel >= pixels) continue;
    const int64_t image = pixel / grid.pixels(), rest = pixel % grid.pixels();
    const int64_t place = target_pixel(grid, p.target_width(), static_cast<int>(rest / grid.x.grid),
                                       static_cast<int>(rest % grid.x.grid));
#pragma unroll
    for (int j = 0; j < kGemmThreadTile; ++j) {
      if (first_column + sums.column() + j >= columns) continue;
      const int64_t column = group * columns + first_column + sums.column() + j;
      const A bias = p.bias != nullptr ? to_acc(p.bias[column]) : A(0);
      T* out = p.target + (last ? (image * p.target_plane() + place) * p.columns() + column
                                : (image * p.columns() + column) * p.target_plane() + place);
      *out = from_acc<T>(activate(p.activation, sums.value[i][j] + bias));
    }
  }
}

// A block: a tile of filters by channels and taps, of one group; the pixels go by in order.
template <class T>
static __global__ void __launch_bounds__(kGemmThreads)
    tapped_weight_kernel(TappedWeightGradient<T> p, int64_t filter_tiles, int64_t depth_tiles) {
  using A = Acc<T>;
  struct Shared {
    PlainStage<A> stage;
  };
  auto& shared = static_shared<Shared>();
  const ConvShape& s = p.shape;
  const int64_t block = blockIdx.x;
  const int64_t group = block / depth_tiles / filter_tiles;
  const int64_t first_filter = block / depth_tiles % filter_tiles * kGemmTile,
                first_k = block % depth_tiles * kGemmTile;
  const int64_t filters = s.group_filters(), channels = s.group_channels();
  const FilterOperand<T> left{p.grad_output + group * filters * (s.channels_last ? 1 : s.out_pixels()), s.filters,
                              filters, s.out_pixels(), s.channels_last};
  const TapGrid grid = correlation_grid(s);
  const TapOperand<T> right{{p.input + group * channels * (s.channels_last ? 1 : s.pixels()), grid, p.pixels(),
                             s.channels, channels, s.channels_last}};
  GemmSums<A> sums;
  gemm_tile_product(shared.stage, left, first_filter, right, first_k, p.pixels(), sums);
#pragma unroll
  for (int i = 0; i < kGemmThreadTile; ++i) {
    const int64_t filter = first_filter + sums.row() + i;
#pragma unroll
    for (int j = 0; j < kGemmThreadTile; ++j) {
      const int64_t k = first_k + sums.column() + j;
      if (filter >= filters || k >= channels * grid.taps()) continue;
      const int64_t c = s.channels_last ? k % channels : k / grid.taps();
      const int64_t t = s.channels_last ? k / channels : k % grid.taps();
      p.put(0, p.weight_at(group * filters + filter, c, static_cast<int>(t)), sums.value[i][j]);
    }
  }
}

// Adds the parts of a weight gradient. A block: kWeightSumThreads / lanes weights; the lanes of a weight share the parts, and
// their sums are added in order.
template <class T>
static __global__ void __launch_bounds__(kWeightSumThreads)
    tapped_weight_sum_kernel(TappedWeightGradient<T> p, int parts, int lanes) {
  using A = Acc<T>;
  struct Shared {
    A sum[kWeightSumThreads];
  };
  auto& shared = static_shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x), weights = kWeightSumThreads / lanes;
  const int64_t count = p.shape.weights(), index = int64_t{blockIdx.x} * weights + thread % weights;
  A sum = A(0);
  if (index < count) {
#pragma unroll 8
    for (int part = thread / weights; part < parts; part += lanes) sum += p.partials[part * count + index];
  }
  shared.sum[thread] = sum;
  __syncthreads();
  if (thread >= weights || index >= count) return;
  for (int lane = 1; lane < lanes; ++lane) sum += shared.sum[lane * weights + thread];
  p.grad_weight[index] = from_acc<T>(sum);
}

// ---- launches

template <class T>
cudaError_t launch_tapped_product(const TappedProduct<T>& p, cudaStream_t stream) {
  if (is_depthwise(p.shape)) return launch_depthwise_product(p, stream);
  const int64_t pixel_tiles = ceil_div<int64_t>(p.shape.batch * p.grid(0).pixels(), kGemmTile);
  const int64_t column_tiles = ceil_div<int64_t>(p.group_columns(), kGemmTile);
  const int64_t blocks = p.phases() * p.shape.groups * pixel_tiles * column_tiles;
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(tapped_product_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kGemmThreads)}, stream, p,
                pixel_tiles, column_tiles);
}

// From p.partials [parts, weights] to p.grad_weight.
template <class T>
cudaError_t launch_tapped_weight_sum(const TappedWeightGradient<T>& p, int64_t parts, cudaStream_t stream) {
  const int lanes = parts >= kWeightSumManyParts ? kWeightSumLanes : 1;
  const int64_t blocks = ceil_div<int64_t>(p.shape.weights(), kWeightSumThreads / lanes);
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(tapped_weight_sum_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kWeightSumThreads)}, stream, p,
                static_cast<int>(parts), lanes);
}

// Bytes of scratch of launch_tapped_weight.
template <class T>
int64_t plain_weight_scratch(const TappedWeightGradient<T>& p) {
  return is_depthwise(p.shape) ? depthwise_weight_scratch(p) : 0;
}

template <class T>
cudaError_t launch_tapped_weight(TappedWeightGradient<T> p, void* scratch, cudaStream_t stream) {
  const ConvShape& s = p.shape;
  p.partials = nullptr;
  if (is_depthwise(s)) {
    const int64_t parts = depthwise_plan(p).parts;
    if (parts > 1) p.partials = static_cast<Acc<T>*>(scratch);
    const cudaError_t status = launch_depthwise_weight(p, stream);
    return status == cudaSuccess && parts > 1 ? launch_tapped_weight_sum(p, parts, stream) : status;
  }
  const int64_t filter_tiles = ceil_div<int64_t>(s.group_filters(), kGemmTile);
  const int64_t depth_tiles = ceil_div<int64_t>(s.group_channels() * s.kernel_size(), kGemmTile);
  const int64_t blocks = s.groups * filter_tiles * depth_tiles;
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(tapped_weight_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kGemmThreads)}, stream, p,
                filter_tiles, depth_tiles);
}

}  // namespace cvk
