// Convolutions of maps of few pixels on the CPU: the weights are used as they lie.
//
// A packed weight serves all pixels of an image; where these are few, packing costs as much as a quarter of the products. Here a
// filter's weights stay where they are, contiguous along the depth, as the rows of a tile (filter_rows_cpu.h), and pixels are
// gathered into panels of three vectors, in the order that the weights have. The depth is cut into blocks that are contiguous in a
// filter, of kSmallMapDepth at most: some filters of a block stay in L1 while the panels of an item, which stay in L2, pass.
// Up to half a vector of pixels past an image's last one are rows of their own, whose results are dot products with the same
// filters (dot_cpu.h).
// float32 and float64 only: other types would be converted for each use.
//
// Each result's sum is taken in an order that the shape alone decides: the same bits for any number of threads or images.
#pragma once

#include <cstdint>

#include "gemm/dot_cpu.h"
#include "gemm/filter_rows_cpu.h"
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
  CVK_HD int64_t depth() const { return inner_ * outer_; }
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

// How the pixels of an image are dealt out: vectors of them, the last perhaps not full, by three to a panel; the rest are rows.
struct SmallMapImage {
  int plane, whole, rest, panels;  // `whole` pixels are in vectors
};
template <Isa isa, class T>
CVK_HD SmallMapImage small_map_image(const TappedProduct<T>& p) {
  constexpr int kLanes = Simd<isa, Acc<T>>::kLanes;
  const ConvShape& s = p.shape;
  SmallMapImage image{};
  image.plane = static_cast<int>(s.out_pixels());
  // Rows of channels-last pixels are copied tap by tap: their order is the filters' only where that is channels-last as well.
  const bool same_order = !s.channels_last || s.weight_channels_last || s.kernel_size() == 1;
  image.rest = same_order && filters_by_dots<isa, Acc<T>>(image.plane) ? image.plane % kLanes : 0;
  image.whole = image.plane - image.rest;
  image.panels = max_of(1, ceil_div(image.whole, kFilterVectors * kLanes));
  return image;
}

// ---- when

template <Isa isa, class T>
CVK_HD bool small_map_fits(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  return std::is_same_v<T, Acc<T>> && !p.transposed && s.out_pixels() > 0 && s.out_pixels() <= kSmallMapPixels &&
         s.group_channels() > 0 && s.group_filters() > 0 && s.kernel_size() <= kSmallMapDepth<Acc<T>>;
}

// Cycles of a group of one image, as tapped_cycles counts them.
template <Isa isa, class T>
CVK_HD int64_t small_map_cycles(const TappedProduct<T>& p) {
  constexpr int kLanes = Simd<isa, Acc<T>>::kLanes;
  const SmallMapImage image = small_map_image<isa>(p);
  const int64_t depth = p.group_channels() * p.shape.kernel_size(), columns = p.group_columns();
  const int64_t blocks =
      FilterBlocks<isa, Acc<T>>(p.group_channels(), p.shape.kernel_size(), p.shape.weight_channels_last).count();
  const int64_t products = columns * (round_up(image.whole, kLanes) * depth +
                                      image.rest * (depth * kSmallMapDotCost / 4 + kSmallMapSumCost * blocks));
  return (products + kSmallMapGatherCost * image.plane * depth + kSmallMapWeightCost * columns * depth +
          kSmallMapResultCost * image.plane * columns) /
         (2 * kLanes);
}

// Whether it takes less time than packed weights do, with `products` by tapped_cycles. Decided for one image and one thread: batch and
// threads change no bit.
template <Isa isa, class T>
CVK_HD bool small_map_pays(const TappedProduct<T>& p, int64_t products) {
  const int64_t taps = p.shape.kernel_size(), depth = p.group_channels() * taps;
  const int64_t packing = kSmallMapPackCost * p.group_columns() * depth;
  const int64_t gathering = taps > 1 ? kSmallMapGatherCost * p.shape.out_pixels() * depth : 0;
  return small_map_fits<isa>(p) &&
         small_map_cycles<isa>(p) < products + (packing + gathering) / (2 * Simd<isa, Acc<T>>::kLanes);
}

