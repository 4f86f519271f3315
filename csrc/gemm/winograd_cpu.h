// Winograd's minimal filtering on the CPU: a 3 x 3 product of step 1 in 16 multiplications for each 2 x 2 target pixels, where the
// definition takes 36.
//
//   V = B' d B     of a tile d of 4 x 4 source pixels, channel by channel
//   U = G g G'     of the weights
//   M = V U        sums over the channels, for each of the 16 elements: products of matrices of tiles x channels x columns
//   A' M A         the 2 x 2 target pixels
//
// B and A hold 0, 1 and -1, G halves. Each step adds up only pixels that the target pixel sees, so no value, however large, harms
// another's result. Of normal numbers the error is 0.7 (32 channels) to 1.8 times (640) that of the definition here, 2e-7 to 5e-7 of
// the result's norm; of numbers of one sign up to 2.1 times. It is relative to the largest pixels that the target pixel sees, where
// the definition's is relative to the largest products: a weight of 0 does not take a pixel out. Infinities can meet with
// opposite signs where the definition has one, so tiles with a result that is not finite are computed again, by definition,
// all kWinogradColumns columns that were multiplied together.
//
// Work item: some tiles of one group by some columns. V is made once for all channels, U for kWinogradColumns columns at a time and
// kept where all of it fits. Each tile's arithmetic depends on its own pixels alone: results are the same bits for any number of
// threads or images, but for the sign of NaN.
//
// Source: Winograd 1980; Lavin and Gray 2015 (arXiv 1509.09308).
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "gemm/tapped_cpu.h"
#include "gemm/winograd_map_cpu.h"

namespace cvk {

// Three weights along one axis: G.
template <class Vec>
CVK_HD void winograd_weights(Vec a, Vec b, Vec c, Vec half, Vec (&to)[4]) {
  const Vec outer = (a + c) * half, inner = b * half;
  to[0] = a;
  to[1] = outer + inner;
  to[2] = outer - inner;
  to[3] = c;
}

// Four sums along one axis to two results: A'.
template <class Vec>
CVK_HD void winograd_target(Vec a, Vec b, Vec c, Vec d, Vec& first, Vec& second) {
  first = a + b + c;
  second = b - c - d;
}

// ---- when and how

template <Isa isa, class T>
struct WinogradPlan {
  using A = Acc<T>;
  using Tile = GemmTile<isa, A>;
  static constexpr int kPanels = kWinogradColumns / Tile::kColumns;

  CVK_HD explicit WinogradPlan(const TappedProduct<T>& p)
      : grid(p.grid(0)),
        tiles(grid),
        blocks(p.group_channels(), 1),
        most_channels(round_up(blocks[0].channels, Tile::kLanes)),
        // Elements 0..15 lie side by side in a row of the left operand as far as its pitch goes.
        per_row(min_of(16, Tile::kDepth / most_channels)),
        rows_per_tile(ceil_div(16, per_row)) {}

  // Bytes of V for one tile.
  CVK_HD int64_t tile_bytes() const {
    return blocks.count() * rows_per_tile * Tile::kPitch * static_cast<int64_t>(sizeof(A));
  }
  static CVK_HD int64_t blocks_of_columns(int64_t columns) { return ceil_div<int64_t>(columns, kWinogradColumns); }
  // Elements of a block of U: the channels of one depth block by kWinogradColumns columns.
  CVK_HD int64_t block_size() const { return 16 * element_size(most_channels); }
  static CVK_HD int64_t element_size(int64_t channels) { return channels * kWinogradColumns + kWinogradSkew; }
  CVK_HD bool keeps_weights(int64_t columns) const {
    return blocks.count() * blocks_of_columns(columns) * block_size() * static_cast<int64_t>(sizeof(A)) <=
           kWinogradWeightBytes;
  }
  CVK_HD int64_t most_tiles() const {
    const int64_t fit = max_of<int64_t>(1, min_of<int64_t>(kWinogradTiles, kWinogradSourceBytes / tile_bytes()));
    return fit < Tile::kRows ? fit : fit / Tile::kRows * Tile::kRows;
  }

  // Cycles of a work item, as kGemmTileCost counts: products, then V, U and the results.
  CVK_HD int64_t cost(int64_t channels, int64_t tiles, int64_t columns, int64_t items) const {
    const int64_t panels = ceil_div<int64_t>(columns, Tile::kColumns);
    const int64_t products = 16 * channels * round_up<int64_t>(tiles, 2) * panels;
    const int64_t lanes = 16 / Tile::kLanes;
    const int64_t weights = lanes * kWinogradWeightCost * channels * columns;
    return products + lanes * (kWinogradSourceCost * channels + kWinogradTargetCost * columns) * tiles +
           (keeps_weights(columns) ? weights / items : weights);
  }

