// Convolutions of maps of few channels on the CPU: the first layers of networks, from colours to features.
//
// Where so few multiplications share a gathered pixel, gathering costs as much as they do. Here a strip of the map is copied, with
// its zeros around it, and the register tile reads its operand there, each pixel of the strip for all windows that see it.
//
//   channels-last  Taps that are neighbours in a row are neighbours in memory: a row of a pixel's window is one run, and the next
//                  pixel's lies a few elements further. Pixels are the rows of the product, as in tapped_cpu.h.
//   planes         A tap of neighbouring pixels is a vector of the strip, wherever it begins. With a stride of two, the strip holds
//                  every second pixel of a row, then the others. Pixels are the columns.
#pragma once

#include <cstdint>

#include "common/opaque.h"
#include "gemm/tapped_cpu.h"

namespace cvk {

// f(pitch) for the elements from pixel to pixel, if the tile has been compiled for as many; else false.
template <class F>
CVK_HD bool with_thin_pitch(int64_t pitch, F&& f) {
  switch (pitch) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 6:
      return f(std::integral_constant<int, 6>{});
    case 8:
      return f(std::integral_constant<int, 8>{});
    default:
      return false;
  }
}

// The strip of a work item: rows of source pixels, each `row_size` elements; channels-last one run, planes a run for each channel
// (with a stride of two, two), `pitch` apart.
template <Isa isa, class A>
struct ThinStrip {
  using Tile = GemmTile<isa, A>;
  CVK_HD explicit ThinStrip(const ConvShape& s)
      : unit(s.channels_last ? Tile::kRows : Tile::kColumns),
        most_pixels(kThinMapTiles * unit),
        rows((kThinMapRows - 1) * int64_t{s.stride_y} + int64_t{s.kernel_height - 1} * s.dilation_y + 1),
        width((round_up<int64_t>(min_of(s.out_width, most_pixels), unit) - 1) * s.stride_x +
              int64_t{s.kernel_width - 1} * s.dilation_x + 1) {
    const int64_t run = s.channels_last ? width * s.channels : ceil_div<int64_t>(width, s.stride_x);
    pitch = round_up<int64_t>(run, Tile::kLanes) + Tile::kLanes;
    row_size = s.channels_last ? pitch : s.channels * s.stride_x * pitch;
    x_blocks = ceil_div<int64_t>(s.out_width, most_pixels);
    y_blocks = ceil_div<int64_t>(s.out_height, kThinMapRows);
  }
  CVK_HD bool fits() const {
    return rows <= kThinMapStrip && row_size <= kThinMapStrip && rows * row_size <= kThinMapStrip;
  }

  int unit, most_pixels;  // pixels of a register tile, and of a work item's width at most
  int64_t rows, width, pitch, row_size;
  int64_t x_blocks, y_blocks;  // work items of an image
};

template <Isa isa, class T>
CVK_HD bool thin_map_fits(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  return !p.transposed && s.groups == 1 && s.channels > 0 && s.channels <= kThinMapChannels && s.stride_x <= 2 &&
         s.kernel_size() <= GemmTile<isa, Acc<T>>::kDepth &&
         s.channels * s.kernel_size() <= GemmTile<isa, Acc<T>>::kDepth && ThinStrip<isa, Acc<T>>(s).fits() &&
         (!s.channels_last ||
          (s.dilation_x == 1 && with_thin_pitch(s.channels * s.stride_x, [](auto) { return true; })));
}

// Whether it takes less time than a gather does: tiles hold pixels of one row only, so narrow maps leave much of them empty. Counted
// for one image, as tapped_cycles counts `products`.
template <Isa isa, class T>
CVK_HD bool thin_map_pays(const TappedProduct<T>& p, int64_t products) {
  if (!thin_map_fits<isa>(p)) return false;
  using Tile = GemmTile<isa, Acc<T>>;
  const ConvShape& s = p.shape;
  const ThinStrip<isa, Acc<T>> strip(s);
  const int64_t depth = s.channels * s.kernel_size(), columns = p.columns(), pixels = s.out_pixels();
  const int64_t row = s.channels_last
                          ? round_up<int64_t>(s.out_width, Tile::kRows) * ceil_div<int64_t>(columns, Tile::kLanes)
                          : round_up<int64_t>(columns, 2) * ceil_div<int64_t>(s.out_width, Tile::kLanes);
  const int64_t copy =
      strip.rows * (strip.row_size / Tile::kLanes * kThinMapCopyCost + kThinMapRowCost / 4) * strip.x_blocks;
  const int64_t here = s.out_height * (depth * row / 2 + kThinMapRowCost) + strip.y_blocks * copy;
  const int64_t gather =
      s.channels_last ? kThinMapRunCost * s.kernel_height : depth * kThinMapVectorCost / Tile::kLanes;
  return here < products + pixels * gather;
}

