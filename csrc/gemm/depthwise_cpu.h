// Depthwise tapped products on the CPU: a filter for each channel, so nothing to multiply in tiles. The geometry is that of
// any tapped product (common/conv_shape.h).
//
// Channels-last maps: vectors along channels, which take the map as it lies. Planes with a stride or with short rows: the same
// over a channels-last copy of a strip. Other planes: vectors along the pixels of a plane.
// A copy of the plane with its padding, split by the source step into one plane for each remainder, makes every tap a shift:
// output i of the flattened grid reads plane[i + offset of the tap]. A grid row is as wide as a row of the copy; what is
// computed in between is dropped. So maps narrower than a vector waste little.
#pragma once

#include <cstdint>

#include "gemm/tapped_cpu.h"
#include "gemm/tapped_weight_cpu.h"

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

// ---- channels-last

// Source pixels of a vector of channels.
template <class T>
struct DepthwiseRows {
  const T* image;  // pixel (0, 0), first channel of the vector
  int64_t row, pixel;
  TapAxis y, x;

  CVK_HD const T* at(int grid_y, int tap_y, int grid_x, int tap_x) const {
    return image + (int64_t{grid_y} * y.source_step + y.first_offset + int64_t{tap_y} * y.offset_step) * row +
           (int64_t{grid_x} * x.source_step + x.first_offset + int64_t{tap_x} * x.offset_step) * pixel;
  }
};

// Sums of `count` pixels from (grid_y, grid_x) on, over taps inside for all of them; weights [taps, pitch].
template <Isa isa, int count, class A, class T>
CVK_HD void depthwise_sums(const DepthwiseRows<T>& rows, int grid_y, int grid_x, const Span& ty, const Span& tx,
                           const A* weights, int pitch, uint32_t lanes, typename Simd<isa, A>::Vec (&sum)[count]) {
  using S = Simd<isa, A>;
  const int64_t step = rows.x.source_step * rows.pixel, tap_step = rows.x.offset_step * rows.pixel;
  for (int y = ty.begin; y < ty.end; ++y) {
    const T* from = rows.at(grid_y, y, grid_x, tx.begin);
    const A* w = weights + int64_t{y * rows.x.taps + tx.begin} * pitch;
    for (int x = tx.begin; x < tx.end; ++x, from += tap_step, w += pitch) {
      const typename S::Vec weight = S::load(w);
      for (int i = 0; i < count; ++i) {
        const T* pixel = from + i * step;
        const typename S::Vec value =
            lanes == S::kAllLanes ? S::load(pixel) : S::load_lanes(typename S::Vec{}, pixel, lanes);
        sum[i] = S::mul_add(weight, value, sum[i]);
      }
    }
  }
}

// The pixels of the grid that have all their taps along x inside.
CVK_HD Span pixels_all_inside(const TapAxis& axis) {
  Span inner{0, 0};
  if (axis.taps > 0) {
    inner.begin = pixels_inside(axis, 0).begin;
    inner.end = max_of(inner.begin, pixels_inside(axis, axis.taps - 1).end);
  }
  return inner;
}

// The same for neighbouring pixels and taps: each value is loaded once and meets all its taps. The order of a sum is the same.
template <Isa isa, int count, int taps, bool whole, class A, class T>
CVK_HD void depthwise_sums_dense(const DepthwiseRows<T>& rows, int grid_y, int grid_x, const Span& ty, const A* weights,
                                 int pitch, uint32_t lanes, typename Simd<isa, A>::Vec (&sum)[count]) {
  using S = Simd<isa, A>;
  for (int y = ty.begin; y < ty.end; ++y) {
    const T* from = rows.at(grid_y, y, grid_x, 0);
    typename S::Vec weight[taps];
    for (int t = 0; t < taps; ++t) weight[t] = S::load(weights + int64_t{y * taps + t} * pitch);
#pragma GCC unroll 16
    for (int i = 0; i < count + taps - 1; ++i, from += rows.pixel) {
      const typename S::Vec value = whole ? S::load(from) : S::load_lanes(typename S::Vec{}, from, lanes);
#pragma GCC unroll 8
      for (int t = 0; t < taps; ++t) {
        if (i - t >= 0 && i - t < count) sum[i - t] = S::mul_add(weight[t], value, sum[i - t]);
      }
    }
  }
}

