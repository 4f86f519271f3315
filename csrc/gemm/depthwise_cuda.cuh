// A filter for each channel (tapped.h, is_depthwise) on CUDA. No product at all: what counts is to read a map once, so every
// kernel here reuses what it loads, along a row of pixels or down a column of them.
//
//   channels-last   lanes are vectors of 16 bytes of channels; a thread has a run of kDepthwiseRun neighbours of a row
//   planes          lanes are neighbours of a row; a thread has kDepthwiseRows pixels below one another
//
// Three taps along that axis, undilated, share what was loaded (kTaps = 3, or 5 in planes; kStep is the stride); any others are
// taken one at a time (kTaps = 1). Every sum runs over kernel rows, then columns, and taps outside the map are left out, not
// multiplied by zero. Indices are 32 bits wide; a problem that needs more, channels that are no multiple of a vector, and
// unaligned maps go to the plain kernels, a thread for each element (forward) or a block for each weight (gradient).
//
// Perf, 128 channels, 3 x 3, 56 x 56, batch 32, float16; H100 80GB HBM3, 2026-11-26, with the plain kernels alone:
//   forward           channels-last 388 us (cuDNN 62), planes 350 us (cuDNN 88)
//   weight gradient   1,514 us; forward and both gradients 2,730 us (cuDNN 237)
//   bound             17 us a pass: 51 MB, each map read or written once
// A first version, which loaded channels byte by byte: forward 80 us, planes 64 us; forward and both gradients 508 us. That with
// loads of 16 bytes has not been timed.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/numeric.h"
#include "common/vec.cuh"
#include "gemm/depthwise_plan.cuh"
#include "gemm/depthwise_tuning.h"
#include "gemm/gemm_tuning.h"
#include "gemm/tapped.h"

namespace cvk {

// `count` neighbours of the target along an axis, and the source pixels that kTaps of their taps need: tap t of pixel r is
// place kStep * r + t, and places ascend with the kernel. With kTaps = 1, places are those of the pixels.
template <int count, int kTaps, int kStep>
struct DepthwiseSpan {
  static constexpr int kPlaces = (count - 1) * kStep + kTaps;
  static_assert(kTaps > 1 || kStep == 1, "one tap at a time has any stride");
  int start, unit;      // of place 0, where the first kernel element is tap 0; from place to place
  int pixel, forwards;  // target pixels

  CVK_DEVICE DepthwiseSpan(const DepthwiseAxis& axis, int first) {
    const bool turned = kTaps > 1 && axis.offset < 0;
    pixel = turned ? first + count - 1 : first;
    forwards = turned ? -1 : 1;
    unit = kTaps > 1 ? axis.offset : axis.step;
    start = pixel * axis.step + axis.first;
  }
  CVK_DEVICE int target(int r) const { return pixel + r * forwards; }
  // Source pixel of a place where `tap` is tap 0, or -1.
  CVK_DEVICE int source(const DepthwiseAxis& axis, int tap, int place) const {
    return axis.source<kTaps == 1>(start + tap * axis.offset + place * unit);
  }
  // Calls f(r, t) for the pixels and taps that read a place.
  template <class F>
  static CVK_DEVICE void for_each(int place, F&& f) {
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      const int r = (place - t) / kStep;
      if (place >= t && (place - t) % kStep == 0 && r < count) f(r, t);
    }
  }
};

// One copy of the activation's code for a row of sums: the rows take turns.
template <class A, int rows, int columns>
CVK_DEVICE void activate_all(Activation activation, A (&sum)[rows][columns]) {
  if (activation == Activation::kNone) return;
#pragma unroll 1
  for (int turn = 0; turn < rows; ++turn) {
    A done[columns];
#pragma unroll
    for (int k = 0; k < columns; ++k) done[k] = activate(activation, sum[0][k]);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
      for (int k = 0; k < columns; ++k) sum[r][k] = r + 1 < rows ? sum[r + 1 < rows ? r + 1 : r][k] : done[k];
    }
  }
}

// ---- channels-last

