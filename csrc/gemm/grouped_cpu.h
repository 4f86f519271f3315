// Convolutions of groups of few channels on the CPU (ResNeXt, RegNet): no gather, which would cost more than the products.
//
// What some rows of results see is copied into a window (tap_window_cpu.h), in which a tap of neighbouring pixels is a vector. A
// register tile is eight filters by three such vectors (filter_rows_cpu.h), filters as they lie in either direction; pixels are
// counted over the ends of rows, so that vectors are full in narrow maps as well. Several groups share a window where a
// channels-last pixel holds less than a vector of each.
//
// Bound: products, half a cycle of a vector for each weight of the group. Beside these, copying in and out takes 30 to 35 cycles a vector
// (16 channels in a group, 14 x 14 and 56 x 56 pixels, a Xeon): two thirds of the bound are reached.
//
// Each result's sum is taken in an order that the shape alone decides: the same bits for any number of threads or images.
#pragma once

#include <cstdint>

#include "gemm/filter_rows_cpu.h"
#include "gemm/tap_window_cpu.h"
#include "gemm/tapped_cpu.h"

namespace cvk {

// What of a phase is copied at a time. No rows: this form does not pay, or even one would be too large.
template <Isa isa, class T>
CVK_HD WindowPlan grouped_plan(const TappedProduct<T>& p) {
  // Of few pixels most of a vector would be dropped, and each of several phases copies the map for itself.
  const int64_t least = (p.phases() > 1 ? kGroupedPhaseVectors : kGroupedVectors) * Simd<isa, Acc<T>>::kLanes;
  if (!of_small_groups(p.shape) || p.phases() > kGroupedPhases || p.grid(p.phases() - 1).pixels() < least) return {};
  const int most = p.grid(0).y.grid;  // the first phase has the most
  return plan_window<isa, Acc<T>>(p.shape, most, [&](int groups) {
    int64_t rows = most;
    for (int64_t phase = 0; phase < p.phases(); ++phase) {
      TapWindow<isa, T> window;
      window.shape(p.grid(phase), groups * static_cast<int>(p.group_channels()), 1);
      rows = min_of(rows, window.wanted_rows());
    }
    return rows;
  });
}

// Pixels of the cut are rows, columns are groups.
template <class T>
CVK_HD ConvCut grouped_cut(const TappedProduct<T>& p, const WindowPlan& plan, int threads) {
  const int64_t rows = p.grid(0).y.grid;
  ConvCut cut{};
  cut.form = ConvForm::kGrouped;
  cut.block_columns = plan.groups;
  cut.column_blocks = ceil_div<int64_t>(p.shape.groups, cut.block_columns);
  const int64_t items = p.phases() * cut.column_blocks * p.shape.batch;
  const int64_t parts = max_of(ceil_div(rows, plan.rows), ceil_div<int64_t>(int64_t{kGroupedItems} * threads, items));
  cut.block_pixels = static_cast<int>(ceil_div(rows, min_of(rows, parts)));
  cut.pixel_blocks = p.shape.batch * ceil_div<int64_t>(rows, cut.block_pixels);
  return cut;
}

template <class T>
CVK_HD int64_t grouped_items(const TappedProduct<T>& p, const ConvCut& cut) {
  return p.phases() * cut.column_blocks * cut.pixel_blocks;
}

template <Isa isa, class T>
class Grouped {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kPixels = kFilterVectors * kLanes;  // of a register tile

