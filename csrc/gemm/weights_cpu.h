// The operand that holds weights, on the CPU: made from a convolution's weights block by block, whatever their layout, and kept as long
// as it is of use.
#pragma once

#include <cstdint>

#include "gemm/pack_cpu.h"
#include "gemm/pairs_cpu.h"
#include "gemm/tapped.h"

namespace cvk {

// Where weights that lie channel by channel go in a block of taps, then channels: asked for one after the other.
struct TapsThenChannels {
  int taps, channels;
  int tap = 0, channel = 0;
  CVK_HD int64_t operator()(int) {
    const int at = tap * channels + channel;
    if (++tap == taps) tap = 0, ++channel;
    return at;
  }
};

// Panels of a block, the depth in taps then channels. `weights` points to the group's first column of these.
template <Isa isa, class A, class T>
CVK_HD void pack_weight_panels(const TappedProduct<T>& p, const TapGrid& grid, const T* weights,
                               const DepthBlock& block, int columns, A* to) {
  using Tile = GemmTile<isa, A>;
  const auto w = p.strides();
  const T* from = weights + block.c * w.channel;
  const int depth = block.depth();
  for (int j = 0; j < columns; j += Tile::kColumns, from += Tile::kColumns * w.column, to += Tile::kColumns * depth) {
    const int count = min_of(Tile::kColumns, columns - j);
    if (w.column == 1) {
      for (int t = 0; t < block.taps; ++t) {
        const T* tap = from + kernel_of(grid, p.shape.kernel_width, block.t + t) * w.tap;
        for (int c = 0; c < block.channels; ++c) {
          A* row = to + (t * block.channels + c) * Tile::kColumns;
          if (count < Tile::kColumns) clear_row<isa>(Tile::kColumns, row);
          copy_row<isa>(tap + c * w.channel, count, row);
        }
      }
    } else if (w.channel == 1) {
      for (int t = 0; t < block.taps; ++t) {
        const T* tap = from + kernel_of(grid, p.shape.kernel_width, block.t + t) * w.tap;
        transpose_into_panel<isa>(
            tap, w.column, count, block.channels, Tile::kColumns, [](int c) { return c; },
            to + t * block.channels * Tile::kColumns, t + 1 < block.taps ? w.tap : Tile::kColumns * w.column);
      }
    } else if (w.channel == p.shape.kernel_size() && block.taps == p.shape.kernel_size() && !p.transposed) {
      transpose_into_panel<isa>(from, w.column, count, depth, Tile::kColumns,
                                TapsThenChannels{block.taps, block.channels}, to);
    } else {
      constexpr int kLanes = Tile::kLanes;
      const int size = static_cast<int>(p.shape.kernel_size());
      for (int first = 0; first < size; first += kLanes) {
        const int kernels = min_of(kLanes, size - first);
        int place[kLanes];
        for (int k = 0; k < kernels; ++k) {
          const int tap = tap_of(grid, p.shape.kernel_width, first + k) - block.t;
          place[k] = tap < 0 || tap >= block.taps ? -1 : tap * block.channels;
        }
        for (int c = 0; c < block.channels; ++c) {
          transpose_into_panel<isa>(
              from + c * w.channel + first, w.column, count, kernels, Tile::kColumns,
              [&](int k) { return place[k] < 0 ? -1 : place[k] + c; }, to);
        }
      }
    }
  }
}

// Columns of a block as rows, the depth in taps then channels: for dot products.
template <class A, class T>
CVK_HD void pack_weight_columns(const TappedProduct<T>& p, const TapGrid& grid, const T* weights,
                                const DepthBlock& block, int columns, int64_t pitch, A* to) {
  const auto w = p.strides();
  for (int j = 0; j < columns; ++j, weights += w.column, to += pitch) {
    for (int t = 0; t < block.taps; ++t) {
      const T* from = weights + block.c * w.channel + kernel_of(grid, p.shape.kernel_width, block.t + t) * w.tap;
      for (int c = 0; c < block.channels; ++c) to[t * block.channels + c] = to_acc(from[c * w.channel]);
    }
  }
}

// Whether rows of weights are turned: of a transposed product, where enough of what is turned are `taps` and channels of a block.
template <Isa isa, class A, class T>
CVK_HD bool weights_turn(const TappedProduct<T>& p, int taps, int channels) {
  return p.transposed && kGemmTurnedTaps * taps >= p.shape.kernel_size() &&
         kGemmTurnedChannels * channels >= Simd<isa, A>::kLanes;
}

// Rows of a block so, the depth in taps then channels, for phases that have the block's channels: those of the second are phase_size
// elements behind those of the first. A channel's weights lie in a row, columns and their kernel elements, and are turned in squares.
template <Isa isa, class A, class T>
CVK_HD void turn_weight_rows(const TappedProduct<T>& p, const TapGrid* grids, int phases, const T* weights,
                             const DepthBlock& block, int rows, int64_t pitch, int64_t phase_size, A* to) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  const int64_t channel = p.strides().channel;
  const int size = p.shape.kernel_size();
  const Scratch memory(size * static_cast<int64_t>(sizeof(int64_t)));
  int64_t* place = memory.template as<int64_t>();  // of a kernel element of row 0
  for (int k = 0; k < size; ++k) place[k] = -1;
  for (int phase = 0; phase < phases; ++phase) {
    for (int t = block.t; t < min_of(block.t + block.taps, grids[phase].taps()); ++t) {
      place[kernel_of(grids[phase], p.shape.kernel_width, t)] = phase * phase_size + (t - block.t) * block.channels;
    }
  }
  const T* from = weights + block.c * channel;
  const int64_t length = int64_t{rows} * size;
  for (int c = 0; c < block.channels; c += kLanes, from += kLanes * channel) {
    const int channels = min_of(kLanes, block.channels - c);
    int k = 0;
    A* row = to + c;
    for (int64_t e = 0; e < length; e += kLanes) {
      const int count = static_cast<int>(min_of<int64_t>(kLanes, length - e));
      typename S::Vec square[kLanes];
      turn_square<isa, A>(from + e, channel, channels, count, square);
      for (int i = 0; i < count; ++i) {
        if (place[k] >= 0) {
          if (channels == kLanes) {
            S::store(row + place[k], square[i]);
          } else {
            S::store_partial(row + place[k], square[i], channels);
          }
        }
        if (++k == size) {
          k = 0;
          row += pitch;
        }
      }
    }
  }
}

