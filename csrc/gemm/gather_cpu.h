// Gatherers: the operand of a convolution that holds pixels, made from a map block by block. A gatherer answers for a
// DepthBlock and a run of pixels of a TapGrid; the column matrix of im2col is what all its answers together would be.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "gemm/pack_cpu.h"

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

// Rows of pixels from a channels-last map [N, H, W, C]; the depth of a block runs over taps, then channels.
template <Isa isa, class A, class T>
class RowGatherer {
 public:
  using Tile = GemmTile<isa, A>;

  // `map` points to the first channel of the group. At most `most_rows` pixels are placed at a time.
  CVK_HD RowGatherer(const T* map, int64_t channels, int64_t group_channels, int most_rows)
      : map_(map), channels_(channels), whole_(channels == group_channels), places_(most_rows * sizeof(Place)) {}

  CVK_HD void place(const TapGrid& grid, int64_t first, int rows) {
    grid_ = grid;
    GridWalk walk(grid, first);
    Place* places = places_.template as<Place>();
    for (int i = 0; i < rows; ++i, walk.advance(1)) {
      const GridPixel& at = *walk;
      places[i].image = map_ + at.image * grid.y.extent * grid.x.extent * channels_;
      places[i].y = int64_t{at.y} * grid.y.source_step + grid.y.first_offset;
      places[i].x = int64_t{at.x} * grid.x.source_step + grid.x.first_offset;
    }
  }

  // Row i of the block: pixel first + i of those placed, at to + i * kPitch.
  CVK_HD void gather(const DepthBlock& block, int first, int rows, A* to) const {
    const Place* places = places_.template as<Place>() + first;
    // Neighbouring taps of neighbouring pixels are one run of memory if a block takes all that lies there.
    const bool runs = whole_ && block.channels == channels_ && block.taps == grid_.taps() && grid_.x.offset_step == 1;
    for (int i = 0; i < rows; ++i, to += Tile::kPitch) {
      if (runs) {
        gather_runs(places[i], block.channels, to);
      } else {
        gather_taps(places[i], block, to);
      }
    }
  }

 private:
  struct Place {
    const T* image;
    int64_t y, x;  // of the first tap
  };

  CVK_HD const T* pixel(const Place& place, int64_t y, int64_t x) const {
    return place.image + (y * grid_.x.extent + x) * channels_;
  }
  CVK_HD bool has_row(int64_t y) const { return y >= 0 && y < grid_.y.extent; }

  CVK_HD void gather_taps(const Place& place, const DepthBlock& block, A* to) const {
    int ty = block.t / grid_.x.taps, tx = block.t % grid_.x.taps;
    for (int t = 0; t < block.taps; ++t, to += block.channels) {
      const int64_t y = place.y + int64_t{ty} * grid_.y.offset_step, x = place.x + int64_t{tx} * grid_.x.offset_step;
      if (has_row(y) && x >= 0 && x < grid_.x.extent) {
        copy_row<isa>(pixel(place, y, x) + block.c, block.channels, to);
      } else {
        clear_row<isa>(block.channels, to);
      }
      if (++tx == grid_.x.taps) {
        tx = 0;
        ++ty;
      }
    }
  }

  CVK_HD void gather_runs(const Place& place, int channels, A* to) const {
    const int taps = grid_.x.taps;
    // Taps [begin, end) of a row are inside.
    const int begin = static_cast<int>(min_of<int64_t>(max_of<int64_t>(-place.x, 0), taps));
    const int end = static_cast<int>(max_of<int64_t>(min_of<int64_t>(grid_.x.extent - place.x, taps), begin));
    for (int ty = 0; ty < grid_.y.taps; ++ty, to += taps * channels) {
      const int64_t y = place.y + int64_t{ty} * grid_.y.offset_step;
      if (!has_row(y)) {
        clear_row<isa>(taps * channels, to);
        continue;
      }
      if (begin > 0) clear_row<isa>(begin * channels, to);
      if (begin < end) copy_row<isa>(pixel(place, y, place.x + begin), (end - begin) * channels, to + begin * channels);
      if (end < taps) clear_row<isa>((taps - end) * channels, to + end * channels);
    }
  }

