// A convolution of few channels with an even stride along a row (the first layer of most networks), as one of pairs of pixels.
//
// Tensor cores read a map in chunks of 16 bytes of channels. Three channels of half_t fill 6 of them. But a window begins at every
// second pixel only, so two neighbours can share a chunk: [two pixels, four channels] are the eight channels of a map of half the
// width, under a kernel and a stride of half the width, whose padding is part of the map. 3 -> 64 7x7 / 2 has a depth of 224 then, not
// 392.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/vec.cuh"
#include "gemm/tapped.h"

namespace cvk {

constexpr int kTappedPairThreads = 256;

template <class T>
bool suits_pairs(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  return !p.transposed && s.groups == 1 && s.channels * 2 <= kWide<T> && s.stride_x % 2 == 0 && s.dilation_x == 1 &&
         s.kernel_width > 1 && s.kernel_width <= s.width && s.pad_left >= 0 && s.pad_left < s.kernel_width;
}

// A thread: a pair of pixels.
template <class T>
static __global__ void __launch_bounds__(kTappedPairThreads)
    tapped_pair_map_kernel(TappedProduct<T> p, int pairs, T* to) {  // [N, H, pairs, 2 pixels, kWide<T> / 2 channels]
  constexpr int kChannels = kWide<T> / 2;
  const ConvShape& s = p.shape;
  const int64_t index = int64_t{blockIdx.x} * kTappedPairThreads + threadIdx.x, line = quotient(index, pairs);
  if (line >= s.batch * s.height) return;
  const int64_t image = quotient(line, s.height);
  const int y = static_cast<int>(line - image * s.height), x = static_cast<int>(index - line * pairs) * 2 - s.pad_left;
  const int64_t channel_step = s.channels_last ? 1 : s.pixels(), pixel_step = s.channels_last ? s.channels : 1;
  const T* from = p.source + image * s.channels * s.pixels() + (int64_t{y} * s.width + x) * pixel_step;
  Group<T, kWide<T>> chunk;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) {
    const int pixel = i / kChannels, c = i % kChannels;
    const bool there = c < s.channels && x + pixel >= 0 && x + pixel < s.width;
    chunk.values[i] = there ? from[pixel * pixel_step + c * channel_step] : T{};
  }
  reinterpret_cast<Group<T, kWide<T>>*>(to)[index] = chunk;
}

// A thread: the weights of a pair of taps.
template <class T>
static __global__ void __launch_bounds__(kTappedPairThreads)
    tapped_pair_weights_kernel(TappedProduct<T> p, int pairs, T* to) {  // [O, KH, pairs, 2 taps, kWide<T> / 2 channels]
  constexpr int kChannels = kWide<T> / 2;
  const ConvShape& s = p.shape;
  const int64_t index = int64_t{blockIdx.x} * kTappedPairThreads + threadIdx.x, line = quotient(index, pairs);
  if (line >= s.filters * s.kernel_height) return;
  const int64_t filter = quotient(line, s.kernel_height), row = line - filter * s.kernel_height;
  const int first = static_cast<int>(index - line * pairs) * 2;
  const auto strides = p.strides();
  const T* from = p.weights + filter * strides.column + (row * s.kernel_width + first) * strides.tap;
  Group<T, kWide<T>> chunk;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) {
    const int tap = i / kChannels, c = i % kChannels;
    const bool there = c < s.channels && first + tap < s.kernel_width;
    chunk.values[i] = there ? from[tap * strides.tap + c * strides.channel] : T{};
  }
  reinterpret_cast<Group<T, kWide<T>>*>(to)[index] = chunk;
}

// The same product as one of pairs. `map` has as many elements as its shape says, and so have `weights`; the map has no more pixels than
// the one before.
template <class T>
TappedProduct<T> product_of_pairs(const TappedProduct<T>& p, const T* map, const T* weights) {
  TappedProduct<T> pairs = p;
  ConvShape& s = pairs.shape;
  s.channels = kWide<T>;
  s.width = ceil_div(s.width + s.pad_left, 2);
  s.kernel_width = ceil_div(s.kernel_width, 2);
  s.stride_x /= 2;
  s.pad_left = 0;
  s.weight_channels_last = true;
  pairs.source = map;
  pairs.weights = weights;
  return pairs;
}

// Fills them.
template <class T>
cudaError_t make_pairs(const TappedProduct<T>& p, const TappedProduct<T>& pairs, T* map, T* weights,
                       CudaStream stream) {
  const auto launched = [&](auto kernel, int64_t lines, int across, T* to) {
    const int64_t blocks = ceil_div<int64_t>(lines * across, kTappedPairThreads);
    if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
    return launch(kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kTappedPairThreads)}, stream, p, across, to);
  };
  const ConvShape& s = pairs.shape;
  const cudaError_t status = launched(tapped_pair_map_kernel<T>, s.batch * s.height, s.width, map);
  if (status != cudaSuccess) return status;
  return launched(tapped_pair_weights_kernel<T>, s.filters * s.kernel_height, s.kernel_width, weights);
}

}  // namespace cvk
