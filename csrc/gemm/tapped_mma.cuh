// Tapped products (tapped.h) on tensor cores: what gemm_mma.cuh multiplies for a convolution.
//
// The map is read channels-last, so that a vector of channels is one copy; planes are turned first, into scratch. Weights are
// brought into the order of the depth (taps of the phase, then channels) once per call, where they are not in it already. The
// phases of a transposed product are launches of their own. Where tiles are few, several blocks share the depth of one, and a
// second kernel adds their sums in order.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/transpose.cuh"
#include "gemm/gemm_plan.cuh"
#include "gemm/tapped.h"
#include "gemm/tapped_cuda.cuh"
#include "gemm/tapped_pairs.cuh"

namespace cvk {

// ---- operands

// Pixels of a phase (outer) by taps and chunks of channels (inner) of a channels-last map. What one index alone decides is worked
// out when that index moves, so that an address is a sum of two offsets.
template <class T>
struct PixelGatherer {
  using Element = T;
  struct OuterStep {
    int image, grid_y, grid_x;  // in the phase
  };
  struct Outer : OuterStep {
    int y, x;    // source pixel of tap (0, 0)
    int offset;  // of its first chunk; such a pixel may lie outside
  };
  struct InnerStep {
    int tap_y, tap_x, chunk;
  };
  struct Inner : InnerStep {
    int y, x;    // of the tap, from the first
    int offset;  // with the chunk
    int bytes;   // of the chunk
  };
  const T* map;  // the group's first channel
  TapGrid grid;
  int images, chunks, group_chunks;  // chunks of a pixel: of all groups, of this one
  // Perf: taps of few channels find in L1 what their neighbours have read. (3 -> 64 7x7 on an H200: 0.8 of the time. With more
  // channels it is none the better.)
  static constexpr bool kInParts = true;
  bool cached;
  int last_bytes;  // of a chunk of a row's last tap, from its beginning; the rest of it counts as zeros