  TapGrid grid;
  WinogradTiles tiles;  // of an image
  DepthBlocks<isa, A> blocks;
  int most_channels, per_row, rows_per_tile;
};

// Whether it takes less time than the definition does: `there` cycles for a group of one image. Decided for one image and one
// thread: batch and threads change no bit.
template <Isa isa, class T>
CVK_HD bool winograd_pays(const TappedProduct<T>& p, int64_t there) {
  if constexpr (std::is_same_v<T, double>) {
    return false;
  } else {
    if (!cpu_may_winograd()) return false;
    const int64_t channels = p.group_channels(), columns = p.group_columns();
    if (!winograd_fits(p.shape) || channels < kWinogradLeastChannels || columns < kWinogradLeastChannels) return false;
    const WinogradPlan<isa, T> plan(p);
    const int64_t tiles = plan.tiles.count();
    if (tiles == 0) return false;
    const int64_t items = ceil_div(tiles, plan.most_tiles());
    const int64_t here = items * plan.cost(channels, ceil_div(tiles, items), columns, items);
    return here * kWinogradGain < there * 8;
  }
}

// Pixels of the cut and of its items are tiles.
template <Isa isa, class T>
CVK_HD ConvCut winograd_cut(const TappedProduct<T>& p, int threads) {
  const WinogradPlan<isa, T> plan(p);
  const int64_t tiles = p.shape.batch * plan.tiles.count(), columns = p.group_columns();
  ConvCut cut{};
  cut.form = ConvForm::kWinograd;
  cut.column_blocks = 1;
  cut.pixel_blocks = max_of<int64_t>(1, ceil_div(tiles, plan.most_tiles()));
  const auto time = [&](const ConvCut& next, int64_t items) {
    const int64_t width = min_of<int64_t>(next.block_columns, columns);
    return items * plan.cost(p.group_channels(), next.block_pixels, width, items);
  };
  cut_evenly(p.shape.groups, tiles, 1, columns, kWinogradColumns, threads, time, cut);
  return cut;
}

// ---- a slice of work items

template <Isa isa, class T>
class Winograd {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using Tile = GemmTile<isa, A>;
  using Plan = WinogradPlan<isa, T>;
  static constexpr int kLanes = S::kLanes;

