// Winograd's minimal filtering on the CPU: the gradient of 3 x 3 weights of step 1 in 16 multiplications for each 2 x 2 pixels of
// grad_output, where the definition takes 36.
//
//   D = B' d B     of a tile d of 4 x 4 input pixels, channel by channel: what the product makes of them (winograd_cpu.h)
//   Y = A y A'     of the 2 x 2 pixels y of grad_output, filter by filter
//   M = Y' D       sums over the tiles, for each of the 16 elements: products of matrices of filters x tiles x channels
//   G' M G         the 3 x 3 weights
//
// B and A hold 0, 1 and -1, G halves; here A and G have the last row of the other sign. A value is multiplied with no other tile's,
// but within a tile the error is relative to the largest pixels, where the definition's is relative to the largest products. Where
// a result is not finite, its block of filters and channels is computed again, by definition.
//
// Work item: a block of filters of a group by a block of channels, over some rows of tiles, which are a part. Shapes alone decide the
// order of sums: the same bits for any number of threads.
//
// Source: Winograd 1980; Lavin and Gray 2015 (arXiv 1509.09308).
#pragma once

#include <cstdint>
#include <optional>

#include "gemm/tapped_weight_cpu.h"
#include "gemm/winograd_map_cpu.h"

namespace cvk {

// Two pixels of grad_output along one axis: A.
template <class Vec>
CVK_HD void winograd_grads(Vec a, Vec b, Vec (&to)[4]) {
  to[0] = a;
  to[1] = a + b;
  to[2] = a - b;
  to[3] = b;
}

// The 16 elements of pixels of grad_output: A y A'.
template <Isa isa, class A, class At>
CVK_HD void winograd_transform_grads(const At& at, int tiles, int filters, A* const (&to)[16], int64_t pitch) {
  using Vec = typename Simd<isa, A>::Vec;
  winograd_transform<isa, A, 2>(at, tiles, filters, to, pitch, [](const Vec(&y)[2][2], Vec(&elements)[4][4]) {
    Vec half_way[2][4];
    for (int j = 0; j < 2; ++j) winograd_grads(y[0][j], y[1][j], half_way[j]);
    for (int i = 0; i < 4; ++i) winograd_grads(half_way[0][i], half_way[1][i], elements[i]);
  });
}

// Four sums along one axis to three weights: G'.
template <class Vec>
CVK_HD void winograd_weight_sums(Vec a, Vec b, Vec c, Vec d, Vec half, Vec (&to)[3]) {
  const Vec sum = (b + c) * half;
  to[0] = a + sum;
  to[1] = (b - c) * half;
  to[2] = sum - d;
}

template <Isa isa, class T>
struct WinogradWeightPlan {
  static constexpr int64_t kLanes = Simd<isa, Acc<T>>::kLanes;

  CVK_HD explicit WinogradWeightPlan(const ConvShape& s)
      : tiles(correlation_grid(s)),
        rows(s.batch * tiles.y),
        channel_blocks(ceil_div<int64_t>(s.group_channels(), kWinogradWeightChannels)),
        filter_blocks(ceil_div<int64_t>(s.group_filters(), kWinogradWeightFilters)),
        block_channels(round_up<int64_t>(ceil_div(s.group_channels(), channel_blocks), kLanes)),
        blocks(s.groups * channel_blocks * filter_blocks) {}

  CVK_HD int64_t all_tiles() const { return rows * tiles.x; }

  // Cycles of all tiles and weights of a group, in lanes.
  CVK_HD int64_t cost(const ConvShape& s) const {
    const int64_t filters = s.group_filters(), vectors = ceil_div(s.group_channels(), kLanes);
    const int64_t turn = s.channels_last ? 1 : 2;
    const int64_t tile = kWinogradProductCost * filters * vectors +
                         turn * kWinogradInputCost * vectors * filter_blocks +
                         turn * kWinogradGradsCost * ceil_div(filters, kLanes) * channel_blocks;
    return kLanes * (tile * all_tiles() + kWinogradPutCost * filters * vectors);
  }