  CVK_DEVICE void place(Outer& outer) const {
    outer.y = outer.grid_y * grid.y.source_step + grid.y.first_offset;
    outer.x = outer.grid_x * grid.x.source_step + grid.x.first_offset;
    outer.offset = ((outer.image * grid.y.extent + outer.y) * grid.x.extent + outer.x) * chunks;
  }
  CVK_DEVICE void place(Inner& inner) const {
    inner.y = inner.tap_y * grid.y.offset_step;
    inner.x = inner.tap_x * grid.x.offset_step;
    inner.offset = (inner.y * grid.x.extent + inner.x) * chunks + inner.chunk;
    inner.bytes = inner.tap_x + 1 == grid.x.taps ? last_bytes : 16;
  }
  CVK_DEVICE OuterStep outer_step(unsigned count) const {
    const auto width = static_cast<unsigned>(grid.x.grid), pixels = static_cast<unsigned>(grid.y.grid) * width;
    const unsigned image = count / pixels, rest = count - image * pixels, y = rest / width;
    return {static_cast<int>(image), static_cast<int>(y), static_cast<int>(rest - y * width)};
  }
  CVK_DEVICE InnerStep inner_step(unsigned count) const {
    const auto taps = static_cast<unsigned>(max_of(grid.x.taps, 1));  // without taps nothing is read
    const unsigned tap = count / static_cast<unsigned>(group_chunks), y = tap / taps;
    return {static_cast<int>(y), static_cast<int>(tap - y * taps),
            static_cast<int>(count - tap * static_cast<unsigned>(group_chunks))};
  }
  CVK_DEVICE Outer outer(unsigned index) const {
    Outer outer{outer_step(index)};
    place(outer);
    return outer;
  }
  CVK_DEVICE Inner inner(unsigned index) const {
    Inner inner{inner_step(index)};
    place(inner);
    return inner;
  }
  // As numbers are added whose digits are images, rows and pixels; taps and chunks.
  CVK_DEVICE void advance_outer(Outer& outer, const OuterStep& step) const {
    outer.grid_x += step.grid_x;
    const bool next_row = outer.grid_x >= grid.x.grid;
    outer.grid_x -= next_row ? grid.x.grid : 0;
    outer.grid_y += step.grid_y + next_row;
    const bool next_image = outer.grid_y >= grid.y.grid;
    outer.grid_y -= next_image ? grid.y.grid : 0;
    outer.image += step.image + next_image;
    place(outer);
  }
  CVK_DEVICE void advance_inner(Inner& inner, const InnerStep& step) const {
    inner.chunk += step.chunk;
    const bool next_tap = inner.chunk >= group_chunks;
    inner.chunk -= next_tap ? group_chunks : 0;
    inner.tap_x += step.tap_x + next_tap;
    const bool next_row = inner.tap_x >= grid.x.taps;
    inner.tap_x -= next_row ? grid.x.taps : 0;
    inner.tap_y += step.tap_y + next_row;
    place(inner);
  }
  CVK_DEVICE bool there(const Outer& outer, const Inner& inner) const {
    const auto y = static_cast<unsigned>(outer.y + inner.y), x = static_cast<unsigned>(outer.x + inner.x);
    return outer.image < images && inner.tap_y < grid.y.taps && y < static_cast<unsigned>(grid.y.extent) &&
           x < static_cast<unsigned>(grid.x.extent);
  }
  CVK_DEVICE const void* at(const Outer& outer, const Inner& inner) const {
    return gemm_chunk(map, outer.offset + inner.offset);
  }
};

// ---- a map with channels in 16-byte chunks: [N, pixels, groups * padded], zeros after each group's channels

// A thread: a chunk of one pixel; lanes are pixels.
template <class T>
static __global__ void __launch_bounds__(kGemmMmaThreads)
    tapped_padded_kernel(const T* from, T* to, int64_t pixels, int64_t plane, int groups, int64_t group_channels,
                         int64_t padded, bool channels_last) {
  const int64_t chunks = groups * padded / kWide<T>;
  const int64_t thread = int64_t{blockIdx.x} * kGemmMmaThreads + threadIdx.x;
  const int64_t chunk = thread / 32 % chunks, pixel = thread / 32 / chunks * 32 + thread % 32;
  if (pixel >= pixels) return;
  const int64_t group = chunk * kWide<T> / padded, first = chunk * kWide<T> % padded;
  const int64_t channels = groups * group_channels, c = group * group_channels + first;
  const int64_t step = channels_last ? 1 : plane;
  from += channels_last ? pixel * channels + c : (pixel / plane * channels + c) * plane + pixel % plane;
  Group<T, kWide<T>> values;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) values.values[i] = first + i < group_channels ? from[i * step] : T{};
  *reinterpret_cast<Group<T, kWide<T>>*>(to + pixel * groups * padded + chunk * kWide<T>) = values;
}

// ---- weights in the order of the depth: [groups, columns, taps of the phase, channels as padded]

// A block: a square of columns by channels of one tap and group, through shared memory where the columns are nearer to each other
// than the channels.
template <class T>
static __global__ void __launch_bounds__(kGemmMmaThreads)
    tapped_weights_kernel(TappedProduct<T> p, int64_t phase, int64_t padded, T* to) {
  constexpr int kTile = kGemmMmaWeightTile;
  struct Shared {
    TapGrid grid;
    T tile[kTile][kTile + 2];  // [channels, columns]
  };
  auto& shared = static_shared<Shared>();
  if (threadIdx.x == 0) shared.grid = p.grid(phase);
  __syncthreads();
  const int taps = shared.grid.taps();
  const int64_t channels = p.group_channels(), columns = p.group_columns();
  const int64_t channel_tiles = ceil_div<int64_t>(padded, kTile), column_tiles = ceil_div<int64_t>(columns, kTile);
  const int64_t block = blockIdx.x;
  const int64_t first_channel = block % channel_tiles * kTile,
                first_column = block / channel_tiles % column_tiles * kTile;
  const int t = static_cast<int>(block / channel_tiles / column_tiles % taps);
  const int64_t group = block / channel_tiles / column_tiles / taps;
  const auto strides = p.strides();
  const T* from = p.weights + group * strides.group + kernel_of(shared.grid, p.shape.kernel_width, t) * strides.tap;
  const bool turned = strides.column < strides.channel;
  const int lane = static_cast<int>(threadIdx.x) % kTile;
  for (int i = static_cast<int>(threadIdx.x) / kTile; i < kTile; i += kGemmMmaThreads / kTile) {
    const int row = turned ? i : lane, place = turned ? lane : i;
    const int64_t c = first_channel + row, j = first_column + place;
    shared.tile[row][place] = c < channels && j < columns ? from[j * strides.column + c * strides.channel] : T{};
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) / kTile; i < kTile; i += kGemmMmaThreads / kTile) {
    const int64_t c = first_channel + lane, j = first_column + i;
    if (c < padded && j < columns) to[((group * columns + j) * taps + t) * padded + c] = shared.tile[lane][i];
  }
}

