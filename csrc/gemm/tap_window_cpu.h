// A copy of the part of a map that some rows of pixels see, in which a tap of neighbouring pixels is always a vector, even where a
// row ends and the next begins.
//
// Pixel (y, x) of a phase has position y * pitch + x, and channel c of its tap t is at place(c, t) + position. A channel is a plane,
// whatever the layout of the map. Zeros lie around its rows; those behind a row are also those before the next where they can be.
// Under a step of more than one, rows and columns are sorted by their remainders, as far as there are taps for these: a slot each.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "common/scratch.h"
#include "gemm/gather_cpu.h"
#include "gemm/gemm_tuning.h"

namespace cvk {

// An axis of a window. Cell j of a slot is source pixel j * source_step + first_offset + the slot's remainder.
struct WindowAxis {
  CVK_HD WindowAxis() {}
  CVK_HD explicit WindowAxis(const TapAxis& of) : axis(of), slots(tap_slots(of)) {
    reach = axis.taps > 0 ? cell(axis.taps - 1) : 0;
  }
  CVK_HD int slot(int tap) const { return tap % slots; }
  CVK_HD int64_t cell(int tap) const { return int64_t{tap} * axis.offset_step / axis.source_step; }
  CVK_HD int64_t source(int64_t cell, int slot) const {
    return cell * axis.source_step + axis.first_offset + int64_t{slot} * axis.offset_step % axis.source_step;
  }
  // Of `cells` cells of a slot, those inside the map: [begin, end).
  CVK_HD int64_t begin(int slot, int64_t cells) const {
    return min_of(max_of<int64_t>(0, ceil_div<int64_t>(-source(0, slot), axis.source_step)), cells);
  }
  CVK_HD int64_t end(int slot, int64_t cells) const {
    const int64_t all = axis.extent - source(0, slot);
    return max_of(begin(slot, cells), min_of(all > 0 ? ceil_div<int64_t>(all, axis.source_step) : 0, cells));
  }

  TapAxis axis{};
  int slots = 1;
  int64_t reach = 0;  // cells from a pixel's own to the farthest of its taps
};

// Whether windows are for a convolution in so small groups.
CVK_HD bool of_small_groups(const ConvShape& s) {
  if (s.groups < 2 || is_depthwise(s) || s.kernel_size() == 1 || s.batch == 0 || s.pixels() == 0 || s.out_pixels() == 0)
    return false;
  const int64_t least = min_of(s.group_channels(), s.group_filters());
  const int64_t most = max_of(s.group_channels(), s.group_filters());
  return least > 0 && most <= kGroupedChannels && most * s.kernel_size() <= kGroupedDepth;
}

// Groups that share a window, and rows in it.
struct WindowPlan {
  int groups = 0;
  int64_t rows = 0;
};
// As many groups as it takes for vectors of the channels and of the filters of a channels-last pixel, or fewer where of these only few
// rows fit: rows_of(groups), of `most`.
template <Isa isa, class A, class Rows>
CVK_HD WindowPlan plan_window(const ConvShape& s, int most, const Rows& rows_of) {
  const int64_t least = min_of(s.group_channels(), s.group_filters());
  WindowPlan plan;
  plan.groups = static_cast<int>(min_of<int64_t>(s.groups, ceil_div<int64_t>(Simd<isa, A>::kLanes, least)));
  for (;; plan.groups = ceil_div(plan.groups, 2)) {
    plan.rows = min_of<int64_t>(most, rows_of(plan.groups));
    if (plan.rows >= min_of(kGroupedRows, most) || plan.groups == 1) return plan;
  }
}

// Channels of an image of a map.
template <class T>
struct WindowSource {
  const T* at;       // the first of them
  int count;         // no more than the window has
  int64_t channels;  // of the map
  bool channels_last;
};

template <Isa isa, class T>
class TapWindow {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  static constexpr int kLanes = S::kLanes;

 public:
  CVK_HD TapWindow() {}
  CVK_HD ~TapWindow() {}