 public:
  CVK_HD Grouped(const TappedProduct<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        places_(2 * p.group_channels() * p.shape.kernel_size() * static_cast<int64_t>(sizeof(int))),
        // A row more for what a filter alone computes twice, and a vector for what is loaded from the middle of the last.
        sums_memory_(((cut.block_columns * p.group_columns() + 1) * kPixels + kLanes) *
                     static_cast<int64_t>(sizeof(A))) {
    int64_t most = 0;
    for (int64_t phase = 0; phase < p.phases(); ++phase) {
      window_.shape(p.grid(phase), channels(), cut.block_pixels);
      most = max_of(most, window_.size());
    }
    window_.reserve(most);
    if (!std::is_same_v<T, A>) {
      const int64_t size = round_up<int64_t>(cut.block_columns * p.strides().group, kLanes);
      packed_.begin(0, cut.column_blocks, size, kGemmResidentBytes);
    }
  }
  CVK_HD ~Grouped() {}

  // In the order of rows, phases and columns: the map is near from the second of these on.
  CVK_HD void item(int64_t index) {
    const int64_t block = index % cut_.column_blocks, phase = index / cut_.column_blocks % p_.phases();
    const int64_t part = index / cut_.column_blocks / p_.phases(), parts = cut_.pixel_blocks / p_.shape.batch;
    if (phase != phase_) begin_phase(phase);
    Item item;
    item.image = part / parts;
    item.group = block * cut_.block_columns;
    item.groups = static_cast<int>(min_of<int64_t>(cut_.block_columns, p_.shape.groups - item.group));
    item.first = static_cast<int>(part % parts) * cut_.block_pixels;
    const int rows = min_of(cut_.block_pixels, grid_.y.grid - item.first);  // a later phase may have fewer
    if (rows <= 0 || grid_.x.grid == 0) return;
    const bool last = p_.shape.channels_last;
    const int64_t channel = item.group * p_.group_channels();
    const WindowSource<T> map{
        p_.source + item.image * p_.channels() * p_.source_plane() + channel * (last ? 1 : p_.source_plane()),
        item.groups * static_cast<int>(p_.group_channels()), p_.channels(), last};
    window_.copy(map, item.first, rows);
    const A* weights = weights_of(item, block);
    const int64_t end = (rows - 1) * window_.pitch() + grid_.x.grid;
    for (int64_t at = 0; at < end; at += kPixels) {
      const int pixels = static_cast<int>(min_of<int64_t>(kPixels, end - at));
      multiply(item, weights, at, pixels);
      store(item, at, pixels);
    }
  }

 private:
  struct Item {
    int64_t image, group;
    int groups, first;  // rows of the phase from `first` on
  };
  CVK_HD int channels() const { return static_cast<int>(cut_.block_columns * p_.group_channels()); }  // of a window
  CVK_HD int depth() const { return static_cast<int>(p_.group_channels()) * grid_.taps(); }

  CVK_HD void begin_phase(int64_t phase) {
    phase_ = phase;
    grid_ = p_.grid(phase);
    window_.shape(grid_, channels(), cut_.block_pixels);
    window_.clear();
    // Where the window has the weights of a filter, in their order there, and in the transposed form where they are.
    const auto strides = p_.strides();
    const bool taps_first = !p_.transposed && p_.shape.weight_channels_last;
    const int taps = grid_.taps(), channels = static_cast<int>(p_.group_channels());
    for (int i = 0; i < depth(); ++i) {
      const int c = taps_first ? i % channels : i / taps, t = taps_first ? i / channels : i % taps;
      window_places()[i] = static_cast<int>(window_.place(c, t));
      weight_places()[i] =
          static_cast<int>(c * strides.channel + kernel_of(grid_, p_.shape.kernel_width, t) * strides.tap);
    }
  }
  CVK_HD int* window_places() const { return places_.template as<int>(); }
  CVK_HD int* weight_places() const { return window_places() + p_.group_channels() * p_.shape.kernel_size(); }

  // The weights of a block of groups, which lie together, in the type of the sums.
  CVK_HD const A* weights_of(const Item& item, int64_t block) {
    const T* weights = p_.weights + item.group * p_.strides().group;
    if constexpr (std::is_same_v<T, A>) {
      return weights;
    } else {
      return packed_.get(
          block, [&](A* to) { copy_row<isa>(weights, item.groups * static_cast<int>(p_.strides().group), to); });
    }
  }

  CVK_HD A* sums() const { return sums_memory_.template as<A>(); }

  // Sums of `pixels` positions from `at` on.
  CVK_HD void multiply(const Item& item, const A* weights, int64_t at, int pixels) const {
    const int columns = static_cast<int>(p_.group_columns());
    const int64_t group = p_.group_channels() * window_.plane();
    const auto strides = p_.strides();
    for (int g = 0; g < item.groups; ++g) {
      const GemmPlaces<A> taps{window_.data() + g * group + at, window_places()};
      const A* filters = weights + g * strides.group;
      for (int j = 0, count; j < columns; j += count) {
        count = filter_rows<isa>(columns - j);
        const GemmRows<A> rows{filters + j * strides.column, count > 1 ? strides.column : 0};
        const GemmTarget<A, T> target{sums() + (g * columns + j) * filter_sums_stride<isa, A>(pixels), false, nullptr};
        // Perf: a filter's weights in the order of the depth take 3 to 8 % less time than by their places.
        if (p_.transposed) {
          multiply_filter_rows<isa>(GemmPlacedRows<A>{rows, weight_places()}, count, taps, pixels, depth(), target);
        } else {
          multiply_filter_rows<isa>(rows, count, taps, pixels, depth(), target);
        }
      }
    }
  }

  // ---- results

  CVK_HD void store(const Item& item, int64_t at, int pixels) const {
    for (int64_t y = at / window_.pitch(); y * window_.pitch() < at + pixels; ++y) {
      const int64_t row = y * window_.pitch();
      const int64_t begin = max_of(at, row), end = min_of(at + pixels, row + grid_.x.grid);
      if (begin >= end) continue;
      const int64_t pixel =
          target_pixel(grid_, p_.target_width(), item.first + static_cast<int>(y), static_cast<int>(begin - row));
      const bool last = p_.shape.channels_last;
      const int64_t filter = last ? 1 : p_.target_plane(), column = item.group * p_.group_columns();
      const int64_t apart = last ? p_.columns() : 1;
      const FilterResults<T> results{
          p_.target + item.image * p_.columns() * p_.target_plane() + column * filter + pixel * apart, filter,
          grid_.x.target_step * apart, p_.bias != nullptr ? p_.bias + column : nullptr, p_.activation};
      const int columns = item.groups * static_cast<int>(p_.group_columns()), count = static_cast<int>(end - begin);
      const int stride = filter_sums_stride<isa, A>(pixels);
      const auto from = [&](int j) { return sums() + j * stride + (begin - at); };
      if (last) {
        store_filters_turned<isa>(results, columns, count, from);
      } else {
        store_filters<isa>(results, columns, count, from);
      }
    }
  }

  const TappedProduct<T>& p_;
  const ConvCut& cut_;
  int64_t phase_ = -1;
  TapGrid grid_{};
  TapWindow<isa, T> window_;
  Scratch places_, sums_memory_;  // of a tile, by filters
  PackedBlocks<A> packed_;
};

}  // namespace cvk