template <class T>
cudaError_t tapped_weights(const TappedProduct<T>& p, int64_t phase, int64_t padded, T* to, CudaStream stream) {
  const int64_t blocks = int64_t{p.shape.groups} * p.grid(phase).taps() *
                         ceil_div<int64_t>(padded, kGemmMmaWeightTile) *
                         ceil_div<int64_t>(p.group_columns(), kGemmMmaWeightTile);
  if (blocks == 0) return cudaSuccess;
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(tapped_weights_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kGemmMmaThreads)}, stream, p,
                phase, padded, to);
}

// ---- kernels. Static: every .cu file launches its own copy.

// Where a block's tile is: `per_group` tiles a group.
struct TappedTile {
  GemmBlock block;
  int64_t group;
};
template <class Shape>
CVK_DEVICE TappedTile tapped_tile(const GemmExtent& extent) {
  const auto per_group = static_cast<unsigned>(extent.row_tiles * extent.column_tiles * extent.splits);
  return {gemm_block<Shape>(extent, blockIdx.x % per_group), blockIdx.x / per_group};
}

// Where the results of a row, a pixel of the phase, go: column 0, and the distance from column to column.
template <class T>
struct TappedRow {
  T* first;
  int64_t step;
};
template <class T>
CVK_DEVICE TappedRow<T> tapped_row(const TappedProduct<T>& p, const TapGrid& grid, int64_t row) {
  int64_t pixel = row;  // of all images
  if ((p.transposed && p.phases() > 1) || !p.shape.channels_last) {
    const int64_t image = quotient(row, grid.pixels()), rest = row - image * grid.pixels();
    const int y = static_cast<int>(quotient(rest, grid.x.grid)), x = static_cast<int>(rest - int64_t{y} * grid.x.grid);
    const int64_t place = target_pixel(grid, p.target_width(), y, x);
    if (!p.shape.channels_last) return {p.target + image * p.columns() * p.target_plane() + place, p.target_plane()};
    pixel = image * p.target_plane() + place;
  }
  return {p.target + pixel * p.columns(), 1};
}

template <class T>
CVK_DEVICE T tapped_result(const TappedProduct<T>& p, int64_t column, Acc<T> sum) {
  const Acc<T> bias = p.bias != nullptr ? to_acc(p.bias[column]) : Acc<T>(0);
  return from_acc<T>(activate(p.activation, sum + bias));
}

template <class T, class Shape>
struct TappedShared {
  GemmShared<T, Shape, true, true> gemm;
  Acc<T> bias[Shape::kColumns];
};