// A vector as it lies in memory. Perf: bfloat16 in parts would take twice the registers, and spill.
struct __attribute__((may_alias, aligned(16))) DepthwiseRaw {
  uint32_t words[4];
};

// What kTaps taps of a run of pixels read of a line of the source, from kernel column j on.
template <class Span>
struct DepthwiseRow {
  DepthwiseRaw values[Span::kPlaces];
  bool inside[Span::kPlaces];

  template <class T>
  CVK_DEVICE void load(const T* line, int64_t channels, const DepthwiseAxis& along_x, const Span& span, int j) {
#pragma unroll
    for (int q = 0; q < Span::kPlaces; ++q) {
      const int u = span.source(along_x, j, q);
      inside[q] = u >= 0;
      if (inside[q]) values[q] = *reinterpret_cast<const DepthwiseRaw*>(line + u * channels);
    }
  }
};

// The run of an item.
struct DepthwiseItem {
  unsigned image;
  int y, x;
  CVK_DEVICE DepthwiseItem(unsigned item, unsigned runs, int rows, int run) {
    const unsigned row = item / runs;
    x = static_cast<int>(item - row * runs) * run;
    image = row / static_cast<unsigned>(rows);
    y = static_cast<int>(row - image * static_cast<unsigned>(rows));
  }
};

// A block: a tile of vectors, whose weights and bias it keeps in shared memory as [tap][channel], and some runs of pixels.
template <class T, int kTaps, int kStep>
static __global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocksPerSm<Acc<T>>)
    depthwise_rows_kernel(TappedProduct<T> p, DepthwiseAxis along_y, DepthwiseAxis along_x, DepthwiseTiling tiling) {
  using A = Acc<T>;
  constexpr int kRun = depthwise_run(true, kTaps, kStep);
  using Span = DepthwiseSpan<kRun, kTaps, kStep>;
  using Vector = Group<T, kWide<T>>;
  constexpr int kVec = kWide<T>, kPart = kWide<A>;
  A* const shared = dynamic_shared<A>();
  const int taps = along_y.taps * along_x.taps, pitch = tiling.tile * kVec;
  const int first = static_cast<int>(blockIdx.x % tiling.tiles) * tiling.tile;
  const int vectors = min_of(tiling.tile, static_cast<int>(p.shape.channels / kVec) - first);
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < vectors * kVec * taps; e += kDepthwiseThreads) {
    shared[e % taps * pitch + e / taps] = to_acc(p.weights[int64_t{first} * kVec * taps + e]);
  }
  for (int e = thread; p.bias != nullptr && e < vectors * kVec; e += kDepthwiseThreads) {
    shared[taps * pitch + e] = to_acc(p.bias[first * kVec + e]);
  }
  __syncthreads();
  const int vector = thread % tiling.tile, slot = thread / tiling.tile, slots = kDepthwiseThreads / tiling.tile;
  if (slot >= slots || vector >= vectors) return;
  const A* const weights = shared + vector * kVec;
  const auto load_shared = [&](int row, A(&to)[kVec]) {
#pragma unroll
    for (int k = 0; k < kVec; k += kPart) {
      const auto part = *reinterpret_cast<const Group<A, kPart>*>(weights + row * pitch + k);
#pragma unroll
      for (int i = 0; i < kPart; ++i) to[k + i] = part.values[i];
    }
  };
  const int64_t channels = p.shape.channels, channel = (int64_t{first} + vector) * kVec;
  const unsigned begin = blockIdx.x / tiling.tiles * tiling.each, end = min_of(tiling.items, begin + tiling.each);
  for (unsigned index = begin + slot; index < end; index += slots) {
    const DepthwiseItem item(index, tiling.runs, along_y.target, kRun);
    const T* const map = p.source + item.image * p.source_plane() * channels + channel;
    const Span span(along_x, item.x);
    A sum[kRun][kVec] = {};
    for (int i = 0; i < along_y.taps; ++i) {
      const int v = along_y.source<true>(item.y * along_y.step + along_y.first + i * along_y.offset);
      if (v < 0) continue;
      const T* const line = map + int64_t{v} * along_x.extent * channels;
      for (int j = 0; j < along_x.taps; j += kTaps) {
        DepthwiseRow<Span> row;
        row.load(line, channels, along_x, span, j);
        A weight[kTaps][kVec];
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
          if (j + t < along_x.taps) load_shared(i * along_x.taps + j + t, weight[t]);
        }
#pragma unroll
        for (int q = 0; q < Span::kPlaces; ++q) {
          if (!row.inside[q]) continue;
          const Vector vector = bit_cast<Vector>(row.values[q]);
          A value[kVec];
#pragma unroll
          for (int k = 0; k < kVec; ++k) value[k] = to_acc(vector.values[k]);
          Span::for_each(q, [&](int r, int t) {
            if (t > 0 && j + t >= along_x.taps) return;
#pragma unroll
            for (int k = 0; k < kVec; ++k) sum[r][k] = mul_add(weight[t][k], value[k], sum[r][k]);
          });
        }
      }
    }
    if (p.bias != nullptr) {
      A bias[kVec];
      load_shared(taps, bias);
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
#pragma unroll
        for (int k = 0; k < kVec; ++k) sum[r][k] = sum[r][k] + bias[k];
      }
    }
    activate_all(p.activation, sum);
    T* const out = p.target + ((int64_t{item.image} * along_y.target + item.y) * along_x.target) * channels + channel;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      const int x = span.target(r);
      if (x < along_x.target) store_group<kVec>(out + x * channels, sum[r]);
    }
  }
}