  const T* map_;
  int64_t channels_;
  bool whole_;
  TapGrid grid_;
  Scratch places_;
};

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
        segment.y = int64_t{at.y} * grid.y.source_step + grid.y.first_offset;
        segment.x = int64_t{at.x} * grid.x.source_step + grid.x.first_offset;
        segment.lane = i - vec * kLanes;
        segment.lanes = run;
        walk.advance(run);
        i += run;
      }
    }
    begins[vec] = count;
  }

  // Vectors [first, first + vecs) of those placed; row k at to + k * to_stride.
  CVK_HD void gather(const DepthBlock& block, int first, int vecs, int64_t to_stride, A* to) const {
    for (int v = first; v < first + vecs; ++v, to += kLanes) {
      int ty = block.t / grid_.x.taps, tx = block.t % grid_.x.taps;
      for (int t = 0; t < block.taps; ++t) {
        gather_tap(block, v, int64_t{ty} * grid_.y.offset_step, int64_t{tx} * grid_.x.offset_step, to_stride,
                   to + t * to_stride);
        if (++tx == grid_.x.taps) {
          tx = 0;
          ++ty;
        }
      }
    }
  }

 private:
  // A run of pixels of one row of the grid, in neighbouring lanes.
  struct Segment {
    const T* image;
    int64_t y, x;  // source pixel of the first tap in the first lane
    int lane, lanes;
  };
  // The part of a segment that is inside for a tap: lane i reads source[i * step].
  struct Piece {
    const T* source;
    uint32_t lanes;
  };

  CVK_HD void gather_tap(const DepthBlock& block, int vec, int64_t offset_y, int64_t offset_x, int64_t to_stride,
                         A* to) const {
    const int step = grid_.x.source_step;
    const Segment* segments = segments_.template as<Segment>();
    const int* begins = begins_.template as<int>();
    Piece pieces[kLanes];
    int count = 0;
    for (int i = begins[vec]; i < begins[vec + 1]; ++i) {
      const Segment& segment = segments[i];
      const int64_t y = segment.y + offset_y, x = segment.x + offset_x;
      if (y < 0 || y >= grid_.y.extent) continue;
      // Pixels [begin, end) of the segment are inside.
      const int64_t begin = x >= 0 ? 0 : ceil_div<int64_t>(-x, step);
      const int64_t end = min_of<int64_t>(segment.lanes, ceil_div<int64_t>(grid_.x.extent - x, step));
      if (x >= grid_.x.extent || begin >= end) continue;
      Piece& piece = pieces[count++];
      piece.source = segment.image + block.c * plane_ + y * grid_.x.extent + x - int64_t{segment.lane} * step;
      piece.lanes = S::lane_range(segment.lane + static_cast<int>(begin), segment.lane + static_cast<int>(end));
    }
    const int64_t row_step = block.taps * to_stride;
    if (count == 1 && step == 1 && pieces[0].lanes == S::kAllLanes) {
      const T* source = pieces[0].source;
      for (int c = 0; c < block.channels; ++c) S::store(to + c * row_step, S::load(source + c * plane_));
      return;
    }
    for (int c = 0; c < block.channels; ++c, to += row_step) {
      typename S::Vec values{};
      for (int i = 0; i < count; ++i) {
        const T* source = pieces[i].source + c * plane_;
        if (step == 1) {
          values = S::load_lanes(values, source, pieces[i].lanes);
        } else {
          for (uint32_t lanes = pieces[i].lanes; lanes != 0; lanes &= lanes - 1) {
            const int lane = __builtin_ctz(lanes);
            values[lane] = to_acc(source[int64_t{lane} * step]);
          }
        }
      }
      S::store(to, values);
    }
  }

  const T* map_;
  int64_t channels_, plane_ = 0;
  TapGrid grid_;
  Scratch segments_, begins_;
};

}  // namespace cvk