// A block: a tile of pixels by columns of one group. With several splits it leaves its sums in partials [splits, groups, rows,
// columns]. `wide` says that 16 bytes of the target may be stored at once.
template <class T, GemmMath math, class Shape>
static __global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerSm)
    tapped_product_mma_kernel(TappedProduct<T> p, PixelGatherer<T> pixels, DenseGatherer<T> weights, GemmExtent extent,
                              Acc<T>* partials, bool wide) {
  if constexpr (!gemm_runs_here<math>()) {
    __trap();
    return;
  }
  const TappedTile tile = tapped_tile<Shape>(extent);
  pixels.map += tile.group * pixels.group_chunks * kWide<T>;
  weights.data += tile.group * weights.outers * weights.stride * kWide<T>;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_row = tile.block.first_row, first_column = tile.group * extent.columns + tile.block.first_column;
  const int rows = static_cast<int>(min_of<int64_t>(Shape::kRows, extent.rows - first_row));
  const int columns = static_cast<int>(min_of<int64_t>(Shape::kColumns, extent.columns - tile.block.first_column));

  auto& shared = *dynamic_shared<TappedShared<T, Shape>>();
  for (int j = thread; j < Shape::kColumns; j += Shape::kThreads) {
    shared.bias[j] = p.bias != nullptr && j < columns ? to_acc(p.bias[first_column + j]) : Acc<T>(0);
  }
  GemmRegisters<T, math, Shape, true, true> sums;
  gemm_multiply<Shape, true, true>(shared.gemm, sums, pixels, weights, extent, tile.block);

  // Channels-last: a thread keeps its chunk of the columns.
  constexpr int kChunk = kWide<T>, kChunks = Shape::kColumns / kChunk;
  static_assert(Shape::kThreads % kChunks == 0, "a thread keeps its chunk");
  const int chunk_column = thread % kChunks * kChunk;
  const auto for_each_chunk_row = [&](auto&& store) {
    if (chunk_column >= columns) return;
    for (int row = thread / kChunks; row < rows; row += Shape::kThreads / kChunks) {
      store(row, tapped_row(p, pixels.grid, first_row + row).first + first_column + chunk_column);
    }
  };
  if (partials == nullptr && wide && (p.activation == Activation::kNone || p.activation == Activation::kRelu)) {
    // Perf: rounded in registers, half formats move half the bytes through shared memory.
    const Acc<T> least = p.activation == Activation::kRelu ? Acc<T>(0) : -static_cast<Acc<T>>(INFINITY);
    sums.for_each([&](int row, int column, Acc<T> first, Acc<T> second) {
      Acc<T> both[2] = {first + shared.bias[column], second + shared.bias[column + 1]};
      for (auto& value : both) value = value < least ? least : value;
      store_group(&shared.gemm.rounded.values[row][column], both);
    });
    __syncthreads();
    for_each_chunk_row([&](int row, T* to) {
      using Chunk = Group<T, kChunk>;
      *reinterpret_cast<Chunk*>(to) = *reinterpret_cast<const Chunk*>(&shared.gemm.rounded.values[row][chunk_column]);
    });
    return;
  }

  gemm_store(sums, shared.gemm.result);
  __syncthreads();
  const auto& result = shared.gemm.result;
  if (partials != nullptr) {
    const int64_t part = tile.block.split * int64_t{p.shape.groups} + tile.group;
    Acc<T>* to = partials + (part * extent.rows + first_row) * extent.columns + tile.block.first_column;
    for (int i = thread; i < Shape::kRows * Shape::kColumns; i += Shape::kThreads) {
      const int row = i / Shape::kColumns, column = i % Shape::kColumns;
      if (row < rows && column < columns) to[row * extent.columns + column] = result.values[row][column];
    }
  } else if (wide) {
    with_activation(p.activation, [&](auto activation) {
      for_each_chunk_row([&](int row, T* to) {
        Acc<T> values[kChunk];
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          const int column = chunk_column + j;
          values[j] = activate(activation(), result.values[row][column] + shared.bias[column]);
        }
        store_group(to, values);
      });
    });
  } else {  // neighbouring threads store neighbouring pixels; where there is but one plane of them, that is no loss
    constexpr int kApart = 64;
    static_assert(Shape::kThreads % kApart == 0 && Shape::kRows % kApart == 0, "a thread keeps its rows");
    with_activation(p.activation, [&](auto activation) {
      for (int row = thread % kApart; row < rows; row += kApart) {
        const TappedRow<T> to = tapped_row(p, pixels.grid, first_row + row);
        for (int column = thread / kApart; column < columns; column += Shape::kThreads / kApart) {
          to.first[(first_column + column) * to.step] =
              from_acc<T>(activate(activation(), result.values[row][column] + shared.bias[column]));
        }
      }
    });
  }
}

