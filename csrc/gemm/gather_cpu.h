// Gatherers: the operand of a convolution that holds pixels, made from a map block by block. A gatherer answers for a
// DepthBlock and a run of pixels of a TapGrid; the column matrix of im2col is what all its answers together would be.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/conv_shape.h"
#include "gemm/pack_cpu.h"
#include "gemm/pairs_cpu.h"

namespace cvk {

// Where a pixel of a grid is: its image, and its place in the phase.
struct GridPixel {
  int64_t image;
  int y, x;
};

// Pixels of all images in order; counts through them without divisions.
class GridWalk {
 public:
  CVK_HD GridWalk(const TapGrid& grid, int64_t first) : height_(grid.y.grid), width_(grid.x.grid) {
    at_.image = first / grid.pixels();
    const int64_t rest = first % grid.pixels();
    at_.y = static_cast<int>(rest / width_);
    at_.x = static_cast<int>(rest % width_);
  }
  CVK_HD const GridPixel& operator*() const { return at_; }
  // Goes on by `count` pixels, at most to the first of the next row of pixels.
  CVK_HD void advance(int count) {
    at_.x += count;
    if (at_.x < width_) return;
    at_.x = 0;
    if (++at_.y < height_) return;
    at_.y = 0;
    ++at_.image;
  }
  CVK_HD int left_in_row() const { return width_ - at_.x; }

 private:
  int height_, width_;
  GridPixel at_;
};

// Rows of pixels from a channels-last map [N, H, W, C]; the depth of a block runs over taps, then channels. With A = T = word_t it
// copies words, two channels of bfloat16 each, and all channels are counted in these.
template <Isa isa, class A, class T>
class RowGatherer {
 public:
  using Tile = GemmTile<isa, A>;

  // `map` points to the first channel of the group. At most `most_rows` pixels are placed at a time, and a block is at most
  // `most_depth` deep; rows of it are `pitch` apart.
  CVK_HD RowGatherer(const T* map, int64_t channels, int64_t group_channels, int most_rows,
                     int most_depth = Tile::kDepth, int pitch = Tile::kPitch)
      : map_(map),
        channels_(channels),
        pitch_(pitch),
        whole_(channels == group_channels),
        places_(most_rows * sizeof(Place)),
        runs_(most_depth * sizeof(Run)) {}

  // Another group's first channel.
  CVK_HD void set_map(const T* map) { map_ = map; }

  CVK_HD void place(const TapGrid& grid, int64_t first, int rows) {
    grid_ = grid;
    GridWalk walk(grid, first);
    Place* places = places_.template as<Place>();
    const int64_t last_y = int64_t{grid.y.taps - 1} * grid.y.offset_step;
    const int64_t last_x = int64_t{grid.x.taps - 1} * grid.x.offset_step;
    for (int i = 0; i < rows;) {
      const GridPixel& at = *walk;
      const int run = min_of(rows - i, walk.left_in_row());
      Place place;
      place.image = at.image * grid.y.extent;
      place.y = grid.y.source(at.y, 0);
      place.x = grid.x.source(at.x, 0);
      const bool inside = place.y >= 0 && place.y + last_y < grid.y.extent;
      for (const int end = i + run; i < end; ++i, place.x += grid.x.source_step) {
        place.inside = inside && place.x >= 0 && place.x + last_x < grid.x.extent;
        places[i] = place;
      }
      walk.advance(run);
    }
  }

  // Row i of the block: pixel first + i of those placed, at to + i * pitch.
  CVK_HD void gather(const DepthBlock& block, int first, int rows, A* to) {
    const int count = plan(block);
    const int length = block.depth() / max_of(count, 1);
    constexpr int kLanes = Tile::kLanes;
    if (length < kLanes) {
      gather_runs<0>(block, first, rows, count, length, to);
    } else if (length == kLanes) {
      gather_runs<1>(block, first, rows, count, length, to);
    } else if (length == 2 * kLanes) {
      gather_runs<2>(block, first, rows, count, length, to);
    } else {
      gather_runs<-1>(block, first, rows, count, length, to);
    }
  }

