// Tapped products (tapped.h) on the CPU.
//
// Channels-last maps: pixels are the rows of the product, weights are packed into panels. Planes: pixels are the columns,
// weights the rows. Either way both maps are read and written as they lie.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "gemm/dot_cpu.h"
#include "gemm/gather_cpu.h"
#include "gemm/pairs_cpu.h"
#include "gemm/store_cpu.h"
#include "gemm/tapped.h"
#include "gemm/weights_cpu.h"

namespace cvk {

// ---- the operand that holds pixels

// A panel of `vecs` vectors of pixels.
template <Isa isa, class P, class Gatherer>
CVK_HD void make_pixel_panel(Gatherer& gatherer, const DepthBlock& block, int first, int vecs, P* to) {
  constexpr int kLanes = GemmTile<isa, P>::kLanes, kColumns = GemmTile<isa, P>::kColumns;
  if constexpr (kGemmElements<P> == 2) {
    gatherer.gather_pairs(block, first, vecs, kColumns, to);
    pad_panel<isa>(ceil_div(block.depth(), 2), vecs * kLanes, to);
  } else {
    gatherer.gather(block, first, vecs, kColumns, to);
  }
}

// The block as a gatherer of rows counts it.
template <class P>
CVK_HD DepthBlock in_operands(DepthBlock block) {
  block.c /= kGemmElements<P>;
  block.channels /= kGemmElements<P>;
  return block;
}

// Whether the operands can be made in pairs. Planes: always. Rows are copied in words, which no tap may begin or end within.
template <Isa isa, class T>
CVK_HD bool pairs_fit(const TappedProduct<T>& p) {
  return !p.shape.channels_last ||
         (p.group_channels() % 2 == 0 && 2 * p.shape.kernel_size() <= DepthBlocks<isa, word_t>::kMost);
}

// As what this product is multiplied.
template <Isa isa, class T>
CVK_HD ConvOperands tapped_operands(const TappedProduct<T>& p) {
  return pairs_fit<isa>(p) ? gemm_best_operands<isa, T>() : ConvOperands::kNumbers;
}

// ---- cutting

// Cuts pixels and columns into the blocks that `cut` counts, each a multiple of its unit.
CVK_HD void cut_blocks(int64_t pixels, int pixel_unit, int64_t columns, int column_unit, ConvCut& cut) {
  const auto block_of = [](int64_t all, int64_t blocks, int unit) {
    return static_cast<int>(round_up<int64_t>(max_of<int64_t>(1, ceil_div<int64_t>(all, blocks)), unit));
  };
  cut.block_pixels = block_of(pixels, cut.pixel_blocks, pixel_unit);
  cut.block_columns = block_of(columns, cut.column_blocks, column_unit);
  cut.pixel_blocks = max_of<int64_t>(1, ceil_div<int64_t>(pixels, cut.block_pixels));
  cut.column_blocks = max_of<int64_t>(1, ceil_div<int64_t>(columns, cut.block_columns));
}

// The same into at least so many blocks, such that the last thread is done first: time(cut, items) is of `items` work items one
// after another. `others`: how often the pixels and columns are there.
template <class Time>
CVK_HD void cut_evenly(int64_t others, int64_t pixels, int pixel_unit, int64_t columns, int column_unit, int threads,
                       const Time& time, ConvCut& cut) {
  const ConvCut least = cut;
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int64_t more = 1; more <= threads; more = more < threads ? min_of<int64_t>(2 * more, threads) : more + 1) {
    const int64_t column_blocks = min_of(least.column_blocks * more, ceil_div<int64_t>(columns, column_unit));
    const int64_t fewest = ceil_div<int64_t>(others * column_blocks * least.pixel_blocks, threads);
    for (int64_t rounds = fewest; rounds < fewest + 4; ++rounds) {
      const int64_t wanted = ceil_div<int64_t>(rounds * threads, others * column_blocks);
      ConvCut next = least;
      next.column_blocks = column_blocks;
      next.pixel_blocks = max_of(least.pixel_blocks, min_of(wanted, ceil_div<int64_t>(pixels, pixel_unit)));
      cut_blocks(pixels, pixel_unit, columns, column_unit, next);
      const int64_t takes = time(next, ceil_div<int64_t>(others * next.pixel_blocks * next.column_blocks, threads));
      if (takes >= best) continue;
      best = takes;
      cut = next;
    }
  }
}

