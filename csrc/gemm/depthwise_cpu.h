// Depthwise tapped products on the CPU: a filter for each channel, so nothing to multiply in tiles. The geometry is that of
// any tapped product (common/conv_shape.h), the arithmetic depthwise_line_cpu.h's.
//
// Channels-last maps: vectors along channels, which take the map as it lies. Planes: vectors along a row of pixels, from a padded
// copy of a strip of the plane. Planes whose rows do not fill vectors, and strided ones backwards: as channels-last, over a copy of
// a strip of many planes. What would need much scratch: by definition.
#pragma once

#include <cstdint>
#include <limits>

#include "gemm/depthwise_planes_cpu.h"

namespace cvk {

// ---- channels-last

// Channels whose weights are packed at a time: a number of strips, or of vectors where a filter has many taps.
template <class T>
CVK_HD int64_t depthwise_block(const TappedProduct<T>& p) {
  constexpr int64_t kWeights = kDepthwiseWeightBytes / static_cast<int64_t>(sizeof(Acc<T>));
  const int64_t fit = kWeights / p.shape.kernel_size(), unit = fit >= kDepthwiseChannels ? kDepthwiseChannels : 16;
  return min_of(p.channels(), max_of<int64_t>(1, fit / unit) * unit);
}

// Items of depthwise_rows: blocks of channels, and in each the rows of the grid of every image, phase by phase.
template <class T>
CVK_HD int64_t depthwise_row_items(const TappedProduct<T>& p) {
  return p.phases() * ceil_div(p.channels(), depthwise_block(p)) * p.shape.batch * p.grid(0).y.grid;
}

// Where the rows of taps of a pixel are, from the first one that is inside on.
CVK_HD void depthwise_across(int taps, int64_t step, int64_t* to) {
  for (int t = 0; t < taps; ++t) to[t] = t * step;
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
    const T* from = source + (grid.y.source(y, taps.begin) * grid.x.extent + grid.x.first_offset) * p.channels();
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
      depthwise_across(grid.y.taps, p.channels() * grid.x.extent * grid.y.offset_step, across);
    }
    const int last_row = min_of(end, grid.y.grid);  // a later phase may have fewer rows
    for (int y = begin, next; y < last_row; y = next) {
      next = y + min_of(kDepthwiseStripRows, last_row - y);
      for (int c = 0, some; c < channels; c += some) {
        const int rest = channels - c;  // no strip of less than a vector
        some = rest < kDepthwiseChannels + Simd<isa, A>::kLanes ? rest : kDepthwiseChannels;
        depthwise_strip<isa>(p, grid, image, y, next, across, channel + c, some, weights + c, pitch);
      }
    }
  }
}

// ---- planes, turned: blocks of channels of a strip are copied channels-last, and the result is turned back

// How the turned form cuts a plane: strips of `rows` rows of every phase's grid. Row i of a grid reads rows of the source among
// [i * source_step + low, i * source_step + low + span).
struct DepthwiseTurn {
  int64_t blocks, strips;  // of channels, of rows
  int rows;
  int64_t low, span;

  CVK_HD int64_t rows_read(int64_t grid_rows, const TapAxis& y) const { return (grid_rows - 1) * y.source_step + span; }
};