// A block: a tile of vectors, a group of chunks (up to kTaps taps of a kernel row) and a part of the runs. A thread has a vector
// and a chunk and shares the runs of the part with the other slots, whose sums are added in order.
template <class T, int kTaps, int kStep>
static __global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocksPerSm<Acc<T>>)
    depthwise_weight_rows_kernel(TappedWeightGradient<T> p, DepthwiseAxis along_y, DepthwiseAxis along_x,
                                 DepthwiseTiling tiling) {
  using A = Acc<T>;
  constexpr int kRun = depthwise_run(true, kTaps, kStep);
  using Span = DepthwiseSpan<kRun, kTaps, kStep>;
  using Vector = Group<T, kWide<T>>;
  constexpr int kVec = kWide<T>;
  struct Shared {
    A sum[kDepthwiseThreads][kVec];
  };
  auto& shared = static_shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x), slots = kDepthwiseThreads / (tiling.tile * tiling.group);
  const int vector = thread % tiling.tile, slot = thread / tiling.tile / tiling.group;
  const int first = static_cast<int>(blockIdx.x % tiling.tiles) * tiling.tile;
  const int first_chunk = static_cast<int>(blockIdx.x / tiling.tiles % tiling.groups) * tiling.group;
  const unsigned part = blockIdx.x / tiling.tiles / tiling.groups;
  const int64_t channels = p.shape.channels, channel = (int64_t{first} + vector) * kVec;
  const int row_chunks = tiling.chunks / along_y.taps, chunk = first_chunk + thread / tiling.tile % tiling.group;
  const int i = chunk / row_chunks, j = chunk % row_chunks * kTaps;
  A sum[kTaps][kVec] = {};
  if (slot < slots && chunk < tiling.chunks && channel < channels) {
    const unsigned begin = part * tiling.each, end = min_of(tiling.items, begin + tiling.each);
    for (unsigned index = begin + slot; index < end; index += slots) {
      const DepthwiseItem item(index, tiling.runs, along_y.target, kRun);
      const int v = along_y.source<false>(item.y * along_y.step + along_y.first + i * along_y.offset);
      if (v < 0) continue;
      const T* const line =
          p.input + ((int64_t{item.image} * along_y.extent + v) * along_x.extent) * channels + channel;
      const T* const grad = p.grad_output +
                            ((int64_t{item.image} * along_y.target + item.y) * along_x.target + item.x) * channels +
                            channel;
      const Span span(along_x, item.x);
      DepthwiseRaw grads[kRun];
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        if (item.x + r < along_x.target) grads[r] = *reinterpret_cast<const DepthwiseRaw*>(grad + r * channels);
      }
      DepthwiseRow<Span> row;
      row.load(line, channels, along_x, span, j);
#pragma unroll
      for (int q = 0; q < Span::kPlaces; ++q) {
        if (!row.inside[q]) continue;
        const Vector value = bit_cast<Vector>(row.values[q]);
        Span::for_each(q, [&](int r, int t) {
          if (item.x + r >= along_x.target) return;
          const Vector out = bit_cast<Vector>(grads[r]);
#pragma unroll
          for (int k = 0; k < kVec; ++k) {
            sum[t][k] = mul_add(to_acc(out.values[k]), to_acc(value.values[k]), sum[t][k]);
          }
        });
      }
    }
  }
  // Element e of the block: channel e % width of chunk e / width; its slots lie group * tile threads apart.
  const int width = tiling.tile * kVec;
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kVec; ++k) shared.sum[thread][k] = sum[t][k];
    __syncthreads();
    for (int e = thread; e < tiling.group * width; e += kDepthwiseThreads) {
      const int64_t c = int64_t{first} * kVec + e % width;
      const int other = first_chunk + e / width, y = other / row_chunks, x = other % row_chunks * kTaps + t;
      if (c >= channels || other >= tiling.chunks || x >= along_x.taps) continue;
      A total = A(0);
      for (int s = 0; s < slots; ++s) total += shared.sum[(s * tiling.group * width + e) / kVec][e % kVec];
      p.put(part, c * along_y.taps * along_x.taps + y * along_x.taps + x, total);
    }
  }
}