// Whether phases differ in taps, of which a kernel that its steps divide has as many for each.
template <class T>
CVK_HD bool phases_differ(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  const auto differ = [](int kernel, int stride, int dilation) {
    return stride > 1 && (kernel % stride != 0 || dilation > 1);
  };
  return p.phases() > 1 &&
         (differ(s.kernel_height, s.stride_y, s.dilation_y) || differ(s.kernel_width, s.stride_x, s.dilation_x));
}

// Whether a work item takes the phases of even and of odd columns together: over planes they lie by turns in rows of the target.
template <Isa isa, class P, class T>
CVK_HD bool phases_pair(const TappedProduct<T>& p) {
  return p.transposed && !p.shape.channels_last && p.shape.stride_x == 2 && p.shape.width > 1 &&
         p.shape.kernel_size() <= DepthBlocks<isa, P>::kMost;
}

// Phases, or pairs of them, of which work items are.
template <class T>
CVK_HD int64_t item_phases(const TappedProduct<T>& p, const ConvCut& cut) {
  return p.phases() / cut.phases;
}

template <Isa isa, class P, class T>
CVK_HD void cut_product(const TappedProduct<T>& p, int threads, ConvCut& cut) {
  using Tile = GemmTile<isa, P>;
  cut.phases = phases_pair<isa, P>(p) ? 2 : 1;
  const int64_t columns = p.group_columns();
  const int64_t pixels = p.shape.batch * p.grid(0).pixels();  // the first phase has the most
  cut.column_blocks = max_of<int64_t>(1, ceil_div<int64_t>(columns, kGemmItemColumns));
  const int64_t bytes = ceil_div<int64_t>(columns, cut.column_blocks) * p.group_channels() * p.shape.kernel_size() *
                        static_cast<int64_t>(sizeof(P)) / kGemmElements<P>;
  const bool last = p.shape.channels_last;
  int64_t most = last ? Tile::kBlockRows : kGemmItemPanels * Tile::kColumns;
  if (last && bytes > kGemmNearBytes) most *= bytes > kGemmResidentBytes ? kGemmItemBlocks : 2;
  cut.pixel_blocks = max_of<int64_t>(1, ceil_div(pixels, most));
  const int64_t others = item_phases(p, cut) * p.shape.groups;
  const bool few = pixels > 0 && columns > 0 && others * cut.column_blocks * cut.pixel_blocks < int64_t{16} * threads;
  const int row_unit = few ? Tile::kRowUnit : Tile::kRows;
  const int pixel_unit = last ? row_unit : Tile::kColumns, column_unit = last ? Tile::kColumns : row_unit;
  const auto time = [&](const ConvCut& next, int64_t items) {
    const int64_t rows = last ? next.block_pixels : next.block_columns;
    const int64_t panels = (last ? next.block_columns : next.block_pixels) / Tile::kColumns;
    return items * (Tile::kCost * rows * panels + kGemmOperandCost * (rows + panels * Tile::kRows));
  };
  if (few) {
    cut_evenly(others, pixels, pixel_unit, columns, column_unit, threads, time, cut);
  } else {
    cut_blocks(pixels, pixel_unit, columns, column_unit, cut);
  }
  // Phases differ in their taps, down to none. Threads take neighbouring items: each finds as much of every phase.
  if (cut.pixel_blocks >= threads && item_phases(p, cut) > 1 && phases_differ(p)) {
    cut.shares = threads;
    cut.pixel_blocks = round_up<int64_t>(cut.pixel_blocks, threads);  // the last may have no pixels
    cut.block_pixels = static_cast<int>(round_up<int64_t>(ceil_div(pixels, cut.pixel_blocks), pixel_unit));
  }
}

