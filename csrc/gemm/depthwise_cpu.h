// Depthwise tapped products on the CPU: a filter for each channel, so nothing to multiply in tiles. The geometry is that of
// any tapped product (common/conv_shape.h), the arithmetic depthwise_line_cpu.h's.
//
// Channels-last maps: vectors along channels, which take the map as it lies. Planes: vectors along a row of pixels, from a padded
// copy of a strip of the plane. Planes whose rows do not fill vectors: as channels-last, over a copy of a strip of many planes.
#pragma once

#include <cstdint>

#include "gemm/depthwise_planes_cpu.h"

namespace cvk {

// ---- channels-last

// Channels whose weights are packed at a time.
template <class T>
CVK_HD int64_t depthwise_block(const TappedProduct<T>& p) {
  constexpr int64_t kWeights = kDepthwiseWeightBytes / static_cast<int64_t>(sizeof(Acc<T>));
  const int64_t strips = max_of<int64_t>(1, kWeights / p.shape.kernel_size() / kDepthwiseChannels);
  return min_of(p.channels(), strips * kDepthwiseChannels);
}

// Items of depthwise_rows: blocks of channels, and in each the rows of the grid of every image, phase by phase.
template <class T>
CVK_HD int64_t depthwise_row_items(const TappedProduct<T>& p) {
  return p.phases() * ceil_div(p.channels(), depthwise_block(p)) * p.shape.batch * p.grid(0).y.grid;
}

// Where the rows of taps of a pixel are, from the first one that is inside on.
CVK_HD void depthwise_across(const TapGrid& grid, int64_t row, int64_t* to) {
  for (int t = 0; t < grid.y.taps; ++t) to[t] = int64_t{t} * grid.y.offset_step * row;
}

// Rows [begin, end) of the grid of an image, for `channels` channels from `channel` on.
template <Isa isa, class A, class T>
CVK_HD void depthwise_strip(const TappedProduct<T>& p, const TapGrid& grid, int64_t image, int begin, int end,
                            const int64_t* across, int64_t channel, int channels, const A* weights, int64_t pitch) {
  using S = Simd<isa, A>;
  DepthwiseLine<isa, A, T, T> line;
  line.axis = grid.x;
  line.inner = pixels_all_inside(grid.x);
  line.pixel = p.channels();
  line.across = across;
  line.pitch = pitch;
  line.lanes = S::lane_range(0, min_of(S::kLanes, channels));
  line.activation = p.activation;
  line.to_pixel = grid.x.target_step * p.channels();
  const T* source = p.source + image * p.source_plane() * p.channels() + channel;
  T* target = p.target + image * p.target_plane() * p.channels() + channel;
  for (int y = begin; y < end; ++y) {
    const Span taps = taps_inside(grid.y, y);
    const int64_t source_y =
        int64_t{y} * grid.y.source_step + grid.y.first_offset + int64_t{taps.begin} * grid.y.offset_step;
    const T* from = source + (source_y * grid.x.extent + grid.x.first_offset) * p.channels();
    T* to = target + target_pixel(grid, p.target_width(), y, 0) * p.channels();
    line.taps_across = taps.end - taps.begin;
    for (int v = 0; v < channels; v += S::kLanes) {
      const int c = min_of(v, max_of(channels - S::kLanes, 0));  // the last vector begins earlier
      line.from = from + c;
      line.weights = weights + int64_t{taps.begin} * grid.x.taps * pitch + c;
      line.bias = typename S::Vec{};
      if (p.bias != nullptr) line.bias = S::load_lanes(line.bias, p.bias + channel + c, line.lanes);
      line.to = to + c;
      depthwise_line(line, false);
    }
  }
}

template <Isa isa, class T>
CVK_HD void depthwise_rows(const TappedProduct<T>& p, int64_t first, int64_t last) {
  using A = Acc<T>;
  const int64_t block = depthwise_block(p), blocks = ceil_div(p.channels(), block), rows = p.grid(0).y.grid;
  const int64_t pitch = round_up<int64_t>(block, GemmTile<isa, A>::kColumns);
  Scratch weight_memory(p.shape.kernel_size() * pitch * static_cast<int64_t>(sizeof(A)));
  Scratch across_memory(p.shape.kernel_height * static_cast<int64_t>(sizeof(int64_t)));
  A* weights = weight_memory.template as<A>();
  int64_t* across = across_memory.template as<int64_t>();
  int64_t packed = -1;
  TapGrid grid{};
  for (int64_t item = first; item < last;) {
    // As many rows as follow one another in an image.
    const int begin = static_cast<int>(item % rows);
    const int end = static_cast<int>(min_of<int64_t>(rows, begin + (last - item)));
    const int64_t image = item / rows % p.shape.batch;
    const int64_t key = item / rows / p.shape.batch;  // phase and block of channels
    const int64_t channel = key % blocks * block;
    const int channels = static_cast<int>(min_of(block, p.channels() - channel));
    item += end - begin;
    if (key != packed) {
      packed = key;
      grid = p.grid(key / blocks);
      depthwise_weights<isa>(p, grid, channel, channels, pitch, weights);
      depthwise_across(grid, p.channels() * grid.x.extent, across);
    }
    const int last_row = min_of(end, grid.y.grid);  // a later phase may have fewer rows
    for (int y = begin; y < last_row; y += kDepthwiseStripRows) {
      for (int c = 0; c < channels; c += kDepthwiseChannels) {
        depthwise_strip<isa>(p, grid, image, y, min_of(y + kDepthwiseStripRows, last_row), across,
                             channel + c, min_of(kDepthwiseChannels, channels - c), weights + c, pitch);
      }
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
  if (grid.x.grid > kDepthwiseTurnWidth) return false;
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
  const int width = grid.x.extent, out_width = grid.x.grid;
  Scratch source_memory(int64_t{turn.source_rows} * width * kBlock * static_cast<int64_t>(sizeof(A)));
  Scratch sums_memory(round_up<int64_t>(int64_t{turn.rows} * out_width, S::kLanes) * kBlock *
                      static_cast<int64_t>(sizeof(A)));
  Scratch weight_memory(int64_t{grid.taps()} * kBlock * static_cast<int64_t>(sizeof(A)));
  Scratch across_memory(grid.y.taps * static_cast<int64_t>(sizeof(int64_t)));
  depthwise_across(grid, int64_t{kBlock} * width, across_memory.template as<int64_t>());
  A* source = source_memory.template as<A>();
  A* sums = sums_memory.template as<A>();
  A* weights = weight_memory.template as<A>();
  DepthwiseLine<isa, A, A, A> line;
  line.axis = grid.x;
  line.inner = pixels_all_inside(grid.x);
  line.pixel = kBlock;
  line.across = across_memory.template as<int64_t>();
  line.pitch = kBlock;
  line.lanes = S::kAllLanes;
  line.activation = Activation::kNone;
  line.to_pixel = kBlock;
  int64_t packed = -1;
  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / turn.strips / turn.blocks, block = item / turn.strips % turn.blocks;
    const int64_t channel = block * kBlock, plane = image * p.channels() + channel;
    const int channels = static_cast<int>(min_of<int64_t>(kBlock, p.channels() - channel));
    const int y0 = static_cast<int>(item % turn.strips) * turn.rows, rows = min_of(turn.rows, grid.y.grid - y0);
    if (block != packed) depthwise_weights<isa>(p, grid, channel, channels, kBlock, weights);
    packed = block;
    // The rows of the map that the strip reads.
    const int64_t begin = int64_t{y0} * grid.y.source_step + grid.y.first_offset;
    const int64_t end =
        begin + int64_t{rows - 1} * grid.y.source_step + int64_t{grid.y.taps - 1} * grid.y.offset_step + 1;
    const int64_t top = max_of<int64_t>(begin, 0), bottom = max_of(top, min_of<int64_t>(end, grid.y.extent));
    transpose_into_panel<isa>(
        p.source + plane * p.source_plane() + top * width, p.source_plane(), channels,
        static_cast<int>((bottom - top) * width), kBlock, [](int i) { return i; }, source);
    for (int i = 0; i < rows; ++i) {
      const Span taps = taps_inside(grid.y, y0 + i);
      const int64_t source_y = begin - top + int64_t{i} * grid.y.source_step + int64_t{taps.begin} * grid.y.offset_step;
      line.taps_across = taps.end - taps.begin;
      for (int c = 0; c < channels; c += S::kLanes) {
        line.from = source + (source_y * width + grid.x.first_offset) * kBlock + c;
        line.weights = weights + int64_t{taps.begin} * grid.x.taps * kBlock + c;
        line.bias = typename S::Vec{};
        if (p.bias != nullptr) {
          line.bias = S::load_lanes(line.bias, p.bias + channel + c, S::lane_range(0, min_of(S::kLanes, channels - c)));
        }
        line.to = sums + int64_t{i} * out_width * kBlock + c;
        depthwise_line(line, true);
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

// Items of depthwise_planes: planes of every phase.
template <class T>
CVK_HD int64_t depthwise_plane_items(const TappedProduct<T>& p) {
  return p.phases() * p.shape.batch * p.channels();
}

template <Isa isa, class T>
CVK_HD void depthwise_planes(const TappedProduct<T>& p, int64_t first, int64_t last) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
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
    // The weights of a filter, each in all lanes: [taps along a row, taps along a column, lanes].
    Scratch weight_memory(int64_t{grid.taps()} * S::kLanes * static_cast<int64_t>(sizeof(A)));
    A* weights = weight_memory.template as<A>();
    for (; item < end; ++item) {
      const int64_t plane = item % all, channel = plane % p.channels();
      for (int ty = 0; ty < grid.y.taps; ++ty) {
        for (int tx = 0; tx < grid.x.taps; ++tx) {
          const int kernel = grid.y.kernel(ty) * p.shape.kernel_width + grid.x.kernel(tx);
          const A weight = to_acc(p.weights[channel * p.shape.kernel_size() + kernel]);
          S::store(weights + (int64_t{tx} * grid.y.taps + ty) * S::kLanes, S::broadcast(weight));
        }
      }
      const A bias = p.bias != nullptr ? to_acc(p.bias[channel]) : A(0);
      for (int y = 0; y < grid.y.grid; y += planes.rows()) {
        const int rows = min_of(planes.rows(), grid.y.grid - y);
        planes.fill(p.source + plane * p.source_plane(), y, rows);
        T* to = p.target + plane * p.target_plane() + target_pixel(grid, p.target_width(), y, 0);
        const int64_t to_row = int64_t{grid.y.target_step} * p.target_width();
        if (grid.x.target_step == 1) {
          planes.sum(weights, bias, p.activation, rows, to, to_row);
          continue;
        }
        planes.sum(weights, bias, p.activation, rows, planes.sums(), planes.pitch());
        for (int i = 0; i < rows; ++i, to += to_row) {
          const A* from = planes.sums() + i * planes.pitch();
          for (int x = 0; x < grid.x.grid; ++x) to[int64_t{x} * grid.x.target_step] = from_acc<T>(from[x]);
        }
      }
    }
  }
}

}  // namespace cvk