// ---- planes

// What kTaps x kTaps taps of a column of pixels read of a plane of the source, from kernel element (i, j) on; x is their column.
template <class T, class Span, int kTaps>
struct DepthwiseColumn {
  T values[Span::kPlaces][kTaps];
  int u[kTaps];
  bool inside[Span::kPlaces];

  template <bool kDivides>
  CVK_DEVICE void load(const T* map, const DepthwiseAxis& along_y, const DepthwiseAxis& along_x, const Span& span,
                       int i, int j, int x) {
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      u[t] = along_x.source<kDivides>(x * along_x.step + along_x.first + (j + t) * along_x.offset);
    }
#pragma unroll
    for (int q = 0; q < Span::kPlaces; ++q) {
      const int v = span.source(along_y, i, q);
      inside[q] = v >= 0;
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        if (inside[q] && u[t] >= 0) values[q][t] = map[v * along_x.extent + u[t]];
      }
    }
  }
};

// A thread: kRows pixels of a column of a plane. kTaps > 1: the kernel is kTaps x kTaps.
template <class T, int kTaps, int kStep>
static __global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocksPerSm<Acc<T>>)
    depthwise_planes_kernel(TappedProduct<T> p, DepthwiseAxis along_y, DepthwiseAxis along_x, unsigned items) {
  using A = Acc<T>;
  constexpr int kRows = depthwise_run(false, kTaps, kStep);
  using Span = DepthwiseSpan<kRows, kTaps, kStep>;
  const unsigned index = blockIdx.x * kDepthwiseThreads + threadIdx.x;
  if (index >= items) return;
  const unsigned columns = static_cast<unsigned>(along_x.target);
  const unsigned runs = ceil_div(static_cast<unsigned>(along_y.target), unsigned{kRows});
  const unsigned column = index / columns, plane = column / runs;
  const unsigned c = plane % static_cast<unsigned>(p.shape.channels);
  const int x = static_cast<int>(index - column * columns);
  const Span span(along_y, static_cast<int>(column - plane * runs) * kRows);
  const T* const map = p.source + plane * p.source_plane();
  const T* const weights = p.weights + int64_t{c} * along_y.taps * along_x.taps;
  A sum[kRows][1] = {};
  for (int i = 0; i < along_y.taps; i += kTaps) {
    for (int j = 0; j < along_x.taps; j += kTaps) {
      A weight[kTaps][kTaps];
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
#pragma unroll
        for (int s = 0; s < kTaps; ++s) weight[t][s] = to_acc(weights[(i + t) * along_x.taps + j + s]);
      }
      DepthwiseColumn<T, Span, kTaps> read;
      read.template load<true>(map, along_y, along_x, span, i, j, x);
#pragma unroll
      for (int q = 0; q < Span::kPlaces; ++q) {
        if (!read.inside[q]) continue;
        A value[kTaps];
#pragma unroll
        for (int t = 0; t < kTaps; ++t) value[t] = to_acc(read.values[q][t]);
        Span::for_each(q, [&](int r, int t) {
#pragma unroll
          for (int s = 0; s < kTaps; ++s) {
            if (read.u[s] >= 0) sum[r][0] = mul_add(weight[t][s], value[s], sum[r][0]);
          }
        });
      }
    }
  }
  if (p.bias != nullptr) {
    const A bias = to_acc(p.bias[c]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][0] + bias;
  }
  activate_all(p.activation, sum);
  T* const out = p.target + plane * p.target_plane() + x;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int y = span.target(r);
    if (y < along_y.target) out[y * along_x.target] = from_acc<T>(sum[r][0]);
  }
}