template <Isa isa, class T>
CVK_HD ConvCut tapped_cut(const TappedProduct<T>& p, int threads) {
  ConvCut cut{};
  cut.operands = tapped_operands<isa>(p);
  with_operands<isa, T>(cut.operands, [&](auto zero) { cut_product<isa, decltype(zero)>(p, threads, cut); });
  return cut;
}

// Cycles of the products of one image and group, as kGemmTileCost counts: two vectors of sums a row.
template <Isa isa, class T>
CVK_HD int64_t tapped_cycles(const TappedProduct<T>& p) {
  const TapGrid grid = p.grid(0);
  const int64_t pixels = grid.pixels(), columns = p.group_columns();
  const int64_t rows = p.shape.channels_last ? pixels : columns, others = p.shape.channels_last ? columns : pixels;
  const int64_t cycles = grid.taps() * p.group_channels() * round_up<int64_t>(rows, 2) *
                         ceil_div<int64_t>(others, GemmTile<isa, Acc<T>>::kLanes) / 2;
  switch (tapped_operands<isa>(p)) {
    case ConvOperands::kPairs:
      return cycles / 2;
    case ConvOperands::kTiles:
    case ConvOperands::kEmulatedTiles:
      return cycles / 16;
    default:
      return cycles;
  }
}

template <class T>
CVK_HD int64_t tapped_items(const TappedProduct<T>& p, const ConvCut& cut) {
  return item_phases(p, cut) * p.shape.groups * cut.column_blocks * cut.pixel_blocks;
}

// ---- what becomes of the sums

// How many of the last columns are computed as dot products of `depth` operands. In tiles 16 columns cost what one would here.
template <Isa isa, class P>
CVK_HD int dot_columns(int columns, int depth) {
  if (kGemmTiles<P>) return 0;
  const int rest = columns % GemmTile<isa, P>::kLanes;
  return rest * (depth + kDotSetup) < kDotColumns * depth ? rest : 0;
}

// Columns [begin, begin + columns) of sums by dot products; with `finish` they leave for it.
template <Isa isa, class P, class T>
CVK_HD void dot_block(int rows, int begin, int columns, int depth, const GemmRows<P>& left, const P* right,
                      const GemmSums<isa, P>& sums, bool add, const GemmFinish<T>* finish) {
  using A = Acc<P>;
  using S = Simd<isa, A>;
  using Tile = GemmTile<isa, P>;
  const auto put = [&](int row, int column, A value) {
    A* sum = sums.at(row, column);
    if (add) value += *sum;
    if (finish == nullptr) {
      *sum = value;
      return;
    }
    if (finish->bias != nullptr) value += to_acc(finish->bias[column]);
    if (finish->relu && value < A(0)) value = A(0);
    finish->to[row * finish->stride + column] = from_acc<T>(value);
  };
  for (int j = 0; j < columns; j += 2) {
    const bool both = j + 1 < columns;
    const int step = both ? kDotRows<isa, P, 2> : kDotRows<isa, P, 1>;
    const P* column = right + j * Tile::kPitch;
    for (int i = 0; i < rows; i += step) {
      const P* row = left.from(i).at;
      A lanes[S::kLanes];
      S::store(lanes, both ? dot_tile<isa, P, 2>(row, left.pitch, rows - i, column, Tile::kPitch, depth)
                           : dot_tile<isa, P, 1>(row, left.pitch, rows - i, column, Tile::kPitch, depth));
      for (int r = 0; r < step && i + r < rows; ++r) {
        put(i + r, begin + j, lanes[r]);
        if (both) put(i + r, begin + j + 1, lanes[step + r]);
      }
    }
  }
}

// ---- the loop over work items

// A work item: pixels [first_pixel, first_pixel + pixels) of one or two phases by columns [first_column, first_column + width) of a group.
struct TapItem {
  TapGrid grids[2];  // of two phases, the second has as many pixels in a row as the first
  int phases;
  int64_t key;  // of the weights that it needs
  int64_t group, first_column, first_pixel;
  int pixels, width;
};

