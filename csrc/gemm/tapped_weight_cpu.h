// The gradient of a tapped product with respect to its weights (tapped.h) on the CPU. The pixels are the depth of the product;
// both operands are gathered.
//
// Channels-last maps: filters are the rows of the product, channels and taps the columns. Planes: the other way round. So the
// gatherers are those of the forward pass, and their result is used where it lies.
#pragma once

#include <cstdint>

#include "gemm/gather_cpu.h"
#include "gemm/pairs_cpu.h"
#include "gemm/tapped.h"

namespace cvk {

// The number of parts into which the pixels are cut must not depend on the number of threads: it decides the order of sums.
template <Isa isa, class T>
CVK_HD ConvCut weight_cut(const ConvShape& s) {
  using A = Acc<T>;
  using Tile = GemmTile<isa, A>;
  ConvCut cut{};
  cut.operands = gemm_pairs<isa, T>() ? ConvOperands::kPairs : ConvOperands::kNumbers;
  cut.column_blocks = ceil_div<int64_t>(s.group_filters(), kGemmItemColumns);
  cut.depth_blocks = DepthBlocks<isa, A>(s.group_channels(), s.kernel_size()).count();
  const int64_t pixels = s.batch * s.out_pixels();
  const int64_t items = max_of<int64_t>(1, s.groups * cut.column_blocks * cut.depth_blocks);
  const int64_t most = ceil_div<int64_t>(pixels, int64_t{kWeightPartBlocks} * Tile::kDepth);
  cut.parts = max_of<int64_t>(1, min_of(most, ceil_div<int64_t>(kWeightItems, items)));
  cut.part_pixels = round_up<int64_t>(ceil_div(pixels, cut.parts), Tile::kDepth);
  cut.parts = max_of<int64_t>(1, ceil_div(pixels, cut.part_pixels > 0 ? cut.part_pixels : 1));
  return cut;
}

CVK_HD int64_t weight_items(const ConvShape& s, const ConvCut& cut) {
  return s.groups * cut.column_blocks * cut.depth_blocks * cut.parts;
}

// Rows of filters, the depth in pixels, from a channels-last map: [pixels, O] to rows.
template <Isa isa, class A, class T>
CVK_HD void gather_filter_rows(const T* grad, int64_t filters, int64_t first_pixel, int pixels, int rows, A* to) {
  transpose_matrix<isa>(grad + first_pixel * filters, filters, to, GemmTile<isa, A>::kPitch, pixels, rows);
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

template <Isa isa, class P, class T>
CVK_HD void weight_gradient_of(const TappedWeightGradient<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  using A = Acc<T>;
  using Tile = GemmTile<isa, A>;
  constexpr bool kPairs = kGemmElements<P> == 2;
  const ConvShape& s = p.shape;
  const int64_t channels = s.group_channels(), filters = s.group_filters();
  const TapGrid grid = correlation_grid(s);
  const DepthBlocks<isa, A> blocks(channels, grid.taps());
  constexpr int kFilterTiles = kGemmItemColumns / Tile::kRows + 1,
                kFilterPanels = kGemmItemColumns / Tile::kColumns + 1;
  constexpr int kDepthTiles = Tile::kDepth / Tile::kRows + 1, kDepthPanels = Tile::kDepth / Tile::kColumns + 1;
  const auto larger = [](int64_t a, int64_t b) { return a > b ? a : b; };
  Scratch sums_memory(larger(kFilterTiles * kDepthPanels, kDepthTiles * kFilterPanels) * Tile::kSize * sizeof(A));
  Scratch pixel_memory(int64_t{Tile::kDepth} * Tile::kPitch * sizeof(A));
  Scratch filter_memory(larger(int64_t{kFilterTiles} * Tile::kRows * Tile::kPitch,
                               int64_t{kFilterPanels} * Tile::kColumns * Tile::kDepth) *
                        sizeof(A));
  A* sums = sums_memory.template as<A>();
  A* pixels = pixel_memory.template as<A>();
  A* filter = filter_memory.template as<A>();
  for (int64_t item = first; item < last; ++item) {
    const int64_t part = item % cut.parts;
    const DepthBlock block = blocks[item / cut.parts % cut.depth_blocks];
    const int64_t first_filter = item / cut.parts / cut.depth_blocks % cut.column_blocks * kGemmItemColumns;
    const int64_t group = item / cut.parts / cut.depth_blocks / cut.column_blocks;
    const int count = static_cast<int>(min_of<int64_t>(kGemmItemColumns, filters - first_filter));
    const int64_t global_filter = group * filters + first_filter;
    const int64_t begin = part * cut.part_pixels, end = min_of(begin + cut.part_pixels, p.pixels());
    const int depth = block.depth();
    // Tiles (i, j): filters by depth, or depth by filters.
    const int panels = ceil_div(s.channels_last ? depth : count, Tile::kColumns);
    if (begin >= end) {
      for (int64_t i = 0; i < int64_t{ceil_div(s.channels_last ? count : depth, Tile::kRows)} * panels * Tile::kSize;
           ++i) {
        sums[i] = A(0);
      }
    }
    if (s.channels_last) {
      RowGatherer<isa, A, T> gatherer(p.input + group * channels, s.channels, channels, Tile::kDepth);
      for (int64_t pixel = begin; pixel < end; pixel += Tile::kDepth) {
        const int run = static_cast<int>(min_of<int64_t>(Tile::kDepth, end - pixel));
        gatherer.place(grid, pixel, run);
        gatherer.gather(block, 0, run, pixels);
        gather_filter_rows<isa>(p.grad_output + global_filter, s.filters, pixel, run, count, filter);
        if constexpr (kPairs) {
          pair_left<isa>(filter, count, run);
          pair_rows<isa>(pixels, Tile::kPitch, run, round_up(depth, Tile::kLanes), Tile::kPitch,
                         reinterpret_cast<word_t*>(pixels));
        }
        gemm_block<isa, P, A>(count, depth, gemm_operands<P>(run), {reinterpret_cast<const P*>(filter), Tile::kPitch},
                              reinterpret_cast<const P*>(pixels), Tile::kPitch, Tile::kColumns, sums, panels,
                              pixel > begin, nullptr);
      }
    } else {
      PlaneGatherer<isa, A, T> gatherer(p.input + group * channels * s.pixels(), s.channels, Tile::kDepth);
      for (int64_t pixel = begin; pixel < end; pixel += Tile::kDepth) {
        const int run = static_cast<int>(min_of<int64_t>(Tile::kDepth, end - pixel));
        gatherer.place(grid, pixel, run);
        gatherer.gather(block, 0, ceil_div(run, Tile::kLanes), Tile::kPitch, pixels);
        gather_filter_panels<isa>(p.grad_output + global_filter * s.out_pixels(), s.filters, s.out_pixels(), pixel, run,
                                  count, filter);
        constexpr int64_t kPanel = int64_t{Tile::kDepth} * Tile::kColumns;
        if constexpr (kPairs) {
          pair_left<isa>(pixels, depth, run);
          for (int j = 0; j < panels; ++j) {
            float* panel = filter + j * kPanel;
            pair_rows<isa>(panel, Tile::kColumns, run, Tile::kColumns, Tile::kColumns,
                           reinterpret_cast<word_t*>(panel));
          }
        }
        gemm_block<isa, P, A>(depth, count, gemm_operands<P>(run), {reinterpret_cast<const P*>(pixels), Tile::kPitch},
                              reinterpret_cast<const P*>(filter), Tile::kColumns, kPanel, sums, panels, pixel > begin,
                              nullptr);
      }
    }
    for (int o = 0; o < count; ++o) {
      for (int k = 0; k < depth; ++k) {
        const int row = s.channels_last ? o : k, column = s.channels_last ? k : o;
        const A value = sums[(int64_t{row} / Tile::kRows * panels + column / Tile::kColumns) * Tile::kSize +
                             row % Tile::kRows * Tile::kColumns + column % Tile::kColumns];
        const int c = s.channels_last ? k % block.channels : k / block.taps;
        const int t = s.channels_last ? k / block.channels : k % block.taps;
        p.put(part, p.weight_at(global_filter + o, block.c + c, block.t + t), value);
      }
    }
  }
}

template <Isa isa, class T>
CVK_HD void weight_gradient(const TappedWeightGradient<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  if constexpr (kGemmPairs<isa, T>) {
    if (cut.operands == ConvOperands::kPairs) {
      weight_gradient_of<isa, word_t>(p, cut, first, last);
      return;
    }
  }
  weight_gradient_of<isa, Acc<T>>(p, cut, first, last);
}

// Sums the parts of weights [first, last), in their order.
template <class T>
CVK_HD void sum_weight_parts(const TappedWeightGradient<T>& p, int64_t parts, int64_t first, int64_t last) {
  const int64_t weights = p.shape.weights();
  for (int64_t i = first; i < last; ++i) {
    Acc<T> sum = p.partials[i];
    for (int64_t part = 1; part < parts; ++part) sum += p.partials[part * weights + i];
    p.grad_weight[i] = from_acc<T>(sum);
  }
}

}  // namespace cvk