// A block: kTaps x kTaps weights of a channel and a part of its columns of kRows pixels, which the threads share.
template <class T, int kTaps, int kStep>
static __global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocksPerSm<Acc<T>>)
    depthwise_weight_planes_kernel(TappedWeightGradient<T> p, DepthwiseAxis along_y, DepthwiseAxis along_x,
                                   DepthwiseTiling tiling) {
  using A = Acc<T>;
  constexpr int kRows = depthwise_run(false, kTaps, kStep);
  using Span = DepthwiseSpan<kRows, kTaps, kStep>;
  constexpr int kWarp = 32, kWarps = kDepthwiseThreads / kWarp;
  struct Shared {
    A sum[kTaps * kTaps][kWarps];
  };
  auto& shared = static_shared<Shared>();
  const int row_chunks = ceil_div(along_x.taps, kTaps), thread = static_cast<int>(threadIdx.x);
  const int chunk = static_cast<int>(blockIdx.x % tiling.chunks);
  const int i = chunk / row_chunks * kTaps, j = chunk % row_chunks * kTaps;
  const unsigned c = blockIdx.x / tiling.chunks % tiling.tiles, part = blockIdx.x / tiling.chunks / tiling.tiles;
  const unsigned columns = static_cast<unsigned>(along_x.target);
  A sum[kTaps][kTaps] = {};
  const unsigned begin = part * tiling.each, end = min_of(tiling.items, begin + tiling.each);
  for (unsigned index = begin + thread; index < end; index += kDepthwiseThreads) {
    const unsigned column = index / columns, image = column / tiling.runs;
    const int x = static_cast<int>(index - column * columns);
    const int first = static_cast<int>(column - image * tiling.runs) * kRows;
    const int64_t plane = image * p.shape.channels + c;
    const T* const map = p.input + plane * p.shape.pixels();
    const T* const grad = p.grad_output + plane * p.shape.out_pixels() + x;
    const Span span(along_y, first);
    T grads[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r < along_y.target) grads[r] = grad[(first + r) * along_x.target];
    }
    DepthwiseColumn<T, Span, kTaps> read;
    read.template load<false>(map, along_y, along_x, span, i, j, x);
#pragma unroll
    for (int q = 0; q < Span::kPlaces; ++q) {
      if (!read.inside[q]) continue;
      Span::for_each(q, [&](int r, int t) {
        if (first + r >= along_y.target) return;
#pragma unroll
        for (int s = 0; s < kTaps; ++s) {
          if (read.u[s] >= 0) sum[t][s] = mul_add(to_acc(grads[r]), to_acc(read.values[q][s]), sum[t][s]);
        }
      });
    }
  }
