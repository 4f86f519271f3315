// Tapped products (tapped.h) on tensor cores: what gemm_mma.cuh multiplies for a convolution.
//
// The map is read channels-last, so that a vector of channels is one copy; planes are turned first, into scratch. Weights are
// brought into the order of the depth (taps of the phase, then channels) once per call, where they are not in it already. The
// phases of a transposed product are launches of their own. Where tiles are few, several blocks share the depth of one, and a
// second kernel adds their sums in order.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/transpose.cuh"
#include "gemm/gemm_mma.cuh"
#include "gemm/tapped.h"
#include "gemm/tapped_cuda.cuh"

namespace cvk {

// ---- operands

// Pixels of a phase (outer) by taps and channels (inner) of a channels-last map.
template <class T>
struct PixelGatherer {
  using Element = T;
  struct Outer {
    int64_t image;
    int y, x;  // in the phase
  };
  struct Inner {
    int y, x, c;  // tap and channel
  };
  const T* map;  // the group's first channel
  TapGrid grid;
  int64_t images, channels;
  int group_channels;

  CVK_DEVICE Outer outer(int64_t index) const {
    const int64_t rest = index % grid.pixels();
    return {index / grid.pixels(), static_cast<int>(rest / grid.x.grid), static_cast<int>(rest % grid.x.grid)};
  }
  CVK_DEVICE Inner inner(int64_t index) const {
    const int channels = max_of(group_channels, 1), taps = max_of(grid.x.taps, 1);  // without depth nothing is read
    const int64_t tap = index / channels;
    return {static_cast<int>(tap / taps), static_cast<int>(tap % taps), static_cast<int>(index % channels)};
  }
  CVK_DEVICE void advance_outer(Outer& outer, int count) const {
    outer.x += count;
    while (outer.x >= grid.x.grid) {
      outer.x -= grid.x.grid;
      if (++outer.y == grid.y.grid) {
        outer.y = 0;
        ++outer.image;
      }
    }
  }
  CVK_DEVICE void advance_inner(Inner& inner, int count) const {
    inner.c += count;
    while (inner.c >= group_channels) {
      inner.c -= group_channels;
      if (++inner.x == grid.x.taps) {
        inner.x = 0;
        ++inner.y;
      }
    }
  }
  CVK_DEVICE const T* find(const Outer& outer, const Inner& inner) const {
    const int y = outer.y * grid.y.source_step + grid.y.first_offset + inner.y * grid.y.offset_step;
    const int x = outer.x * grid.x.source_step + grid.x.first_offset + inner.x * grid.x.offset_step;
    const bool there =
        outer.image < images && inner.y < grid.y.taps && y >= 0 && y < grid.y.extent && x >= 0 && x < grid.x.extent;
    return there ? map + ((outer.image * grid.y.extent + y) * grid.x.extent + x) * channels + inner.c : nullptr;
  }
  CVK_DEVICE const T* anywhere() const { return map; }
};

// ---- weights in the order of the depth: [groups, columns, taps of the phase, channels]

template <class T>
static __global__ void __launch_bounds__(kGemmMmaThreads)
    tapped_weights_kernel(TappedProduct<T> p, int64_t phase, T* to, int64_t count) {
  struct Shared {
    TapGrid grid;
  };
  auto& shared = static_shared<Shared>();
  if (threadIdx.x == 0) shared.grid = p.grid(phase);
  __syncthreads();
  const TapGrid& grid = shared.grid;
  const int64_t index = int64_t{blockIdx.x} * kGemmMmaThreads + threadIdx.x;
  if (index >= count) return;
  const int64_t channels = p.group_channels(), columns = p.group_columns();
  const int64_t c = index % channels, t = index / channels % grid.taps();
  const int64_t j = index / channels / grid.taps() % columns, group = index / channels / grid.taps() / columns;
  const auto strides = p.strides();
  to[index] = p.weights[group * strides.group + j * strides.column + c * strides.channel +
                        kernel_of(grid, p.shape.kernel_width, static_cast<int>(t)) * strides.tap];
}

// ---- kernels. Static: every .cu file launches its own copy.

// Where a block's tile is: `per_group` tiles a group.
struct TappedTile {
  GemmBlock block;
  int64_t group;
};
template <class Shape>
CVK_DEVICE TappedTile tapped_tile(const GemmExtent& extent) {
  const int64_t per_group = extent.row_tiles * extent.column_tiles * extent.splits;
  return {gemm_block<Shape>(extent, blockIdx.x % per_group), blockIdx.x / per_group};
}

// What becomes of the sum for pixel `row` of the phase and column `column` of all groups.
template <class T>
CVK_DEVICE void tapped_finish(const TappedProduct<T>& p, const TapGrid& grid, int64_t row, int64_t column, Acc<T> sum) {
  const int64_t image = row / grid.pixels(), rest = row % grid.pixels();
  const int64_t place =
      target_pixel(grid, p.target_width(), static_cast<int>(rest / grid.x.grid), static_cast<int>(rest % grid.x.grid));
  const Acc<T> bias = p.bias != nullptr ? to_acc(p.bias[column]) : Acc<T>(0);
  T* out = p.target + (p.shape.channels_last ? (image * p.target_plane() + place) * p.columns() + column
                                             : (image * p.columns() + column) * p.target_plane() + place);
  *out = from_acc<T>(activate(p.activation, sum + bias));
}

// A block: a tile of pixels by columns of one group. With several splits it leaves its sums in partials [splits, groups, rows,
// columns].
template <class T, GemmMath math, class Shape, bool kVectors>
static __global__ void __launch_bounds__(Shape::kThreads, kGemmMmaBlocksPerSm)
    tapped_product_mma_kernel(TappedProduct<T> p, PixelGatherer<T> pixels, DenseGatherer<T> weights, GemmExtent extent,
                              Acc<T>* partials) {
  const TappedTile tile = tapped_tile<Shape>(extent);
  pixels.map += tile.group * pixels.group_channels;
  weights.data += tile.group * weights.outers * weights.stride;
  const auto& result = gemm_tile<math, Shape, true, true, kVectors>(pixels, weights, extent, tile.block);
  const bool last = p.shape.channels_last;
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows * Shape::kColumns; i += Shape::kThreads) {
    // Neighbouring threads store neighbours.
    const int row = last ? i / Shape::kColumns : i % Shape::kRows;
    const int column = last ? i % Shape::kColumns : i / Shape::kRows;
    const int64_t m = tile.block.first_row + row, n = tile.block.first_column + column;
    if (m >= extent.rows || n >= extent.columns) continue;
    if (partials == nullptr) {
      tapped_finish(p, pixels.grid, m, tile.group * extent.columns + n, result.values[row][column]);
    } else {
      const int64_t part = tile.block.split * int64_t{p.shape.groups} + tile.group;
      partials[(part * extent.rows + m) * extent.columns + n] = result.values[row][column];
    }
  }
}

