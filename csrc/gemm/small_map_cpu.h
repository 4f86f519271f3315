// Convolutions of maps of few pixels on the CPU: the weights are used as they lie.
//
// A packed weight serves all pixels of an image; where these are few, packing costs as much as a quarter of the products. Here a
// filter's weights stay where they are, contiguous along the depth, and so are the gathered pixels: each result is a dot product,
// of vectors along the depth (dot_cpu.h). The depth is cut into blocks that are contiguous in a filter, of kSmallMapDepth at
// most: some filters of a block (eight of float32 under AVX-512) stay in L1 while the pixels pass, two by two.
// float32 and float64 only: other types would be converted for each use.
//
// Each result's sum is taken in an order that the shape alone decides: the same bits for any number of threads or images.
#pragma once

#include <cstdint>

#include "gemm/dot_cpu.h"
#include "gemm/tapped_cpu.h"

namespace cvk {

// Elements of a block of the depth at most, and from row to row of pixels: an odd number of cache lines.
template <class A>
inline constexpr int kSmallMapDepth = 4096 / static_cast<int>(sizeof(A));
template <class A>
inline constexpr int kSmallMapPitch = kSmallMapDepth<A> + 64 / static_cast<int>(sizeof(A));

// The depth of a filter in blocks, each contiguous there: all taps of some channels, or all channels of some taps where the
// channels of a weight are contiguous.
template <Isa isa, class A>
class FilterBlocks {
 public:
  CVK_HD FilterBlocks(int64_t channels, int taps, bool taps_first)
      : taps_first_(taps_first), inner_(taps_first ? channels : taps), outer_(taps_first ? taps : channels) {
    constexpr int kMost = kSmallMapDepth<A>, kLanes = Simd<isa, A>::kLanes;
    inner_blocks_ = ceil_div<int64_t>(inner_, kMost);
    block_inner_ = inner_blocks_ > 1 ? round_up<int64_t>(ceil_div(inner_, inner_blocks_), kLanes) : inner_;
    const int64_t fit = max_of<int64_t>(1, kMost / block_inner_);
    const int64_t unit = !taps_first && fit >= kLanes ? kLanes : 1;
    outer_blocks_ = ceil_div<int64_t>(outer_, fit / unit * unit);
    block_outer_ = outer_blocks_ > 1 ? round_up<int64_t>(ceil_div(outer_, outer_blocks_), unit) : outer_;
  }

  CVK_HD int64_t count() const { return outer_blocks_ * inner_blocks_; }
  CVK_HD DepthBlock operator[](int64_t b) const {
    const int64_t outer = b / inner_blocks_ * block_outer_, inner = b % inner_blocks_ * block_inner_;
    const int outers = static_cast<int>(min_of(block_outer_, outer_ - outer));
    const int inners = static_cast<int>(min_of(block_inner_, inner_ - inner));
    DepthBlock block;
    block.c = taps_first_ ? inner : outer;
    block.channels = taps_first_ ? inners : outers;
    block.t = static_cast<int>(taps_first_ ? outer : inner);
    block.taps = taps_first_ ? outers : inners;
    return block;
  }
  // Of a block's first element in a filter.
  CVK_HD int64_t offset(const DepthBlock& block) const {
    return taps_first_ ? block.t * inner_ + block.c : block.c * inner_ + block.t;
  }