 private:
  struct Place {
    int64_t image;  // its first row of pixels
    int64_t y, x;   // of the first tap
    bool inside;    // all taps are
  };
  using Run = int64_t;  // offset from the first tap

  CVK_HD const T* pixel(int64_t row, int64_t x) const { return map_ + (row * grid_.x.extent + x) * channels_; }

  // The runs of memory that a block takes from a pixel inside. Neighbouring taps are one where a block takes all channels.
  CVK_HD int plan(const DepthBlock& block) {
    Run* runs = runs_.template as<Run>();
    const bool joined = whole_ && block.channels == channels_ && block.taps == grid_.taps() && grid_.x.offset_step == 1;
    const int step = joined ? grid_.x.taps : 1;
    int count = 0;
    for (int t = 0; t < block.taps; t += step) {
      const int64_t y = int64_t{(block.t + t) / grid_.x.taps} * grid_.y.offset_step;
      const int64_t x = int64_t{(block.t + t) % grid_.x.taps} * grid_.x.offset_step;
      runs[count++] = (y * grid_.x.extent + x) * channels_;
    }
    return count;
  }

  // `vecs` vectors a run where that is known, 0 for a part of one.
  template <int vecs>
  CVK_HD void gather_runs(const DepthBlock& block, int first, int rows, int count, int length, A* to) const {
    using S = Simd<isa, Acc<A>>;
    const Place* places = places_.template as<Place>() + first;
    const Run* runs = runs_.template as<Run>();
    const uint32_t lanes = S::lane_range(0, vecs == 0 ? length : 0);
    for (int i = 0; i < rows; ++i, to += pitch_) {
      const Place& place = places[i];
      if (!place.inside) {
        gather_edge(place, block, to);
        continue;
      }
      const T* from = pixel(place.image + place.y, place.x) + block.c;
      for (int run = 0; run < count; ++run) {
        const T* p = from + runs[run];
        A* out = to + run * length;
        if constexpr (vecs < 0) {
          copy_row<isa>(p, length, out);
        } else if constexpr (vecs == 0) {
          S::store(out, S::load_lanes(typename S::Vec{}, p, lanes));
        } else {
          for (int v = 0; v < vecs; ++v) S::store(out + v * S::kLanes, S::load(p + v * S::kLanes));
        }
      }
    }
  }

  // A pixel some of whose taps are outside.
  CVK_HD void gather_edge(const Place& place, const DepthBlock& block, A* to) const {
    int ty = block.t / grid_.x.taps, tx = block.t % grid_.x.taps;
    for (int t = 0; t < block.taps; ++t, to += block.channels) {
      const int64_t y = place.y + int64_t{ty} * grid_.y.offset_step, x = place.x + int64_t{tx} * grid_.x.offset_step;
      if (y >= 0 && y < grid_.y.extent && x >= 0 && x < grid_.x.extent) {
        copy_row<isa>(pixel(place.image + y, x) + block.c, block.channels, to);
      } else {
        clear_row<isa>(block.channels, to);
      }
      if (++tx == grid_.x.taps) {
        tx = 0;
        ++ty;
      }
    }
  }

  const T* map_;
  int64_t channels_, pitch_;
  bool whole_;
  TapGrid grid_;
  Scratch places_, runs_;
};

// How many remainders by the step of an axis its taps have, of which tap t has that of tap t modulo their number.
CVK_HD int tap_slots(const TapAxis& axis) {
  int slots = 1;
  while (slots < axis.taps && int64_t{slots} * axis.offset_step % axis.source_step != 0) ++slots;
  return slots;
}

// Every second element: lane i comes from p[2 * i]. Two vectors hold them until they are parted.
template <Isa isa, class A>
struct EvenLanes {
  using S = Simd<isa, A>;
  typename S::Vec low{}, high{};