  // Of `rows` rows of a phase. A pitch that is given is at least as wide as this window's own.
  CVK_HD void shape(const TapGrid& grid, int channels, int rows, int64_t pitch = 0) {
    y_ = WindowAxis(grid.y);
    x_ = WindowAxis(grid.x);
    channels_ = channels;
    const int64_t cells = grid.x.grid + x_.reach;
    fits_ = cells <= kWindowCells && rows + y_.reach <= kWindowCells;
    if (!fits_) return;
    shared_ = x_.reach;
    for (int slot = 0; slot < x_.slots; ++slot) {
      shared_ = min_of(shared_, min_of(x_.begin(slot, cells), cells - x_.end(slot, cells)));
    }
    pitch_ = max_of(pitch, cells - shared_);
    // Behind a slot: what copies write past a row's end and vectors read past the last pixel. An odd number of vectors, so that
    // planes don't fall into the same sets of a cache.
    slot_ = round_up<int64_t>((rows + y_.reach) * pitch_ + shared_, kLanes) + 2 * kLanes;
    plane_ = (y_.slots * x_.slots * slot_ / kLanes | 1) * kLanes;
  }
  // Whether size() is at most `most`; the other functions are for windows of a sensible size.
  CVK_HD bool fits(int64_t most) const { return fits_ && size() <= most; }
  // Of a window of one row: with how many it is as large as is wanted, or a few less; none if one makes it too large.
  CVK_HD int64_t wanted_rows() const {
    constexpr int64_t kWanted = kGroupedWindow / static_cast<int64_t>(sizeof(A));
    if (!fits(kGroupedMostWindow / static_cast<int64_t>(sizeof(A)))) return 0;
    const int64_t slot = (kWanted / channels_ - kLanes) / (y_.slots * x_.slots) - 3 * kLanes - shared_;
    return max_of<int64_t>(1, slot / pitch_ - y_.reach);
  }
  CVK_HD int64_t pitch() const { return pitch_; }
  CVK_HD int64_t size() const { return channels_ * plane_; }
  CVK_HD int64_t plane() const { return plane_; }  // from channel to channel
  CVK_HD int64_t place(int channel, int tap) const {
    const int ty = tap / x_.axis.taps, tx = tap % x_.axis.taps;
    return channel * plane_ + (y_.slot(ty) * x_.slots + x_.slot(tx)) * slot_ + y_.cell(ty) * pitch_ + x_.cell(tx);
  }
  CVK_HD const A* data() const { return memory_.template as<A>(); }

  // Makes room for `size` elements, which may hold windows of several shapes one after the other.
  CVK_HD void reserve(int64_t size) { memory_.reset(size * static_cast<int64_t>(sizeof(A))); }
  // To be called before the first copy of a shape into some windows, one behind the other.
  CVK_HD void clear(int64_t windows = 1) {
    for (int64_t i = 0; i < windows * size(); i += kLanes) S::store(at(0) + i, typename S::Vec{});
  }

  // Copies what rows [first, first + rows) of the phase see.
  CVK_HD void copy(const WindowSource<T>& map, int first, int rows, int64_t window = 0) {
    for (int slot = 0; slot < y_.slots; ++slot) {
      A* to = at(window) + int64_t{slot} * x_.slots * slot_;
      for (int64_t cell = 0; cell < rows + y_.reach; ++cell, to += pitch_) {
        const int64_t y = y_.source(first + cell, slot);
        if (y < 0 || y >= y_.axis.extent) {
          clear_pixels(map.count, to);
        } else if (map.channels_last) {
          turn_row(map.at + y * x_.axis.extent * map.channels, map.channels, map.count, to);
        } else {
          copy_rows(map.at + y * x_.axis.extent, map.count, to);
        }
      }
    }
  }
  // Zeros in rows [first, last) of pixels that see no rows but their own.
  CVK_HD void clear_rows(int first, int last, int64_t window) {
    for (int y = first; y < last; ++y) clear_pixels(channels_, at(window) + y * pitch_);
  }
  // Whether all that a window holds is; also what it keeps of an earlier copy of more rows or channels.
  CVK_HD bool finite(int64_t window) const {
    typename S::Vec sums[2]{};
    const A* from = at(window);
    for (int64_t v = 0; v < size() / kLanes; ++v) {
      const typename S::Vec value = S::load(from + v * kLanes);
      sums[v % 2] = sums[v % 2] + (value - value);
    }
    sums[0] = sums[0] + sums[1];
    bool all = true;
    for (int lane = 0; lane < kLanes; ++lane) all = all && sums[0][lane] == A(0);
    return all;
  }

