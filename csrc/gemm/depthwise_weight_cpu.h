// The gradient of a depthwise convolution with respect to its weights, on the CPU: for each tap the products of the results' gradients
// with what the tap reads, summed over all pixels. As in the product itself (depthwise_line_cpu.h) a vector is of channels, and a
// line a row, over channels-last maps; over planes it is of neighbours of a row, and a line a column of the padded copy.
#pragma once

#include <cstdint>

#include "gemm/depthwise_planes_cpu.h"
#include "gemm/tapped_weight_cpu.h"

namespace cvk {

// ---- lines

// Some lines of gradients, and what one tap across the lines reads for them.
template <class T, class G>
struct DepthwiseGradLines {
  TapAxis axis;  // along a line
  Span inner;    // pixels with all taps along it inside
  int lines;
  const T* from;                  // what pixel 0 of the first line reads at the first tap; may be outside
  int64_t pixel, line;            // elements from pixel to pixel of the source, and from line to line
  const G* grads;                 // of pixel 0 of the first line
  int64_t grad_pixel, grad_line;  // likewise
  uint32_t lanes;                 // that exist
};

// Sums that are under way for each tap along a line, so that there are more than a multiply-add's four cycles times two a cycle.
template <int taps>
inline constexpr int kDepthwiseGradSums = taps <= 3 ? 3 : 2;

// Adds the products of kDepthwisePixels neighbours from `x` on, the taps along the line being neighbours. With `edge` some taps are
// outside, or some pixels past the end.
template <Isa isa, int taps, int step, bool whole, bool edge, class A, class T, class G>
CVK_HD void depthwise_grad_window(const DepthwiseGradLines<T, G>& lines, const T* from, const G* grads, int x,
                                  typename Simd<isa, A>::Vec (&sum)[kDepthwiseGradSums<taps>][taps]) {
  using S = Simd<isa, A>;
  constexpr int kWindow = (kDepthwisePixels - 1) * step + taps;
  const int64_t first = int64_t{x} * step + lines.axis.first_offset, extent = lines.axis.extent;
  const int64_t pixel = lines.pixel, grad_pixel = lines.grad_pixel;
  from += int64_t{x} * step * pixel;
  grads += x * grad_pixel;
  typename S::Vec value[kWindow];
#pragma GCC unroll 32
  for (int i = 0; i < kWindow; ++i, from += pixel) {
    const bool outside = edge && static_cast<uint64_t>(first + i) >= static_cast<uint64_t>(extent);
    value[i] = outside ? typename S::Vec{} : load_existing<isa, whole, A>(from, lines.lanes);
    if (isa == Isa::kV4 && kWindow + taps * kDepthwiseGradSums<taps> < 32) opaque_vector(value[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kDepthwisePixels; ++i, grads += grad_pixel) {
    if (edge && x + i >= lines.axis.grid) break;  // not even times zero: what is read there may be infinite
    const typename S::Vec grad = load_existing<isa, whole, A>(grads, lines.lanes);
#pragma GCC unroll 8
    for (int t = 0; t < taps; ++t) {
      typename S::Vec& to = sum[i % kDepthwiseGradSums<taps>][t];
      to = S::mul_add(grad, value[i * step + t], to);
    }
  }
}

// Adds what the lines give for each tap along them to to[tap * pitch].
template <Isa isa, int taps, int step, bool whole, class A, class T, class G>
__attribute__((noinline)) void depthwise_grad_lines_of(const DepthwiseGradLines<T, G>& lines, A* to, int64_t pitch) {
  using S = Simd<isa, A>;
  constexpr int kSums = kDepthwiseGradSums<taps>;
  typename S::Vec sum[kSums][taps];
#pragma GCC unroll 4
  for (int k = 0; k < kSums; ++k) {
#pragma GCC unroll 8
    for (int t = 0; t < taps; ++t) sum[k][t] = typename S::Vec{};
  }
  const int inner_begin = lines.inner.begin, inner_end = lines.inner.end - kDepthwisePixels, grid = lines.axis.grid;
  const T* from = lines.from;
  const G* grads = lines.grads;
  for (int i = 0; i < lines.lines; ++i, from += lines.line, grads += lines.grad_line) {
    for (int64_t at = 0; at < grid; at += kDepthwisePixels) {
      const int x = static_cast<int>(at);
      if (x < inner_begin || x > inner_end) {
        depthwise_grad_window<isa, taps, step, whole, true, A>(lines, from, grads, x, sum);
      } else {
        depthwise_grad_window<isa, taps, step, whole, false, A>(lines, from, grads, x, sum);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t) {
    typename S::Vec all = sum[0][t];
#pragma GCC unroll 4
    for (int k = 1; k < kSums; ++k) all = all + sum[k][t];
    S::store(to + t * pitch, S::load(to + t * pitch) + all);
  }
}

// The same for any taps: one after the other.
template <Isa isa, bool whole, class A, class T, class G>
__attribute__((noinline)) void depthwise_grad_taps(const DepthwiseGradLines<T, G>& lines, A* to, int64_t pitch) {
  using S = Simd<isa, A>;
  constexpr int kSums = 4;
  const TapAxis axis = lines.axis;
  const int64_t step = axis.source_step * lines.pixel, grad_step = lines.grad_pixel;
  for (int t = 0; t < axis.taps; ++t) {
    const Span inside = pixels_inside(axis, t);
    typename S::Vec sum[kSums] = {};
    for (int i = 0; i < lines.lines; ++i) {
      const T* from = lines.from + i * lines.line + t * (axis.offset_step * lines.pixel) + inside.begin * step;
      const G* grads = lines.grads + i * lines.grad_line + inside.begin * grad_step;
      const auto add = [&](typename S::Vec& to) {
        const typename S::Vec grad = load_existing<isa, whole, A>(grads, lines.lanes);
        to = S::mul_add(grad, load_existing<isa, whole, A>(from, lines.lanes), to);
        from += step;
        grads += grad_step;
      };
      int x = inside.begin;
      for (; x + kSums <= inside.end; x += kSums) {
#pragma GCC unroll 4
        for (int k = 0; k < kSums; ++k) add(sum[k]);
      }
      for (; x < inside.end; ++x) add(sum[0]);
    }
    S::store(to + t * pitch, S::load(to + t * pitch) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
  }
}

template <Isa isa, bool whole, class A, class T, class G>
CVK_HD void depthwise_grad_lines(const DepthwiseGradLines<T, G>& lines, A* to, int64_t pitch) {
  with_known_taps(lines.axis, [&](auto taps, auto step) {
    if constexpr (decltype(taps)::value > 0) {
      depthwise_grad_lines_of<isa, decltype(taps)::value, decltype(step)::value, whole>(lines, to, pitch);
    } else {
      depthwise_grad_taps<isa, whole>(lines, to, pitch);
    }
  });
}

// ---- work items

// Channels-last maps by blocks of channels; a filter of many taps by definition, as over planes.
CVK_HD bool depthwise_weight_in_blocks(const ConvShape& s) {
  return s.channels_last && s.kernel_size() <= kDepthwiseMostTaps;
}

// Blocks of channels, or channels, that a part has a work item for each of.
CVK_HD int64_t depthwise_weight_blocks(const ConvShape& s) {
  return depthwise_weight_in_blocks(s) ? ceil_div<int64_t>(s.channels, kDepthwiseChannels) : s.channels;
}

// Parts that the rows of pixels of all images are cut into; must not depend on the number of threads.
CVK_HD int64_t depthwise_weight_parts(const ConvShape& s) {
  const int64_t rows = s.batch * correlation_grid(s).y.grid;
  const int64_t wanted = ceil_div<int64_t>(kWeightItems, depthwise_weight_blocks(s));
  return max_of<int64_t>(1, min_of(ceil_div<int64_t>(rows, kDepthwisePartRows), wanted));
}

// Items: parts, and in each the blocks of channels.
CVK_HD int64_t depthwise_weight_items(const ConvShape& s, int64_t parts) { return depthwise_weight_blocks(s) * parts; }

// Calls strip(image, y, rows) for pieces of at most `most` rows of an image that are the part.
template <class Strip>
CVK_HD void depthwise_part_strips(const ConvShape& s, const TapGrid& grid, int64_t part, int64_t parts, int most,
                                  Strip&& strip) {
  const int height = grid.y.grid;  // 1 where all rows are one
  const int64_t all = s.batch * height, rows = ceil_div(all, parts), end = min_of(all, (part + 1) * rows);
  for (int64_t row = part * rows; row < end;) {
    const int y = static_cast<int>(row % height);
    const int count = static_cast<int>(min_of<int64_t>(min_of(most, height - y), end - row));
    strip(row / height, y, count);
    row += count;
  }
}

// grad_weight of blocks of channels, a part of the rows each; channels-last maps.
template <Isa isa, class T>
CVK_HD void depthwise_weight_rows(const TappedWeightGradient<T>& p, int64_t parts, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  const ConvShape& s = p.shape;
  const TapGrid grid = correlation_grid(s);
  const int64_t blocks = depthwise_weight_blocks(s);
  constexpr int64_t kPitch = kDepthwiseChannels;
  static_assert(kPitch % S::kLanes == 0, "vectors of channels that do not exist are stored as well");
  Scratch sums_memory(grid.taps() * kPitch * static_cast<int64_t>(sizeof(A)));
  A* sums = sums_memory.template as<A>();
  DepthwiseGradLines<T, T> lines;
  lines.axis = grid.x;
  lines.inner = pixels_all_inside(grid.x);
  lines.pixel = lines.grad_pixel = s.channels;
  lines.line = s.channels * grid.x.extent * grid.y.source_step;
  lines.grad_line = s.channels * grid.x.grid;
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item / blocks, channel = item % blocks * kDepthwiseChannels;
    const int channels = static_cast<int>(min_of<int64_t>(kDepthwiseChannels, s.channels - channel));
    clear_row<isa>(static_cast<int>(grid.taps() * kPitch), sums);
    depthwise_part_strips(s, grid, part, parts, kDepthwiseStripRows, [&](int64_t image, int y, int rows) {
      for (int c = 0; c < channels; c += S::kLanes) {
        const T* source = p.input + image * s.pixels() * s.channels + channel + c;
        const T* grads = p.grad_output + image * s.out_pixels() * s.channels + channel + c;
        lines.lanes = S::lane_range(0, min_of(S::kLanes, channels - c));
        for (int t = 0; t < grid.y.taps; ++t) {
          const Span inside = pixels_inside(grid.y, t);
          const int begin = max_of(y, inside.begin);
          lines.lines = min_of(y + rows, inside.end) - begin;
          if (lines.lines <= 0) continue;
          lines.from = source + (grid.y.source(begin, t) * grid.x.extent + grid.x.first_offset) * s.channels;
          lines.grads = grads + begin * lines.grad_line;
          A* to = sums + int64_t{t} * grid.x.taps * kPitch + c;
          if (lines.lanes == S::kAllLanes) {
            depthwise_grad_lines<isa, true>(lines, to, kPitch);
          } else {
            depthwise_grad_lines<isa, false>(lines, to, kPitch);
          }
        }
      }
    });
    for (int c = 0; c < channels; ++c) {
      for (int t = 0; t < grid.taps(); ++t) p.put(part, p.weight_at(channel + c, 0, t), sums[t * kPitch + c]);
    }
  }
}

// The same for planes.
template <Isa isa, class T>
CVK_HD void depthwise_weight_planes(const TappedWeightGradient<T>& p, DepthwisePlanes<isa, Acc<T>>& planes,
                                    int64_t parts, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  const ConvShape& s = p.shape;
  const TapGrid grid = correlation_grid(s);
  // A vector of sums for each tap: [taps along a row, along a column, lanes].
  Scratch sums_memory(int64_t{grid.taps()} * S::kLanes * static_cast<int64_t>(sizeof(A)));
  A* sums = sums_memory.template as<A>();
  DepthwiseGradLines<A, T> lines;
  lines.pixel = planes.pitch();
  lines.grad_pixel = grid.x.grid;
  lines.line = lines.grad_line = S::kLanes;
  const int whole = grid.x.grid / S::kLanes, rest = grid.x.grid % S::kLanes;
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item / s.channels, channel = item % s.channels;
    clear_row<isa>(grid.taps() * S::kLanes, sums);
    depthwise_part_strips(s, grid, part, parts, planes.rows(), [&](int64_t image, int y, int rows) {
      const int64_t plane = image * s.channels + channel;
      planes.fill(p.input + plane * s.pixels(), y, rows);
      lines.axis = planes.axis_of_rows(rows);
      lines.inner = {0, rows};
      for (int t = 0; t < grid.x.taps; ++t) {
        A* to = sums + int64_t{t} * grid.y.taps * S::kLanes;
        lines.from = planes.tap(t);
        lines.grads = p.grad_output + (plane * grid.y.grid + y) * grid.x.grid;
        lines.lines = whole;
        lines.lanes = S::kAllLanes;
        if (whole > 0) depthwise_grad_lines<isa, true>(lines, to, S::kLanes);
        if (rest == 0) continue;
        lines.from += whole * S::kLanes;
        lines.grads += whole * S::kLanes;
        lines.lines = 1;
        lines.lanes = S::lane_range(0, rest);
        depthwise_grad_lines<isa, false>(lines, to, S::kLanes);
      }
    });
    for (int ty = 0; ty < grid.y.taps; ++ty) {
      for (int tx = 0; tx < grid.x.taps; ++tx) {
        const A sum = S::reduce_add(S::load(sums + (int64_t{tx} * grid.y.taps + ty) * S::kLanes));
        p.put(part, p.weight_at(channel, 0, ty * grid.x.taps + tx), sum);
      }
    }
  }
}

// The same by definition, in either layout, without scratch.
template <Isa isa, class T>
CVK_HD void depthwise_weight_by_definition(const TappedWeightGradient<T>& p, int64_t parts, int64_t first,
                                           int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  const ConvShape& s = p.shape;
  const TapGrid grid = correlation_grid(s);
  const int64_t pixel = s.channels_last ? s.channels : 1;
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item / s.channels, channel = item % s.channels;
    for (int ty = 0; ty < grid.y.taps; ++ty) {
      const Span rows_inside = pixels_inside(grid.y, ty);
      for (int tx = 0; tx < grid.x.taps; ++tx) {
        const Span inside = pixels_inside(grid.x, tx);
        A total = A(0);
        depthwise_part_strips(s, grid, part, parts, grid.y.grid, [&](int64_t image, int y, int rows) {
          const T* source = p.input + plane_begin(s, image, channel, s.pixels());
          const T* grads = p.grad_output + plane_begin(s, image, channel, s.out_pixels());
          for (int i = max_of(y, rows_inside.begin); i < min_of(y + rows, rows_inside.end); ++i) {
            A sums[S::kLanes] = {};  // by turns, so that a long row is no long sum
            for (int64_t x = inside.begin; x < inside.end; ++x) {
              const T grad = grads[(int64_t{i} * grid.x.grid + x) * pixel];
              const T value = source[(grid.y.source(i, ty) * grid.x.extent + grid.x.source(x, tx)) * pixel];
              A& sum = sums[x % S::kLanes];
              sum = mul_add(to_acc(grad), to_acc(value), sum);
            }
            total += S::reduce_add(S::load(sums));
          }
        });
        p.put(part, p.weight_at(channel, 0, ty * grid.x.taps + tx), total);
      }
    }
  }
}

template <Isa isa, class T>
CVK_HD void depthwise_weight_slice(const TappedWeightGradient<T>& p, int64_t parts, int64_t first, int64_t last) {
  if (depthwise_weight_in_blocks(p.shape)) return depthwise_weight_rows<isa>(p, parts, first, last);
  if (!p.shape.channels_last) {
    DepthwisePlanes<isa, Acc<T>> planes(correlation_grid(p.shape));
    if (planes.fits()) return depthwise_weight_planes(p, planes, parts, first, last);
  }
  depthwise_weight_by_definition<isa>(p, parts, first, last);
}

}  // namespace cvk