  WinogradTiles tiles;  // of an image
  int64_t rows;         // of tiles, of all images
  int64_t channel_blocks, filter_blocks, block_channels;
  int64_t blocks;  // of all groups
};

template <Isa isa, class T>
CVK_HD bool winograd_weight_pays(const ConvShape& s) {
  if (std::is_same_v<T, double> || !cpu_may_winograd() || !winograd_fits(s) || s.batch == 0) return false;
  if (min_of(s.group_channels(), s.group_filters()) < kWinogradWeightLeast) return false;
  const WinogradWeightPlan<isa, T> plan(s);
  // Parts are whole rows of tiles: few long ones would leave threads without work.
  if (2 * plan.rows * plan.blocks < min_of<int64_t>(kWeightItems, plan.all_tiles() * plan.blocks / kWinogradPartTiles))
    return false;
  const int64_t pixel = (kWeightProductCost * s.group_filters() + kWeightGatherCost) * s.group_channels();
  return plan.cost(s) < pixel * s.batch * s.out_pixels();
}

template <Isa isa, class T>
CVK_HD ConvCut winograd_weight_cut(const ConvShape& s) {
  const WinogradWeightPlan<isa, T> plan(s);
  ConvCut cut{};
  cut.form = ConvForm::kWinograd;
  cut.depth_blocks = plan.channel_blocks;
  const int64_t most = max_of<int64_t>(1, plan.all_tiles() / kWinogradPartTiles);
  cut.parts = min_of(min_of(plan.rows, most), ceil_div<int64_t>(kWeightItems, plan.blocks));
  // Where that gives few items, or five, the filters are cut further.
  const int64_t items = plan.blocks * cut.parts;
  const int64_t times = items < kWeightLeastItems ? ceil_div<int64_t>(kWeightLeastItems, items)
                                                  : 1 + (items % 2 != 0 && items < kWeightFewItems);
  const int64_t wanted = narrower_blocks(s, plan.filter_blocks, times, kWinogradLeastFilters);
  cut.block_columns = static_cast<int>(round_up<int64_t>(ceil_div(s.group_filters(), wanted), 2));
  cut.column_blocks = ceil_div<int64_t>(s.group_filters(), cut.block_columns);
  return cut;
}

template <Isa isa, class T>
class WinogradWeights {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  using Tile = GemmTile<isa, A>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kMost =
      kWinogradWeightFilters > kWinogradWeightChannels ? kWinogradWeightFilters : kWinogradWeightChannels;
  static constexpr int64_t kPitch = kMost + kLanes;
  static constexpr int64_t kElement = kPitch * kWinogradWeightTiles + kWinogradSkew;
  static constexpr int kPanels = kWinogradWeightChannels / Tile::kColumns;
  static constexpr int64_t kSums =
      int64_t{kWinogradWeightFilters / Tile::kRows + 1} * kPanels * Tile::kSize + kWinogradSkew;