// Whether it is worth while: not where rows of pixels fill vectors anyway, nor where a strip would not stay in cache.
template <Isa isa, class T>
CVK_HD bool depthwise_turns(const TappedProduct<T>& p, DepthwiseTurn& turn) {
  using A = Acc<T>;
  constexpr int kBlock = GemmTile<isa, A>::kColumns;
  const int64_t pixel = kBlock * static_cast<int64_t>(sizeof(A)), most = kDepthwiseTurnBytes / pixel;
  if (p.phases() > kDepthwiseTurnPhases || p.shape.kernel_size() == 1 || p.shape.kernel_size() > most) return false;
  const TapGrid grid = p.grid(0);  // which has the most rows
  if (grid.pixels() == 0 || grid.x.extent == 0 || grid.y.extent == 0) return false;
  if (grid.x.grid > kDepthwiseTurnWidth && grid.x.target_step == 1) return false;
  int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();
  for (int64_t phase = 0; phase < p.phases(); ++phase) {
    const TapAxis y = p.grid(phase).y;
    if (y.taps == 0) continue;
    low = min_of<int64_t>(low, y.first_offset);
    high = max_of<int64_t>(high, y.first_offset + int64_t{y.taps - 1} * y.offset_step);
  }
  if (low > high) return false;
  turn.low = low;
  turn.span = high - low + 1;
  const int64_t source_rows = most / grid.x.extent, target_rows = most / p.target_width();
  if (turn.span > source_rows || grid.y.target_step > target_rows) return false;
  const int64_t rows = min_of((source_rows - turn.span) / grid.y.source_step + 1, target_rows / grid.y.target_step);
  turn.rows = static_cast<int>(min_of<int64_t>(rows, grid.y.grid));
  turn.strips = ceil_div<int64_t>(grid.y.grid, turn.rows);
  turn.blocks = ceil_div<int64_t>(p.channels(), kBlock);
  return true;
}

template <class T>
CVK_HD int64_t depthwise_turned_items(const TappedProduct<T>& p, const DepthwiseTurn& turn) {
  return p.shape.batch * turn.blocks * turn.strips;
}

template <Isa isa, class T>
class DepthwiseTurned {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  static constexpr int kBlock = GemmTile<isa, A>::kColumns;

 public:
  CVK_HD DepthwiseTurned(const TappedProduct<T>& p, const DepthwiseTurn& turn)
      : p_(p),
        turn_(turn),
        y_(p.grid(0).y),
        width_(p.grid(0).x.extent),
        source_(min_of<int64_t>(turn.rows_read(turn.rows, y_), y_.extent) * width_ * kBlock * int64_t{sizeof(A)}),
        sums_(round_up<int64_t>(int64_t{turn.rows} * y_.target_step * p.target_width(), S::kLanes) * kBlock *
              int64_t{sizeof(A)}),
        weights_(int64_t{p.shape.kernel_size()} * kBlock * int64_t{sizeof(A)}),
        across_(p.shape.kernel_height * int64_t{sizeof(int64_t)}) {
    depthwise_across(p.shape.kernel_height, int64_t{y_.offset_step} * width_ * kBlock, across_.template as<int64_t>());
  }
  CVK_HD ~DepthwiseTurned() {}

  CVK_HD void item(int64_t index) {
    const int64_t image = index / turn_.strips / turn_.blocks, block = index / turn_.strips % turn_.blocks;
    const int64_t channel = block * kBlock;
    const int channels = static_cast<int>(min_of<int64_t>(kBlock, p_.channels() - channel));
    const int first = static_cast<int>(index % turn_.strips) * turn_.rows, rows = min_of(turn_.rows, y_.grid - first);
    const int64_t begin = int64_t{first} * y_.source_step + turn_.low, top = max_of<int64_t>(begin, 0);
    const int64_t bottom = max_of(top, min_of<int64_t>(begin + turn_.rows_read(rows, y_), y_.extent));
    transpose_into_panel<isa>(
        p_.source + (image * p_.channels() + channel) * p_.source_plane() + top * width_, p_.source_plane(), channels,
        static_cast<int>((bottom - top) * width_), kBlock, [](int i) { return i; }, source_.template as<A>());
    A* weights = weights_.template as<A>();
    for (int64_t phase = 0; phase < p_.phases(); ++phase) {
      const TapGrid grid = p_.grid(phase);
      if (block != packed_) depthwise_weights<isa>(p_, grid, channel, channels, kBlock, weights);
      sum(grid, first, min_of(rows, grid.y.grid - first), top, channel, channels, weights);
      weights += int64_t{grid.taps()} * kBlock;
    }
    packed_ = block;
    store(image, channel, channels, int64_t{first} * y_.target_step,
          min_of<int64_t>(int64_t{rows} * y_.target_step, p_.target_height() - int64_t{first} * y_.target_step));
  }