// A thread: one element, the sums of its splits added in order.
template <class T>
static __global__ void __launch_bounds__(kGemmMmaThreads)
    tapped_finish_kernel(TappedProduct<T> p, TapGrid grid, GemmExtent extent, const Acc<T>* partials) {
  const int64_t each = p.shape.groups * extent.rows * extent.columns;
  const int64_t index = int64_t{blockIdx.x} * kGemmMmaThreads + threadIdx.x;
  if (index >= each) return;
  Acc<T> sum = Acc<T>(0);
  for (int split = 0; split < extent.splits; ++split) sum += partials[split * each + index];
  const int64_t group = index / extent.columns / extent.rows;
  tapped_finish(p, grid, index / extent.columns % extent.rows, group * extent.columns + index % extent.columns, sum);
}

// A block: a tile of filters by taps and channels of one group; the depth is pixels, shared by the splits.
template <class T, GemmMath math, class Shape, bool kVectors>
static __global__ void __launch_bounds__(Shape::kThreads, kGemmMmaBlocksPerSm)
    tapped_weight_mma_kernel(TappedWeightGradient<T> p, DenseGatherer<T> grads, PixelGatherer<T> pixels,
                             GemmExtent extent) {
  const TappedTile tile = tapped_tile<Shape>(extent);
  grads.data += tile.group * grads.inners;
  pixels.map += tile.group * pixels.group_channels;
  const auto& result = gemm_tile<math, Shape, false, false, kVectors>(grads, pixels, extent, tile.block);
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows * Shape::kColumns; i += Shape::kThreads) {
    const int64_t filter = tile.block.first_row + i / Shape::kColumns,
                  k = tile.block.first_column + i % Shape::kColumns;
    if (filter >= extent.rows || k >= extent.columns) continue;
    const int64_t at = p.weight_at(tile.group * extent.rows + filter, k % pixels.group_channels,
                                   static_cast<int>(k / pixels.group_channels));
    p.put(tile.block.split, at, result.values[i / Shape::kColumns][i % Shape::kColumns]);
  }
}