// Row `y` of the grid for a vector of channels: put(x, sum) for each pixel. `ty` are the taps inside, `inner` the pixels with
// all taps inside; `taps` those along x where they are neighbours and known, else 0.
template <Isa isa, int taps, bool whole, class A, class T, class Put>
CVK_HD void depthwise_row_of(const DepthwiseRows<T>& rows, int y, const Span& ty, const Span& inner, const A* weights,
                             int pitch, uint32_t lanes, typename Simd<isa, A>::Vec bias, Put&& put) {
  using S = Simd<isa, A>;
  constexpr int kDense = 8, kPixels = 4;
  for (int x = 0; x < rows.x.grid;) {
    if constexpr (taps > 0) {
      if (x >= inner.begin && x + kDense <= inner.end) {
        typename S::Vec sum[kDense];
        for (int i = 0; i < kDense; ++i) sum[i] = bias;
        depthwise_sums_dense<isa, kDense, taps, whole>(rows, y, x, ty, weights, pitch, lanes, sum);
        for (int i = 0; i < kDense; ++i) put(x + i, sum[i]);
        x += kDense;
        continue;
      }
    }
    if (x >= inner.begin && x + kPixels <= inner.end) {
      typename S::Vec sum[kPixels] = {bias, bias, bias, bias};
      depthwise_sums<isa>(rows, y, x, ty, {0, rows.x.taps}, weights, pitch, lanes, sum);
      for (int i = 0; i < kPixels; ++i) put(x + i, sum[i]);
      x += kPixels;
    } else {
      typename S::Vec sum[1] = {bias};
      depthwise_sums<isa>(rows, y, x, ty, taps_inside(rows.x, x), weights, pitch, lanes, sum);
      put(x++, sum[0]);
    }
  }
}

template <Isa isa, class A, class T, class Put>
__attribute__((noinline)) void depthwise_row(const DepthwiseRows<T>& rows, int y, const Span& ty, const Span& inner,
                                             const A* weights, int pitch, uint32_t lanes,
                                             typename Simd<isa, A>::Vec bias, Put&& put) {
  const bool dense = rows.x.source_step == 1 && rows.x.offset_step == 1, whole = lanes == Simd<isa, A>::kAllLanes;
  if (dense && rows.x.taps == 3 && whole) {
    depthwise_row_of<isa, 3, true>(rows, y, ty, inner, weights, pitch, lanes, bias, put);
  } else if (dense && rows.x.taps == 3) {
    depthwise_row_of<isa, 3, false>(rows, y, ty, inner, weights, pitch, lanes, bias, put);
  } else if (dense && rows.x.taps == 5 && whole) {
    depthwise_row_of<isa, 5, true>(rows, y, ty, inner, weights, pitch, lanes, bias, put);
  } else {
    depthwise_row_of<isa, 0, false>(rows, y, ty, inner, weights, pitch, lanes, bias, put);
  }
}

// Weights of channels [channel, channel + channels) as [taps, pitch], zeros behind them.
template <class A, class T>
CVK_HD void depthwise_weights(const TappedProduct<T>& p, const TapGrid& grid, int64_t channel, int channels, int pitch,
                              A* to) {
  const int64_t taps = p.shape.kernel_size();  // of a channel, the only stride of [C, 1, KH, KW]
  for (int t = 0; t < grid.taps(); ++t, to += pitch) {
    const T* from = p.weights + channel * taps + kernel_of(grid, p.shape.kernel_width, t);
    for (int c = 0; c < pitch; ++c) to[c] = c < channels ? to_acc(from[c * taps]) : A(0);
  }
}

