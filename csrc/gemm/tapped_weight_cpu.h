// The gradient of a tapped product with respect to its weights (tapped.h) on the CPU. The pixels are the depth of the product.
//
// Channels-last maps: filters are the rows of the product, channels and taps the columns. Planes: the other way round. So the
// gatherers are those of the forward pass, and their result is used where it lies. Channels-last, of the type of the sums and near
// to one another, filters are read in the map (an even number), and with them whole vectors of channels under a 1 x 1 kernel.
// Perf: 64 -> 64 1 x 1 over 8 maps of 56 x 56 takes 1016 -> 930 us so, 16 -> 64 over 112 x 112 1660 -> 1405 (Xeon, two threads). Asked
// for ahead, 64 -> 256 over 56 x 56 takes 3230 -> 2780 us, 256 -> 128 6160 -> 5560, 64 -> 64 3 x 3 6890 -> 6720.
#pragma once

#include <cstdint>

#include "gemm/gather_cpu.h"
#include "gemm/pairs_cpu.h"
#include "gemm/tapped.h"

namespace cvk {

CVK_HD int64_t weight_items(const ConvShape& s, const ConvCut& cut) {
  return s.groups * cut.column_blocks * cut.depth_blocks * cut.parts;
}

// A work item: filters [filter, filter + filters), counted over all groups, by a block of the group's depth, over a part of the pixels.
struct WeightItem {
  int64_t part, block, group, filter;
  int filters;
};
CVK_HD WeightItem weight_item(const ConvShape& s, const ConvCut& cut, int64_t index) {
  const int64_t column = index / cut.parts / cut.depth_blocks, group = column / cut.column_blocks;
  const int64_t first = column % cut.column_blocks * cut.block_columns;
  return {index % cut.parts, index / cut.parts % cut.depth_blocks, group, group * s.group_filters() + first,
          static_cast<int>(min_of<int64_t>(cut.block_columns, s.group_filters() - first))};
}

// Blocks of filters where there are few work items: so many times as many, but of about `least` filters.
CVK_HD int64_t narrower_blocks(const ConvShape& s, int64_t blocks, int64_t times, int64_t least) {
  return max_of(blocks, min_of(blocks * times, ceil_div(s.group_filters(), least)));
}

// The number of parts into which the pixels are cut must not depend on the number of threads: it decides the order of sums.
template <Isa isa, class T>
CVK_HD ConvCut weight_cut(const ConvShape& s, int part_blocks) {
  using A = Acc<T>;
  using Tile = GemmTile<isa, A>;
  ConvCut cut{};
  cut.operands = gemm_pairs<isa, T>() ? ConvOperands::kPairs : ConvOperands::kNumbers;
  cut.column_blocks = ceil_div<int64_t>(s.group_filters(), kGemmItemColumns);
  cut.depth_blocks = DepthBlocks<isa, A>(s.group_channels(), s.kernel_size()).count();
  const int64_t pixels = s.batch * s.out_pixels();
  const int64_t items = max_of<int64_t>(1, s.groups * cut.column_blocks * cut.depth_blocks);
  const int64_t most = ceil_div<int64_t>(pixels, int64_t{part_blocks} * Tile::kDepth);
  cut.parts = max_of<int64_t>(1, min_of(most, ceil_div<int64_t>(kWeightItems, items)));
  // Where that gives few items, the filters are cut as well: it costs gathering, but no sum another order.
  cut.column_blocks = narrower_blocks(s, cut.column_blocks, ceil_div<int64_t>(kWeightLeastItems, items * cut.parts),
                                      kWeightLeastFilters);
  const int64_t columns = ceil_div<int64_t>(s.group_filters(), max_of<int64_t>(1, cut.column_blocks));
  cut.block_columns = static_cast<int>(round_up<int64_t>(max_of<int64_t>(1, columns), Tile::kLanes));
  cut.column_blocks = ceil_div<int64_t>(s.group_filters(), cut.block_columns);
  // Whole vectors: over planes pixels are gathered by these. No more, so that parts are of one size.
  cut.part_pixels = round_up<int64_t>(ceil_div(pixels, cut.parts), Tile::kLanes);
  cut.parts = max_of<int64_t>(1, ceil_div(pixels, cut.part_pixels > 0 ? cut.part_pixels : 1));
  return cut;
}

template <Isa isa, class T>
CVK_HD ConvCut weight_cut(const ConvShape& s) {
  const ConvCut cut = weight_cut<isa, T>(s, kWeightPartBlocks);
  const int64_t items = weight_items(s, cut);
  return items % 2 != 0 && items < kWeightFewItems ? weight_cut<isa, T>(s, kWeightFewPartBlocks) : cut;
}

// Panels of filters, the depth in pixels, from planes.
template <Isa isa, class A, class T>
CVK_HD void gather_filter_panels(const T* grad, int64_t filters, int64_t plane, int64_t first_pixel, int pixels,
                                 int columns, A* to) {
  using Tile = GemmTile<isa, A>;
  for (int i = 0; i < pixels;) {
    const int64_t image = (first_pixel + i) / plane, at = (first_pixel + i) % plane;
    const int run = static_cast<int>(min_of<int64_t>(pixels - i, plane - at));
    for (int j = 0; j < columns; j += Tile::kColumns) {
      transpose_into_panel<isa>(
          grad + (image * filters + j) * plane + at, plane, min_of(Tile::kColumns, columns - j), run, Tile::kColumns,
          [](int p) { return p; }, to + (int64_t{j} * Tile::kDepth + int64_t{i} * Tile::kColumns));
    }
    i += run;
  }
}

// Joins `rows` rows of the left operand in pairs, in place.
template <Isa isa>
CVK_HD void pair_left(float* left, int rows, int depth) {
  for (int i = 0; i < rows; ++i, left += GemmTile<isa, float>::kPitch) {
    pair_row<isa>(left, depth, reinterpret_cast<word_t*>(left));
  }
}

// Stores to neighbouring weights of a part of the sums, from one on: store(to), of either type.
template <class T, class Store>
CVK_HD void put_neighbours(const TappedWeightGradient<T>& p, int64_t part, int64_t weight, const Store& store) {
  if (p.partials != nullptr) {
    store(p.partials + part * p.shape.weights() + weight);
  } else {
    store(p.grad_weight + weight);
  }
}

// Copies elements [0, count) of a filter's gradient to where they belong.
template <Isa isa, class A, class T>
CVK_HD void put_run(const TappedWeightGradient<T>& p, int64_t part, int64_t weight, const A* from, int count) {
  using S = Simd<isa, A>;
  put_neighbours(p, part, weight, [&](auto* to) {
    int i = 0;
    for (; i + S::kLanes <= count; i += S::kLanes) S::store(to + i, S::load(from + i));
    if (i < count) S::store_partial(to + i, S::load(from + i), count - i);
  });
}

// A block of a filter's gradient, in the order of the gatherers. Perf: a number at a time, with its place divided out of its index,
// took a third of the gradient's time.
template <Isa isa, class A, class T>
CVK_HD void put_filter(const TappedWeightGradient<T>& p, int64_t part, int64_t filter, const DepthBlock& block,
                       const A* from) {
  const ConvShape& s = p.shape;
  const bool taps_first = s.channels_last, one = s.kernel_size() == 1;
  const bool same_order = one || taps_first == s.weight_channels_last;
  const int outer = taps_first ? block.taps : block.channels, inner = taps_first ? block.channels : block.taps;
  const auto at = [&](int i, int j) {
    return p.weight_at(filter, block.c + (taps_first ? j : i), block.t + (taps_first ? i : j));
  };
  if (!same_order) {
    for (int i = 0; i < outer; ++i) {
      for (int j = 0; j < inner; ++j) p.put(part, at(i, j), *from++);
    }
    return;
  }
  const bool whole = one || inner == (taps_first ? s.group_channels() : s.kernel_size());
  const int run = whole ? block.depth() : inner;  // neighbours in memory
  for (int k = 0; k < block.depth(); k += run) put_run<isa>(p, part, at(k / inner, 0), from + k, run);
}

// The sums of an item, filters by a block of the depth or the other way round. `lines`: scratch for as many filters as a vector has
// lanes, kPitch apart.
template <Isa isa, class A, class T>
CVK_HD void put_weights(const TappedWeightGradient<T>& p, int64_t part, int64_t first_filter, int filters,
                        const DepthBlock& block, const A* sums, int panels, A* lines) {
  using Tile = GemmTile<isa, A>;
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  const int depth = block.depth();
  // A vector of a row of sums.
  const auto load = [&](int row, int column) {
    return S::load(sums + (int64_t{row} / Tile::kRows * panels + column / Tile::kColumns) * Tile::kSize +
                   row % Tile::kRows * Tile::kColumns + column % Tile::kColumns);
  };
  for (int o = 0; o < filters; o += kLanes) {
    const int count = min_of(kLanes, filters - o);
    if (p.shape.channels_last) {
      for (int i = 0; i < count; ++i) {
        for (int k = 0; k < depth; k += kLanes) S::store(lines + i * Tile::kPitch + k, load(o + i, k));
      }
    } else {
      for (int k = 0; k < depth; k += kLanes) {
        typename S::Vec values[kLanes];
        for (int i = 0; i < kLanes; ++i) values[i] = load(min_of(k + i, depth - 1), o);
        S::transpose(values);
        for (int i = 0; i < kLanes; ++i) S::store(lines + i * Tile::kPitch + k, values[i]);
      }
    }
    for (int i = 0; i < count; ++i) put_filter<isa>(p, part, first_filter + o + i, block, lines + i * Tile::kPitch);
  }
}

// A slice of work items: some filters of a group by a block of the depth, over a part of the pixels.
template <Isa isa, class P, class T>
class TappedWeights {
  using A = Acc<T>;
  using Tile = GemmTile<isa, A>;
  static constexpr bool kPairs = kGemmElements<P> == 2;
  static constexpr int kFilterTiles = kGemmItemColumns / Tile::kRows + 1,
                       kFilterPanels = kGemmItemColumns / Tile::kColumns + 1;
  static constexpr int kDepthTiles = Tile::kDepth / Tile::kRows + 1, kDepthPanels = Tile::kDepth / Tile::kColumns + 1;