 private:
  bool taps_first_;
  int64_t inner_, outer_, inner_blocks_, block_inner_, outer_blocks_, block_outer_;
};

// ---- when

template <Isa isa, class T>
CVK_HD bool small_map_fits(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  return std::is_same_v<T, Acc<T>> && !p.transposed && s.out_pixels() > 0 && s.out_pixels() <= kSmallMapPixels &&
         s.group_channels() > 0 && s.kernel_size() <= kSmallMapDepth<Acc<T>> &&
         (s.kernel_size() == 1 || s.channels_last == s.weight_channels_last);
}

// What gathering an element of a pixel costs.
CVK_HD int64_t small_map_gather_cost(const ConvShape& s) {
  return s.channels_last ? kSmallMapRowCost : kSmallMapPlaneCost;
}

// Cycles of a group of one image, as tapped_cycles counts them.
template <Isa isa, class T>
CVK_HD int64_t small_map_cycles(const TappedProduct<T>& p) {
  using A = Acc<T>;
  const ConvShape& s = p.shape;
  const int64_t pixels = s.out_pixels(), depth = p.group_channels() * s.kernel_size();
  const FilterBlocks<isa, A> blocks(p.group_channels(), s.kernel_size(), s.weight_channels_last);
  // Filters that begin within a cache line: every second load is of two lines.
  const bool whole_lines = depth * static_cast<int64_t>(sizeof(A)) % 64 == 0;
  const int64_t products = whole_lines ? depth : depth * kSmallMapSplitCost / 8;
  const int64_t each = products + kSmallMapSumCost * blocks.count() + (s.channels_last ? 0 : kSmallMapTurnCost);
  return (round_up<int64_t>(pixels, 2) * p.group_columns() * each + small_map_gather_cost(s) * pixels * depth) /
         (2 * Simd<isa, A>::kLanes);
}

// Whether it takes less time than packed weights do, with `products` by tapped_cycles. Decided for one image and one thread: batch and
// threads change no bit.
template <Isa isa, class T>
CVK_HD bool small_map_pays(const TappedProduct<T>& p, int64_t products) {
  if (!small_map_fits<isa>(p)) return false;
  const ConvShape& s = p.shape;
  const int64_t depth = p.group_channels() * s.kernel_size();
  const int64_t packing = (s.channels_last ? kSmallMapPanelCost : kSmallMapCopyCost) * p.group_columns() * depth /
                          (2 * Simd<isa, Acc<T>>::kLanes);
  return small_map_cycles<isa>(p) * 8 < products * kSmallMapGain + packing * 8;
}

template <Isa isa, class T>
CVK_HD ConvCut small_map_cut(const TappedProduct<T>& p, int threads) {
  constexpr int kRows = kDotRows<isa, Acc<T>, 2>;
  const int64_t pixels = p.shape.batch * p.shape.out_pixels(), columns = p.group_columns();
  ConvCut cut{};
  cut.form = ConvForm::kSmallMap;
  cut.pixel_blocks = max_of<int64_t>(1, ceil_div<int64_t>(pixels, kSmallMapItemPixels));
  const int64_t rows = round_up<int64_t>(ceil_div(pixels, cut.pixel_blocks), GemmTile<isa, Acc<T>>::kRows);  // of sums
  cut.column_blocks = max_of<int64_t>(1, ceil_div<int64_t>(rows * columns, kSmallMapItemSums));
  const int64_t gather = small_map_gather_cost(p.shape);
  const auto time = [&](const ConvCut& next, int64_t items) {
    return items * (next.block_pixels * (next.block_columns + gather) + next.block_columns * kSmallMapWeightCost);
  };
  cut_evenly(p.shape.groups, pixels, 2, columns, kRows, threads, time, cut);
  return cut;
}

// ---- a slice of work items

template <Isa isa, class T>
class SmallMap {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  using Tile = GemmTile<isa, A>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kRows = kDotRows<isa, A, 2>;
  static constexpr int kPitch = kSmallMapPitch<A>;

