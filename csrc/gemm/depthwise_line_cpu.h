// What every form of depthwise products on the CPU computes: a line of pixels for a vector of numbers that lie side by side. Over
// channels-last maps these are channels, and the line is a row; over planes they are neighbours of a row, and the line a column.
#pragma once

#include <cstdint>
#include <type_traits>

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

// Those of `count` places, `step` apart from `at` on, that are inside `extent`.
CVK_HD Span places_inside(int64_t at, int step, int extent, int count) {
  const int64_t begin = at >= 0 ? 0 : ceil_div<int64_t>(-at, step);
  const int64_t end = at >= extent ? 0 : ceil_div<int64_t>(extent - at, step);
  Span span;
  span.begin = static_cast<int>(min_of<int64_t>(begin, count));
  span.end = static_cast<int>(max_of<int64_t>(min_of<int64_t>(end, count), span.begin));
  return span;
}

// The taps that read inside the source for pixel `i` of the grid.
CVK_HD Span taps_inside(const TapAxis& axis, int i) {
  return places_inside(axis.source(i, 0), axis.offset_step, axis.extent, axis.taps);
}

// The pixels of the grid for which a tap reads inside the source.
CVK_HD Span pixels_inside(const TapAxis& axis, int tap) {
  return places_inside(axis.source(0, tap), axis.source_step, axis.extent, axis.grid);
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

// ---- what loops over lines share

// Calls f(taps, step), both constants, with the taps along the axis and the step from pixel to pixel where there is code for these and
// the taps are neighbours, else with zeros.
template <class F>
CVK_HD void with_known_taps(const TapAxis& axis, F&& f) {
  const auto with_step = [&](auto step) {
    switch (axis.offset_step == 1 ? axis.taps : 0) {
      case 3:
        return f(std::integral_constant<int, 3>{}, step);
      case 5:
        return f(std::integral_constant<int, 5>{}, step);
      case 7:
        return f(std::integral_constant<int, 7>{}, step);
      default:
        return f(std::integral_constant<int, 0>{}, std::integral_constant<int, 0>{});
    }
  };
  switch (axis.source_step) {
    case 1:
      return with_step(std::integral_constant<int, 1>{});
    case 2:
      return with_step(std::integral_constant<int, 2>{});
    default:
      return f(std::integral_constant<int, 0>{}, std::integral_constant<int, 0>{});
  }
}

// All lanes, or those that exist and zeros.
template <Isa isa, bool whole, class A, class T>
CVK_HD typename Simd<isa, A>::Vec load_existing(const T* p, uint32_t lanes) {
  using S = Simd<isa, A>;
  return whole ? S::load(p) : S::load_lanes(typename S::Vec{}, p, lanes);
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
    int64_t first = axis.source(x, 0);
    const T* at = start + line.across[a];
    for (int t = 0; t < axis.taps; ++t, first += axis.offset_step, at += tap, weights += pitch) {
      const typename S::Vec weight = S::load(weights);
      const T* from = at;
#pragma GCC unroll 8
      for (int i = 0; i < kDepthwisePixels; ++i, from += step) {
        const int64_t place = first + int64_t{i} * axis.source_step;
        if (edge && static_cast<uint64_t>(place) >= static_cast<uint64_t>(extent)) continue;
        sum[i] = S::mul_add(weight, load_existing<isa, whole, A>(from, line.lanes), sum[i]);
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
  if (!readable && line.lanes != Simd<isa, A>::kAllLanes) return depthwise_line_of<isa, 0, 0, false>(line);
  with_known_taps(line.axis, [&](auto taps, auto step) {
    depthwise_line_of<isa, decltype(taps)::value, decltype(step)::value, true>(line);
  });
}

// ---- by definition

// Where a channel of an image begins in a map with planes of so many pixels, in either layout; results have as many channels.
CVK_HD int64_t plane_begin(const ConvShape& s, int64_t image, int64_t channel, int64_t pixels) {
  return image * s.channels * pixels + channel * (s.channels_last ? 1 : pixels);
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