// ---- on the host

// Calls f(math, shape of tiles, vectors) with what suits the type and the problem.
template <class T, class F>
cudaError_t with_gemm_tiles(bool tf32, bool vectors, int64_t rows, int64_t columns, int64_t groups,
                            int64_t wanted_blocks, F&& f) {
  using std::false_type;
  using std::true_type;
  const auto by_vectors = [&](auto math, auto shape) {
    return vectors ? f(math, shape, true_type{}) : f(math, shape, false_type{});
  };
  if constexpr (sizeof(T) == 8) {
    return by_vectors(std::integral_constant<GemmMath, GemmMath::kDouble>{}, GemmDoubleSmall{});
  } else if constexpr (sizeof(T) == 4) {
    if (tf32) return by_vectors(std::integral_constant<GemmMath, GemmMath::kTf32>{}, GemmFloatSmall{});
    return by_vectors(std::integral_constant<GemmMath, GemmMath::k3xTf32>{}, GemmFloatSmall{});
  } else {
    using Half = std::integral_constant<GemmMath, GemmMath::kHalf>;
    const int64_t large =
        groups * ceil_div<int64_t>(rows, GemmHalfLarge::kRows) * ceil_div<int64_t>(columns, GemmHalfLarge::kColumns);
    if (vectors && columns > GemmHalfSmall::kColumns && large >= wanted_blocks) {
      return f(Half{}, GemmHalfLarge{}, true_type{});
    }
    return by_vectors(Half{}, GemmHalfSmall{});
  }
}

// Into how many parts the depth of a tile is cut. A function of the problem alone, so that sums are the same on every device.
template <class Shape>
int gemm_splits(int64_t rows, int64_t columns, int64_t depth, int64_t groups, int64_t wanted_blocks) {
  const int64_t tiles = groups * ceil_div<int64_t>(rows, Shape::kRows) * ceil_div<int64_t>(columns, Shape::kColumns);
  const int64_t wanted = wanted_blocks / max_of<int64_t>(tiles, 1);
  const int64_t most = depth / (Shape::kDepth * kGemmMmaLeastSteps);
  return static_cast<int>(max_of<int64_t>(1, min_of(wanted, most)));
}