// Items of depthwise_rows: blocks of channels, and in each the rows of the grid of every image, phase by phase.
template <class T>
CVK_HD int64_t depthwise_row_items(const TappedProduct<T>& p) {
  return p.phases() * ceil_div<int64_t>(p.channels(), kDepthwiseChannels) * p.shape.batch * p.grid(0).y.grid;
}

template <Isa isa, class T>
CVK_HD void depthwise_rows(const TappedProduct<T>& p, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  constexpr int kPitch = kDepthwiseChannels;
  const int64_t blocks = ceil_div<int64_t>(p.channels(), kDepthwiseChannels);
  const int most_rows = p.grid(0).y.grid;
  Scratch weight_memory(int64_t{p.shape.kernel_size()} * kPitch * static_cast<int64_t>(sizeof(A)));
  A* weights = weight_memory.template as<A>();
  int64_t packed = -1;
  TapGrid grid{};
  Span inner{0, 0};
  for (int64_t item = first; item < last; ++item) {
    const int y = static_cast<int>(item % most_rows);
    const int64_t image = item / most_rows % p.shape.batch;
    const int64_t key = item / most_rows / p.shape.batch;  // phase and block of channels
    const int64_t channel = key % blocks * kDepthwiseChannels;
    const int channels = static_cast<int>(min_of<int64_t>(kDepthwiseChannels, p.channels() - channel));
    if (key != packed) {
      packed = key;
      grid = p.grid(key / blocks);
      inner = pixels_all_inside(grid.x);
      depthwise_weights(p, grid, channel, channels, kPitch, weights);
    }
    if (y >= grid.y.grid) continue;  // a later phase may have fewer rows
    const Span ty = taps_inside(grid.y, y);
    const int64_t target_row = image * p.target_height() + grid.y.target_first + int64_t{y} * grid.y.target_step;
    T* target = p.target + (target_row * p.target_width() + grid.x.target_first) * p.channels() + channel;
    for (int c = 0; c < channels; c += S::kLanes) {
      const uint32_t lanes = S::lane_range(0, min_of(S::kLanes, channels - c));
      DepthwiseRows<T> rows;
      rows.image = p.source + image * grid.y.extent * grid.x.extent * p.channels() + channel + c;
      rows.pixel = p.channels();
      rows.row = p.channels() * grid.x.extent;
      rows.y = grid.y;
      rows.x = grid.x;
      typename S::Vec bias{};
      if (p.bias != nullptr) bias = S::load_lanes(bias, p.bias + channel + c, lanes);
      depthwise_row<isa>(rows, y, ty, inner, weights + c, kPitch, lanes, bias, [&](int x, typename S::Vec value) {
        S::store_lanes(target + int64_t{x} * grid.x.target_step * p.channels() + c, activate(p.activation, value),
                       lanes);
      });
    }
  }
}

// ---- planes, turned: blocks of channels of a strip are copied channels-last, and the result is turned back

// How the turned form cuts a plane: strips of `rows` rows of the grid, whose taps read `source_rows` rows at most.
struct DepthwiseTurn {
  int64_t blocks, strips;  // of channels, of rows
  int rows, source_rows;
};

// Whether it is worth while: not where rows of pixels fill vectors anyway, nor where a strip would not stay in cache.
template <Isa isa, class T>
CVK_HD bool depthwise_turns(const TappedProduct<T>& p, DepthwiseTurn& turn) {
  using A = Acc<T>;
  constexpr int kBlock = GemmTile<isa, A>::kColumns;
  if (p.phases() != 1) return false;
  const TapGrid grid = p.grid(0);
  if (grid.y.taps == 0 || grid.x.taps == 0 || grid.taps() == 1) return false;
  if (grid.x.source_step == 1 && grid.x.grid > kDepthwiseTurnWidth) return false;
  const int64_t row = int64_t{grid.x.extent} * kBlock * static_cast<int64_t>(sizeof(A));
  const int64_t span = int64_t{grid.y.taps - 1} * grid.y.offset_step + 1;
  const int64_t rows = (kDepthwiseTurnBytes / row - span) / grid.y.source_step + 1;
  if (span * row > kDepthwiseTurnBytes) return false;
  turn.rows = static_cast<int>(min_of<int64_t>(rows, grid.y.grid));
  turn.source_rows =
      static_cast<int>(min_of<int64_t>((turn.rows - 1) * int64_t{grid.y.source_step} + span, grid.y.extent));
  turn.strips = ceil_div<int64_t>(grid.y.grid, max_of(turn.rows, 1));
  turn.blocks = ceil_div<int64_t>(p.channels(), kBlock);
  return true;
}