// Rows of a block, the depth in channels then taps.
template <Isa isa, class A, class T>
CVK_HD void pack_weight_rows(const TappedProduct<T>& p, const TapGrid& grid, const T* weights, const DepthBlock& block,
                             int rows, int64_t pitch, A* to) {
  const auto w = p.strides();
  const T* from = weights + block.c * w.channel;
  if (!p.transposed) {  // contiguous as it is
    for (int j = 0; j < rows; ++j) copy_row<isa>(from + j * w.column + block.t, block.depth(), to + j * pitch);
    return;
  }
  if (block.taps == 1 && weights_turn<isa, A>(p, 1, block.channels)) {  // the same order
    turn_weight_rows<isa>(p, &grid, 1, weights, block, rows, pitch, 0, to);
    return;
  }
  for (int c = 0; c < block.channels; ++c, from += w.channel) {
    for (int t = 0; t < block.taps; ++t) {
      const T* tap = from + kernel_of(grid, p.shape.kernel_width, block.t + t);
      A* column = to + c * block.taps + t;
      for (int j = 0; j < rows; ++j) column[j * pitch] = to_acc(tap[j * w.column]);
    }
  }
}

// ---- in the type P that they are multiplied in (gemm_cpu.h)

// Room for an operand in float32 that is to be joined in pairs: a panel, or some rows.
template <Isa isa, class P>
struct PairScratch {
  static constexpr int kPitch = DepthBlocks<isa, P>::kMost + GemmTile<isa, P>::kLanes;
  static constexpr int kRows = GemmTile<isa, P>::kColumns;
  static constexpr int64_t kSize = kGemmElements<P> == 2 ? int64_t{kRows} * kPitch : 0;
};

// A panel of words: pairs are copied where they are neighbours in memory, or neighbouring rows.
template <Isa isa, class P, class T>
CVK_HD void make_word_panel(const TappedProduct<T>& p, const TapGrid& grid, const T* weights, const DepthBlock& block,
                            int columns, float* wide, P* to) {
  constexpr int kColumns = GemmTile<isa, P>::kColumns;
  const auto w = p.strides();
  if (block.channels % 2 != 0 || (w.column != 1 && (w.channel != 1 || w.column % 2 != 0))) {
    constexpr int kPart = GemmTile<isa, float>::kColumns;
    const int depth = block.depth();
    pack_weight_panels<isa>(p, grid, weights, block, columns, wide);
    for (int j = 0; j < columns; j += kPart) {
      pair_rows<isa>(wide + j * depth, kPart, depth, kPart, kColumns, to + j);
    }
    return;
  }
  for (int t = 0; t < block.taps; ++t, to += block.channels / 2 * kColumns) {
    const T* tap = weights + block.c * w.channel + kernel_of(grid, p.shape.kernel_width, block.t + t) * w.tap;
    if (w.column == 1) {
      pair_rows<isa>(tap, w.channel, block.channels, columns, kColumns, to);
    } else {
      transpose_into_panel<isa>(
          reinterpret_cast<const word_t*>(tap), w.column / 2, columns, block.channels / 2, kColumns,
          [](int c) { return c; }, to, (t + 1 < block.taps ? w.tap : kColumns * w.column) / 2);
    }
  }
}

template <Isa isa, class P, class T>
CVK_HD void make_weight_panels(const TappedProduct<T>& p, const TapGrid& grid, const T* weights,
                               const DepthBlock& block, int columns, float* wide, P* to) {
  if constexpr (kGemmElements<P> == 2) {
    constexpr int kColumns = GemmTile<isa, P>::kColumns;
    const int64_t size = int64_t{kColumns} * gemm_operands<P>(block.depth());
    for (int j = 0; j < columns; j += kColumns, weights += kColumns * p.strides().column, to += size) {
      make_word_panel<isa>(p, grid, weights, block, min_of(kColumns, columns - j), wide, to);
      pad_panel<isa>(ceil_div(block.depth(), 2), kColumns, to);
    }
  } else {
    pack_weight_panels<isa>(p, grid, weights, block, columns, to);
  }
}