 public:
  CVK_HD WinogradWeights(const TappedWeightGradient<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        grid_(correlation_grid(p.shape)),
        plan_(p.shape),
        input_{p.input, p.shape.height, p.shape.width, p.shape.channels, p.shape.channels_last},
        grads_{p.grad_output, p.shape.out_height, p.shape.out_width, p.shape.filters, p.shape.channels_last},
        input_window_(4, width() + 2, kMost, p.shape.channels_last),
        grads_window_(2, width(), kMost, p.shape.channels_last),
        source_(16 * kElement * static_cast<int64_t>(sizeof(A))),
        target_(16 * kElement * static_cast<int64_t>(sizeof(A))),
        sums_(16 * kSums * static_cast<int64_t>(sizeof(A))) {}
  CVK_HD ~WinogradWeights() {}

  CVK_HD void item(int64_t index) {
    item_ = weight_item(p_.shape, cut_, index);
    channel_ = item_.block * plan_.block_channels;
    channels_ = static_cast<int>(min_of(plan_.block_channels, p_.shape.group_channels() - channel_));
    const int64_t begin = plan_.rows * item_.part / cut_.parts, end = plan_.rows * (item_.part + 1) / cut_.parts;
    for (int64_t tile = begin * plan_.tiles.x; tile < end * plan_.tiles.x; tile += kWinogradWeightTiles) {
      const int tiles = static_cast<int>(min_of<int64_t>(kWinogradWeightTiles, end * plan_.tiles.x - tile));
      plan_.tiles.for_each_run(tile, tiles, [&](const WinogradRun& run) { transform(run); });
      for (int e = 0; e < 16; ++e) {
        gemm_block<isa, A, A>(item_.filters, channels_, tiles,
                              GemmColumns<A>{target_.template as<A>() + e * kElement, kPitch},
                              source_.template as<A>() + e * kElement, kPitch, Tile::kColumns,
                              sums_.template as<A>() + e * kSums, kPanels, tile > begin * plan_.tiles.x, nullptr);
      }
    }
    if (!finish()) by_definition(pixel(begin), pixel(end));
  }

 private:
  CVK_HD int width() const { return 2 * min_of(kWinogradWeightTiles, plan_.tiles.x); }

  // The first pixel of a row of tiles.
  CVK_HD int64_t pixel(int64_t row) const {
    return row / plan_.tiles.y * p_.shape.out_pixels() + row % plan_.tiles.y * 2 * p_.shape.out_width;
  }

  CVK_HD void transform(const WinogradRun& run) {
    const auto to_elements = [&](const Scratch& of, int c, A*(&to)[16]) {
      for (int e = 0; e < 16; ++e) to[e] = of.template as<A>() + e * kElement + run.place * kPitch + c;
    };
    const int64_t y = int64_t{2} * run.y, x = int64_t{2} * run.x;
    input_window_.read(input_, run.image, y + grid_.y.first_offset, x + grid_.x.first_offset, 2 * run.count + 2,
                       item_.group * p_.shape.group_channels() + channel_, channels_,
                       [&](int c, int channels, const auto& at) {
                         A* to[16];
                         to_elements(source_, c, to);
                         winograd_transform_source<isa>(at, run.count, channels, to, kPitch);
                       });
    grads_window_.read(grads_, run.image, y, x, 2 * run.count, item_.filter, item_.filters,
                       [&](int c, int filters, const auto& at) {
                         A* to[16];
                         to_elements(target_, c, to);
                         winograd_transform_grads<isa>(at, run.count, filters, to, kPitch);
                       });
  }

  // Whether all results are finite.
  CVK_HD bool finish() {
    const Vec half = S::broadcast(A(0.5));
    typename S::IntVec odd{};
    for (int i = 0; i < item_.filters; ++i) {
      for (int c = 0; c < channels_; c += kLanes) {
        const int count = min_of(kLanes, channels_ - c);
        const A* m = GemmSums<isa, A>{sums_.template as<A>(), kPanels, 1}.at(i, c);
        const auto sum = [&](int y, int x) { return S::load(m + (4 * y + x) * kSums); };
        Vec half_way[4][3], weights[9];
        for (int x = 0; x < 4; ++x) winograd_weight_sums(sum(0, x), sum(1, x), sum(2, x), sum(3, x), half, half_way[x]);
        for (int y = 0; y < 3; ++y) {
          Vec row[3];
          winograd_weight_sums(half_way[0][y], half_way[1][y], half_way[2][y], half_way[3][y], half, row);
          for (int x = 0; x < 3; ++x) {
            weights[3 * y + x] = row[x];
            odd |= row[x] - row[x] != Vec{};
          }
        }
        put(item_.filter + i, channel_ + c, count, weights);
      }
    }
    return !S::any(odd);
  }

  // A filter's weights of some channels, taps apart.
  CVK_HD void put(int64_t filter, int64_t channel, int count, const Vec (&weights)[9]) const {
    const int64_t first = p_.weight_at(filter, channel, 0);
    if (p_.shape.weight_channels_last) {
      for (int t = 0; t < 9; ++t) {
        // Perf: whole vectors by stores without a mask. 512 -> 512 over 7 x 7: 1565 -> 1038 us.
        put_neighbours(p_, item_.part, first + t * p_.shape.group_channels(), [&](auto* to) {
          if (count == kLanes) {
            S::store(to, weights[t]);
          } else {
            S::store_partial(to, weights[t], count);
          }
        });
      }
    } else {
      A turned[9 * kLanes];
      for (int t = 0; t < 9; t += kLanes) {
        Vec square[kLanes];
        for (int i = 0; i < kLanes; ++i) square[i] = t + i < 9 ? weights[t + i] : Vec{};
        S::transpose(square);
        for (int i = 0; i < kLanes; ++i) S::store_partial(turned + 9 * i + t, square[i], min_of(kLanes, 9 - t));
      }
      put_run<isa>(p_, item_.part, first, turned, 9 * count);
    }
  }

  CVK_HD void by_definition(int64_t begin, int64_t end) {
    if (!definition_.has_value()) definition_.emplace(p_, cut_);
    const DepthBlocks<isa, A> blocks(channels_, 9);
    for (int64_t b = 0; b < blocks.count(); ++b) {
      DepthBlock block = blocks[b];
      block.c += channel_;
      definition_->multiply(item_, block, begin, end);
    }
  }

  const TappedWeightGradient<T>& p_;
  const ConvCut& cut_;
  TapGrid grid_;
  WinogradWeightPlan<isa, T> plan_;
  WinogradMap<T> input_, grads_;
  WinogradWindow<isa, T> input_window_, grads_window_;
  Scratch source_, target_, sums_;                      // D, Y and M
  std::optional<TappedWeights<isa, A, T>> definition_;  // where it is needed
  WeightItem item_{};                                   // at work
  int64_t channel_ = 0;                                 // the first of its block
  int channels_ = 0;
};

}  // namespace cvk