template <class T>
CVK_HD int64_t depthwise_turned_items(const TappedProduct<T>& p, const DepthwiseTurn& turn) {
  return p.shape.batch * turn.blocks * turn.strips;
}

template <Isa isa, class T>
CVK_HD void depthwise_turned(const TappedProduct<T>& p, const DepthwiseTurn& turn, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  constexpr int kBlock = GemmTile<isa, A>::kColumns;
  const TapGrid grid = p.grid(0);
  const Span inner = pixels_all_inside(grid.x);
  const int width = grid.x.extent, out_width = grid.x.grid;
  Scratch source_memory(int64_t{turn.source_rows} * width * kBlock * static_cast<int64_t>(sizeof(A)));
  Scratch sums_memory(round_up<int64_t>(int64_t{turn.rows} * out_width, S::kLanes) * kBlock *
                      static_cast<int64_t>(sizeof(A)));
  Scratch weight_memory(int64_t{grid.taps()} * kBlock * static_cast<int64_t>(sizeof(A)));
  A* source = source_memory.template as<A>();
  A* sums = sums_memory.template as<A>();
  A* weights = weight_memory.template as<A>();
  int64_t packed = -1;
  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / turn.strips / turn.blocks, block = item / turn.strips % turn.blocks;
    const int64_t channel = block * kBlock, plane = image * p.channels() + channel;
    const int channels = static_cast<int>(min_of<int64_t>(kBlock, p.channels() - channel));
    const int y0 = static_cast<int>(item % turn.strips) * turn.rows, rows = min_of(turn.rows, grid.y.grid - y0);
    if (block != packed) depthwise_weights(p, grid, channel, channels, kBlock, weights);
    packed = block;
    // The rows of the map that the strip reads.
    const int64_t begin = int64_t{y0} * grid.y.source_step + grid.y.first_offset;
    const int64_t end =
        begin + int64_t{rows - 1} * grid.y.source_step + int64_t{grid.y.taps - 1} * grid.y.offset_step + 1;
    const int64_t top = max_of<int64_t>(begin, 0), bottom = max_of(top, min_of<int64_t>(end, grid.y.extent));
    transpose_into_panel<isa>(
        p.source + plane * p.source_plane() + top * width, p.source_plane(), channels,
        static_cast<int>((bottom - top) * width), kBlock, [](int i) { return i; }, source);
    DepthwiseRows<A> map;
    map.pixel = kBlock;
    map.row = int64_t{kBlock} * width;
    map.y = grid.y;
    map.x = grid.x;
    map.y.first_offset -= static_cast<int>(top);
    for (int i = 0; i < rows; ++i) {
      const Span ty = taps_inside(grid.y, y0 + i);
      for (int c = 0; c < channels; c += S::kLanes) {
        map.image = source + c;
        typename S::Vec bias{};
        if (p.bias != nullptr) {
          bias = S::load_lanes(bias, p.bias + channel + c, S::lane_range(0, min_of(S::kLanes, channels - c)));
        }
        A* to = sums + int64_t{i} * out_width * kBlock + c;
        depthwise_row<isa>(map, y0 + i, ty, inner, weights + c, kBlock, S::kAllLanes, bias,
                           [&](int x, typename S::Vec value) { S::store(to + int64_t{x} * kBlock, value); });
      }
    }
    T* target = p.target + plane * p.target_plane() + int64_t{y0} * out_width;
    const int pixels = rows * out_width;
    for (int c = 0; c < channels; c += S::kLanes) {
      const int some = min_of(S::kLanes, channels - c);
      for (int i = 0; i < pixels; i += S::kLanes) {
        typename S::Vec values[S::kLanes];
        for (int k = 0; k < S::kLanes; ++k) values[k] = activate(p.activation, S::load(sums + (i + k) * kBlock + c));
        S::transpose(values);
        const int count = min_of(S::kLanes, pixels - i);
        for (int k = 0; k < some; ++k) {
          T* out = target + (c + k) * p.target_plane() + i;
          if (count == S::kLanes) {
            S::store(out, values[k]);
          } else {
            S::store_partial(out, values[k], count);
          }
        }
      }
    }
  }
}