#pragma unroll
  for (int t = 0; t < kTaps * kTaps; ++t) {
    A total = sum[t / kTaps][t % kTaps];
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, distance);
    }
    if (thread % kWarp == 0) shared.sum[t][thread / kWarp] = total;
  }
  __syncthreads();
  if (thread >= kTaps * kTaps) return;
  const int y = i + thread / kTaps, x = j + thread % kTaps;
  if (y >= along_y.taps || x >= along_x.taps) return;
  A total = A(0);
  for (int warp = 0; warp < kWarps; ++warp) total += shared.sum[thread][warp];
  p.put(part, (int64_t{c} * along_y.taps + y) * along_x.taps + x, total);
}

// ---- any problem

// A thread: one element of the target, in the order of memory.
template <class T>
static __global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocksPerSm<Acc<T>>)
    depthwise_product_kernel(TappedProduct<T> p, int64_t elements) {
  using A = Acc<T>;
  const ConvShape& s = p.shape;
  const int64_t index = int64_t{blockIdx.x} * kDepthwiseThreads + threadIdx.x;
  if (index >= elements) return;
  // The pixel counted over images and, in planes, channels.
  const int64_t plane = p.target_plane(), outer = quotient(index, s.channels_last ? s.channels : plane);
  const int64_t image = quotient(outer, s.channels_last ? plane : s.channels);
  const int64_t c = s.channels_last ? index - outer * s.channels : outer - image * s.channels;
  const int64_t pixel = s.channels_last ? outer - image * plane : index - outer * plane;
  const int64_t y = quotient(pixel, p.target_width()), x = pixel - y * p.target_width();
  const int height = p.transposed ? s.out_height : s.height, width = p.transposed ? s.out_width : s.width;
  A sum = A(0);
  for (int i = 0; i < s.kernel_height; ++i) {
    const int64_t v = p.transposed ? transposed_source(y, i, s.stride_y, s.pad_top, s.dilation_y, height)
                                   : correlation_source(y, i, s.stride_y, s.pad_top, s.dilation_y, height);
    if (v < 0) continue;
    for (int j = 0; j < s.kernel_width; ++j) {
      const int64_t u = p.transposed ? transposed_source(x, j, s.stride_x, s.pad_left, s.dilation_x, width)
                                     : correlation_source(x, j, s.stride_x, s.pad_left, s.dilation_x, width);
      if (u < 0) continue;
      const int64_t at = s.channels_last ? ((image * height + v) * width + u) * s.channels + c
                                         : ((image * s.channels + c) * height + v) * width + u;
      sum = mul_add(to_acc(p.weights[c * s.kernel_size() + i * s.kernel_width + j]), to_acc(p.source[at]), sum);
    }
  }
  if (p.bias != nullptr) sum = sum + to_acc(p.bias[c]);
  p.target[index] = from_acc<T>(activate(p.activation, sum));
}

// A block: one weight; its threads share the pixels, and their sums are added in the order of a tree.
template <class T>
static __global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocksPerSm<Acc<T>>)
    depthwise_weight_kernel(TappedWeightGradient<T> p) {
  using A = Acc<T>;
  struct Shared {
    A sum[kDepthwiseThreads];
  };
  auto& shared = static_shared<Shared>();
  const ConvShape& s = p.shape;
  const int64_t weight = blockIdx.x, c = weight / s.kernel_size();
  const int tap = static_cast<int>(weight % s.kernel_size());
  const int thread = static_cast<int>(threadIdx.x);
  A sum = A(0);
  for (int64_t pixel = thread; pixel < p.pixels(); pixel += kDepthwiseThreads) {
    const int64_t image = quotient(pixel, s.out_pixels()), rest = pixel - image * s.out_pixels();
    const int64_t row = quotient(rest, s.out_width);
    const int64_t y = correlation_source(row, tap / s.kernel_width, s.stride_y, s.pad_top, s.dilation_y, s.height);
    const int64_t x = correlation_source(rest - row * s.out_width, tap % s.kernel_width, s.stride_x, s.pad_left,
                                         s.dilation_x, s.width);
    if (y < 0 || x < 0) continue;
    const int64_t in = y * s.width + x, map = image * s.channels;
    const A grad = to_acc(p.grad_output[s.channels_last ? pixel * s.channels + c : (map + c) * s.out_pixels() + rest]);
    const A value =
        to_acc(p.input[s.channels_last ? (image * s.pixels() + in) * s.channels + c : (map + c) * s.pixels() + in]);
    sum = mul_add(grad, value, sum);
  }
  shared.sum[thread] = sum;
  __syncthreads();
  for (int width = kDepthwiseThreads / 2; width > 0; width /= 2) {
    if (thread < width) shared.sum[thread] += shared.sum[thread + width];
    __syncthreads();
  }
  if (thread == 0) p.put(0, weight, shared.sum[0]);
}

