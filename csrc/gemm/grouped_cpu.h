// Convolutions of groups of few channels on the CPU (ResNeXt, RegNet): no gather, which would cost more than the products.
//
// A register tile is neighbouring pixels of a row by vectors of filters. It reads its pixels from rows of the map copied with their
// zeros around them, each once, in a ring that holds what the taps of one row of results see and stays in L1.
//
//   narrow   As many filters as channels in a group, and several groups in a vector: the vector of a pixel is copied once for each
//            channel of a group, with that channel of its own group in every lane. A product is of two vectors.
//   wide     A group has a vector of filters or two. A product is a number of a pixel by these.
//
// Pixels are copied channels-last from either layout; over planes, results are turned back before they leave. Each result's sum is taken in
// the order of taps, then channels: the same bits for any number of threads or images.
#pragma once

#include <cstdint>
#include <utility>

#include "gemm/tapped_cpu.h"
#include "gemm/weights_cpu.h"

namespace cvk {

// Pixels of a register tile of so many vectors, and of one for what is left of a row.
template <Isa isa, int vecs>
inline constexpr int kGroupedPixels = vecs == 1 && GemmTile<isa, float>::kRows < 12 ? 12 : GemmTile<isa, float>::kRows;
template <Isa isa, int vecs>
inline constexpr int kGroupedFewPixels = kGroupedPixels<isa, vecs> > 8 ? 8 : kGroupedPixels<isa, vecs>;

// How a product's groups are dealt out to vectors.
struct GroupedPlan {
  int narrow;                     // channels of a group if several share a vector, else 0
  int64_t vecs, columns, blocks;  // vectors and filters of a block; blocks of them
};

template <Isa isa, class T>
CVK_HD GroupedPlan grouped_plan(const TappedProduct<T>& p) {
  constexpr int kLanes = Simd<isa, Acc<T>>::kLanes;
  const int64_t channels = p.group_channels(), columns = p.group_columns();
  GroupedPlan plan{};
  if (channels == columns && columns < kLanes && kLanes % columns == 0) {
    plan.narrow = static_cast<int>(columns);
    plan.vecs = 1;
    plan.columns = kLanes;
    plan.blocks = ceil_div<int64_t>(p.columns(), kLanes);
  } else {
    plan.vecs = ceil_div<int64_t>(columns, kLanes);
    plan.columns = columns;
    plan.blocks = p.shape.groups;
  }
  return plan;
}

// The rows of the map that a row of results sees, and of them what a tile of `pixels` results does.
template <Isa isa, class T>
struct GroupedRing {
  CVK_HD GroupedRing(const TapGrid& grid, const GroupedPlan& plan, int64_t channels, int pixels)
      : rows(max_of<int64_t>(1, int64_t{grid.y.taps - 1} * grid.y.offset_step + 1)),
        width(int64_t{pixels - 1} * grid.x.source_step +
              max_of<int64_t>(0, int64_t{grid.x.taps - 1} * grid.x.offset_step) + 1),
        pixel(plan.narrow > 0 ? plan.narrow * int64_t{Simd<isa, Acc<T>>::kLanes}
                              : round_up<int64_t>(channels, Simd<isa, Acc<T>>::kLanes)) {}
  CVK_HD int64_t size() const { return rows * width * pixel; }
  CVK_HD bool fits() const {
    return rows <= kGroupedRing && width <= kGroupedRing && pixel <= kGroupedRing && rows * width <= kGroupedRing &&
           size() <= kGroupedRing;
  }
  int64_t rows, width, pixel;
};

template <Isa isa, class T>
CVK_HD bool grouped_pays(const TappedProduct<T>& p) {
  constexpr int kLanes = Simd<isa, Acc<T>>::kLanes;
  const ConvShape& s = p.shape;
  const int64_t channels = p.group_channels(), columns = p.group_columns();
  if (s.groups < 2 || is_depthwise(s) || channels < 2 || columns < 2 || s.kernel_size() == 1 || s.batch == 0)
    return false;
  if (channels * s.kernel_size() > kGroupedDepth) return false;
  const GroupedPlan plan = grouped_plan<isa>(p);
  const TapGrid grid = p.grid(0);
  // Over planes a gather is cheaper than spreading pixels of which every second one is seen, or vectors half filled.
  if (!s.channels_last && (grid.x.source_step > 1 || columns > kLanes)) return false;
  if (plan.narrow == 0 && (columns < kLanes || columns > kGroupedColumns || plan.vecs > 2)) return false;
  return grid.pixels() > 0 && grid.x.extent > 0 && grid.y.extent > 0 &&
         GroupedRing<isa, T>(grid, plan, channels, kGroupedPixels<isa, 1>).fits();
}

// Pixels of the cut are rows.
template <Isa isa, class T>
CVK_HD ConvCut grouped_cut(const TappedProduct<T>& p, int threads) {
  const GroupedPlan plan = grouped_plan<isa>(p);
  const int64_t rows = p.grid(0).y.grid, items = p.phases() * plan.blocks * p.shape.batch;
  ConvCut cut{};
  cut.form = ConvForm::kGrouped;
  cut.column_blocks = plan.blocks;
  // A row of results and what it sees stays in L2 for all columns; threads want some items each.
  const int64_t row =
      int64_t{p.grid(0).x.extent} * p.channels() * p.grid(0).y.source_step * static_cast<int64_t>(sizeof(T));
  const int64_t parts =
      max_of(ceil_div<int64_t>(int64_t{kGroupedItems} * threads, items), ceil_div<int64_t>(rows * row, kGroupedBytes));
  cut.block_pixels =
      static_cast<int>(ceil_div(rows, max_of<int64_t>(1, min_of(parts, ceil_div<int64_t>(rows, kGroupedRows)))));
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
  using Tile = GemmTile<isa, A>;
  using Ring = GroupedRing<isa, T>;
  static constexpr int kLanes = S::kLanes;

 public:
  CVK_HD Grouped(const TappedProduct<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        plan_(grouped_plan<isa>(p)),
        depth_(p.group_channels()),
        ring_memory_(largest_ring() * static_cast<int64_t>(sizeof(A))),
        sums_(round_up<int64_t>(kGroupedPixels<isa, 1>, Tile::kColumns) * Tile::kColumns *
              static_cast<int64_t>(sizeof(A))),
        turned_(p.shape.channels_last ? 0
                                      : Tile::kColumns * int64_t{Tile::kColumns} * static_cast<int64_t>(sizeof(A))) {
    packed_.begin(0, keys(), p.shape.kernel_size() * depth_ * plan_.vecs * kLanes, kGemmResidentBytes);
  }
  CVK_HD ~Grouped() {}

  // Rows of an image, then of all of its columns and phases: the map is near from the second of them on.
  CVK_HD void item(int64_t index) {
    const int64_t key = index % keys(), block = key / p_.phases(), parts = cut_.pixel_blocks / p_.shape.batch;
    grid_ = p_.grid(key % p_.phases());
    weights_ = packed_.get(key, [&](A* to) { pack(block, to); });
    Item item;
    item.image = index / keys() / parts;
    item.first = static_cast<int>(index / keys() % parts) * cut_.block_pixels;
    item.last = min_of(item.first + cut_.block_pixels, grid_.y.grid);
    item.column = block * plan_.columns;
    item.columns = static_cast<int>(min_of<int64_t>(plan_.columns, p_.columns() - item.column));
    for (int x = 0; x < grid_.x.grid;) x += plan_.vecs == 1 ? rows_of<1>(item, x) : rows_of<2>(item, x);
  }

 private:
  // Rows [first, last) of a phase by a block of filters.
  struct Item {
    int64_t image, column;
    int first, last, columns;
  };

  CVK_HD int64_t keys() const { return plan_.blocks * p_.phases(); }  // of packed weights
  CVK_HD int64_t largest_ring() const {
    int64_t most = 0;
    for (int64_t phase = 0; phase < p_.phases(); ++phase) {
      most = max_of(most, Ring(p_.grid(phase), plan_, depth_, kGroupedPixels<isa, 1>).size());
    }
    return most;
  }

  // Weights of a block: [taps, channels, vectors of filters], zeros where there is no filter.
  CVK_HD void pack(int64_t block, A* to) const {
    const auto strides = p_.strides();
    const int64_t size = p_.group_columns(), pitch = plan_.vecs * kLanes;
    for (int v = 0; v < plan_.vecs; ++v, to += kLanes) {
      const T* filters[kLanes];
      const int64_t first = block * plan_.columns + v * kLanes, end = min_of((block + 1) * plan_.columns, p_.columns());
      for (int j = 0; j < kLanes; ++j) {
        const int64_t column = first + j;
        filters[j] =
            column < end ? p_.weights + column / size * strides.group + column % size * strides.column : nullptr;
      }
      if (!p_.transposed) {
        pack_turned(filters, pitch, to);
        continue;
      }
      for (int t = 0; t < grid_.taps(); ++t) {
        const int64_t tap = kernel_of(grid_, p_.shape.kernel_width, t) * strides.tap;
        for (int64_t c = 0; c < depth_; ++c) {
          A* row = to + (t * depth_ + c) * pitch;
          for (int j = 0; j < kLanes; ++j) {
            row[j] = filters[j] != nullptr ? to_acc(filters[j][tap + c * strides.channel]) : A(0);
          }
        }
      }
    }
  }
  // Filters whose weights are contiguous: all taps of a channel after the other, or the other way round.
  CVK_HD void pack_turned(const T* const* filters, int64_t pitch, A* to) const {
    const int taps = grid_.taps(), size = taps * static_cast<int>(depth_);
    for (int e = 0; e < size; e += kLanes) {
      const int some = min_of(kLanes, size - e);
      Vec values[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        values[j] = filters[j] == nullptr ? Vec{} : S::load_partial(filters[j] + e, some);
      }
      S::transpose(values);
      for (int i = 0; i < some; ++i) {
        const int64_t at = p_.shape.weight_channels_last ? e + i : (e + i) % taps * depth_ + (e + i) / taps;
        S::store(to + at * pitch, values[i]);
      }
    }
  }

  // Some pixels of an item's rows from `x` on; returns how many.
  template <int vecs>
  CVK_HD int rows_of(const Item& item, int x) {
    return grid_.x.grid - x > kGroupedFewPixels<isa, vecs> ? tile_of<kGroupedPixels<isa, vecs>, vecs>(item, x)
                                                           : tile_of<kGroupedFewPixels<isa, vecs>, vecs>(item, x);
  }
  template <int pixels, int vecs>
  CVK_HD int tile_of(const Item& item, int x) {
    const int count = min_of(pixels, grid_.x.grid - x);
    const Ring ring(grid_, plan_, depth_, pixels);
    int64_t next = grid_.y.source(item.first, 0);  // row of the map
    for (int y = item.first; y < item.last; ++y) {
      const int64_t top = grid_.y.source(y, 0);
      for (next = max_of(next, top); next < top + ring.rows; ++next) fill(ring, item, next, x);
      if (plan_.narrow > 0) {
        if constexpr (vecs == 1) sum_taps<pixels, vecs, true>(ring, top);
      } else {
        sum_taps<pixels, vecs, false>(ring, top);
      }
      store(item, item.image * grid_.pixels() + int64_t{y} * grid_.x.grid + x, count);
    }
    return count;
  }

  CVK_HD A* row_at(const Ring& ring, int64_t y) const {
    const int64_t at = y % ring.rows;  // y may be above the map
    return ring_memory_.template as<A>() + (at < 0 ? at + ring.rows : at) * ring.width * ring.pixel;
  }

  // Sums of a tile whose first tap is in row `top` of the map.
  template <int pixels, int vecs, bool narrow>
  __attribute__((noinline)) void sum_taps(const Ring& ring, int64_t top) const {
    Vec sum[pixels][vecs];
    clear_sums<isa, A>(sum);
    const A* weights = weights_;
    const int64_t pixel = grid_.x.source_step * ring.pixel, tap = grid_.x.offset_step * ring.pixel;
    for (int ty = 0; ty < grid_.y.taps; ++ty) {
      const A* at = row_at(ring, top + int64_t{ty} * grid_.y.offset_step);
      for (int tx = 0; tx < grid_.x.taps; ++tx, at += tap) {
        const TileRows<pixels, A> rows(GemmRows<A>{at, pixel});
        for (int c = 0; c < depth_; ++c, weights += vecs * kLanes) {
          if constexpr (narrow) {
            const Vec weight = S::load(weights);
#pragma GCC unroll 16
            for (int i = 0; i < pixels; ++i) {
              sum[i][0] = S::mul_add(S::load(rows.at(i, c * kLanes)), weight, sum[i][0]);
            }
          } else {
            add_products<isa>(sum, weights, [&](int i) { return rows(i, c); });
          }
        }
      }
    }
    A* to = sums_.template as<A>();
#pragma GCC unroll 16
    for (int i = 0; i < pixels; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vecs; ++v) S::store(to + i * Tile::kColumns + v * kLanes, sum[i][v]);
    }
  }

  // ---- a row of the map into the ring

  __attribute__((noinline)) void fill(const Ring& ring, const Item& item, int64_t y, int x) const {
    A* to = row_at(ring, y);
    const int64_t left = grid_.x.source(x, 0), extent = grid_.x.extent;
    const int64_t begin = min_of(max_of<int64_t>(-left, 0), ring.width);
    const int64_t end = y < 0 || y >= grid_.y.extent ? begin : max_of(begin, min_of(extent - left, ring.width));
    const int64_t first = plan_.narrow > 0 ? item.column : item.column / plan_.columns * depth_;  // channel
    const int channels = plan_.narrow > 0 ? item.columns : static_cast<int>(depth_);
    for (int64_t i = 0; i < begin * ring.pixel; i += kLanes) S::store(to + i, Vec{});
    for (int64_t i = end * ring.pixel; i < ring.width * ring.pixel; i += kLanes) S::store(to + i, Vec{});
    if (begin == end) return;
    for (int c = 0; c < channels; c += kLanes) {
      const int some = min_of(kLanes, channels - c);
      if (p_.shape.channels_last) {
        const T* from =
            p_.source + ((item.image * grid_.y.extent + y) * extent + left + begin) * p_.channels() + first + c;
        for (int64_t i = begin; i < end; ++i, from += p_.channels()) {
          put(some == kLanes ? S::load(from) : S::load_partial(from, some), to + i * ring.pixel + c);
        }
      } else {
        const T* from = p_.source + ((item.image * p_.channels() + first + c) * grid_.y.extent + y) * extent + left;
        const int64_t plane = int64_t{grid_.y.extent} * extent;
        for (int64_t i = begin; i < end; i += kLanes) {
          const int count = static_cast<int>(min_of<int64_t>(kLanes, end - i));
          Vec values[kLanes];
          for (int k = 0; k < kLanes; ++k) values[k] = k < some ? S::load_partial(from + k * plane + i, count) : Vec{};
          S::transpose(values);
          for (int k = 0; k < count; ++k) put(values[k], to + (i + k) * ring.pixel + c);
        }
      }
    }
  }
  CVK_HD void put(Vec value, A* to) const {
    switch (plan_.narrow) {
      case 2:
        return spread<2>(value, to, std::make_integer_sequence<int, 2>{});
      case 4:
        if constexpr (kLanes > 4) return spread<4>(value, to, std::make_integer_sequence<int, 4>{});
        return;
      case 8:
        if constexpr (kLanes > 8) return spread<8>(value, to, std::make_integer_sequence<int, 8>{});
        return;
      default:
        S::store(to, value);
    }
  }
  template <int size, int... channel>
  CVK_HD static void spread(Vec value, A* to, std::integer_sequence<int, channel...>) {
    (S::store(to + channel * kLanes, spread_one<size, channel>(value, std::make_integer_sequence<int, kLanes>{})), ...);
  }
  template <int size, int channel, int... lane>
  CVK_HD static Vec spread_one(Vec value, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(value, value, (lane / size * size + channel)...);
  }

  // ---- results

  // `count` pixels of the phase from `first` on.
  CVK_HD void store(const Item& item, int64_t first, int count) const {
    const A* sums = sums_.template as<A>();
    if (p_.shape.channels_last) {
      store_rows<isa, A>(p_, grid_, first, count, item.column, item.columns, sums, 1);
      return;
    }
    A* turned = turned_.template as<A>();
    for (int i = 0; i < count; i += Tile::kColumns) {
      const int some = min_of(Tile::kColumns, count - i);
      transpose_matrix<isa>(sums + i * Tile::kColumns, Tile::kColumns, turned, Tile::kColumns, round_up(some, kLanes),
                            plan_.vecs * kLanes);
      store_planes<isa, A>(p_, grid_, first + i, some, item.column, item.columns, turned, 1);
    }
  }

  const TappedProduct<T>& p_;
  const ConvCut& cut_;
  GroupedPlan plan_;
  int64_t depth_;  // channels of a group
  TapGrid grid_{};
  Scratch ring_memory_, sums_, turned_;  // sums of a tile's pixels, kColumns apart, and over planes of its filters
  PackedBlocks<A> packed_;
  const A* weights_ = nullptr;  // of the block and phase
};

}  // namespace cvk