// ---- planes

// The copy of a strip of a plane: one plane of `rows` x `width` for each pair of remainders, and where each tap is in it.
template <Isa isa, class A>
class DepthwisePlanes {
 public:
  using S = Simd<isa, A>;

  CVK_HD DepthwisePlanes(const TapGrid& grid) : grid_(grid), tap_memory_(grid.taps() * sizeof(int64_t)) {
    slots_y_ = slots(grid.y);
    slots_x_ = slots(grid.x);
    more_y_ = more(grid.y);
    width_ = grid.x.grid + more(grid.x);
    const int64_t row = int64_t{slots_y_} * slots_x_ * width_;
    strip_ = static_cast<int>(min_of<int64_t>(grid.y.grid, max_of<int64_t>(1, kDepthwiseStrip / row - more_y_)));
    plane_ = int64_t{strip_ + more_y_} * width_;
    // What lies past the last row is read by sums that are dropped: from the last tap on, up to kSlack less one.
    const int64_t size = slots_y_ * slots_x_ * plane_ + more(grid.x) + kSlack;
    memory_.reset(size * sizeof(A));
    for (int64_t i = 0; i < size; ++i) memory_.template as<A>()[i] = A(0);
    int64_t* offset = tap_memory_.template as<int64_t>();
    for (int ty = 0; ty < grid.y.taps; ++ty) {
      for (int tx = 0; tx < grid.x.taps; ++tx) {
        const Shift y = shift(grid.y, ty), x = shift(grid.x, tx);
        *offset++ = (int64_t{y.slot} * slots_x_ + x.slot) * plane_ + int64_t{y.by} * width_ + x.by;
      }
    }
  }

  static constexpr int kSlack = 4 * S::kLanes;
  CVK_HD int strip() const { return strip_; }
  CVK_HD int width() const { return width_; }
  // What pixel (first row of the strip, 0) reads at a tap; the next pixels follow.
  CVK_HD const A* tap(int t) const { return memory_.template as<A>() + tap_memory_.template as<int64_t>()[t]; }

  // Copies what the grid rows [first, first + rows) read.
  template <class T>
  CVK_HD void fill(const T* source, int first, int rows) {
    A* plane = memory_.template as<A>();
    for (int slot_y = 0; slot_y < slots_y_; ++slot_y) {
      for (int slot_x = 0; slot_x < slots_x_; ++slot_x, plane += plane_) {
        const int64_t y0 = int64_t{first} * grid_.y.source_step + grid_.y.first_offset + remainder(grid_.y, slot_y);
        const int64_t x0 = int64_t{grid_.x.first_offset} + remainder(grid_.x, slot_x);
        for (int i = 0; i < rows + more_y_; ++i) {
          const int64_t y = y0 + int64_t{i} * grid_.y.source_step;
          fill_row(y >= 0 && y < grid_.y.extent ? source + y * grid_.x.extent : nullptr, x0,
                   plane + int64_t{i} * width_);
        }
      }
    }
  }

