// The copy of a strip of a plane that depthwise products read: with its padding, so that no tap is outside, and split by the step
// along a row into a plane for each remainder, so that every tap of a vector of neighbours is a vector.
#pragma once

#include <cstdint>

#include "common/scratch.h"
#include "gemm/depthwise_line_cpu.h"
#include "gemm/gather_cpu.h"

namespace cvk {

template <Isa isa, class A>
class DepthwisePlanes {
 public:
  using S = Simd<isa, A>;

  CVK_HD explicit DepthwisePlanes(const TapGrid& grid) : grid_(grid) {
    const TapAxis &x = grid.x, &y = grid.y;
    if (grid.pixels() == 0 || grid.taps() == 0 || grid.taps() > kDepthwiseMostTaps) return;
    // Column j of a plane is source pixel j * step + its remainder. Column 0 begins a vector.
    const int64_t before = max_of<int64_t>(-column_of(0), 0);
    slots_ = tap_slots(x);
    columns_ = x.grid + column_of(x.taps - 1);
    lead_ = round_up<int64_t>(before, S::kLanes);
    pitch_ = round_up<int64_t>(lead_ + columns_, S::kLanes);
    const int64_t span = int64_t{y.taps - 1} * y.offset_step + 1;
    fits_ = slots_ * pitch_ <= kDepthwiseMostCopy / span;
    if (!fits_) return;
    filled_ = column_count(0);
    odd_ = remainder(0);
    const auto rows_in = [&](int64_t size) { return (size / (slots_ * pitch_) - span) / y.source_step + 1; };
    int64_t rows = rows_in(kDepthwiseStrip);
    rows = rows >= kDepthwisePixels
               ? rows / kDepthwisePixels * kDepthwisePixels
               : max_of<int64_t>(1, min_of<int64_t>(kDepthwisePixels, rows_in(kDepthwiseLongStrip)));
    rows_ = static_cast<int>(min_of<int64_t>(y.grid, rows));
    source_rows_ = (rows_ - 1) * int64_t{y.source_step} + span;
    // Lanes that are dropped read past the last row.
    const int64_t size = slots_ * source_rows_ * pitch_ + S::kLanes;
    memory_.reset(size * static_cast<int64_t>(sizeof(A)));
    clear_row<isa>(static_cast<int>(size), memory_.template as<A>());
    if (x.target_step != 1) sums_memory_.reset(rows_ * pitch_ * static_cast<int64_t>(sizeof(A)));
    tap_memory_.reset(grid.taps() * static_cast<int64_t>(sizeof(int64_t)));
    int64_t* offset = tap_memory_.template as<int64_t>();
    for (int ty = 0; ty < y.taps; ++ty) {
      for (int tx = 0; tx < x.taps; ++tx) {
        *offset++ = ((tx % slots_) * source_rows_ + int64_t{ty} * y.offset_step) * pitch_ + lead_ + column_of(tx);
      }
    }
  }

  // Whether there is anything to copy, and what one row reads is small enough: not where padding or dilation are large beside the map.
  // The other functions are for what fits.
  CVK_HD bool fits() const { return fits_; }
  CVK_HD int rows() const { return rows_; }  // of the grid, in a strip
  CVK_HD int64_t pitch() const { return pitch_; }
  // Along a column of the copy, for the first `rows` rows of the grid.
  CVK_HD TapAxis axis_of_rows(int rows) const {
    TapAxis axis = grid_.y;
    axis.grid = rows;
    axis.first_offset = 0;
    axis.extent = static_cast<int>(source_rows_);
    return axis;
  }
  // What pixel (first row of the strip, 0) reads at a tap; the next pixels of the row follow.
  CVK_HD const A* tap(int t) const { return memory_.template as<A>() + tap_memory_.template as<int64_t>()[t]; }