// Scratch, piece by piece. Where it is only counted, memory is null and what is taken is nowhere.
class TappedScratch {
 public:
  explicit TappedScratch(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class U>
  U* take(int64_t count) {
    U* piece = reinterpret_cast<U*>(memory_ + used_);
    used_ += round_up<int64_t>(count * static_cast<int64_t>(sizeof(U)), 256);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// A channels-last map, itself or its copy.
template <class T>
cudaError_t tapped_channels_last(const T*& map, bool channels_last, int64_t images, int64_t channels, int64_t pixels,
                                 TappedScratch& scratch, bool runs, CudaStream stream) {
  if (channels_last || channels == 1 || pixels == 1) return cudaSuccess;
  const T* planes = map;
  T* copy = scratch.take<T>(images * channels * pixels);
  map = copy;
  return runs ? planes_to_channels_last(planes, copy, images, channels, pixels, stream) : cudaSuccess;
}

template <class T>
bool tapped_wide(const T* pointer, int64_t channels, int64_t group_channels) {
  return channels % kWide<T> == 0 && group_channels % kWide<T> == 0 && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Runs the product, or with `used` only counts the bytes of scratch that it takes.
template <class T>
cudaError_t tapped_product_mma(TappedProduct<T> p, bool tf32, void* memory, CudaStream stream, int64_t* used,
                               int64_t wanted_blocks = kGemmMmaWantedBlocks) {
  const bool runs = used == nullptr;
  TappedScratch scratch(memory);
  const int64_t channels = p.group_channels(), columns = p.group_columns(), groups = p.shape.groups;
  cudaError_t status = tapped_channels_last(p.source, p.shape.channels_last, p.shape.batch, p.channels(),
                                            p.source_plane(), scratch, runs, stream);
  const bool ordered = !p.transposed && (p.shape.weight_channels_last || p.shape.kernel_size() == 1);
  int64_t most = 0;  // the phases use one piece of scratch after the other
  const TappedScratch before = scratch;
  for (int64_t phase = 0; phase < p.phases() && status == cudaSuccess; ++phase) {
    scratch = before;
    const TapGrid grid = p.grid(phase);
    const int64_t rows = p.shape.batch * grid.pixels(), depth = grid.taps() * channels;
    if (rows == 0) continue;
    const T* weights = p.weights;
    if (!ordered) {
      const int64_t count = groups * columns * depth;
      T* packed = scratch.take<T>(max_of<int64_t>(count, 1));
      if (runs && count > 0) {
        const int64_t blocks = ceil_div<int64_t>(count, kGemmMmaThreads);
        status = grid_fits(blocks);
        if (status == cudaSuccess) {
          status = launch(tapped_weights_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kGemmMmaThreads)},
                          stream, p, phase, packed, count);
        }
      }
      weights = packed;
    }
    const bool vectors = tapped_wide(p.source, p.channels(), channels) && tapped_wide(weights, depth, depth);
    if (status == cudaSuccess) {
      status = with_gemm_tiles<T>(
          tf32, vectors, rows, columns, groups, wanted_blocks, [&](auto math, auto shape, auto wide) {
            using Shape = decltype(shape);
            const GemmExtent extent = gemm_extent<Shape>(
                rows, columns, depth, gemm_splits<Shape>(rows, columns, depth, groups, wanted_blocks));
            Acc<T>* partials =
                extent.splits > 1 ? scratch.take<Acc<T>>(extent.splits * groups * rows * columns) : nullptr;
            if (!runs) return cudaSuccess;
            const PixelGatherer<T> pixels{p.source, grid, p.shape.batch, p.channels(), static_cast<int>(channels)};
            const DenseGatherer<T> dense{weights, columns, depth, depth};
            const int64_t blocks = groups * extent.row_tiles * extent.column_tiles * extent.splits;
            cudaError_t launched = grid_fits(blocks);
            if (launched != cudaSuccess) return launched;
            launched = launch(
                tapped_product_mma_kernel<T, decltype(math)::value, Shape, decltype(wide)::value>,
                {dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), gemm_shared_bytes<T, Shape, true, true>()},
                stream, p, pixels, dense, extent, partials);
            if (launched != cudaSuccess || partials == nullptr) return launched;
            const int64_t sums = ceil_div<int64_t>(groups * rows * columns, kGemmMmaThreads);
            launched = grid_fits(sums);
            if (launched != cudaSuccess) return launched;
            return launch(tapped_finish_kernel<T>, {dim3(static_cast<unsigned>(sums)), dim3(kGemmMmaThreads)}, stream,
                          p, grid, extent, static_cast<const Acc<T>*>(partials));
          });
    }
    most = max_of(most, scratch.used());
  }
  if (used != nullptr) *used = max_of(most, before.used());
  return status;
}

// The same for the gradient with respect to the weights.
template <class T>
cudaError_t tapped_weight_mma(TappedWeightGradient<T> p, bool tf32, void* memory, CudaStream stream, int64_t* used,
                              int64_t wanted_blocks = kGemmMmaWantedBlocks) {
  const bool runs = used == nullptr;
  const ConvShape& s = p.shape;
  TappedScratch scratch(memory);
  cudaError_t status =
      tapped_channels_last(p.input, s.channels_last, s.batch, s.channels, s.pixels(), scratch, runs, stream);
  if (status == cudaSuccess) {
    status =
        tapped_channels_last(p.grad_output, s.channels_last, s.batch, s.filters, s.out_pixels(), scratch, runs, stream);
  }
  if (status != cudaSuccess) return status;
  const TapGrid grid = correlation_grid(s);
  const int64_t filters = s.group_filters(), channels = s.group_channels(), depth = p.pixels();
  const int64_t columns = channels * grid.taps();
  const bool vectors = tapped_wide(p.input, s.channels, channels) && tapped_wide(p.grad_output, s.filters, filters);
  status = with_gemm_tiles<T>(
      tf32, vectors, filters, columns, s.groups, wanted_blocks, [&](auto math, auto shape, auto wide) {
        using Shape = decltype(shape);
        const GemmExtent extent = gemm_extent<Shape>(
            filters, columns, depth, gemm_splits<Shape>(filters, columns, depth, s.groups, wanted_blocks));
        p.partials = extent.splits > 1 ? scratch.take<Acc<T>>(extent.splits * s.weights()) : nullptr;
        if (!runs) return cudaSuccess;
        const DenseGatherer<T> grads{p.grad_output, depth, filters, s.filters};
        const PixelGatherer<T> pixels{p.input, grid, s.batch, s.channels, static_cast<int>(channels)};
        const int64_t blocks = s.groups * extent.row_tiles * extent.column_tiles * extent.splits;
        cudaError_t launched = grid_fits(blocks);
        if (launched != cudaSuccess) return launched;
        launched = launch(
            tapped_weight_mma_kernel<T, decltype(math)::value, Shape, decltype(wide)::value>,
            {dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), gemm_shared_bytes<T, Shape, false, false>()},
            stream, p, grads, pixels, extent);
        if (launched != cudaSuccess || p.partials == nullptr) return launched;
        return launch_tapped_weight_sum(p, extent.splits, stream);
      });
  if (used != nullptr) *used = scratch.used();
  return status;
}