template <Isa isa, class T>
CVK_HD ConvCut small_map_cut(const TappedProduct<T>& p, int threads) {
  constexpr int kColumns = kFilterVectors * Simd<isa, Acc<T>>::kLanes;
  const int64_t panels = p.shape.batch * small_map_image<isa>(p).panels, columns = p.group_columns();
  ConvCut cut{};
  cut.form = ConvForm::kSmallMap;
  cut.pixel_blocks = max_of<int64_t>(1, ceil_div<int64_t>(panels, kSmallMapItemPanels));
  const int64_t pixels = ceil_div(panels, cut.pixel_blocks) * kColumns;
  cut.column_blocks = max_of<int64_t>(1, ceil_div<int64_t>(pixels * columns, kSmallMapItemSums));
  const auto time = [&](const ConvCut& next, int64_t items) {
    return items * (next.block_pixels * kColumns * (next.block_columns + kSmallMapGatherCost) +
                    next.block_columns * kSmallMapWeightCost);
  };
  cut_evenly(p.shape.groups, panels, 1, columns, kFilterRows<isa>, threads, time, cut);
  return cut;
}

// ---- a slice of work items

template <Isa isa, class T>
class SmallMap {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kRows = kFilterRows<isa>;
  static constexpr int kDots = kDotRows<isa, A, 2>;
  static constexpr int kColumns = kFilterVectors * kLanes;  // of a panel
  static constexpr int kPitch = kSmallMapPitch<A>;