  // Copies what the grid rows [first, first + rows) read.
  template <class T>
  CVK_HD void fill(const T* source, int first, int rows) {
    const int64_t y0 = grid_.y.source(first, 0);
    const int64_t end = source_rows_ - int64_t{rows_ - rows} * grid_.y.source_step, plane = source_rows_ * pitch_;
    A* to = memory_.template as<A>() + lead_;
    for (int64_t i = 0; i < end; ++i, to += pitch_) {
      if (y0 + i >= 0 && y0 + i < grid_.y.extent) {
        fill_row(source + (y0 + i) * grid_.x.extent, to, plane);
      } else {
        for (int slot = 0; slot < slots_; ++slot) clear_row<isa>(filled_, to + slot * plane);
      }
    }
  }

  // The results of the first `rows` rows, to `to` with `to_row` elements from row to row. Weights: [taps along a row, along a
  // column, lanes]. By columns of vectors, the last of which begins earlier rather than end past the row.
  template <class To>
  CVK_HD void sum(const A* weights, A bias, Activation activation, int rows, To* to, int64_t to_row) const {
    const int width = grid_.x.grid;
    DepthwiseLine<isa, A, A, To> line;
    line.axis = axis_of_rows(rows);
    line.inner = {0, rows};
    line.taps_across = grid_.x.taps;
    line.across = tap_memory_.template as<int64_t>();
    line.pixel = pitch_;
    line.weights = weights;
    line.pitch = S::kLanes;
    line.lanes = S::lane_range(0, min_of(S::kLanes, width));
    line.bias = S::broadcast(bias);
    line.activation = activation;
    line.to_pixel = to_row;
    for (int64_t v = 0; v < width; v += S::kLanes) {
      const int64_t x = min_of<int64_t>(v, max_of(width - S::kLanes, 0));
      line.from = memory_.template as<A>() + x;
      line.to = to + x;
      depthwise_line(line, true);
    }
  }
  // Room for as many.
  CVK_HD A* sums() const { return sums_memory_.template as<A>(); }

 private:
  // Columns of a plane that hold pixels.
  CVK_HD int column_count(int64_t remainder) const {
    const int64_t pixels = ceil_div<int64_t>(grid_.x.extent - remainder, grid_.x.source_step);
    return static_cast<int>(max_of<int64_t>(min_of(pixels, columns_), 0));
  }
  // The column and the remainder of what a tap of pixel 0 of a row reads; the taps' planes are in the order of the first taps.
  CVK_HD int64_t column_of(int tap) const { return floor_div<int64_t>(grid_.x.source(0, tap), grid_.x.source_step); }
  CVK_HD int64_t remainder(int tap) const { return grid_.x.source(0, tap) - column_of(tap) * grid_.x.source_step; }

  // A row of every plane. Zeros up to a vector's end may be written: padding is there.
  template <class T>
  CVK_HD void fill_row(const T* from, A* to, int64_t plane) const {
    const int step = grid_.x.source_step;
    if (step == 1) return copy_row<isa>(from, filled_, to);
    if (step == 2 && slots_ == 2) {
      A *evens = to + odd_ * plane, *odds = to + (1 - odd_) * plane;
      const int extent = grid_.x.extent;
      for (int i = 0; i < filled_; i += S::kLanes) {
        EvenLanes<isa, A> pixels;
        if (extent - 2 * i >= 2 * S::kLanes) {
          pixels.low = S::load(from + 2 * i);
          pixels.high = S::load(from + 2 * i + S::kLanes);
        } else {
          pixels.load(from + 2 * i, (1u << (extent - 2 * i)) - 1u);
        }
        S::store(evens + i, pixels.parted());
        S::store(odds + i, pixels.odd());
      }
      return;
    }
    for (int slot = 0; slot < slots_; ++slot) {
      const int64_t rest = remainder(slot);
      const int count = column_count(rest);
      for (int i = 0; i < count; ++i) to[slot * plane + i] = to_acc(from[int64_t{i} * step + rest]);
    }
  }

  TapGrid grid_;
  bool fits_ = false;
  int rows_, slots_;
  int filled_;   // columns that hold pixels, of the even ones where the step is two: the others are as many or one less
  int64_t odd_;  // the remainder of the first tap's plane
  int64_t source_rows_, lead_, pitch_, columns_;
  Scratch tap_memory_, memory_, sums_memory_;
};

}  // namespace cvk