// A thread: one element, the sums of its splits added in order.
template <class T>
static __global__ void __launch_bounds__(kGemmMmaThreads)
    tapped_finish_kernel(TappedProduct<T> p, TapGrid grid, GemmExtent extent, const Acc<T>* partials) {
  const int64_t each = p.shape.groups * extent.rows * extent.columns;
  const int64_t index = int64_t{blockIdx.x} * kGemmMmaThreads + threadIdx.x;
  if (index >= each) return;
  const int64_t line = quotient(index, extent.columns), group = quotient(line, extent.rows);
  const int64_t column = group * extent.columns + index - line * extent.columns;
  const TappedRow<T> to = tapped_row(p, grid, line - group * extent.rows);
  Acc<T> sum = Acc<T>(0);
  for (int split = 0; split < extent.splits; ++split) sum += partials[split * each + index];
  to.first[column * to.step] = tapped_result(p, column, sum);
}

// A block: a tile of filters by taps and channels of one group; the depth is pixels, shared by the splits.
template <class T, GemmMath math, class Shape>
static __global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerSm)
    tapped_weight_mma_kernel(TappedWeightGradient<T> p, DenseGatherer<T> grads, PixelGatherer<T> pixels,
                             GemmExtent extent) {
  if constexpr (!gemm_runs_here<math>()) {
    __trap();
    return;
  }
  const TappedTile tile = tapped_tile<Shape>(extent);
  grads.data += tile.group * grads.chunks * kWide<T>;
  pixels.map += tile.group * pixels.group_chunks * kWide<T>;
  const auto& result = gemm_tile<math, Shape, false, false>(grads, pixels, extent, tile.block);
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows * Shape::kColumns; i += Shape::kThreads) {
    const int64_t filter = tile.block.first_row + i / Shape::kColumns,
                  k = tile.block.first_column + i % Shape::kColumns;
    const int64_t channels = int64_t{pixels.group_chunks} * kWide<T>;  // as padded
    const int64_t tap = quotient(k, channels), c = k - tap * channels;
    if (filter >= extent.rows || k >= extent.columns || c >= p.shape.group_channels()) continue;
    const int64_t at = p.weight_at(tile.group * extent.rows + filter, c, static_cast<int>(tap));
    p.put(tile.block.split, at, result.values[i / Shape::kColumns][i % Shape::kColumns]);
  }
}

// ---- on the host

// Scratch, piece by piece. Where it is only counted, memory is null and what is taken is nowhere.
class TappedScratch {
 public:
  TappedScratch(void* memory) : memory_(static_cast<char*>(memory)) {}
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

// A map as the engine reads it: itself, or a copy that is channels-last, aligned, and of whole chunks in every group.
template <class T>
struct TappedMap {
  const T* data;
  int64_t group_channels;  // as padded
  int last_bytes = 16;     // as PixelGatherer has it
};
template <class T>
cudaError_t tapped_map(const T* from, bool channels_last, int64_t images, int groups, int64_t group_channels,
                       int64_t plane, TappedMap<T>& map, TappedScratch& scratch, bool runs, CudaStream stream) {
  const int64_t channels = groups * group_channels, padded = round_up<int64_t>(group_channels, kWide<T>);
  const bool in_order = channels_last || channels == 1 || plane == 1;
  map = {from, padded};
  if (in_order && padded == group_channels && is_wide_aligned(from)) return cudaSuccess;
  T* copy = scratch.take<T>(images * plane * groups * padded);
  map.data = copy;
  if (!runs || images * plane * channels == 0) return cudaSuccess;
  if (!in_order && padded == group_channels) {
    return planes_to_channels_last(from, copy, images, channels, plane, stream);
  }
  const int64_t threads = round_up<int64_t>(images * plane, 32) * (groups * padded / kWide<T>);
  const int64_t blocks = ceil_div<int64_t>(threads, kGemmMmaThreads);
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(tapped_padded_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kGemmMmaThreads)}, stream, from,
                copy, images * plane, plane, groups, group_channels, padded, in_order);
}

template <class T>
PixelGatherer<T> tapped_pixels(const TappedMap<T>& map, const TapGrid& grid, int64_t images, int groups) {
  const int chunks = static_cast<int>(map.group_channels / kWide<T>);
  return {map.data,      grid, static_cast<int>(images), groups * chunks, chunks, chunks <= kGemmMmaMostCachedChunks,
          map.last_bytes};
}