 private:
  struct Shift {
    int slot, by;
  };
  // Offsets from the first tap, divided by the source step: the remainder says which plane, the quotient how far in it.
  static CVK_HD Shift shift(const TapAxis& axis, int tap) {
    const int64_t distance = int64_t{tap} * axis.offset_step;
    const int64_t rest = distance % axis.source_step;
    int slot = 0;
    while (remainder(axis, slot) != rest) ++slot;
    return {slot, static_cast<int>(distance / axis.source_step)};
  }
  // Remainders in the order of the taps that first have them.
  static CVK_HD int64_t remainder(const TapAxis& axis, int slot) {
    return int64_t{slot} * axis.offset_step % axis.source_step;
  }
  static CVK_HD int slots(const TapAxis& axis) {
    int count = 1;
    while (count < axis.taps && remainder(axis, count) != 0) ++count;  // remainders repeat from 0 on
    return count;
  }
  static CVK_HD int more(const TapAxis& axis) {
    return static_cast<int>(int64_t{max_of(axis.taps - 1, 0)} * axis.offset_step / axis.source_step);
  }

  // to[i] = row[x0 + i * step], 0 outside.
  template <class T>
  CVK_HD void fill_row(const T* row, int64_t x0, A* to) const {
    const int step = grid_.x.source_step;
    const int64_t extent = row != nullptr ? grid_.x.extent : 0;
    const int64_t begin = min_of<int64_t>(x0 >= 0 ? 0 : ceil_div<int64_t>(-x0, step), width_);
    const int64_t end = max_of(begin, min_of<int64_t>(x0 >= extent ? 0 : ceil_div<int64_t>(extent - x0, step), width_));
    for (int64_t i = 0; i < begin; ++i) to[i] = A(0);
    if (step == 1 && begin < end) {
      copy_row<isa>(row + x0 + begin, static_cast<int>(end - begin), to + begin);
    } else {
      for (int64_t i = begin; i < end; ++i) to[i] = to_acc(row[x0 + i * step]);
    }
    for (int64_t i = end; i < width_; ++i) to[i] = A(0);
  }

  TapGrid grid_;
  int slots_y_, slots_x_, more_y_, width_, strip_;
  int64_t plane_;
  Scratch tap_memory_, memory_;
};

// Items of depthwise_planes: planes of every phase.
template <class T>
CVK_HD int64_t depthwise_plane_items(const TappedProduct<T>& p) {
  return p.phases() * p.shape.batch * p.channels();
}

template <Isa isa, class T>
CVK_HD void depthwise_planes(const TappedProduct<T>& p, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  constexpr int kVecs = 4;
  const int64_t all = p.shape.batch * p.channels();
  for (int64_t item = first; item < last;) {
    // As many planes as share a phase.
    const int64_t phase = item / all, end = min_of(last, (phase + 1) * all);
    const TapGrid grid = p.grid(phase);
    if (grid.pixels() == 0) {
      item = end;
      continue;
    }
    DepthwisePlanes<isa, A> planes(grid);
    const int width = planes.width(), taps = grid.taps();
    Scratch sums_memory((int64_t{planes.strip()} * width + planes.kSlack) * sizeof(A));
    Scratch weight_memory(taps * static_cast<int64_t>(sizeof(A)));
    A* sums = sums_memory.template as<A>();
    A* weights = weight_memory.template as<A>();
    for (; item < end; ++item) {
      const int64_t plane = item % all, channel = plane % p.channels();
      for (int t = 0; t < taps; ++t) {
        weights[t] = to_acc(p.weights[channel * p.shape.kernel_size() + kernel_of(grid, p.shape.kernel_width, t)]);
      }
      const A bias = p.bias != nullptr ? to_acc(p.bias[channel]) : A(0);
      T* target = p.target + plane * p.target_plane();
      for (int y = 0; y < grid.y.grid; y += planes.strip()) {
        const int rows = min_of(planes.strip(), grid.y.grid - y);
        planes.fill(p.source + plane * p.source_plane(), y, rows);
        for (int64_t i = 0; i < int64_t{rows} * width; i += kVecs * S::kLanes) {
          typename S::Vec sum[kVecs];
          for (int v = 0; v < kVecs; ++v) sum[v] = S::broadcast(bias);
          for (int t = 0; t < taps; ++t) {
            const typename S::Vec weight = S::broadcast(weights[t]);
            const A* from = planes.tap(t) + i;
            for (int v = 0; v < kVecs; ++v) sum[v] = S::mul_add(weight, S::load(from + v * S::kLanes), sum[v]);
          }
          for (int v = 0; v < kVecs; ++v) S::store(sums + i + v * S::kLanes, activate(p.activation, sum[v]));
        }
        for (int i = 0; i < rows; ++i) {
          T* out = target + (grid.y.target_first + int64_t{y + i} * grid.y.target_step) * p.target_width() +
                   grid.x.target_first;
          const A* from = sums + int64_t{i} * width;
          if (grid.x.target_step == 1) {
            int x = 0;
            for (; x + S::kLanes <= grid.x.grid; x += S::kLanes) S::store(out + x, S::load(from + x));
            if (x < grid.x.grid) S::store_partial(out + x, S::load(from + x), grid.x.grid - x);
          } else {
            for (int x = 0; x < grid.x.grid; ++x) out[int64_t{x} * grid.x.target_step] = from_acc<T>(from[x]);
          }
        }
      }
    }
  }
}