 public:
  CVK_HD Winograd(const TappedProduct<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        plan_(p),
        row_tiles_(ceil_div(cut.block_pixels, Tile::kRows)),
        window_width_(min_of(cut.block_pixels, plan_.tiles.x) * 2 + 2),
        source_size_(int64_t{row_tiles_} * Tile::kRows * Tile::kPitch),
        source_(plan_.blocks.count() * plan_.rows_per_tile * source_size_ * static_cast<int64_t>(sizeof(A))),
        sums_(int64_t{16} * sums_size() * static_cast<int64_t>(sizeof(A))),
        panel_(int64_t{9} * kWinogradPackChannels * Tile::kColumns * static_cast<int64_t>(sizeof(A))),
        results_(p.shape.channels_last
                     ? 0
                     : int64_t{2} * window_width_ * kWinogradColumns * static_cast<int64_t>(sizeof(A))),
        finite_(cut.block_pixels),
        map_{p.source, plan_.grid.y.extent, plan_.grid.x.extent, p.channels(), p.shape.channels_last},
        window_(4, window_width_, plan_.most_channels, p.shape.channels_last) {}
  CVK_HD ~Winograd() {}

  CVK_HD void item(int64_t index) {
    item_ = tap_item(p_, cut_, index);
    const int64_t first = item_.first_pixel;
    const int tiles =
        static_cast<int>(min_of<int64_t>(cut_.block_pixels, p_.shape.batch * plan_.tiles.count() - first));
    plan_.tiles.for_each_run(first, tiles, [&](const WinogradRun& run) { make_source(run); });
    weights_.begin(item_.key, plan_.blocks.count() * plan_.blocks_of_columns(item_.width), plan_.block_size(),
                   kWinogradWeightBytes);
    for (int column = 0; column < item_.width; column += kWinogradColumns) {
      const int columns = min_of(kWinogradColumns, item_.width - column);
      multiply(tiles, column, columns);
      plan_.tiles.for_each_run(first, tiles, [&](const WinogradRun& run) {
        if (!finish(run, column, columns)) by_definition(run, column, columns);
      });
    }
  }

 private:
  CVK_HD int64_t sums_size() const { return int64_t{row_tiles_} * Plan::kPanels * Tile::kSize + kWinogradSkew; }
  // Row 0 of element e of V for a block of channels.
  CVK_HD A* source(int64_t b, int e) const {
    return source_.template as<A>() + (b * plan_.rows_per_tile + e / plan_.per_row) * source_size_ +
           e % plan_.per_row * plan_.most_channels;
  }

  // ---- V

  CVK_HD void make_source(const WinogradRun& run) {
    const int64_t y = int64_t{2} * run.y + plan_.grid.y.first_offset,
                  x = int64_t{2} * run.x + plan_.grid.x.first_offset;
    for (int64_t b = 0; b < plan_.blocks.count(); ++b) {
      const DepthBlock block = plan_.blocks[b];
      window_.read(map_, run.image, y, x, 2 * run.count + 2, item_.group * p_.group_channels() + block.c,
                   block.channels, [&](int c, int channels, const auto& at) {
                     A* to[16];
                     for (int e = 0; e < 16; ++e) to[e] = source(b, e) + int64_t{run.place} * Tile::kPitch + c;
                     winograd_transform_source<isa>(at, run.count, channels, to, Tile::kPitch);
                   });
    }
  }

  // ---- U and M

  CVK_HD void make_weights(const DepthBlock& block, int column, int columns, A* to) {
    const auto strides = p_.strides();
    const T* weights = p_.weights + item_.group * strides.group + (item_.first_column + column) * strides.column;
    A* panel = panel_.template as<A>();
    const Vec half = S::broadcast(A(0.5));
    const int64_t size = Plan::element_size(block.channels);
    // Filters of planes are turned in the order that they have (Perf: 3 to 5 % of a small map), others in taps, then channels.
    const bool as_they_lie = strides.tap == 1 && !p_.transposed;
    for (int j = 0; j < columns; j += Tile::kColumns, to += int64_t{block.channels} * Tile::kColumns) {
      const int width = min_of(Tile::kColumns, columns - j);
      for (int c = 0; c < block.channels; c += kWinogradPackChannels) {
        const DepthBlock part{block.c + c, min_of(kWinogradPackChannels, block.channels - c), 0, 9};
        int64_t tap = Tile::kColumns, channel = 9 * tap;
        if (as_they_lie) {
          transpose_into_panel<isa>(
              weights + j * strides.column + part.c * strides.channel, strides.column, width, part.depth(),
              Tile::kColumns, [](int i) { return i; }, panel);
        } else {
          pack_weight_panels<isa>(p_, plan_.grid, weights + j * strides.column, part, width, panel);
          channel = Tile::kColumns, tap = part.channels * channel;
        }
        A* element = to + int64_t{c} * Tile::kColumns;
        for (int i = 0; i < part.channels; ++i) {
          for (int v = 0; v < Tile::kColumns; v += kLanes, element += kLanes) {
            const A* g = panel + i * channel + v;
            Vec half_way[3][4], u[4];
            for (int x = 0; x < 3; ++x) {
              winograd_weights(S::load(g + x * tap), S::load(g + (3 + x) * tap), S::load(g + (6 + x) * tap), half,
                               half_way[x]);
            }
            for (int y = 0; y < 4; ++y) {
              winograd_weights(half_way[0][y], half_way[1][y], half_way[2][y], half, u);
              for (int x = 0; x < 4; ++x) S::store(element + (4 * y + x) * size, u[x]);
            }
          }
        }
      }
    }
  }

  CVK_HD void multiply(int tiles, int column, int columns) {
    const int64_t blocks = plan_.blocks.count();
    for (int64_t b = 0; b < blocks; ++b) {
      const DepthBlock block = plan_.blocks[b];
      const A* weights = weights_.get(column / kWinogradColumns * blocks + b,
                                      [&](A* to) { make_weights(block, column, columns, to); });
      for (int e = 0; e < 16; ++e) {
        gemm_block<isa, A, A>(tiles, columns, block.channels, {source(b, e), Tile::kPitch},
                              weights + e * Plan::element_size(block.channels), Tile::kColumns,
                              int64_t{block.channels} * Tile::kColumns, sums_.template as<A>() + e * sums_size(),
                              Plan::kPanels, b > 0, nullptr);
      }
    }
  }

  // ---- the results

  // Whether all of them are finite.
  CVK_HD bool finish(const WinogradRun& run, int column, int columns) {
    const int64_t global = item_.group * p_.group_columns() + item_.first_column + column;
    const int64_t plane = p_.target_plane(), y = int64_t{2} * run.y, x = int64_t{2} * run.x;
    const int height = min_of(2, plan_.grid.y.grid - 2 * run.y),
              width = min_of(2 * run.count, plan_.grid.x.grid - 2 * run.x);
    const int64_t pixel = y * p_.target_width() + x;
    if (p_.shape.channels_last) {
      T* to = p_.target + (run.image * plane + pixel) * p_.columns() + global;
      return results(run, global, columns, height, width, to, p_.columns(), p_.target_width() * p_.columns());
    }
    A* rows = results_.template as<A>();
    const bool finite =
        results(run, global, columns, height, width, rows, kWinogradColumns, int64_t{width} * kWinogradColumns);
    for (int i = 0; i < height; ++i) {
      transpose_matrix<isa>(rows + int64_t{i} * width * kWinogradColumns, kWinogradColumns,
                            p_.target + (run.image * p_.columns() + global) * plane + pixel + i * p_.target_width(),
                            plane, width, columns);
    }
    return finite;
  }

  // Target pixel (i, j) of the run to to[i * row_step + j * step], channels along it. Notes of each tile whether it is finite.
  template <class Out>
  CVK_HD bool results(const WinogradRun& run, int64_t global, int columns, int height, int width, Out* to, int64_t step,
                      int64_t row_step) const {
    const T* bias = p_.bias != nullptr ? p_.bias + global : nullptr;
    const int64_t size = sums_size();
    bool all_finite = true;
    for (int t = 0; t < run.count; ++t) {
      typename S::IntVec odd{};
      const int place = run.place + t;
      const GemmSums<isa, A> sums{sums_.template as<A>(), Plan::kPanels, 1};
      for (int v = 0; v < columns; v += kLanes) {
        const int count = min_of(kLanes, columns - v);
        const A* m = sums.at(place, v);
        Vec half_way[2][4], result[2][2];
        for (int j = 0; j < 4; ++j) {
          winograd_target(S::load(m + j * size), S::load(m + (4 + j) * size), S::load(m + (8 + j) * size),
                          S::load(m + (12 + j) * size), half_way[0][j], half_way[1][j]);
        }
        for (int i = 0; i < 2; ++i) {
          winograd_target(half_way[i][0], half_way[i][1], half_way[i][2], half_way[i][3], result[i][0], result[i][1]);
        }
        Vec add{};
        if (bias != nullptr) add = count == kLanes ? S::load(bias + v) : S::load_partial(bias + v, count);
        for (int i = 0; i < height; ++i) {
          for (int j = 0; j < min_of(2, width - 2 * t); ++j) {
            const Vec sum = result[i][j] + add, value = activate(p_.activation, sum);
            odd |= sum - sum != Vec{};
            Out* at = to + i * row_step + (2 * t + j) * step + v;
            if (count == kLanes) {
              S::store(at, value);
            } else {
              S::store_partial(at, value, count);
            }
          }
        }
      }
      const bool finite = !S::any(odd);
      finite_.template as<bool>()[place] = finite;
      all_finite &= finite;
    }
    return all_finite;
  }

  // The tiles of a run that are not finite, neighbours together.
  CVK_HD void by_definition(const WinogradRun& run, int column, int columns) {
    const int most = round_up(2 * cut_.block_pixels, Tile::kColumns);
    if (!definition_.has_value()) {
      ConvCut cut{};
      cut.block_pixels = most;
      cut.block_columns = kWinogradColumns;
      definition_.emplace(p_, cut);
      gatherers_.emplace(p_, most);
    }
    const bool* finite = finite_.template as<bool>() + run.place;
    for (int t = 0; t < run.count; ++t) {
      if (finite[t]) continue;
      int end = t + 1;
      while (end < run.count && !finite[end]) ++end;
      for (int i = 0; i < min_of(2, plan_.grid.y.grid - 2 * run.y); ++i) {
        TapItem item = item_;
        item.key = item_.key * plan_.blocks_of_columns(cut_.block_columns) + column / kWinogradColumns;
        item.first_column += column;
        item.first_pixel =
            run.image * plan_.grid.pixels() + (int64_t{2} * run.y + i) * plan_.grid.x.grid + 2 * (run.x + t);
        item.pixels = min_of(2 * (end - t), plan_.grid.x.grid - 2 * (run.x + t));
        item.width = columns;
        multiply_item(p_, item, *definition_, *gatherers_);
      }
      t = end;
    }
  }

  const TappedProduct<T>& p_;
  const ConvCut& cut_;
  Plan plan_;
  int row_tiles_, window_width_;
  int64_t source_size_;  // of a row of elements of V, for all tiles
  Scratch source_, sums_, panel_, results_, finite_;
  WinogradMap<T> map_;
  WinogradWindow<isa, T> window_;
  PackedBlocks<A> weights_;
  std::optional<TapScratch<isa, A>> definition_;  // where it is needed
  std::optional<TapGatherers<isa, A, T>> gatherers_;
  TapItem item_{};  // at work
};

}  // namespace cvk