// Runs the product over a map, or with `used` only counts the bytes of scratch that it takes.
template <class T>
cudaError_t tapped_product_of_map(const TappedProduct<T>& p, const TappedMap<T>& map, GemmUnits units,
                                  TappedScratch scratch, CudaStream stream, int64_t* used, int64_t most_splits) {
  const bool runs = used == nullptr;
  const int64_t columns = p.group_columns();
  const int groups = p.shape.groups;
  cudaError_t status = cudaSuccess;
  const int64_t channels = map.group_channels;
  const bool ordered = !p.transposed && channels == p.group_channels() && is_wide_aligned(p.weights) &&
                       (p.shape.weight_channels_last || p.shape.kernel_size() == 1);
  const bool wide_target = p.shape.channels_last && columns % kWide<T> == 0 && is_wide_aligned(p.target);
  int64_t most = 0;  // the phases use one piece of scratch after the other
  const TappedScratch before = scratch;
  for (int64_t phase = 0; phase < p.phases() && status == cudaSuccess; ++phase) {
    scratch = before;
    TapGrid grid = p.grid(phase);
    // Edge: the one step that there is then reads no pixel, which may be infinite.
    if (grid.taps() == 0) grid.y.taps = 0;
    const int64_t rows = p.shape.batch * grid.pixels(), depth = grid.taps() * channels;
    if (rows == 0) continue;
    const T* weights = p.weights;
    if (!ordered) {
      T* packed = scratch.take<T>(max_of<int64_t>(groups * columns * depth, 1));
      if (runs) status = tapped_weights(p, phase, channels, packed, stream);
      weights = packed;
    }
    if (status != cudaSuccess) break;
    const GemmPlan plan = plan_gemm<T, false>(units, rows, columns, depth, groups, most_splits);
    status = with_gemm_shape<T, false>(units, plan, [&](auto math, auto shape) {
      using Shape = decltype(shape);
      const GemmExtent extent = gemm_extent<Shape>(rows, columns, depth, plan.splits);
      Acc<T>* partials = extent.splits > 1 ? scratch.take<Acc<T>>(extent.splits * groups * rows * columns) : nullptr;
      if (!runs) return cudaSuccess;
      const PixelGatherer<T> pixels = tapped_pixels(map, grid, p.shape.batch, groups);
      const int chunks = static_cast<int>(depth / kWide<T>);
      const DenseGatherer<T> dense{weights, static_cast<int>(columns), chunks, chunks};
      const int64_t blocks = groups * extent.row_tiles * extent.column_tiles * extent.splits;
      cudaError_t launched = grid_fits(blocks);
      if (launched != cudaSuccess) return launched;
      launched = launch(tapped_product_mma_kernel<T, decltype(math)::value, Shape>,
                        gemm_config<decltype(math)::value, Shape, TappedShared<T, Shape>>(blocks), stream, p, pixels,
                        dense, extent, partials, wide_target);
      if (launched != cudaSuccess || partials == nullptr) return launched;
      const int64_t sums = ceil_div<int64_t>(groups * rows * columns, kGemmMmaThreads);
      launched = grid_fits(sums);
      if (launched != cudaSuccess) return launched;
      return launch(tapped_finish_kernel<T>, {dim3(static_cast<unsigned>(sums)), dim3(kGemmMmaThreads)}, stream, p,
                    grid, extent, static_cast<const Acc<T>*>(partials));
    });
    most = max_of(most, scratch.used());
  }
  if (used != nullptr) *used = max_of(most, before.used());
  return status;
}

template <class T>
cudaError_t tapped_product_mma(const TappedProduct<T>& p, GemmUnits units, TappedScratch scratch, CudaStream stream,
                               int64_t* used, int64_t most_splits = kGemmMmaMostSplits) {
  const bool runs = used == nullptr;
  if (suits_pairs(p)) {
    const ConvShape s = shape_of_pairs(p.shape, kWide<T>);
    T* const map = scratch.take<T>(s.batch * s.channels * s.pixels());
    T* const weights = scratch.take<T>(s.weights());
    const cudaError_t status = runs ? make_pairs(p, s, map, weights, stream) : cudaSuccess;
    if (status != cudaSuccess) return status;
    TappedProduct<T> pairs = p;
    pairs.shape = s;
    pairs.weights = weights;
    return tapped_product_of_map(pairs, {map, s.channels, last_pair_bytes(p)}, units, scratch, stream, used,
                                 most_splits);
  }
  TappedMap<T> map;
  const cudaError_t status = tapped_map(p.source, p.shape.channels_last, p.shape.batch, p.shape.groups,
                                        p.group_channels(), p.source_plane(), map, scratch, runs, stream);
  if (status != cudaSuccess) return status;
  return tapped_product_of_map(p, map, units, scratch, stream, used, most_splits);
}