// The sums of a tile's rows of pixels, `pitch` elements apart in the strip; `runs` of `length` for each of them, `stride` apart.
// The first `count` rows and `columns` columns are finished, or all left as sums.
template <Isa isa, class T, int pitch, int vecs>
__attribute__((noinline)) void thin_row_tile(const Acc<T>* left, int64_t stride, int runs, int length,
                                             const Acc<T>* right, const GemmTarget<Acc<T>, T>& target, int count,
                                             int columns) {
  using S = Simd<isa, Acc<T>>;
  using Tile = GemmTile<isa, Acc<T>>;
  typename S::Vec sum[Tile::kRows][vecs];
  clear_sums<isa, Acc<T>>(sum);
  for (int run = 0; run < runs; ++run, left += stride) {
    const Acc<T>* at = left;
    for (int k = 0; k < length; ++k, ++at, right += Tile::kColumns) {
      opaque_pointer(at);  // pixel i + 1 sees after `pitch` steps what pixel i does now
      add_products<isa>(sum, right, [=](int i) { return at[i * pitch]; });
    }
  }
  put_sums<isa>(sum, target, count, columns);
}

// A work item: some rows of pixels of an image, a part of their width, by some columns.
template <Isa isa, class T>
class ThinMap {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  using Tile = GemmTile<isa, A>;
  static constexpr int kLanes = S::kLanes;

 public:
  CVK_HD ThinMap(const TappedProduct<T>& p, const ConvCut& cut)
      : p_(p),
        s_(p.shape),
        grid_(correlation_grid(p.shape)),
        pixel_blocks_(cut.pixel_blocks),
        block_columns_(cut.block_columns),
        depth_(static_cast<int>(s_.channels) * s_.kernel_size()),
        tiles_(ceil_div(block_columns_, s_.channels_last ? Tile::kColumns : Tile::kRows)),
        strip_(s_),
        strip_memory_(strip_.rows * strip_.row_size * static_cast<int64_t>(sizeof(A))),
        sums_(int64_t{Tile::kSize} * tiles_ * static_cast<int64_t>(sizeof(A))),
        places_(s_.channels_last ? 0 : depth_ * static_cast<int64_t>(sizeof(int))) {
    if (!s_.channels_last) place_taps();
  }
  CVK_HD ~ThinMap() {}

  CVK_HD void item(int64_t index) {
    const int64_t rest = index % pixel_blocks_;
    Item item;
    item.column = index / pixel_blocks_ * block_columns_;
    item.columns = static_cast<int>(min_of<int64_t>(block_columns_, p_.columns() - item.column));
    item.x = static_cast<int>(rest % strip_.x_blocks) * strip_.most_pixels;
    item.y = static_cast<int>(rest / strip_.x_blocks % strip_.y_blocks) * kThinMapRows;
    item.image = rest / strip_.x_blocks / strip_.y_blocks;
    item.width = min_of(strip_.most_pixels, s_.out_width - item.x);
    item.height = min_of(kThinMapRows, s_.out_height - item.y);
    const int64_t weights_size =
        s_.channels_last ? int64_t{tiles_} * Tile::kColumns * depth_ : int64_t{tiles_} * Tile::kRows * Tile::kPitch;
    packed_.begin(item.column, 1, weights_size, kGemmResidentBytes);
    const A* weights = packed_.get(0, [&](A* to) {
      const DepthBlock all{0, static_cast<int>(s_.channels), 0, s_.kernel_size()};
      const T* from = p_.weights + item.column * p_.strides().column;
      if (s_.channels_last) {
        pack_weight_panels<isa>(p_, grid_, from, all, item.columns, to);
      } else {
        pack_weight_rows<isa>(p_, grid_, from, all, item.columns, Tile::kPitch, to);
      }
    });
    fill_strip(item);
    if (s_.channels_last) {
      with_thin_pitch(s_.channels * s_.stride_x, [&](auto pitch) {
        multiply_rows_of<decltype(pitch)::value>(item, weights);
        return true;
      });
    } else {
      multiply_columns_of(item, weights);
    }
  }