 private:
  CVK_HD A* at(int64_t window) const { return memory_.template as<A>() + window * size(); }
  // Everything below is of one row in all channels and slots along it. Zeros are written up to a vector past its end: where the
  // next row is, which comes later, or nothing.
  template <class F>
  CVK_HD void each_slot(A* to, const F& f) const {
    const int64_t cells = x_.axis.grid + x_.reach;
    for (int slot = 0; slot < x_.slots; ++slot, to += slot_) {
      const int64_t begin = x_.begin(slot, cells);
      f(x_.source(begin, slot), static_cast<int>(x_.end(slot, cells) - begin), to + begin);
    }
  }
  CVK_HD void clear_pixels(int channels, A* to) const {
    each_slot(to, [&](int64_t, int count, A* row) {
      for (int c = 0; c < channels; ++c) clear_row<isa>(count, row + c * plane_);
    });
  }
  __attribute__((noinline)) void copy_rows(const T* from, int channels, A* to) const {
    const int64_t map_plane = int64_t{y_.axis.extent} * x_.axis.extent;
    const int step = x_.axis.source_step;
    each_slot(to, [&](int64_t x, int count, A* row) {
      for (int i = 0; i < count; i += kLanes) {
        const uint32_t lanes = S::lane_range(0, min_of(kLanes, count - i));
        const T* pixels = from + x + int64_t{i} * step;
        A* out = row + i;
        for (int c = 0; c < channels; ++c, pixels += map_plane, out += plane_) {
          if (step == 1) {
            S::store(out, count - i >= kLanes ? S::load(pixels) : S::load_lanes(typename S::Vec{}, pixels, lanes));
          } else if (step == 2) {
            EvenLanes<isa, A> even;
            even.load(pixels, even_bits(lanes));
            S::store(out, even.parted());
          } else {
            for (int k = 0; k < min_of(kLanes, count - i); ++k) out[k] = to_acc(pixels[int64_t{k} * step]);
          }
        }
      }
    });
  }
  __attribute__((noinline)) void turn_row(const T* from, int64_t pixel, int channels, A* to) const {
    const int64_t step = x_.axis.source_step * pixel;
    each_slot(to, [&](int64_t x, int count, A* row) {
      for (int i = 0; i < count; i += kLanes) {
        const T* pixels = from + x * pixel + i * step;
        const int some = min_of(kLanes, count - i);
        for (int c = 0; c < channels; c += kLanes) {
          const int lanes = min_of(kLanes, channels - c);
          typename S::Vec block[kLanes];
          if (some == kLanes && lanes == kLanes) {
            for (int k = 0; k < kLanes; ++k) block[k] = S::load(pixels + k * step + c);
          } else {
            for (int k = 0; k < kLanes; ++k) {
              block[k] = k < some ? S::load_partial(pixels + k * step + c, lanes) : typename S::Vec{};
            }
          }
          S::transpose(block);
          for (int k = 0; k < lanes; ++k) S::store(row + (c + k) * plane_ + i, block[k]);
        }
      }
    });
  }

  WindowAxis y_, x_;
  bool fits_ = false;
  int channels_ = 0;
  int64_t shared_ = 0;  // zeros behind a row that are those before the next
  int64_t pitch_ = 0, slot_ = 0, plane_ = 0;
  Scratch memory_;
};

}  // namespace cvk