  // Some more lanes, bit 2 i of `even` for lane i, bit 2 i + 1 for lane i of odd(); the others stay as they are.
  template <class T>
  CVK_HD void load(const T* p, uint32_t even) {
    if constexpr (isa == Isa::kV4 || (isa == Isa::kV3 && std::is_same_v<T, A>)) {
      low = S::load_lanes(low, p, even & S::kAllLanes);
      high = S::load_lanes(high, p + S::kLanes, even >> S::kLanes);
    } else {
      for (; even != 0; even &= even - 1) {
        const int at = __builtin_ctz(even);
        (at < S::kLanes ? low : high)[at % S::kLanes] = to_acc(p[at]);
      }
    }
  }
  CVK_HD typename S::Vec parted() const { return every_second<0>(std::make_integer_sequence<int, S::kLanes>{}); }
  // The elements between: lane i is p[2 * i + 1].
  CVK_HD typename S::Vec odd() const { return every_second<1>(std::make_integer_sequence<int, S::kLanes>{}); }

 private:
  template <int first, int... I>
  CVK_HD typename S::Vec every_second(std::integer_sequence<int, I...>) const {
    return __builtin_shufflevector(low, high, (first + 2 * I)...);
  }
};

// Bit i moves to bit 2 i, for 16 bits.
CVK_HD uint32_t even_bits(uint32_t bits) {
  bits = (bits | bits << 8) & 0x00ff00ffu;
  bits = (bits | bits << 4) & 0x0f0f0f0fu;
  bits = (bits | bits << 2) & 0x33333333u;
  return (bits | bits << 1) & 0x55555555u;
}

// Columns of pixels from planes [N, C, H, W]: row k of the block is a channel and a tap, taps first, and holds that tap of
// kLanes pixels after the other.
template <Isa isa, class A, class T>
class PlaneGatherer {
 public:
  using S = Simd<isa, A>;
  static constexpr int kLanes = S::kLanes;

  // `map` points to the first plane of the group.
  CVK_HD PlaneGatherer(const T* map, int64_t channels, int most_pixels)
      : map_(map),
        channels_(channels),
        segments_(round_up(most_pixels, kLanes) * static_cast<int64_t>(sizeof(Segment))),
        begins_((most_pixels / kLanes + 2) * static_cast<int64_t>(sizeof(int))) {}

  // Another group's first plane.
  CVK_HD void set_map(const T* map) { map_ = map; }

  CVK_HD void place(const TapGrid& grid, int64_t first, int pixels) {
    grid_ = grid;
    plane_ = int64_t{grid.y.extent} * grid.x.extent;
    GridWalk walk(grid, first);
    Segment* segments = segments_.template as<Segment>();
    int* begins = begins_.template as<int>();
    int count = 0, vec = 0;
    for (int i = 0; i < pixels; ++vec) {
      begins[vec] = count;
      const int end = min_of(pixels, (vec + 1) * kLanes);
      while (i < end) {
        const GridPixel& at = *walk;
        const int run = min_of(end - i, walk.left_in_row());
        Segment& segment = segments[count++];
        segment.image = map_ + at.image * channels_ * plane_;
        segment.y = int64_t{at.y} * grid.y.source_step;
        segment.x = int64_t{at.x} * grid.x.source_step;
        segment.lane = i - vec * kLanes;
        segment.lanes = run;
        walk.advance(run);
        i += run;
      }
    }
    begins[vec] = count;
  }

  // The taps of another phase, which has the same pixels.
  CVK_HD void turn_to(const TapGrid& grid) { grid_ = grid; }

  // Vectors [first, first + vecs) of those placed; row k at to + k * to_stride.
  CVK_HD void gather(const DepthBlock& block, int first, int vecs, int64_t to_stride, A* to) const {
    const int64_t row_step = block.by_taps ? to_stride : block.taps * to_stride;
    const int64_t tap_step = block.by_taps ? block.channels * to_stride : to_stride;
    for (int v = first; v < first + vecs; ++v, to += kLanes) {
      RowWalk walk(grid_, block);
      for (int t = 0; t < block.taps; ++t, walk.advance()) {
        const Pieces from = pieces(block, v, walk);
        A* out = to + t * tap_step;
        if (from.whole()) {
          const T* source = from.piece[0].source;
          for (int c = 0; c < block.channels; ++c) S::store(out + c * row_step, S::load(source + c * plane_));
        } else if (from.count == 1) {
          gather_channels<1>(from, block.channels, row_step, out);
        } else if (from.count == 2) {
          gather_channels<2>(from, block.channels, row_step, out);
        } else if (from.count == 3) {
          gather_channels<3>(from, block.channels, row_step, out);
        } else {
          gather_channels<-1>(from, block.channels, row_step, out);
        }
      }
    }
  }