 public:
  CVK_HD SmallMap(const TappedProduct<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        grid_(p.grid(0)),
        blocks_(p.group_channels(), grid_.taps(), p.shape.weight_channels_last),
        image_(small_map_image<isa>(p)),
        tiles_(ceil_div(cut.block_columns, kRows)),
        panels_(int64_t{cut.block_pixels} * kSmallMapDepth<A> * kColumns * static_cast<int64_t>(sizeof(A))),
        sums_(int64_t{cut.block_pixels} * tiles_ * kRows * kColumns * static_cast<int64_t>(sizeof(A))),
        rows_(cut.block_pixels * image_.rest * int64_t{kPitch} * static_cast<int64_t>(sizeof(A))),
        row_sums_(cut.block_pixels * image_.rest * int64_t{tiles_} * kRows * static_cast<int64_t>(sizeof(A))),
        window_(image_.rest > 0 && !p.shape.channels_last
                    ? kSmallMapDepth<A> * int64_t{kLanes} * static_cast<int64_t>(sizeof(A))
                    : 0),
        places_(int64_t{kLanes} * static_cast<int64_t>(sizeof(GridPixel))),
        planes_(p.source, p.channels(), p.shape.channels_last ? 0 : kLanes) {}
  CVK_HD ~SmallMap() {}

  CVK_HD void item(int64_t index) {
    const int64_t key = index / cut_.pixel_blocks, group = key / cut_.column_blocks;
    const int64_t first_column = key % cut_.column_blocks * cut_.block_columns, depth = blocks_.depth();
    Item item;
    item.width = static_cast<int>(min_of<int64_t>(cut_.block_columns, p_.group_columns() - first_column));
    item.column = group * p_.group_columns() + first_column;
    item.first = index % cut_.pixel_blocks * cut_.block_pixels;
    item.count = static_cast<int>(min_of<int64_t>(cut_.block_pixels, p_.shape.batch * image_.panels - item.first));
    item.map = p_.source + group * p_.group_channels() * (p_.shape.channels_last ? 1 : p_.source_plane());
    planes_.set_map(item.map);
    const T* weights = p_.weights + item.column * depth;
    for (int64_t b = 0; b < blocks_.count(); ++b) {
      const DepthBlock block = blocks_[b];
      for (int k = 0; k < item.count; ++k) gather(item, block, k);
      multiply(item, weights + blocks_.offset(block), block.depth(), b > 0);
    }
    for (int k = 0; k < item.count; ++k) store(item, k);
  }

 private:
  struct Item {
    const T* map;           // of the group
    int64_t column, first;  // filter of all groups, panel of all images
    int width, count;       // filters, panels
  };
  // The pixels of a panel. The last of an image has the rows.
  struct Panel {
    int64_t image;
    int first, pixels, rest;
  };
  CVK_HD Panel panel(int64_t index) const {
    Panel panel;
    panel.image = index / image_.panels;
    const int at = static_cast<int>(index % image_.panels);
    panel.first = at * kColumns;
    panel.pixels = min_of(kColumns, image_.whole - panel.first);
    panel.rest = at == image_.panels - 1 ? image_.rest : 0;
    return panel;
  }
  // How many rows come before panel `k` of an item.
  CVK_HD int rows_before(const Item& item, int k) const {
    return static_cast<int>((item.first + k) / image_.panels - item.first / image_.panels) * image_.rest;
  }

  CVK_HD A* panel_at(int k) const { return panels_.template as<A>() + int64_t{k} * kSmallMapDepth<A> * kColumns; }
  CVK_HD A* row_at(int i) const { return rows_.template as<A>() + int64_t{i} * kPitch; }
  // Of panel k and the tile of filter j, and of row i.
  CVK_HD A* sums_at(int k, int j) const {
    return sums_.template as<A>() + (int64_t{k} * tiles_ + j / kRows) * kRows * kColumns;
  }
  CVK_HD A* row_sums_at(int i) const { return row_sums_.template as<A>() + int64_t{i} * tiles_ * kRows; }

  CVK_HD void multiply(const Item& item, const T* filters, int depth, bool add) {
    const int64_t pitch = blocks_.depth();
    const int rows = rows_before(item, item.count);
    for (int j = 0, count; j < item.width; j += count) {
      count = filter_rows<isa>(item.width - j);
      for (int k = 0; k < item.count; ++k) {
        const Panel at = panel(item.first + k);
        if (at.pixels == 0) continue;
        multiply_filters<isa>(filters + j * pitch, pitch, count, GemmPanel<A>{panel_at(k), kColumns}, at.pixels, depth,
                              GemmTarget<A, T>{tile_at(k, j, at.pixels), add, nullptr});
      }
      for (int i = 0; i < rows; i += 2) multiply_rows(filters, j, count, i, i + 1 < rows, depth, add);
    }
  }
  // Where a tile's sums begin, of filter j: tiles of few filters lie within that of eight.
  CVK_HD A* tile_at(int k, int j, int pixels) const {
    return sums_at(k, j) + j % kRows * filter_sums_stride<isa, A>(pixels);
  }

  CVK_HD void multiply_rows(const T* filters, int first, int count, int i, bool both, int depth, bool add) const {
    const int64_t pitch = blocks_.depth();
    for (int j = first; j < first + count; j += kDots) {
      A lanes[kLanes];
      S::store(lanes,
               dot_tile<isa, A, 2>(filters + j * pitch, pitch, first + count - j, row_at(i), both ? kPitch : 0, depth));
      for (int k = 0; k < (both ? 2 : 1); ++k) {
        A* to = row_sums_at(i + k) + j;
        for (int r = 0; r < min_of(kDots, first + count - j); ++r) {
          to[r] = add ? to[r] + lanes[k * kDots + r] : lanes[k * kDots + r];
        }
      }
    }
  }

  // ---- pixels

  CVK_HD void gather(const Item& item, const DepthBlock& block, int k) {
    const Panel at = panel(item.first + k);
    A* rows = row_at(rows_before(item, k));
    for (int i = 0; i < at.pixels; i += kLanes) {
      gather_vector(item, block, at, at.first + i, min_of(kLanes, at.pixels - i), panel_at(k) + i, kColumns);
    }
    if (at.rest == 0) return;
    if (p_.shape.channels_last) {
      gather_rows(item, block, at, rows);
    } else {
      A* window = window_.template as<A>();
      gather_vector(item, block, at, image_.whole, at.rest, window, kLanes);
      transpose_matrix<isa>(window, kLanes, rows, kPitch, block.depth(), at.rest);
    }
  }

  // Up to a vector of pixels; element e of the block, as it lies in a filter, at to + e * stride.
  CVK_HD void gather_vector(const Item& item, const DepthBlock& block, const Panel& at, int first, int count, A* to,
                            int stride) {
    const bool taps_first = p_.shape.weight_channels_last;
    if (!p_.shape.channels_last) {
      planes_.place(grid_, at.image * image_.plane + first, count);
      planes_.gather(block, 0, 1, stride, to);
      return;
    }
    place(at, first, count);
    const int64_t tap_step = taps_first ? block.channels : 1, channel_step = taps_first ? 1 : block.taps;
    for (int t = 0; t < block.taps; ++t) {
      const T* from[kLanes];  // null: outside
      for (int i = 0; i < kLanes; ++i) from[i] = i < count ? pixel(item, block, at, i, t) : nullptr;
      A* out = to + t * tap_step * stride;
      for (int c = 0; c < block.channels; c += kLanes) {
        const int channels = min_of(kLanes, block.channels - c);
        typename S::Vec values[kLanes];
        if (channels == kLanes) {
          for (int i = 0; i < kLanes; ++i) values[i] = from[i] != nullptr ? S::load(from[i] + c) : typename S::Vec{};
        } else {
          for (int i = 0; i < kLanes; ++i) {
            values[i] = from[i] != nullptr ? S::load_partial(from[i] + c, channels) : typename S::Vec{};
          }
        }
        S::transpose(values);
        for (int i = 0; i < channels; ++i) S::store(out + (c + i) * channel_step * stride, values[i]);
      }
    }
  }

  // Channels-last: the pixels that are rows.
  CVK_HD void gather_rows(const Item& item, const DepthBlock& block, const Panel& at, A* to) {
    place(at, image_.whole, at.rest);
    for (int t = 0; t < block.taps; ++t) {
      for (int i = 0; i < at.rest; ++i) {
        const T* from = pixel(item, block, at, i, t);
        A* out = to + int64_t{i} * kPitch + t * block.channels;
        if (from != nullptr) {
          copy_row<isa>(from, block.channels, out);
        } else {
          clear_row<isa>(block.channels, out);
        }
      }
    }
  }

  // Up to a vector of pixels of an image, for pixel().
  CVK_HD void place(const Panel& at, int first, int count) {
    GridWalk walk(grid_, at.image * image_.plane + first);
    for (int i = 0; i < count; ++i, walk.advance(1)) places_.template as<GridPixel>()[i] = *walk;
  }
  // Channels-last: the first channel that a block wants of a tap of one of them, or null.
  CVK_HD const T* pixel(const Item& item, const DepthBlock& block, const Panel& at, int i, int t) const {
    const GridPixel& place = places_.template as<GridPixel>()[i];
    const int64_t y = grid_.y.source(place.y, (block.t + t) / grid_.x.taps);
    const int64_t x = grid_.x.source(place.x, (block.t + t) % grid_.x.taps);
    if (y < 0 || y >= grid_.y.extent || x < 0 || x >= grid_.x.extent) return nullptr;
    return item.map + ((at.image * grid_.y.extent + y) * grid_.x.extent + x) * p_.channels() + block.c;
  }

  // ---- results

  CVK_HD void store(const Item& item, int k) const {
    const Panel at = panel(item.first + k);
    const bool last = p_.shape.channels_last;
    FilterResults<T> results{
        p_.target + at.image * image_.plane * p_.columns() + item.column * (last ? 1 : image_.plane),
        last ? 1 : image_.plane, last ? p_.columns() : 1, p_.bias != nullptr ? p_.bias + item.column : nullptr,
        p_.activation};
    for (int i = 0; i < at.rest; ++i) {
      const A* sums = row_sums_at(rows_before(item, k) + i);
      for (int j = 0; j < item.width; j += kLanes) {
        const int count = min_of(kLanes, item.width - j);
        const typename S::Vec value = finish_filters<isa>(results, S::load_partial(sums + j, count), j, count);
        T* to = results.to + (image_.whole + i) * results.pixel;
        if (last) {
          S::store_partial(to + j, value, count);
        } else {
          for (int r = 0; r < count; ++r) to[int64_t{j + r} * image_.plane] = value[r];
        }
      }
    }
    results.to += at.first * results.pixel;
    const auto sums = [&](int j) { return tile_at(k, j, at.pixels); };
    if (last) {
      store_filters_turned<isa>(results, item.width, at.pixels, sums);
    } else {
      store_filters<isa>(results, item.width, at.pixels, sums);
    }
  }

  const TappedProduct<T>& p_;
  const ConvCut& cut_;
  TapGrid grid_;
  FilterBlocks<isa, A> blocks_;
  SmallMapImage image_;
  int tiles_;  // of an item's filters
  Scratch panels_, sums_, rows_, row_sums_, window_, places_;
  PlaneGatherer<isa, A, T> planes_;
};

}  // namespace cvk
