// What every form of depthwise products on the CPU computes: a line of pixels for a vector of numbers that lie side by side. Over
// channels-last maps these are channels, and the line is a row; over planes they are neighbours of a row, and the line a column.
#pragma once

#include <cstdint>

#include "common/opaque.h"
#include "common/simd.h"
#include "gemm/gemm_tuning.h"
#include "gemm/pack_cpu.h"
#include "gemm/tapped.h"

namespace cvk {

// ---- which taps are inside

struct Span {
  int begin, end;
};

// The taps that read inside the source for pixel `i` of the grid.
CVK_HD Span taps_inside(const TapAxis& axis, int i) {
  const int64_t at = int64_t{i} * axis.source_step + axis.first_offset;
  const int64_t begin = at >= 0 ? 0 : ceil_div<int64_t>(-at, axis.offset_step);
  const int64_t end = at >= axis.extent ? 0 : ceil_div<int64_t>(axis.extent - at, axis.offset_step);
  Span span;
  span.begin = static_cast<int>(min_of<int64_t>(begin, axis.taps));
  span.end = static_cast<int>(max_of<int64_t>(min_of<int64_t>(end, axis.taps), span.begin));
  return span;
}

// The pixels of the grid for which a tap reads inside the source.
CVK_HD Span pixels_inside(const TapAxis& axis, int tap) {
  const int64_t at = axis.first_offset + int64_t{tap} * axis.offset_step;
  const int64_t begin = at >= 0 ? 0 : ceil_div<int64_t>(-at, axis.source_step);
  const int64_t end = at >= axis.extent ? 0 : ceil_div<int64_t>(axis.extent - at, axis.source_step);
  Span span;
  span.begin = static_cast<int>(min_of<int64_t>(begin, axis.grid));
  span.end = static_cast<int>(max_of<int64_t>(min_of<int64_t>(end, axis.grid), span.begin));
  return span;
}

// The pixels of the grid that have all their taps along the axis inside.
CVK_HD Span pixels_all_inside(const TapAxis& axis) {
  Span inner{0, 0};
  if (axis.taps > 0) {
    inner.begin = pixels_inside(axis, 0).begin;
    inner.end = max_of(inner.begin, pixels_inside(axis, axis.taps - 1).end);
  }
  return inner;
}

// ---- a line

template <Isa isa, class A, class T, class To>
struct DepthwiseLine {
  TapAxis axis;           // along the line
  Span inner;             // pixels with all taps along it inside
  int taps_across;        // that are inside
  const int64_t* across;  // where they are, from the first of them on
  const T* from;          // what pixel 0 reads at the first tap along and across; may be outside
  int64_t pixel;          // elements from pixel to pixel of the source
  const A* weights;       // of the first tap; [taps across, taps along, pitch]
  int64_t pitch;
  uint32_t lanes;  // that exist
  typename Simd<isa, A>::Vec bias;
  Activation activation;
  To* to;  // pixel 0
  int64_t to_pixel;
};

// Adds all taps of kDepthwisePixels neighbours from `x` on to their sums, the taps along the line being neighbours: each value is
// loaded once and meets all its taps. With `edge` some are outside.
template <Isa isa, int taps, int step, bool edge, class A, class T, class To>
CVK_HD void depthwise_window(const DepthwiseLine<isa, A, T, To>& line, int x,
                             typename Simd<isa, A>::Vec (&sum)[kDepthwisePixels]) {
  using S = Simd<isa, A>;
  constexpr int kWindow = (kDepthwisePixels - 1) * step + taps;
  const int64_t first = int64_t{x} * step + line.axis.first_offset, extent = line.axis.extent;
  const int64_t pixel = line.pixel, pitch = line.pitch;
  const T* start = line.from + int64_t{x} * step * pixel;
  const A* weights = line.weights;
  for (int a = 0; a < line.taps_across; ++a) {
    const T* from = start + line.across[a];
    typename S::Vec value[kWindow];
#pragma GCC unroll 32
    for (int i = 0; i < kWindow; ++i, from += pixel) {
      const bool outside = edge && static_cast<uint64_t>(first + i) >= static_cast<uint64_t>(extent);
      value[i] = outside ? typename S::Vec{} : S::load(from);
      if (isa == Isa::kV4) opaque_vector(value[i]);  // with fewer registers they would go to the stack
    }
#pragma GCC unroll 8
    for (int t = 0; t < taps; ++t, weights += pitch) {
      const typename S::Vec weight = S::load(weights);
#pragma GCC unroll 8
      for (int i = 0; i < kDepthwisePixels; ++i) sum[i] = S::mul_add(weight, value[i * step + t], sum[i]);
    }
  }
}

// The same for any taps; `whole`: all lanes may be read.
template <Isa isa, bool whole, bool edge, class A, class T, class To>
CVK_HD void depthwise_taps(const DepthwiseLine<isa, A, T, To>& line, int x,
                           typename Simd<isa, A>::Vec (&sum)[kDepthwisePixels]) {
  using S = Simd<isa, A>;
  const TapAxis axis = line.axis;
  const int64_t step = axis.source_step * line.pixel, tap = axis.offset_step * line.pixel, extent = axis.extent;
  const int64_t pitch = line.pitch;
  const T* start = line.from + x * step;
  const A* weights = line.weights;
  for (int a = 0; a < line.taps_across; ++a) {
    int64_t first = int64_t{x} * axis.source_step + axis.first_offset;
    const T* at = start + line.across[a];
    for (int t = 0; t < axis.taps; ++t, first += axis.offset_step, at += tap, weights += pitch) {
      const typename S::Vec weight = S::load(weights);
      const T* from = at;
#pragma GCC unroll 8
      for (int i = 0; i < kDepthwisePixels; ++i, from += step) {
        const int64_t place = first + int64_t{i} * axis.source_step;
        if (edge && static_cast<uint64_t>(place) >= static_cast<uint64_t>(extent)) continue;
        sum[i] = S::mul_add(weight, whole ? S::load(from) : S::load_lanes(typename S::Vec{}, from, line.lanes), sum[i]);
      }
    }
  }
}

// Sums in memory, `count` pixels from `to` on.
template <Isa isa, class A, class T, class To>
__attribute__((noinline)) void depthwise_finish(const DepthwiseLine<isa, A, T, To>& line, const A* sums, int count,
                                                To* to) {
  using S = Simd<isa, A>;
  for (int i = 0; i < count; ++i, sums += S::kLanes, to += line.to_pixel) {
    const typename S::Vec value = activate(line.activation, S::load(sums));
    if (line.lanes == S::kAllLanes) {
      S::store(to, value);
    } else {
      S::store_lanes(to, value, line.lanes);
    }
  }
}

// By kDepthwisePixels; the last of them begin earlier rather than end past the line. `taps` those along it where they are
// neighbours and known, and `step` from pixel to pixel, else 0.
template <Isa isa, int taps, int step, bool whole, class A, class T, class To>
__attribute__((noinline)) void depthwise_line_of(const DepthwiseLine<isa, A, T, To>& line) {
  using S = Simd<isa, A>;
  const int grid = line.axis.grid, last = max_of(grid - kDepthwisePixels, 0), count = min_of(grid, kDepthwisePixels);
  const int inner_begin = line.inner.begin, inner_end = line.inner.end - kDepthwisePixels;
  const int64_t to_pixel = line.to_pixel;
  const bool plain = count == kDepthwisePixels && line.activation == Activation::kNone;
  const bool all_lanes = line.lanes == S::kAllLanes;
  for (int64_t begin = 0; begin < grid; begin += kDepthwisePixels) {
    const int x = static_cast<int>(min_of<int64_t>(begin, last));
    const bool edge = x < inner_begin || x > inner_end;
    typename S::Vec sum[kDepthwisePixels];
#pragma GCC unroll 8
    for (int i = 0; i < kDepthwisePixels; ++i) sum[i] = line.bias;
    if constexpr (taps > 0) {
      if (edge) {
        depthwise_window<isa, taps, step, true>(line, x, sum);
      } else {
        depthwise_window<isa, taps, step, false>(line, x, sum);
      }
    } else if (edge) {
      depthwise_taps<isa, whole, true>(line, x, sum);
    } else {
      depthwise_taps<isa, whole, false>(line, x, sum);
    }
    To* to = line.to + x * to_pixel;
    if (plain && all_lanes) {
#pragma GCC unroll 8
      for (int i = 0; i < kDepthwisePixels; ++i, to += to_pixel) S::store(to, sum[i]);
    } else if (plain && isa == Isa::kV4) {
#pragma GCC unroll 8
      for (int i = 0; i < kDepthwisePixels; ++i, to += to_pixel) S::store_lanes(to, sum[i], line.lanes);
    } else {
      A sums[kDepthwisePixels * S::kLanes];
#pragma GCC unroll 8
      for (int i = 0; i < kDepthwisePixels; ++i) S::store(sums + i * S::kLanes, sum[i]);
      depthwise_finish(line, sums, count, to);
    }
  }
}

// `readable`: lanes that do not exist may be read.
template <Isa isa, class A, class T, class To>
CVK_HD void depthwise_line(const DepthwiseLine<isa, A, T, To>& line, bool readable) {
  const TapAxis& axis = line.axis;
  if (!readable && line.lanes != Simd<isa, A>::kAllLanes) return depthwise_line_of<isa, 0, 0, false>(line);
  if (axis.offset_step == 1 && axis.source_step == 1) {
    if (axis.taps == 3) return depthwise_line_of<isa, 3, 1, true>(line);
    if (axis.taps == 5) return depthwise_line_of<isa, 5, 1, true>(line);
    if (axis.taps == 7) return depthwise_line_of<isa, 7, 1, true>(line);
  }
  if (axis.offset_step == 1 && axis.source_step == 2) {
    if (axis.taps == 3) return depthwise_line_of<isa, 3, 2, true>(line);
    if (axis.taps == 5) return depthwise_line_of<isa, 5, 2, true>(line);
    if (axis.taps == 7) return depthwise_line_of<isa, 7, 2, true>(line);
  }
  depthwise_line_of<isa, 0, 0, true>(line);
}

// ---- weights

// Of channels [channel, channel + channels) as [taps, pitch], zeros behind them up to a multiple of a panel's width.
template <Isa isa, class A, class T>
CVK_HD void depthwise_weights(const TappedProduct<T>& p, const TapGrid& grid, int64_t channel, int channels,
                              int64_t pitch, A* to) {
  constexpr int kColumns = GemmTile<isa, A>::kColumns;
  const int taps = p.shape.kernel_size();  // of a channel, the only stride of [C, 1, KH, KW]
  const T* from = p.weights + channel * taps;
  const auto place = [&](int kernel) { return p.transposed ? tap_of(grid, p.shape.kernel_width, kernel) : kernel; };
  for (int c = 0; c < channels; c += kColumns) {
    transpose_into_panel<isa>(from + int64_t{c} * taps, taps, channels - c, taps, pitch, place, to + c);
  }
}

}  // namespace cvk
