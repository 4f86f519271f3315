// 1 x 1 convolutions of planes on the CPU, and their gradients, both operands where they lie: rows are filters of contiguous depth, or
// backwards neighbours in each step of it; vectors are of neighbouring pixels, a plane apart from one step of the depth to the next.
// Nothing is packed, gathered or turned. Pixels that fill no vector are copied, or are dot products with the filters of the tile.
#pragma once

#include <cstdint>

#include "gemm/filter_rows_cpu.h"
#include "gemm/tapped_cpu.h"

namespace cvk {

// Whether the pixels of a tile stay in L2: lines a plane apart, which fall into the fewer sets the higher a power of two divides it.
template <class T>
CVK_HD bool plane_map_stays(int64_t pixels, int64_t depth) {
  const int64_t bytes = (pixels * static_cast<int64_t>(sizeof(T))) | kPlaneMapPage;
  const int64_t apart = max_of(bytes & -bytes, kPlaneMapSpread);
  return depth <= kPlaneMapDepth * kPlaneMapSpread / apart;
}

template <Isa isa, class T>
CVK_HD bool plane_map_fits(const TappedProduct<T>& p) {
  constexpr int kLanes = Simd<isa, Acc<T>>::kLanes;
  const ConvShape& s = p.shape;
  if (!std::is_same_v<T, Acc<T>> || s.channels_last || !reads_itself(p.grid(0)) || s.batch == 0 || p.columns() == 0 ||
      p.group_channels() == 0 || !plane_map_stays<T>(s.pixels(), p.group_channels())) {
    return false;
  }
  // Backwards a tile reads an even number of neighbouring weights, each step from another line, which should be near; and a vector
  // partly filled costs as much as a whole one.
  if (p.transposed) {
    return p.group_columns() % 2 == 0 && s.pixels() >= kPlaneMapBackVectors * kLanes &&
           p.group_columns() * p.group_channels() * static_cast<int64_t>(sizeof(T)) <= kPlaneMapBackBytes;
  }
  return s.pixels() >= (filters_by_dots<isa, Acc<T>>(s.pixels()) ? 1 : 2) * kLanes;
}

// Pixels are those of an image, counted in vectors.
template <Isa isa, class T>
CVK_HD ConvCut plane_map_cut(const TappedProduct<T>& p, int threads) {
  constexpr int kLanes = Simd<isa, Acc<T>>::kLanes;
  const int64_t vectors = p.shape.pixels() / kLanes, columns = p.group_columns(), images = p.shape.batch;
  ConvCut cut{};
  cut.form = ConvForm::kPlaneMap;
  cut.pixel_blocks = ceil_div<int64_t>(vectors, kPlaneMapItemVectors);
  cut.column_blocks = max_of<int64_t>(1, ceil_div<int64_t>(columns, kGemmItemColumns));
  const auto time = [&](const ConvCut& next, int64_t items) {
    return items * (next.block_pixels * kLanes * (next.block_columns + kSmallMapWeightCost) +
                    next.block_columns * kSmallMapWeightCost);
  };
  cut_evenly(p.shape.groups * images, vectors, kFilterVectors, columns, kFilterRows<isa>, threads, time, cut);
  cut.pixel_blocks *= images;
  return cut;
}

// A work item: some vectors of pixels of an image, by some filters of a group.
template <Isa isa, class T>
class PlaneMap {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kRows = kFilterRows<isa>;
  static constexpr int kDots = kDotRows<isa, A, 2>;
  static constexpr int kLine = 64 / static_cast<int>(sizeof(A));