// ---- on the host

template <class T>
cudaError_t launch_depthwise_product(const TappedProduct<T>& p, cudaStream_t stream) {
  const DepthwisePlan plan = depthwise_plan(p);
  const int64_t elements = p.shape.batch * p.shape.channels * p.target_plane();
  if (const cudaError_t status = grid_fits(plan.blocks); status != cudaSuccess) return status;
  LaunchConfig config{dim3(static_cast<unsigned>(plan.blocks)), dim3(kDepthwiseThreads)};
  if (plan.plain) return launch(depthwise_product_kernel<T>, config, stream, p, elements);
  const int choice = plan.taps * 10 + plan.step;
  if (p.shape.channels_last) {
    const auto kernel = choice == 31   ? depthwise_rows_kernel<T, 3, 1>
                        : choice == 32 ? depthwise_rows_kernel<T, 3, 2>
                                       : depthwise_rows_kernel<T, 1, 1>;
    config.shared_bytes = static_cast<size_t>(plan.shared_bytes);
    return launch(kernel, config, stream, p, plan.y, plan.x, plan.tiling);
  }
  const auto kernel = choice == 31   ? depthwise_planes_kernel<T, 3, 1>
                      : choice == 32 ? depthwise_planes_kernel<T, 3, 2>
                      : choice == 51 ? depthwise_planes_kernel<T, 5, 1>
                                     : depthwise_planes_kernel<T, 1, 1>;
  return launch(kernel, config, stream, p, plan.y, plan.x, plan.tiling.items);
}

// Bytes of the parts' sums; launch_depthwise_weight leaves them in p.partials where there are several.
template <class T>
int64_t depthwise_weight_scratch(const TappedWeightGradient<T>& p) {
  const int64_t parts = depthwise_plan(p).parts;
  return parts > 1 ? parts * p.shape.weights() * static_cast<int64_t>(sizeof(Acc<T>)) : 0;
}

template <class T>
cudaError_t launch_depthwise_weight(const TappedWeightGradient<T>& p, cudaStream_t stream) {
  const DepthwisePlan plan = depthwise_plan(p);
  if (const cudaError_t status = grid_fits(plan.blocks); status != cudaSuccess) return status;
  const LaunchConfig config{dim3(static_cast<unsigned>(plan.blocks)), dim3(kDepthwiseThreads)};
  if (plan.plain) return launch(depthwise_weight_kernel<T>, config, stream, p);
  const int choice = plan.taps * 10 + plan.step;
  const auto rows = choice == 31   ? depthwise_weight_rows_kernel<T, 3, 1>
                    : choice == 32 ? depthwise_weight_rows_kernel<T, 3, 2>
                                   : depthwise_weight_rows_kernel<T, 1, 1>;
  const auto planes = choice == 31   ? depthwise_weight_planes_kernel<T, 3, 1>
                      : choice == 32 ? depthwise_weight_planes_kernel<T, 3, 2>
                                     : depthwise_weight_planes_kernel<T, 1, 1>;
  return launch(p.shape.channels_last ? rows : planes, config, stream, p, plan.y, plan.x, plan.tiling);
}

}  // namespace cvk