 private:
  // Rows [first, first + rows) of a phase; row `top` of the map is the first one that is copied.
  CVK_HD void sum(const TapGrid& grid, int first, int rows, int64_t top, int64_t channel, int channels,
                  const A* weights) const {
    DepthwiseLine<isa, A, A, A> line;
    line.axis = grid.x;
    line.inner = pixels_all_inside(grid.x);
    line.across = across_.template as<int64_t>();
    line.pixel = kBlock;
    line.pitch = kBlock;
    line.lanes = S::kAllLanes;
    line.activation = Activation::kNone;
    line.to_pixel = int64_t{grid.x.target_step} * kBlock;
    for (int i = 0; i < rows; ++i) {
      const Span taps = taps_inside(grid.y, first + i);
      const int64_t y = grid.y.source(first + i, taps.begin) - top;
      A* to = sums_.template as<A>() + target_pixel(grid, p_.target_width(), i, 0) * kBlock;
      line.taps_across = taps.end - taps.begin;
      for (int c = 0; c < channels; c += S::kLanes) {
        line.from = source_.template as<A>() + (y * width_ + grid.x.first_offset) * kBlock + c;
        line.weights = weights + int64_t{taps.begin} * grid.x.taps * kBlock + c;
        line.bias = typename S::Vec{};
        if (p_.bias != nullptr) {
          line.bias =
              S::load_lanes(line.bias, p_.bias + channel + c, S::lane_range(0, min_of(S::kLanes, channels - c)));
        }
        line.to = to + c;
        depthwise_line(line, true);
      }
    }
  }

  // Rows [y, y + rows) of the target.
  CVK_HD void store(int64_t image, int64_t channel, int channels, int64_t y, int64_t rows) const {
    T* target = p_.target + (image * p_.channels() + channel) * p_.target_plane() + y * p_.target_width();
    const int64_t pixels = rows * p_.target_width();
    for (int c = 0; c < channels; c += S::kLanes) {
      const int some = min_of(S::kLanes, channels - c);
      const A* sums = sums_.template as<A>() + c;
      for (int64_t i = 0; i < pixels; i += S::kLanes) {
        typename S::Vec values[S::kLanes];
        for (int k = 0; k < S::kLanes; ++k) values[k] = activate(p_.activation, S::load(sums + (i + k) * kBlock));
        S::transpose(values);
        const int count = static_cast<int>(min_of<int64_t>(S::kLanes, pixels - i));
        for (int k = 0; k < some; ++k) {
          T* out = target + (c + k) * p_.target_plane() + i;
          if (count == S::kLanes) {
            S::store(out, values[k]);
          } else {
            S::store_partial(out, values[k], count);
          }
        }
      }
    }
  }

  const TappedProduct<T>& p_;
  const DepthwiseTurn& turn_;
  TapAxis y_;  // of the first phase
  int width_;
  Scratch source_, sums_, weights_, across_;
  int64_t packed_ = -1;  // block whose weights are in scratch
};

// ---- by definition