  // The same in words of two neighbouring rows (pairs_cpu.h); behind an odd depth follows a zero.
  CVK_HD void gather_pairs(const DepthBlock& block, int first, int vecs, int64_t to_stride, word_t* to) const {
    const int taps = block.taps, pairs = block.channels / 2;
    for (int v = first; v < first + vecs; ++v, to += kLanes) {
      RowWalk walk(grid_, block);
      for (int w = 0; w < taps; ++w, walk.advance()) {
        // Words w, w + taps, ... are rows 2 w and 2 w + 1 of channels (0, 1), (2, 3), ...
        const int low = 2 * w, high = 2 * w + 1;
        const Pieces a = pieces(block, v, walk);
        walk.advance();
        const Pieces b = pieces(block, v, walk);
        word_t* out = to + w * to_stride;
        const auto each = [&](const auto& words) {
          for (int64_t i = 0; i < pairs; ++i, out += taps * to_stride) S::store(out, words(2 * i * plane_));
        };
        if (a.whole() && b.whole()) {
          const T *first = a.piece[0].source, *second = b.piece[0].source;
          each([=](int64_t offset) { return join_pair<isa>(S::load(first + offset), S::load(second + offset)); });
        } else if (a.step == 1) {
          // Perf: pieces are merged in 16 bits. 256 -> 256 3x3 over 14x14 takes 6 % less time so (EPYC 9005, a thread).
          each([&](int64_t offset) { return join_half_words<isa>(half_words(a, offset), half_words(b, offset)); });
        } else {
          each([&](int64_t offset) { return join_pair<isa>(load(a, offset), load(b, offset)); });
        }
        if (block.channels % 2 != 0 && low < taps) {
          const int64_t offset = 2 * int64_t{pairs} * plane_;
          S::store(out, join_pair<isa>(load(a, offset), high < taps ? load(b, offset) : typename S::Vec{}));
        }
      }
    }
  }

 private:
  // A run of pixels of one row of the grid, in neighbouring lanes.
  struct Segment {
    const T* image;
    int64_t y, x;  // source pixel of the first lane, to which those of a tap are relative
    int lane, lanes;
  };
  // A block's rows in order: all taps of a channel, then of the next.
  struct RowWalk {
    CVK_HD RowWalk(const TapGrid& grid, const DepthBlock& block) : width(grid.x.taps), taps(block.taps) {
      first_y = block.t / width;
      first_x = block.t % width;
      y = first_y;
      x = first_x;
    }
    CVK_HD void advance() {
      if (++t == taps) {
        t = 0;
        ++channel;
        y = first_y;
        x = first_x;
      } else if (++x == width) {
        x = 0;
        ++y;
      }
    }
    int width, taps, first_y, first_x, y, x;  // of taps
    int t = 0, channel = 0;
  };
  // The part of a segment that is inside for a tap: lane i reads source[i * step]. With a step of 2, bits of even_bits.
  struct Piece {
    const T* source;
    uint32_t lanes;
  };
  // All of them for a tap of a vector, in the block's first channel or a later one.
  static constexpr int kMostPieces = kLanes > 3 ? kLanes : 3;  // a vector of two has room for gather_channels<3>
  struct Pieces {
    Piece piece[kMostPieces];
    int count, step;
    CVK_HD bool whole() const { return count == 1 && step == 1 && piece[0].lanes == S::kAllLanes; }
  };