template <class T>
CVK_HD TapItem tap_item(const TappedProduct<T>& p, const ConvCut& cut, int64_t index) {
  // In the order of shares, groups, columns, phases and pixels of a share.
  const int64_t phases = item_phases(p, cut), blocks = cut.pixel_blocks / cut.shares;
  TapItem item{};
  const int64_t keys = phases * p.shape.groups * cut.column_blocks;
  item.key = index / blocks % keys;
  item.phases = cut.phases;
  for (int i = 0; i < cut.phases; ++i) {
    item.grids[i] = p.grid(item.key % phases * cut.phases + i);
    item.grids[i].x.grid = item.grids[0].x.grid;
  }
  item.group = item.key / phases / cut.column_blocks;
  item.first_column = item.key / phases % cut.column_blocks * cut.block_columns;
  item.first_pixel = (index / blocks / keys * blocks + index % blocks) * cut.block_pixels;
  const int64_t rest = p.shape.batch * item.grids[0].pixels() - item.first_pixel;  // a later phase may have fewer
  item.pixels = static_cast<int>(max_of<int64_t>(0, min_of<int64_t>(cut.block_pixels, rest)));
  item.width = static_cast<int>(min_of<int64_t>(cut.block_columns, p.group_columns() - item.first_column));
  return item;
}

// Scratch of a slice of work items.
template <Isa isa, class P>
struct TapScratch {
  using A = Acc<P>;
  using Tile = GemmTile<isa, P>;

  template <class T>
  CVK_HD TapScratch(const TappedProduct<T>& p, const ConvCut& cut)
      : last(p.shape.channels_last),
        row_tiles(ceil_div(last ? cut.block_pixels : cut.block_columns, Tile::kRows)),
        panels(ceil_div(last ? cut.block_columns : cut.block_pixels, Tile::kColumns)),
        tiles(row_tiles * panels),
        sums_memory((int64_t{tiles} * cut.phases + 1) * Tile::kSize * sizeof(A)),
        pixel_memory(int64_t{last ? Tile::kBlockRows * Tile::kPitch : Tile::kDepth * Tile::kColumns} * sizeof(P)),
        wide_memory(PairScratch<isa, P>::kSize * sizeof(float)),
        runs_memory(cut.phases > 1 ? cut.block_pixels * static_cast<int64_t>(sizeof(PairedRun)) : 0),
        zeros(sums(cut.phases * tiles)) {
    for (int i = 0; i < Tile::kSize; ++i) zeros[i] = 0;
  }
  CVK_HD ~TapScratch() {}

  CVK_HD A* sums(int tile) const { return sums_memory.template as<A>() + int64_t{tile} * Tile::kSize; }
  CVK_HD P* pixels() const { return pixel_memory.template as<P>(); }
  CVK_HD float* wide() const { return wide_memory.template as<float>(); }
  CVK_HD PairedRun* runs() const { return runs_memory.template as<PairedRun>(); }

  bool last;
  int row_tiles, panels, tiles;  // of a phase of a work item
  Scratch sums_memory, pixel_memory, wide_memory, runs_memory;
  PackedBlocks<P> packed;
  A* zeros;  // a tile of sums of nothing
};

// Whether the activation is done in registers (GemmFinish), and whether results may leave for the target from there: their pixels follow
// one another in it.
template <class T>
CVK_HD bool activates_in_registers(const TappedProduct<T>& p) {
  return p.activation == Activation::kNone || p.activation == Activation::kRelu;
}
template <class T>
CVK_HD bool finishes_in_registers(const TappedProduct<T>& p, const TapGrid& grid) {
  return grid.x.target_step == 1 && grid.y.target_step == 1 && activates_in_registers(p);
}