// A plane of a phase, in either layout, without scratch.
template <class T>
CVK_HD void depthwise_by_definition(const TappedProduct<T>& p, const TapGrid& grid, int64_t plane) {
  using A = Acc<T>;
  constexpr int kSums = 512;
  const int64_t image = plane / p.channels(), channel = plane % p.channels();
  const int64_t pixel = p.shape.channels_last ? p.channels() : 1;
  const T* source = p.source + plane_begin(p.shape, image, channel, p.source_plane());
  T* target = p.target + plane_begin(p.shape, image, channel, p.target_plane());
  const T* weights = p.weights + channel * p.shape.kernel_size();
  A sums[kSums];
  for (int y = 0; y < grid.y.grid; ++y) {
    const Span taps = taps_inside(grid.y, y);
    for (int64_t x = 0; x < grid.x.grid; x += kSums) {
      const int64_t end = min_of<int64_t>(x + kSums, grid.x.grid);
      for (int64_t i = x; i < end; ++i) sums[i - x] = p.bias != nullptr ? to_acc(p.bias[channel]) : A(0);
      for (int ty = taps.begin; ty < taps.end; ++ty) {
        const T* row = source + grid.y.source(y, ty) * grid.x.extent * pixel;
        for (int tx = 0; tx < grid.x.taps; ++tx) {
          const Span inside = pixels_inside(grid.x, tx);
          const int64_t first = max_of<int64_t>(x, inside.begin), last = min_of<int64_t>(end, inside.end);
          const A weight = to_acc(weights[kernel_of(grid, p.shape.kernel_width, ty, tx)]);
          for (int64_t i = first; i < last; ++i) {
            sums[i - x] = mul_add(weight, to_acc(row[grid.x.source(i, tx) * pixel]), sums[i - x]);
          }
        }
      }
      T* to = target + target_pixel(grid, p.target_width(), y, static_cast<int>(x)) * pixel;
      for (int64_t i = x; i < end; ++i, to += grid.x.target_step * pixel) {
        *to = from_acc<T>(activate(p.activation, sums[i - x]));
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
    DepthwisePlanes<isa, A> planes(grid);
    if (p.shape.channels_last || !planes.fits()) {
      for (; item < end; ++item) depthwise_by_definition(p, grid, item % all);
      continue;
    }
    // The weights of a filter, each in all lanes: [taps along a row, taps along a column, lanes].
    Scratch weight_memory(int64_t{grid.taps()} * S::kLanes * static_cast<int64_t>(sizeof(A)));
    A* weights = weight_memory.template as<A>();
    for (; item < end; ++item) {
      const int64_t plane = item % all, channel = plane % p.channels();
      for (int ty = 0; ty < grid.y.taps; ++ty) {
        for (int tx = 0; tx < grid.x.taps; ++tx) {
          const int kernel = kernel_of(grid, p.shape.kernel_width, ty, tx);
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

// ---- which of them

enum class DepthwiseForm { kRows, kTurned, kPlanes };

template <Isa isa, class T>
CVK_HD DepthwiseForm depthwise_form(const TappedProduct<T>& p, DepthwiseTurn& turn) {
  if (p.shape.channels_last && p.shape.kernel_size() <= kDepthwiseMostTaps) return DepthwiseForm::kRows;
  return !p.shape.channels_last && depthwise_turns<isa>(p, turn) ? DepthwiseForm::kTurned : DepthwiseForm::kPlanes;
}

template <Isa isa, class T>
CVK_HD int64_t depthwise_items(const TappedProduct<T>& p) {
  DepthwiseTurn turn{};
  switch (depthwise_form<isa>(p, turn)) {
    case DepthwiseForm::kRows:
      return depthwise_row_items(p);
    case DepthwiseForm::kTurned:
      return depthwise_turned_items(p, turn);
    default:
      return depthwise_plane_items(p);
  }
}

template <Isa isa, class T>
CVK_HD void depthwise_slice(const TappedProduct<T>& p, int64_t first, int64_t last) {
  DepthwiseTurn turn{};
  switch (depthwise_form<isa>(p, turn)) {
    case DepthwiseForm::kRows:
      return depthwise_rows<isa>(p, first, last);
    case DepthwiseForm::kTurned: {
      DepthwiseTurned<isa, T> turned(p, turn);
      for (int64_t index = first; index < last; ++index) turned.item(index);
      return;
    }
    default:
      return depthwise_planes<isa>(p, first, last);
  }
}

}  // namespace cvk