// ---- the gradient with respect to the weights

// Parts that the rows of pixels of all images are cut into; must not depend on the number of threads.
CVK_HD int64_t depthwise_weight_parts(const ConvShape& s) {
  const int64_t blocks = s.channels_last ? ceil_div<int64_t>(s.channels, kDepthwiseChannels) : s.channels;
  const int64_t rows = s.batch * s.out_height;
  return max_of<int64_t>(1,
                         min_of(ceil_div<int64_t>(rows, kDepthwisePartRows), ceil_div<int64_t>(kWeightItems, blocks)));
}

CVK_HD int64_t depthwise_weight_items(const ConvShape& s, int64_t parts) {
  return (s.channels_last ? ceil_div<int64_t>(s.channels, kDepthwiseChannels) : s.channels) * parts;
}

// Sum of products over `count` pairs, in a fixed order. Vectors of channels: elements `lanes` of each.
template <Isa isa, class A, class T>
CVK_HD typename Simd<isa, A>::Vec sum_of_products(const T* a, int64_t a_step, const T* b, int64_t b_step, int count,
                                                  uint32_t lanes) {
  using S = Simd<isa, A>;
  constexpr int kSums = 4;
  const auto load = [&](const T* p) {
    return lanes == S::kAllLanes ? S::load(p) : S::load_lanes(typename S::Vec{}, p, lanes);
  };
  typename S::Vec sum[kSums] = {};
  int i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int k = 0; k < kSums; ++k) sum[k] = S::mul_add(load(a + (i + k) * a_step), load(b + (i + k) * b_step), sum[k]);
  }
  for (; i < count; ++i) sum[0] = S::mul_add(load(a + i * a_step), load(b + i * b_step), sum[0]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// grad_weight of blocks of channels, a part of the rows each; channels-last maps.
template <Isa isa, class T>
CVK_HD void depthwise_weight_rows(const TappedWeightGradient<T>& p, int64_t parts, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  const ConvShape& s = p.shape;
  const TapGrid grid = correlation_grid(s);
  const int64_t all_rows = s.batch * grid.y.grid, part_rows = ceil_div(all_rows, parts);
  Scratch sums_memory(int64_t{grid.taps()} * kDepthwiseChannels * sizeof(A));
  A* sums = sums_memory.template as<A>();
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item % parts, channel = item / parts * kDepthwiseChannels;
    const int channels = static_cast<int>(min_of<int64_t>(kDepthwiseChannels, s.channels - channel));
    for (int i = 0; i < grid.taps() * kDepthwiseChannels; ++i) sums[i] = A(0);
    for (int64_t row = part * part_rows; row < min_of(all_rows, (part + 1) * part_rows); ++row) {
      const int64_t image = row / grid.y.grid;
      const int y = static_cast<int>(row % grid.y.grid);
      const Span ty = taps_inside(grid.y, y);
      for (int c = 0; c < channels; c += S::kLanes) {
        const uint32_t lanes = S::lane_range(0, min_of(S::kLanes, channels - c));
        DepthwiseRows<T> rows;
        rows.image = p.input + image * grid.y.extent * grid.x.extent * s.channels + channel + c;
        rows.pixel = s.channels;
        rows.row = s.channels * grid.x.extent;
        rows.y = grid.y;
        rows.x = grid.x;
        const T* grad = p.grad_output + row * grid.x.grid * s.channels + channel + c;
        for (int tap_y = ty.begin; tap_y < ty.end; ++tap_y) {
          for (int tap_x = 0; tap_x < grid.x.taps; ++tap_x) {
            const Span x = pixels_inside(grid.x, tap_x);
            if (x.begin == x.end) continue;
            A* sum = sums + (tap_y * grid.x.taps + tap_x) * kDepthwiseChannels + c;
            const typename S::Vec more =
                sum_of_products<isa, A>(grad + x.begin * s.channels, s.channels, rows.at(y, tap_y, x.begin, tap_x),
                                        grid.x.source_step * s.channels, x.end - x.begin, lanes);
            S::store(sum, S::load(sum) + more);
          }
        }
      }
    }
    for (int t = 0; t < grid.taps(); ++t) {
      for (int c = 0; c < channels; ++c) p.put(part, p.weight_at(channel + c, 0, t), sums[t * kDepthwiseChannels + c]);
    }
  }
}