 public:
  CVK_HD TappedWeights(const TappedWeightGradient<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        grid_(correlation_grid(p.shape)),
        sums_(max_of(kFilterTiles * kDepthPanels, kDepthTiles * kFilterPanels) * Tile::kSize * sizeof(A)),
        pixels_(int64_t{Tile::kDepth} * Tile::kPitch * sizeof(A)),
        filters_(max_of<int64_t>(int64_t{kFilterTiles} * Tile::kRows * Tile::kPitch,
                                 int64_t{kFilterPanels} * Tile::kColumns * Tile::kDepth) *
                 sizeof(A)),
        lines_(int64_t{Tile::kLanes} * Tile::kPitch * sizeof(A)) {}

  CVK_HD void item(int64_t index) {
    const WeightItem item = weight_item(p_.shape, cut_, index);
    const int64_t begin = item.part * cut_.part_pixels;
    multiply(item, DepthBlocks<isa, A>(p_.shape.group_channels(), grid_.taps())[item.block], begin,
             min_of(begin + cut_.part_pixels, p_.pixels()));
  }

  // The item's filters by a block of the depth, over pixels [begin, end), which are its part.
  CVK_HD void multiply(const WeightItem& item, const DepthBlock& block, int64_t begin, int64_t end) {
    const bool last = p_.shape.channels_last;
    // Tiles (i, j): filters by depth, or depth by filters.
    const int panels = ceil_div(last ? block.depth() : item.filters, Tile::kColumns);
    A* sums = sums_.template as<A>();
    if (begin >= end) {
      const int rows = ceil_div(last ? item.filters : block.depth(), Tile::kRows);
      for (int64_t i = 0; i < int64_t{rows} * panels * Tile::kSize; ++i) sums[i] = A(0);
    } else if (last) {
      multiply_rows(item, block, begin, end, panels);
    } else {
      multiply_planes(item, block, begin, end, panels);
    }
    put_weights<isa>(p_, item.part, item.filter, item.filters, block, sums, panels, lines_.template as<A>());
  }

 private:
  CVK_HD void multiply_rows(const WeightItem& item, const DepthBlock& block, int64_t begin, int64_t end, int panels) {
    const ConvShape& s = p_.shape;
    const int64_t channels = s.group_channels();
    const int count = item.filters;
    const int depth = block.depth();
    A* pixels = pixels_.template as<A>();
    A* filters = filters_.template as<A>();
    RowGatherer<isa, A, T> gatherer(p_.input + item.group * channels, s.channels, channels, Tile::kDepth);
    // What lies in the maps as a tile reads it stays there.
    const bool filters_in_map = std::is_same_v<T, P> && count % 2 == 0 && near_in_map<T>(s.filters);
    const bool pixels_in_map =
        filters_in_map && reads_itself(grid_) && channels % Tile::kLanes == 0 && near_in_map<T>(s.channels);
    for (int64_t pixel = begin; pixel < end; pixel += Tile::kDepth) {
      const int run = static_cast<int>(min_of<int64_t>(Tile::kDepth, end - pixel));
      if (!pixels_in_map) {
        gatherer.place(grid_, pixel, run);
        gatherer.gather(block, 0, run, pixels);
      }
      const auto multiply = [&](const auto& left, const P* right, int64_t stride) {
        gemm_block<isa, P, A>(count, depth, gemm_operands<P>(run), left, right, stride, Tile::kColumns,
                              sums_.template as<A>(), panels, pixel > begin, nullptr);
      };
      const T* grads = p_.grad_output + pixel * s.filters + item.filter;
      if constexpr (std::is_same_v<T, P>) {
        if (filters_in_map) {
          const T* map = p_.input + pixel * s.channels + item.group * channels + block.c;
          multiply(GemmColumns<P, kWeightAhead>{grads, s.filters}, pixels_in_map ? map : pixels,
                   pixels_in_map ? s.channels : Tile::kPitch);
          continue;
        }
      }
      transpose_matrix<isa>(grads, s.filters, filters, Tile::kPitch, run, count);
      if constexpr (kPairs) {
        pair_left<isa>(filters, count, run);
        pair_rows<isa>(pixels, Tile::kPitch, run, round_up(depth, Tile::kLanes), Tile::kPitch,
                       reinterpret_cast<word_t*>(pixels));
      }
      multiply(GemmRows<P>{reinterpret_cast<const P*>(filters), Tile::kPitch}, reinterpret_cast<const P*>(pixels),
               Tile::kPitch);
    }
  }

  CVK_HD void multiply_planes(const WeightItem& item, const DepthBlock& block, int64_t begin, int64_t end, int panels) {
    const ConvShape& s = p_.shape;
    constexpr int64_t kPanel = int64_t{Tile::kDepth} * Tile::kColumns;
    const int depth = block.depth();
    A* pixels = pixels_.template as<A>();
    A* filters = filters_.template as<A>();
    PlaneGatherer<isa, A, T> gatherer(p_.input + item.group * s.group_channels() * s.pixels(), s.channels,
                                      Tile::kDepth);
    for (int64_t pixel = begin; pixel < end; pixel += Tile::kDepth) {
      const int run = static_cast<int>(min_of<int64_t>(Tile::kDepth, end - pixel));
      gatherer.place(grid_, pixel, run);
      gatherer.gather(block, 0, ceil_div(run, Tile::kLanes), Tile::kPitch, pixels);
      gather_filter_panels<isa>(p_.grad_output + item.filter * s.out_pixels(), s.filters, s.out_pixels(), pixel, run,
                                item.filters, filters);
      if constexpr (kPairs) {
        pair_left<isa>(pixels, depth, run);
        for (int j = 0; j < panels; ++j) {
          float* panel = filters + j * kPanel;
          pair_rows<isa>(panel, Tile::kColumns, run, Tile::kColumns, Tile::kColumns, reinterpret_cast<word_t*>(panel));
        }
      }
      gemm_block<isa, P, A>(depth, item.filters, gemm_operands<P>(run),
                            GemmRows<P>{reinterpret_cast<const P*>(pixels), Tile::kPitch},
                            reinterpret_cast<const P*>(filters), Tile::kColumns, kPanel, sums_.template as<A>(), panels,
                            pixel > begin, nullptr);
    }
  }

  const TappedWeightGradient<T>& p_;
  const ConvCut& cut_;
  TapGrid grid_;
  Scratch sums_, pixels_, filters_, lines_;
};

template <Isa isa, class T>
CVK_HD void weight_gradient(const TappedWeightGradient<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  if constexpr (kGemmPairs<isa, T>) {
    if (cut.operands == ConvOperands::kPairs) {
      form_slice<TappedWeights<isa, word_t, T>>(p, cut, first, last);
      return;
    }
  }
  form_slice<TappedWeights<isa, Acc<T>, T>>(p, cut, first, last);
}

}  // namespace cvk