// Whether those of a channels-last phase do so a row of pixels at a time, in one block of the depth. What a row leaves of its last tile
// must cost less than scratch does.
template <Isa isa, class P, class T>
CVK_HD bool finishes_by_rows(const TappedProduct<T>& p, const TapGrid& grid, const DepthBlocks<isa, P>& blocks) {
  using Tile = GemmTile<isa, P>;
  const int width = grid.x.grid, rest = width % Tile::kRows;
  const int idle = rest == 0 ? 0 : max_of(kGemmLeastRows, round_up(rest, Tile::kRowUnit)) - rest;
  return grid.x.target_step > 1 && activates_in_registers(p) && blocks.count() == 1 && width >= Tile::kRows &&
         int64_t{idle} * blocks[0].depth() <= int64_t{kGemmScratchCost} * width;
}

// Whether rows of the product are pixels of a channels-last map as they lie: of one tap, which reads them in order, operands that are
// neither converted nor so far apart that they would fall into few sets of L1, and all rows that are computed inside the map: the last
// tile of the item, or with `by_rows` of any row of the target, rounds its rows up.
template <Isa isa, class P, class T>
CVK_HD bool rows_in_map(const TappedProduct<T>& p, const TapItem& item, bool by_rows) {
  constexpr int kUnit = GemmTile<isa, P>::kRowUnit;
  const TapGrid& grid = item.grids[0];
  const bool whole = !by_rows || (grid.x.grid % kUnit == 0 && item.first_pixel % kUnit == 0);
  const int64_t end = item.first_pixel + (whole ? round_up(item.pixels, kUnit) : item.pixels + kUnit - 1);
  return std::is_same_v<P, T> && p.shape.groups == 1 && reads_alike(grid) && near_in_map<P>(p.channels()) &&
         end <= p.shape.batch * p.source_plane();
}

// Channels-last maps: pixels are rows, which `gatherer` makes.
template <Isa isa, class P, class T, class Gatherer>
CVK_HD void multiply_rows(const TappedProduct<T>& p, const TapItem& item, TapScratch<isa, P>& scratch,
                          Gatherer&& gatherer) {
  using A = Acc<P>;
  using Tile = GemmTile<isa, P>;
  const int64_t channels = p.group_channels(), column = item.group * p.group_columns() + item.first_column;
  const TapGrid& grid = item.grids[0];
  const auto strides = p.strides();
  const T* weights = p.weights + item.group * strides.group + item.first_column * strides.column;
  const DepthBlocks<isa, P> blocks(channels, grid.taps());
  const int dots = blocks.count() > 0 ? dot_columns<isa, P>(item.width, gemm_operands<P>(blocks[0].depth())) : 0;
  const int width = item.width - dots;
  // Panels, and behind them the rows of dot products.
  const int64_t panel_size = int64_t{scratch.panels} * Tile::kColumns * Tile::kDepth;
  scratch.packed.begin(item.key, blocks.count(), panel_size + Tile::kLanes * Tile::kPitch, kGemmResidentBytes);
  const bool by_rows = finishes_by_rows(p, grid, blocks);
  const bool in_map = rows_in_map<isa, P>(p, item, by_rows);
  if (!in_map) gatherer.place(grid, item.first_pixel, item.pixels);
  const bool finishes = by_rows || finishes_in_registers(p, grid);
  for (int64_t b = 0; b < blocks.count(); ++b) {
    const DepthBlock block = blocks[b];
    const int depth = gemm_operands<P>(block.depth());
    const bool last = b == blocks.count() - 1;
    const P* panels = scratch.packed.get(b, [&](P* to) {
      make_weight_panels<isa>(p, grid, weights, block, width, scratch.wide(), to);
      make_weight_columns<isa>(p, grid, weights + width * strides.column, block, dots, scratch.wide(), to + panel_size);
    });
    for (int i = 0, rows; i < item.pixels; i += rows) {
      rows = min_of(Tile::kBlockRows, item.pixels - i);
      GemmFinish<T> finish{p.target + (item.first_pixel + i) * p.columns() + column, p.columns(),
                           p.bias != nullptr ? p.bias + column : nullptr, false, p.activation == Activation::kRelu};
      if (by_rows) {
        const GridWalk walk(grid, item.first_pixel + i);
        rows = min_of(rows, walk.left_in_row());
        const GridPixel& at = *walk;
        const int64_t pixel = at.image * p.target_plane() + target_pixel(grid, p.target_width(), at.y, at.x);
        finish.to = p.target + pixel * p.columns() + column;
        finish.stride = grid.x.target_step * p.columns();
      }
      const GemmSums<isa, P> sums{scratch.sums(i / Tile::kRows * scratch.panels), scratch.panels, 1};
      GemmRows<P> left{scratch.pixels(), Tile::kPitch};
      if (in_map) {
        if constexpr (std::is_same_v<P, T>) left = {p.source + (item.first_pixel + i) * channels + block.c, channels};
      } else {
        gatherer.gather(in_operands<P>(block), i, rows, scratch.pixels());
        pad_rows<isa>(rows, in_operands<P>(block).depth(), scratch.pixels());
      }
      const GemmFinish<T>* done = last && finishes ? &finish : nullptr;
      gemm_block<isa>(rows, width, depth, left, panels, Tile::kColumns, int64_t{depth} * Tile::kColumns, sums.tiles,
                      scratch.panels, b > 0, done);
      if constexpr (!kGemmTiles<P>) {
        dot_block<isa>(rows, width, dots, depth, left, panels + panel_size, sums, b > 0, done);
      }
      if (last && !finishes) {
        store_rows(p, grid, item.first_pixel + i, rows, column, item.width, sums);
      }
    }
  }
  if (blocks.count() == 0) {
    store_rows(p, grid, item.first_pixel, item.pixels, column, item.width, GemmSums<isa, P>{scratch.zeros, 0, 0});
  }
}

