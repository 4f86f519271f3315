// A convolution of few channels with an even stride along a row (the first layer of most networks), as one of pairs of pixels.
//
// Tensor cores read a map in chunks of 16 bytes of channels. Three channels of half_t fill 6 of them. But a window begins at every
// second pixel only, so two neighbours can share a chunk: [two pixels, four channels] are the eight channels of a map of half the
// width, under a kernel and a stride of half the width, whose padding is part of the map. 3 -> 64 7x7 / 2 has a depth of 224 then,
// not 392.
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

// Lines of elements and channels that are to become lines of pairs: the map's of pixels, the weights' of taps. Line l begins at
// from + l / inner * outer_step + l % inner * inner_step; before its first element there are `shift` that count as zeros.
template <class T>
struct TappedLines {
  const T* from;
  int64_t lines, inner, outer_step, inner_step;
  int64_t step, channel_step;  // from an element to the next, from channel to channel
  int extent, shift, channels;
};
template <class T>
TappedLines<T> lines_of_map(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  const int64_t step = s.channels_last ? s.channels : 1;
  return {p.source,
          s.batch * s.height,
          s.height,
          s.channels * s.pixels(),
          s.width * step,
          step,
          s.channels_last ? 1 : s.pixels(),
          s.width,
          s.pad_left,
          static_cast<int>(s.channels)};
}
template <class T>
TappedLines<T> lines_of_weights(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  const auto strides = p.strides();
  return {p.weights,
          s.filters * s.kernel_height,
          s.kernel_height,
          strides.column,
          s.kernel_width * strides.tap,
          strides.tap,
          strides.channel,
          s.kernel_width,
          0,
          static_cast<int>(s.channels)};
}

// A thread: a pair.
template <class T>
static __global__ void __launch_bounds__(kTappedPairThreads)
    tapped_pairs_kernel(TappedLines<T> in, int pairs, T* to) {  // [lines, pairs, 2 elements, kWide<T> / 2 channels]
  constexpr int kChannels = kWide<T> / 2;
  const int64_t index = int64_t{blockIdx.x} * kTappedPairThreads + threadIdx.x, line = quotient(index, pairs);
  if (line >= in.lines) return;
  const int64_t outer = quotient(line, in.inner);
  const int first = static_cast<int>(index - line * pairs) * 2 - in.shift;
  const T* from = in.from + outer * in.outer_step + (line - outer * in.inner) * in.inner_step + first * in.step;
  Group<T, kWide<T>> chunk;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) {
    const int element = first + i / kChannels, c = i % kChannels;
    const bool there = c < in.channels && element >= 0 && element < in.extent;
    chunk.values[i] = there ? from[i / kChannels * in.step + c * in.channel_step] : T{};
  }
  reinterpret_cast<Group<T, kWide<T>>*>(to)[index] = chunk;
}

template <class T>
cudaError_t make_pairs(const TappedLines<T>& lines, int pairs, T* to, CudaStream stream) {
  const int64_t blocks = ceil_div<int64_t>(lines.lines * pairs, kTappedPairThreads);
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(tapped_pairs_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kTappedPairThreads)}, stream, lines,
                pairs, to);
}

// The shape as one of pairs, whose chunk is `chunk` elements. Its map is channels-last and has no more pixels than the one before.
inline ConvShape shape_of_pairs(ConvShape shape, int chunk) {
  shape.channels = chunk;
  shape.width = ceil_div(shape.width + shape.pad_left, 2);
  shape.kernel_width = ceil_div(shape.kernel_width, 2);
  shape.stride_x /= 2;
  shape.pad_left = 0;
  shape.weight_channels_last = true;
  return shape;
}

// Makes its map and weights.
template <class T>
cudaError_t make_pairs(const TappedProduct<T>& p, const ConvShape& pairs, T* map, T* weights, CudaStream stream) {
  const cudaError_t status = make_pairs(lines_of_map(p), pairs.width, map, stream);
  return status != cudaSuccess ? status : make_pairs(lines_of_weights(p), pairs.kernel_width, weights, stream);
}

// Edge: under a kernel of odd width the last pair of a window has a pixel of no tap, which may be infinite.
template <class T>
int last_pair_bytes(const TappedProduct<T>& p) {
  return p.shape.kernel_width % 2 == 0 ? 16 : 8;
}

}  // namespace cvk