 private:
  struct Item {
    int64_t image, column;
    int columns, y, x, height, width;
  };

  CVK_HD A* strip() const { return strip_memory_.template as<A>(); }
  CVK_HD A* sums() const { return sums_.template as<A>(); }

  // Source pixels that the item's windows see, zeros where there are none.
  CVK_HD void fill_strip(const Item& item) {
    const int64_t top = int64_t{item.y} * s_.stride_y - s_.pad_top;
    const int64_t left = int64_t{item.x} * s_.stride_x - s_.pad_left;
    const int64_t begin = min_of(max_of<int64_t>(0, -left), strip_.width);
    const int64_t end = max_of(begin, min_of(strip_.width, s_.width - left));
    A* to = strip();
    for (int64_t y = top; y < top + strip_.rows; ++y, to += strip_.row_size) {
      if (y < 0 || y >= s_.height || begin == end) {
        for (int64_t i = 0; i < strip_.row_size; i += kLanes) S::store(to + i, typename S::Vec{});
      } else if (s_.channels_last) {
        const T* from = p_.source + ((item.image * s_.height + y) * s_.width + left) * s_.channels;
        fill_run(from, begin * s_.channels, end * s_.channels, strip_.width * s_.channels, to);
      } else {
        for (int64_t c = 0; c < s_.channels; ++c) {
          const T* from = p_.source + ((item.image * s_.channels + c) * s_.height + y) * s_.width + left;
          A* plane = to + c * s_.stride_x * strip_.pitch;
          if (s_.stride_x == 1) {
            fill_run(from, begin, end, strip_.width, plane);
          } else {
            fill_halves(from, begin, end, plane);
          }
        }
      }
    }
  }
  // Elements [begin, end) of `length`, the others 0.
  static CVK_HD void fill_run(const T* from, int64_t begin, int64_t end, int64_t length, A* to) {
    clear_row<isa>(static_cast<int>(begin), to);
    copy_row<isa>(from + begin, static_cast<int>(end - begin), to + begin);
    clear_row<isa>(static_cast<int>(length - end), to + end);
  }
  // The same with every second element in a row, and the others in the next.
  CVK_HD void fill_halves(const T* from, int64_t begin, int64_t end, A* to) const {
    for (int half = 0; half < 2; ++half, to += strip_.pitch) {
      for (int64_t i = 0; 2 * i + half < strip_.width; i += kLanes) {
        const int64_t first = (begin - half + 1) / 2 - i, last = (end - half + 1) / 2 - i;
        const int low = static_cast<int>(min_of<int64_t>(max_of<int64_t>(first, 0), kLanes));
        const int high = static_cast<int>(min_of<int64_t>(max_of<int64_t>(last, low), kLanes));
        EvenLanes<isa, A> even;
        even.load(from + 2 * i + half, even_bits(S::lane_range(low, high)));
        S::store(to + i, even.parted());
      }
    }
  }

  // Planes: where the first of a row's pixels sees each tap, in the order of the weights' rows.
  CVK_HD void place_taps() {
    int* places = places_.template as<int>();
    for (int64_t c = 0; c < s_.channels; ++c) {
      for (int i = 0; i < s_.kernel_height; ++i) {
        for (int j = 0; j < s_.kernel_width; ++j) {
          const int64_t x = int64_t{j} * s_.dilation_x;
          *places++ = static_cast<int>(int64_t{i} * s_.dilation_y * strip_.row_size +
                                       (c * s_.stride_x + x % s_.stride_x) * strip_.pitch + x / s_.stride_x);
        }
      }
    }
  }