// Planes: pixels are columns, which `gatherer` makes.
template <Isa isa, class P, class T, class Gatherer>
CVK_HD void multiply_planes(const TappedProduct<T>& p, const TapItem& item, TapScratch<isa, P>& scratch,
                            Gatherer&& gatherer) {
  using A = Acc<P>;
  using Tile = GemmTile<isa, P>;
  const int64_t channels = p.group_channels(), column = item.group * p.group_columns() + item.first_column;
  const auto strides = p.strides();
  const T* weights = p.weights + item.group * strides.group + item.first_column * strides.column;
  const int phases = item.phases;
  const TapGrid(&grids)[2] = item.grids;
  // Of both phases the same channels, so that weights are read once.
  const DepthBlocks<isa, P> blocks(channels, max_of(grids[0].taps(), grids[1].taps()));
  const int64_t rows_size = int64_t{scratch.row_tiles} * Tile::kRows * Tile::kPitch;
  scratch.packed.begin(item.key, blocks.count(), phases * rows_size, kGemmResidentBytes);
  gatherer.place(grids[0], item.first_pixel, item.pixels);
  const bool same_pixels = grids[0].x.taps == grids[1].x.taps && grids[0].x.first_offset == grids[1].x.first_offset;
  const bool dense = finishes_in_registers(p, grids[0]);
  const int64_t plane = p.target_plane();
  const auto sums_of = [&](int phase, int i) -> GemmSums<isa, P> {
    if (channels * grids[phase].taps() == 0) return {scratch.zeros, 0, 0};
    return {scratch.sums(phase * scratch.tiles + i / Tile::kColumns), scratch.panels, 1};
  };
  const auto store = [&](int i, int count) {
    store_planes(p, grids[0], item.first_pixel + i, count, column, item.width, sums_of(0, i));
  };
  for (int64_t b = 0; b < blocks.count(); ++b) {
    DepthBlock block = blocks[b];
    const int taps = phases > 1 ? grids[0].taps() + grids[1].taps() : block.taps;
    block.by_taps = kGemmElements<P> == 1 && weights_turn<isa, A>(p, taps, block.channels);
    const P* rows = scratch.packed.get(b, [&](P* to) {
      make_weight_rows<isa>(p, grids, phases, weights, block, item.width, rows_size, scratch.wide(), to);
    });
    const bool last = b == blocks.count() - 1;
    for (int i = 0; i < item.pixels; i += Tile::kColumns) {
      const int count = min_of(Tile::kColumns, item.pixels - i);
      const int64_t image = (item.first_pixel + i) / plane, at = (item.first_pixel + i) % plane;
      const bool finishes = dense && at + count <= plane;  // all in one image
      GemmFinish<T> finish{p.target + (image * p.columns() + column) * plane + at, plane,
                           p.bias != nullptr ? p.bias + column : nullptr, true, p.activation == Activation::kRelu};
      for (int phase = 0; phase < phases; ++phase) {
        const DepthBlock own = phase_block(block, grids[phase], phases);
        if (own.taps == 0) continue;
        if (phase == 0 || !same_pixels) {
          if (phases > 1) gatherer.turn_to(grids[phase]);
          make_pixel_panel<isa>(gatherer, own, i / Tile::kLanes, ceil_div(count, Tile::kLanes), scratch.pixels());
        }
        gemm_block<isa>(item.width, count, gemm_operands<P>(own.depth()),
                        GemmRows<P>{rows + phase * rows_size, Tile::kPitch}, scratch.pixels(), Tile::kColumns, 0,
                        scratch.sums(phase * scratch.tiles + i / Tile::kColumns), scratch.panels, b > 0,
                        last && finishes ? &finish : nullptr);
      }
      if (last && !finishes && phases == 1) store(i, count);
    }
  }
  if (phases > 1) {
    store_paired_planes(p, grids[0], item.first_pixel, item.pixels, column, item.width, sums_of(0, 0), sums_of(1, 0),
                        scratch.runs());
  } else if (blocks.count() == 0) {
    for (int i = 0; i < item.pixels; i += Tile::kColumns) store(i, min_of(Tile::kColumns, item.pixels - i));
  }
}