 public:
  CVK_HD PlaneMap(const TappedProduct<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        plane_(p.shape.pixels()),
        whole_(plane_ / kLanes * kLanes),
        strides_(p.strides()),
        depth_(static_cast<int>(p.group_channels())),
        rest_(static_cast<int>(plane_ - whole_)),
        turns_(!p.transposed && filters_by_dots<isa, A>(plane_)),
        pitch_(round_up(depth_, 2 * kLine) + kLine),
        blocks_(depth_, 1),
        sums_(int64_t{kRows} * kFilterVectors * kLanes * static_cast<int64_t>(sizeof(A))),
        copy_(int64_t{turns_ ? rest_ * pitch_ : depth_ * kLanes} * static_cast<int64_t>(sizeof(A))) {}
  CVK_HD ~PlaneMap() {}

  CVK_HD void item(int64_t index) {
    const int64_t blocks = cut_.pixel_blocks / p_.shape.batch, image = index % cut_.pixel_blocks / blocks;
    const int64_t key = index / cut_.pixel_blocks, first_column = key % cut_.column_blocks * cut_.block_columns;
    const int64_t group = key / cut_.column_blocks, column = group * p_.group_columns() + first_column;
    Item item;
    item.width = static_cast<int>(min_of<int64_t>(cut_.block_columns, p_.group_columns() - first_column));
    item.filters = p_.weights + group * strides_.group + first_column * strides_.column;
    item.bias = p_.bias != nullptr ? p_.bias + column : nullptr;
    item.pixels = p_.source + (image * p_.channels() + group * depth_) * plane_;
    item.target = p_.target + (image * p_.columns() + column) * plane_;
    const int64_t block = int64_t{cut_.block_pixels} * kLanes, first = index % blocks * block;
    const int64_t end = min_of(first + block, whole_);
    for (int64_t i = first; i < end; i += kFilterVectors * kLanes) multiply(item, i, end);
    activate_rows(item, first, end == whole_ ? plane_ : end);
  }

 private:
  struct Item {
    const T *filters, *bias, *pixels;  // of the item's first filter, of the group's first channel
    T* target;
    int width;  // filters
  };

  CVK_HD A* copy() const { return copy_.template as<A>(); }

  // Up to a tile of pixels from `first` on; the last ones go with those before them.
  CVK_HD void multiply(const Item& item, int64_t first, int64_t end) {
    const int pixels = static_cast<int>(min_of<int64_t>(kFilterVectors * kLanes, end - first));
    const bool ends = rest_ > 0 && first + pixels == whole_;
    if (ends) copy_rest(item.pixels + whole_);
    for (int j = 0, count; j < item.width; j += count) {
      count = filter_rows<isa>(item.width - j);
      multiply_tile(item, j, count, {item.pixels + first, plane_}, first, pixels);
      if (!ends) continue;
      if (turns_) {
        multiply_dots(item, j, count);
      } else {
        multiply_tile(item, j, count, {copy(), kLanes}, whole_, rest_);
      }
    }
  }

  // Pixels past the last vector: each a row, or padded to one.
  CVK_HD void copy_rest(const T* from) {
    if (turns_) {
      transpose_matrix<isa>(from, plane_, copy(), pitch_, depth_, rest_);
      return;
    }
    for (int64_t c = 0; c < depth_; ++c) S::store(copy() + c * kLanes, S::load_partial(from + c * plane_, rest_));
  }

  // Filters [j, j + count) by vectors of a panel; results for `pixels` pixels from `first` on.
  CVK_HD void multiply_tile(const Item& item, int j, int count, const GemmPanel<A>& panel, int64_t first, int pixels) {
    const GemmFinish<T> finish{item.target + j * plane_ + first, plane_, item.bias != nullptr ? item.bias + j : nullptr,
                               true, p_.activation == Activation::kRelu};
    for (int64_t b = 0; b < blocks_.count(); ++b) {
      const DepthBlock block = blocks_[b];
      const GemmTarget<A, T> target{sums_.template as<A>(), b > 0, b + 1 < blocks_.count() ? nullptr : &finish};
      const T* filters = item.filters + j * strides_.column + block.c * strides_.channel;
      const GemmPanel<A> part{panel.at + block.c * panel.stride, panel.stride};
      if (p_.transposed) {
        multiply_filter_rows<isa>(GemmColumns<A>{filters, strides_.channel}, count, part, pixels, block.channels,
                                  target);
      } else {
        multiply_filters<isa>(filters, depth_, count, part, pixels, block.channels, target);
      }
    }
  }

  // The last pixels, in rows.
  CVK_HD void multiply_dots(const Item& item, int first, int count) const {
    for (int j = 0; j < count; j += kDots) {
      const T* filters = item.filters + int64_t{first + j} * depth_;
      const T* bias = item.bias != nullptr ? item.bias + first + j : nullptr;
      T* to = item.target + (first + j) * plane_ + whole_;
      const int rows = min_of(kDots, count - j);
      for (int i = 0; i < rest_; i += 2) {
        const int both = min_of(2, rest_ - i);
        A lanes[kLanes];
        S::store(lanes, dot_tile<isa, A, 2>(filters, depth_, rows, copy() + i * pitch_, both > 1 ? pitch_ : 0, depth_));
        for (int r = 0; r < rows; ++r) {
          for (int k = 0; k < both; ++k) {
            const A sum = lanes[k * kDots + r];
            to[r * plane_ + i + k] = bias != nullptr ? sum + bias[r] : sum;
          }
        }
      }
    }
  }

  // What tiles leave of the activation: ReLU of the last pixels, any other of all.
  CVK_HD void activate_rows(const Item& item, int64_t first, int64_t end) const {
    if (p_.activation == Activation::kNone) return;
    if (p_.activation == Activation::kRelu) first = max_of(first, whole_);
    for (int j = 0; j < item.width; ++j) {
      T* row = item.target + j * plane_;
      for (int64_t i = first; i < end; i += kLanes) {
        const int count = static_cast<int>(min_of<int64_t>(kLanes, end - i));
        S::store_partial(row + i, activate(p_.activation, S::load_partial(row + i, count)), count);
      }
    }
  }

  const TappedProduct<T>& p_;
  const ConvCut& cut_;
  int64_t plane_, whole_;  // pixels of a plane, and of its whole vectors
  typename TappedProduct<T>::Strides strides_;
  int depth_, rest_;
  bool turns_;  // the rest, into rows `pitch_` apart: an odd number of cache lines
  int pitch_;
  DepthBlocks<isa, A> blocks_;
  Scratch sums_, copy_;
};

}  // namespace cvk