  template <int pitch>
  CVK_HD void multiply_rows_of(const Item& item, const A* panels) {
    const bool finishes = finishes_in_registers(p_, grid_);
    const int length = s_.kernel_width * static_cast<int>(s_.channels);
    for (int y = 0; y < item.height; ++y) {
      const A* row = strip() + y * s_.stride_y * strip_.row_size;
      for (int x = 0; x < item.width; x += Tile::kRows, row += Tile::kRows * pitch) {
        const int count = min_of(Tile::kRows, item.width - x);
        const int64_t pixel = (item.image * s_.out_height + item.y + y) * s_.out_width + item.x + x;
        for (int j = 0; j < item.columns; j += Tile::kColumns) {
          const int part = min_of(Tile::kColumns, item.columns - j);
          const int64_t column = item.column + j;
          const GemmFinish<T> finish{p_.target + pixel * p_.columns() + column, p_.columns(),
                                     p_.bias != nullptr ? p_.bias + column : nullptr, false,
                                     p_.activation == Activation::kRelu};
          const GemmTarget<A, T> target{sums() + j / Tile::kColumns * Tile::kSize, false, finishes ? &finish : nullptr};
          const auto multiply = part > kLanes ? thin_row_tile<isa, T, pitch, 2> : thin_row_tile<isa, T, pitch, 1>;
          multiply(row, s_.dilation_y * strip_.row_size, s_.kernel_height, length, panels + int64_t{j} * depth_, target,
                   count, part);
        }
        if (!finishes) store_rows(p_, grid_, pixel, count, item.column, item.columns, GemmSums<isa, A>{sums(), 0, 1});
      }
    }
  }

  CVK_HD void multiply_columns_of(const Item& item, const A* weights) {
    const bool finishes = finishes_in_registers(p_, grid_);
    const int64_t plane = p_.target_plane();
    for (int y = 0; y < item.height; ++y) {
      const A* row = strip() + y * s_.stride_y * strip_.row_size;
      for (int x = 0; x < item.width; x += Tile::kColumns) {
        const int count = min_of(Tile::kColumns, item.width - x);
        const int64_t pixel = int64_t{item.y + y} * s_.out_width + item.x + x;
        for (int j = 0; j < item.columns; j += Tile::kRows) {
          const int part = min_of(Tile::kRows, item.columns - j);
          const int64_t column = item.column + j;
          const GemmFinish<T> finish{p_.target + (item.image * p_.columns() + column) * plane + pixel, plane,
                                     p_.bias != nullptr ? p_.bias + column : nullptr, true,
                                     p_.activation == Activation::kRelu};
          const GemmTarget<A, T> target{sums() + j / Tile::kRows * Tile::kSize, false, finishes ? &finish : nullptr};
          gemm_vectors_of<isa, A>(GemmRows<A>{weights + int64_t{j} * Tile::kPitch, Tile::kPitch},
                                  GemmPlaces<A>{row + x, places_.template as<int>()}, depth_, target, part, count);
        }
        if (!finishes) {
          store_planes(p_, grid_, item.image * plane + pixel, count, item.column, item.columns,
                       GemmSums<isa, A>{sums(), 1, 1});
        }
      }
    }
  }

  const TappedProduct<T>& p_;
  const ConvShape& s_;
  TapGrid grid_;
  int64_t pixel_blocks_;
  int block_columns_, depth_, tiles_;  // of columns
  ThinStrip<isa, A> strip_;
  Scratch strip_memory_, sums_, places_;
  PackedBlocks<A> packed_;
};

// Blocks of pixels are as ThinStrip counts them.
template <Isa isa, class T>
CVK_HD ConvCut thin_map_cut(const TappedProduct<T>& p) {
  using Tile = GemmTile<isa, Acc<T>>;
  const ThinStrip<isa, Acc<T>> strip(p.shape);
  ConvCut cut{};
  cut.form = ConvForm::kThinMap;
  cut.pixel_blocks = max_of<int64_t>(1, p.shape.batch * strip.y_blocks * strip.x_blocks);
  cut.column_blocks = max_of<int64_t>(1, ceil_div<int64_t>(p.columns(), kGemmItemColumns));
  cut_blocks(cut.pixel_blocks, 1, p.columns(), p.shape.channels_last ? Tile::kColumns : Tile::kRows, cut);
  return cut;
}

}  // namespace cvk