// The map's own gatherers, of which its layout needs one; for work items of at most `most_pixels`.
template <Isa isa, class P, class T>
struct TapGatherers {
  using Element = std::conditional_t<kGemmElements<P> == 2, word_t, T>;

  CVK_HD TapGatherers(const TappedProduct<T>& p, int most_pixels)
      : rows(nullptr, p.channels() / kGemmElements<P>, p.group_channels() / kGemmElements<P>,
             p.shape.channels_last ? most_pixels : 0),
        planes(nullptr, p.channels(), p.shape.channels_last ? 0 : most_pixels) {}
  CVK_HD ~TapGatherers() {}

  RowGatherer<isa, P, Element> rows;
  PlaneGatherer<isa, Acc<T>, T> planes;
};

template <Isa isa, class P, class T>
CVK_HD void multiply_item(const TappedProduct<T>& p, const TapItem& item, TapScratch<isa, P>& scratch,
                          TapGatherers<isa, P, T>& gatherers) {
  const int64_t first_channel = item.group * p.group_channels();
  if (p.shape.channels_last) {
    using Element = typename TapGatherers<isa, P, T>::Element;
    gatherers.rows.set_map(reinterpret_cast<const Element*>(p.source + first_channel));
    multiply_rows(p, item, scratch, gatherers.rows);
  } else {
    gatherers.planes.set_map(p.source + first_channel * p.source_plane());
    multiply_planes(p, item, scratch, gatherers.planes);
  }
}

template <Isa isa, class P, class T>
CVK_HD void tapped_product_of(const TappedProduct<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  const GemmSession<P> session;
  TapScratch<isa, P> scratch(p, cut);
  TapGatherers<isa, P, T> gatherers(p, cut.block_pixels);
  for (int64_t index = first; index < last; ++index) {
    const TapItem item = tap_item(p, cut, index);
    if (item.pixels > 0) multiply_item(p, item, scratch, gatherers);
  }
}

template <Isa isa, class T>
CVK_HD void tapped_product(const TappedProduct<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  with_operands<isa, T>(cut.operands, [&](auto zero) { tapped_product_of<isa, decltype(zero)>(p, cut, first, last); });
}

}  // namespace cvk