template <Isa isa, class P, class T>
CVK_HD void make_weight_columns(const TappedProduct<T>& p, const TapGrid& grid, const T* weights,
                                const DepthBlock& block, int columns, float* wide, P* to) {
  constexpr int kPitch = GemmTile<isa, P>::kPitch;
  if constexpr (kGemmElements<P> == 2) {
    pack_weight_columns(p, grid, weights, block, columns, PairScratch<isa, P>::kPitch, wide);
    for (int j = 0; j < columns; ++j) {
      pair_row<isa>(wide + j * PairScratch<isa, P>::kPitch, block.depth(), to + j * kPitch);
    }
  } else {
    pack_weight_columns(p, grid, weights, block, columns, kPitch, to);
  }
}

template <Isa isa, class P, class T>
CVK_HD void make_phase_rows(const TappedProduct<T>& p, const TapGrid& grid, const T* weights, const DepthBlock& block,
                            int rows, float* wide, P* to) {
  constexpr int kPitch = GemmTile<isa, P>::kPitch;
  if constexpr (kGemmElements<P> == 2) {
    using Room = PairScratch<isa, P>;
    const int depth = block.depth();
    if (!p.transposed) {  // words as they lie, a zero behind an odd depth
      const T* from = weights + block.c * p.strides().channel + block.t;
      for (int j = 0; j < rows; ++j, from += p.strides().column) {
        P* row = to + int64_t{j} * kPitch;
        if (depth % 2 != 0) row[depth / 2].bits = 0;
        memcpy(static_cast<void*>(row), from, static_cast<size_t>(depth) * sizeof(T));
      }
    } else {
      for (int i = 0; i < rows; i += Room::kRows, weights += Room::kRows * p.strides().column) {
        const int count = min_of(Room::kRows, rows - i);
        pack_weight_rows<isa>(p, grid, weights, block, count, Room::kPitch, wide);
        for (int j = 0; j < count; ++j) pair_row<isa>(wide + j * Room::kPitch, depth, to + int64_t{i + j} * kPitch);
      }
    }
    pad_rows<isa>(rows, ceil_div(depth, 2), to);
  } else {
    pack_weight_rows<isa>(p, grid, weights, block, rows, kPitch, to);
  }
}

// What of a block is a phase's: several phases of a work item have the same channels, each with its own taps.
CVK_HD DepthBlock phase_block(DepthBlock block, const TapGrid& grid, int phases) {
  if (phases > 1) block.taps = grid.taps();
  return block;
}

// Rows of all phases of a work item, those of the second phase_size elements behind those of the first.
template <Isa isa, class P, class T>
CVK_HD void make_weight_rows(const TappedProduct<T>& p, const TapGrid* grids, int phases, const T* weights,
                             const DepthBlock& block, int rows, int64_t phase_size, float* wide, P* to) {
  if constexpr (kGemmElements<P> == 1) {
    if (block.by_taps) {
      turn_weight_rows<isa>(p, grids, phases, weights, block, rows, GemmTile<isa, P>::kPitch, phase_size, to);
      return;
    }
  }
  for (int phase = 0; phase < phases; ++phase) {
    make_phase_rows<isa>(p, grids[phase], weights, phase_block(block, grids[phase], phases), rows, wide,
                         to + phase * phase_size);
  }
}

// ---- keeping them

// Keeps the packed blocks of a key, all of them where they fit, else the last.
template <class P>
class PackedBlocks {
 public:
  CVK_HD PackedBlocks() {}
  CVK_HD ~PackedBlocks() {}

  // Blocks of `size` elements each, kept up to `most_bytes` in all. A new `key` forgets those of the last.
  CVK_HD void begin(int64_t key, int64_t count, int64_t size, int64_t most_bytes) {
    const int64_t bytes = size * static_cast<int64_t>(sizeof(P));
    resident_ = count * bytes <= most_bytes;
    const int64_t wanted = (resident_ ? count : 1) * bytes;
    if (key == key_ && size == size_) return;
    key_ = key;
    size_ = size;
    if (wanted > capacity_) {
      memory_.reset(wanted);
      capacity_ = wanted;
    }
    if (count > flags_) {
      packed_.reset(count);
      flags_ = count;
    }
    for (int64_t b = 0; b < count; ++b) packed_.template as<bool>()[b] = false;
  }
  // pack(to) writes block b.
  template <class Pack>
  CVK_HD const P* get(int64_t b, Pack&& pack) {
    P* block = memory_.template as<P>() + (resident_ ? b * size_ : 0);
    bool& packed = packed_.template as<bool>()[b];
    if (!resident_ || !packed) pack(block);
    packed = true;
    return block;
  }

 private:
  Scratch memory_, packed_;
  int64_t capacity_ = 0, flags_ = 0, key_ = -1, size_ = 0;
  bool resident_ = false;
};

}  // namespace cvk