 public:
  CVK_HD SmallMap(const TappedProduct<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        grid_(p.grid(0)),
        blocks_(p.group_channels(), grid_.taps(), p.shape.weight_channels_last),
        window_channels_(window_channels(grid_.taps())),
        panels_(ceil_div(cut.block_columns, Tile::kColumns)),
        pixels_(round_up(cut.block_pixels, kLanes) * int64_t{kPitch} * static_cast<int64_t>(sizeof(A))),
        sums_(ceil_div(cut.block_pixels, Tile::kRows) * panels_ * int64_t{Tile::kSize} *
              static_cast<int64_t>(sizeof(A))),
        window_(p.shape.channels_last
                    ? 0
                    : window_channels_ * grid_.taps() * int64_t{kLanes} * static_cast<int64_t>(sizeof(A))) {}
  CVK_HD ~SmallMap() {}

  CVK_HD void item(int64_t index) {
    const TapItem item = tap_item(p_, cut_, index);
    const int64_t channels = p_.group_channels(), column = item.group * p_.group_columns() + item.first_column;
    const T* map = p_.source + item.group * channels * (p_.shape.channels_last ? 1 : p_.source_plane());
    if (p_.shape.channels_last) {
      RowGatherer<isa, A, T> gatherer(map, p_.channels(), channels, item.pixels, kSmallMapDepth<A>, kPitch);
      gatherer.place(grid_, item.first_pixel, item.pixels);
      multiply(item, [&](const DepthBlock& block) { gatherer.gather(block, 0, item.pixels, pixels()); });
      store_rows<isa, A>(p_, grid_, item.first_pixel, item.pixels, column, item.width, sums(), panels_);
    } else {
      PlaneGatherer<isa, A, T> gatherer(map, p_.channels(), item.pixels);
      gatherer.place(grid_, item.first_pixel, item.pixels);
      multiply(item, [&](const DepthBlock& block) { gather_planes(gatherer, block, item.pixels); });
      store_columns(item, column);
    }
  }

 private:
  // Whole vectors, so that their taps are.
  static CVK_HD int window_channels(int taps) {
    const int fit = max_of(1, kSmallMapWindow / taps);
    return fit < kLanes ? fit : fit / kLanes * kLanes;
  }

  CVK_HD A* pixels() const { return pixels_.template as<A>(); }
  CVK_HD A* sums() const { return sums_.template as<A>(); }
  // Of pixel i and column j: those of kRows columns follow one another.
  CVK_HD A* sum_at(int i, int j) const {
    return sums() + (int64_t{i / Tile::kRows} * panels_ + j / Tile::kColumns) * Tile::kSize +
           i % Tile::kRows * Tile::kColumns + j % Tile::kColumns;
  }

  template <class Gather>
  CVK_HD void multiply(const TapItem& item, Gather&& gather) {
    const int64_t depth = p_.group_channels() * grid_.taps();
    const T* weights = p_.weights + (item.group * p_.group_columns() + item.first_column) * depth;
    for (int64_t b = 0; b < blocks_.count(); ++b) {
      const DepthBlock block = blocks_[b];
      gather(block);
      const T* filters = weights + blocks_.offset(block);
      for (int j = 0; j < item.width; j += kRows) {
        for (int i = 0; i < item.pixels; i += 2) {
          const bool both = i + 1 < item.pixels;
          A lanes[kLanes];
          S::store(lanes, dot_tile<isa, A, 2>(filters + j * depth, depth, item.width - j,
                                              pixels() + int64_t{i} * kPitch, both ? kPitch : 0, block.depth()));
          add(sum_at(i, j), lanes, b > 0);
          if (both) add(sum_at(i + 1, j), lanes + kRows, b > 0);
        }
      }
    }
  }
  static CVK_HD void add(A* to, const A* lanes, bool more) {
    for (int r = 0; r < kRows; ++r) to[r] = more ? to[r] + lanes[r] : lanes[r];
  }

  // Rows of pixels from planes: some channels at a time, turned.
  CVK_HD void gather_planes(const PlaneGatherer<isa, A, T>& gatherer, const DepthBlock& block, int count) {
    A* window = window_.template as<A>();
    DepthBlock part = block;
    for (int c = 0; c < block.channels; c += part.channels) {
      part.c = block.c + c;
      part.channels = min_of(window_channels_, block.channels - c);
      A* rows = pixels() + c * block.taps;
      for (int v = 0; v * kLanes < count; ++v, rows += kLanes * kPitch) {
        gatherer.gather(part, v, 1, kLanes, window);
        transpose_matrix<isa>(window, kLanes, rows, kPitch, part.depth(), kLanes);
      }
    }
  }

  // Results of planes: sums of some pixels and columns, turned.
  CVK_HD void store_columns(const TapItem& item, int64_t first_column) const {
    const int64_t plane = p_.target_plane();
    for (int i = 0; i < item.pixels; i += kLanes) {
      const int count = min_of(kLanes, item.pixels - i);
      const int64_t image = (item.first_pixel + i) / plane, at = (item.first_pixel + i) % plane;
      for (int j = 0; j < item.width; j += kLanes) {
        typename S::Vec block[kLanes];
        for (int k = 0; k < kLanes; ++k) block[k] = S::load(sum_at(i + min_of(k, count - 1), j));
        S::transpose(block);
        T* to = p_.target + (image * p_.columns() + first_column + j) * plane + at;
        for (int k = 0; k < min_of(kLanes, item.width - j); ++k, to += plane) {
          typename S::Vec value = block[k];
          if (p_.bias != nullptr) value = value + S::broadcast(to_acc(p_.bias[first_column + j + k]));
          value = activate(p_.activation, value);
          // A vector's pixels may be of several images.
          T* piece = to;
          int64_t end = plane - at;
          for (int lane = 0; lane < count; piece += (p_.columns() - 1) * plane, end += plane) {
            const int last = static_cast<int>(min_of<int64_t>(count, end));
            S::store_lanes(piece, value, S::lane_range(lane, last));
            lane = last;
          }
        }
      }
    }
  }

  const TappedProduct<T>& p_;
  const ConvCut& cut_;
  TapGrid grid_;
  FilterBlocks<isa, A> blocks_;
  int window_channels_, panels_;
  Scratch pixels_, sums_, window_;
};

}  // namespace cvk