// The same for planes; an item is a channel and a part of the rows.
template <Isa isa, class T>
CVK_HD void depthwise_weight_planes(const TappedWeightGradient<T>& p, int64_t parts, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  const ConvShape& s = p.shape;
  const TapGrid grid = correlation_grid(s);
  if (first >= last) return;
  DepthwisePlanes<isa, A> planes(grid);
  const int64_t all_rows = s.batch * grid.y.grid, part_rows = ceil_div(all_rows, parts);
  Scratch sums_memory(int64_t{grid.taps()} * S::kLanes * sizeof(A));
  Scratch row_memory(round_up<int64_t>(grid.x.grid, S::kLanes) * planes.strip() * sizeof(A));
  A* sums = sums_memory.template as<A>();
  A* grads = row_memory.template as<A>();
  const int64_t pitch = round_up<int64_t>(grid.x.grid, S::kLanes);
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item % parts, channel = item / parts;
    for (int i = 0; i < grid.taps() * S::kLanes; ++i) sums[i] = A(0);
    const int64_t end = min_of(all_rows, (part + 1) * part_rows);
    for (int64_t row = part * part_rows; row < end;) {
      const int64_t image = row / grid.y.grid;
      const int y = static_cast<int>(row % grid.y.grid);
      const int count = static_cast<int>(min_of<int64_t>(min_of(planes.strip(), grid.y.grid - y), end - row));
      const int64_t plane = image * s.channels + channel;
      planes.fill(p.input + plane * s.pixels(), y, count);
      for (int i = 0; i < count; ++i) {
        copy_row<isa>(p.grad_output + (plane * grid.y.grid + y + i) * grid.x.grid, grid.x.grid, grads + i * pitch);
      }
      for (int t = 0; t < grid.taps(); ++t) {
        typename S::Vec sum = S::load(sums + t * S::kLanes);
        for (int i = 0; i < count; ++i) {
          const A* from = planes.tap(t) + int64_t{i} * planes.width();
          const int whole = grid.x.grid / S::kLanes, rest = grid.x.grid % S::kLanes;
          sum = sum + sum_of_products<isa, A>(grads + i * pitch, S::kLanes, from, S::kLanes, whole, S::kAllLanes);
          if (rest > 0) {  // a zero times an infinity of a neighbour would be a NaN
            const A* g = grads + i * pitch + whole * S::kLanes;
            sum = S::mul_add(S::load_partial(g, rest), S::load_partial(from + whole * S::kLanes, rest), sum);
          }
        }
        S::store(sums + t * S::kLanes, sum);
      }
      row += count;
    }
    for (int t = 0; t < grid.taps(); ++t) {
      p.put(part, p.weight_at(channel, 0, t), S::reduce_add(S::load(sums + t * S::kLanes)));
    }
  }
}

}  // namespace cvk