// ---- with tensor cores where they have something to do: some columns, and the depth of a step

template <class T>
bool suits_mma(const ConvShape& shape, int64_t columns, int64_t depth) {
  return !is_depthwise(shape) && columns >= kGemmMmaLeastColumns && depth >= kGemmMmaLeastDepth;
}
template <class T>
bool suits_mma(const TappedProduct<T>& p) {
  return p.phases() <= kGemmMmaMostPhases &&
         suits_mma<T>(p.shape, p.group_columns(), p.group_channels() * p.shape.kernel_size());
}
template <class T>
bool suits_mma(const TappedWeightGradient<T>& p) {
  return suits_mma<T>(p.shape, p.shape.group_channels() * p.shape.kernel_size(), p.pixels());
}

template <class T>
int64_t tapped_product_scratch(const TappedProduct<T>& p, bool tf32) {
  int64_t used = 0;
  if (suits_mma(p)) tapped_product_mma(p, tf32, nullptr, nullptr, &used);
  return used;
}
template <class T>
CudaStatus run_tapped_product(const TappedProduct<T>& p, bool tf32, void* scratch, CudaStream stream) {
  if (suits_mma(p)) return tapped_product_mma(p, tf32, scratch, stream, nullptr);
  return launch_tapped_product(p, stream);
}

template <class T>
int64_t tapped_weight_scratch(const TappedWeightGradient<T>& p, bool tf32) {
  int64_t used = plain_weight_scratch(p);
  if (suits_mma(p)) tapped_weight_mma(p, tf32, nullptr, nullptr, &used);
  return used;
}
template <class T>
CudaStatus run_tapped_weight(const TappedWeightGradient<T>& p, bool tf32, void* scratch, CudaStream stream) {
  if (suits_mma(p)) return tapped_weight_mma(p, tf32, scratch, stream, nullptr);
  return launch_tapped_weight(p, scratch, stream);
}

}  // namespace cvk