// The same for the gradient with respect to the weights.
template <class T>
cudaError_t tapped_weight_mma(TappedWeightGradient<T> p, GemmUnits units, TappedScratch scratch, CudaStream stream,
                              int64_t* used, int64_t most_splits = kGemmMmaMostSplits) {
  const bool runs = used == nullptr;
  const ConvShape& s = p.shape;
  TappedMap<T> input, grad;
  cudaError_t status = tapped_map(p.input, s.channels_last, s.batch, s.groups, s.group_channels(), s.pixels(), input,
                                  scratch, runs, stream);
  if (status == cudaSuccess) {
    status = tapped_map(p.grad_output, s.channels_last, s.batch, s.groups, s.group_filters(), s.out_pixels(), grad,
                        scratch, runs, stream);
  }
  if (status != cudaSuccess) return status;
  const TapGrid grid = correlation_grid(s);
  const int64_t filters = s.group_filters(), channels = input.group_channels, depth = p.pixels();
  const int64_t columns = channels * grid.taps();
  const GemmPlan plan = plan_gemm<T, true>(units, filters, columns, depth, s.groups, most_splits);
  status = with_gemm_shape<T, true>(units, plan, [&](auto math, auto shape) {
    using Shape = decltype(shape);
    const GemmExtent extent = gemm_extent<Shape>(filters, columns, depth, plan.splits);
    p.partials = extent.splits > 1 ? scratch.take<Acc<T>>(extent.splits * s.weights()) : nullptr;
    if (!runs) return cudaSuccess;
    const int chunks = static_cast<int>(grad.group_channels / kWide<T>);
    const DenseGatherer<T> grads{grad.data, static_cast<int>(depth), chunks, s.groups * chunks};
    const PixelGatherer<T> pixels = tapped_pixels(input, grid, s.batch, s.groups);
    const int64_t blocks = s.groups * extent.row_tiles * extent.column_tiles * extent.splits;
    cudaError_t launched = grid_fits(blocks);
    if (launched != cudaSuccess) return launched;
    launched = launch(tapped_weight_mma_kernel<T, decltype(math)::value, Shape>,
                      gemm_config<decltype(math)::value, Shape, GemmShared<T, Shape, false, false>>(blocks), stream, p,
                      grads, pixels, extent);
    if (launched != cudaSuccess || p.partials == nullptr) return launched;
    return launch_tapped_weight_sum(p, extent.splits, stream);
  });
  if (used != nullptr) *used = scratch.used();
  return status;
}

// ---- with tensor cores where they have something to do: the depth of a step

template <class T>
bool suits_mma(const ConvShape& s, int64_t depth) {
  const int64_t channels = s.groups * round_up<int64_t>(s.group_channels(), kWide<T>);
  const int64_t filters = s.groups * round_up<int64_t>(s.group_filters(), kWide<T>);
  return !is_depthwise(s) && depth >= kGemmMmaLeastDepth && gemm_addressable<T>(s.batch * s.pixels() * channels) &&
         gemm_addressable<T>(s.batch * s.out_pixels() * filters) &&
         gemm_addressable<T>(channels * filters * s.kernel_size());
}
template <class T>
bool suits_mma(const TappedProduct<T>& p) {
  return p.phases() <= kGemmMmaMostPhases && suits_mma<T>(p.shape, p.group_channels() * p.shape.kernel_size());
}
template <class T>
bool suits_mma(const TappedWeightGradient<T>& p) {
  return suits_mma<T>(p.shape, p.pixels());
}

}  // namespace cvk