  CVK_HD Pieces pieces(const DepthBlock& block, int vec, const RowWalk& row) const {
    const int step = grid_.x.source_step;
    const int64_t offset_y = grid_.y.source(0, row.y), offset_x = grid_.x.source(0, row.x);
    const auto steps = [=](int64_t pixels) { return step == 1 ? pixels : ceil_div<int64_t>(pixels, step); };
    const Segment* segments = segments_.template as<Segment>();
    const int* begins = begins_.template as<int>();
    Pieces result;
    result.count = 0;
    result.step = step;
    for (int i = begins[vec]; i < begins[vec + 1]; ++i) {
      const Segment& segment = segments[i];
      const int64_t y = segment.y + offset_y, x = segment.x + offset_x;
      if (y < 0 || y >= grid_.y.extent) continue;
      // Pixels [begin, end) of the segment are inside.
      const int64_t begin = x >= 0 ? 0 : steps(-x);
      const int64_t end = min_of<int64_t>(segment.lanes, steps(grid_.x.extent - x));
      if (x >= grid_.x.extent || begin >= end) continue;
      Piece& piece = result.piece[result.count++];
      piece.source =
          segment.image + (block.c + row.channel) * plane_ + y * grid_.x.extent + x - int64_t{segment.lane} * step;
      piece.lanes = S::lane_range(segment.lane + static_cast<int>(begin), segment.lane + static_cast<int>(end));
      if (step == 2) piece.lanes = even_bits(piece.lanes);
    }
    return result;
  }

  // A vector of pixels, zeros outside; the channel is `offset` elements behind that of the pieces.
  CVK_HD typename S::Vec load(const Pieces& from, int64_t offset) const {
    return load_pieces<-1>(from.piece, from.count, from.step, offset);
  }
  // With the number of pieces known, they stay in registers.
  template <int known>
  CVK_HD typename S::Vec load_pieces(const Piece* piece, int count, int step, int64_t offset) const {
    const int pieces = known < 0 ? count : known;
    if (step == 2) {
      EvenLanes<isa, A> even;
      for (int i = 0; i < pieces; ++i) even.load(piece[i].source + offset, piece[i].lanes);
      return even.parted();
    }
    typename S::Vec values{};
    for (int i = 0; i < pieces; ++i) {
      const T* source = piece[i].source + offset;
      if (step == 1) {
        values = S::load_lanes(values, source, piece[i].lanes);
      } else {
        for (uint32_t lanes = piece[i].lanes; lanes != 0; lanes &= lanes - 1) {
          const int lane = __builtin_ctz(lanes);
          values[lane] = to_acc(source[int64_t{lane} * step]);
        }
      }
    }
    return values;
  }
  // Perf: 64 -> 64 3x3 with stride 2 over 56x56 takes 166 instead of 210 us so, pieces parted once (EPYC 9005, two threads).
  template <int known>
  CVK_HD void gather_channels(const Pieces& from, int channels, int64_t row_step, A* to) const {
    constexpr int kRoom = known < 0 ? kMostPieces : known;
    Piece piece[kRoom];
    for (int i = 0; i < (known < 0 ? from.count : known); ++i) piece[i] = from.piece[i];
    const auto each = [&](int step) {
      for (int c = 0; c < channels; ++c) {
        S::store(to + c * row_step, load_pieces<known>(piece, from.count, step, c * plane_));
      }
    };
    if (from.step == 1) {
      each(1);
    } else if (from.step == 2) {
      each(2);
    } else {
      each(from.step);
    }
  }

  // The same of bfloat16 as bits, for a step of 1.
  CVK_HD typename S::HalfWordVec half_words(const Pieces& from, int64_t offset) const {
    typename S::HalfWordVec bits{};
    for (int i = 0; i < from.count; ++i) {
      bits = load_half_lanes<isa>(bits, from.piece[i].source + offset, from.piece[i].lanes);
    }
    return bits;
  }

  const T* map_;
  int64_t channels_, plane_ = 0;
  TapGrid grid_;
  Scratch segments_, begins_;
};

}  // namespace cvk
