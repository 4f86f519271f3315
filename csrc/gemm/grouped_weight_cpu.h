// The gradient with respect to the weights of groups of few channels on the CPU: dot products along the pixels, without a gather.
//
// The map is copied into a window as in grouped_cpu.h, the gradient of the results into one of the same pitch, with zeros between
// its rows. A weight's gradient is then the dot product of two runs of vectors (dot_planes_cpu.h).
//
// Zeros meet pixels that they should not: where some pixel of a window is not finite, these are left out by masks.
// The order of sums is decided by the shape: the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "gemm/dot_planes_cpu.h"
#include "gemm/tap_window_cpu.h"
#include "gemm/tapped.h"

namespace cvk {

// How an item's pixels are walked: some rows of some images at a time, a step.
template <Isa isa, class T>
struct GroupedWeightPlan {
  CVK_HD explicit GroupedWeightPlan(const ConvShape& s) : grid(correlation_grid(s)), grads(grid) {
    for (TapAxis* axis : {&grads.y, &grads.x}) {
      axis->extent = axis->grid;
      axis->source_step = axis->offset_step = axis->taps = 1;
      axis->first_offset = 0;
    }
    const auto shape = [&](int of_groups, int of_rows) {
      pixels.shape(grid, of_groups * static_cast<int>(s.group_channels()), of_rows);
      results.shape(grads, of_groups * static_cast<int>(s.group_filters()), of_rows, pixels.pitch());
    };
    const WindowPlan plan = plan_window<isa, Acc<T>>(s, grid.y.grid, [&](int of_groups) {
      shape(of_groups, 1);
      return min_of(pixels.wanted_rows(), results.wanted_rows());
    });
    groups = plan.groups;
    if (plan.rows == 0) return;
    row_blocks = ceil_div<int64_t>(grid.y.grid, plan.rows);
    rows = static_cast<int>(ceil_div<int64_t>(grid.y.grid, row_blocks));
    shape(groups, rows);
    vectors = ceil_div<int64_t>((rows - 1) * pixels.pitch() + grid.x.grid, Simd<isa, Acc<T>>::kLanes);
    constexpr int64_t kWanted = kGroupedWindow / static_cast<int64_t>(sizeof(Acc<T>));
    const int64_t together = min_of(kDotPlanesChunk / vectors, kWanted / max_of(pixels.size(), results.size()));
    images = ceil_div(s.batch, ceil_div(s.batch, max_of<int64_t>(1, together)));
    steps = ceil_div(s.batch, images) * row_blocks;
  }

  TapGrid grid, grads;                // what pixels see, and the results themselves
  TapWindow<isa, T> pixels, results;  // without memory
  int groups;                         // of a window
  int64_t row_blocks = 0;             // of an image
  int rows = 0;                       // of a step; none: a window would be too large
  int64_t vectors = 0;                // of their positions in an image
  int64_t images = 0;                 // of a step
  int64_t steps = 0;                  // of all images
};

// Whether it takes less time than a gather does, in cycles of a group.
template <Isa isa, class T>
CVK_HD bool grouped_weight_pays(const ConvShape& s, const GroupedWeightPlan<isa, T>& plan) {
  if (plan.rows == 0) return false;
  using A = Acc<T>;
  constexpr int64_t kLanes = Simd<isa, A>::kLanes;
  const int64_t channels = s.group_channels(), filters = s.group_filters(), taps = s.kernel_size();
  const int64_t tiles =
      ceil_div<int64_t>(filters, kPlaneFilters<isa, A>) * ceil_div<int64_t>(channels, kPlaneChannels<isa, A>) * taps;
  const int64_t vectors = plan.vectors * plan.images;
  const int64_t here =
      plan.steps * tiles * (vectors * kLanes / 2 + ceil_div(vectors, kDotPlanesChunk) * kGroupedTileCost) +
      s.batch * kGroupedCopyCost *
          (channels * s.height * ceil_div<int64_t>(s.width, kLanes) +
           filters * s.out_height * ceil_div<int64_t>(s.out_width, kLanes)) +
      kGroupedPutCost * s.weights() / s.groups;
  const int64_t gathered = s.batch * s.out_pixels() * channels * taps *
                           (kGroupedGatherCost + ceil_div(filters, kLanes) * kGroupedProductCost) / 40;
  return here < gathered;
}

template <Isa isa, class T>
CVK_HD ConvCut grouped_weight_cut(const ConvShape& s, const GroupedWeightPlan<isa, T>& plan) {
  ConvCut cut{};
  cut.form = ConvForm::kGrouped;
  cut.column_blocks = ceil_div<int64_t>(s.groups, plan.groups);
  cut.parts = min_of(plan.steps, ceil_div<int64_t>(kWeightItems, cut.column_blocks));
  return cut;
}

CVK_HD int64_t grouped_weight_items(const ConvCut& cut) { return cut.column_blocks * cut.parts; }

template <Isa isa, class T>
class GroupedWeights {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kFilters = kPlaneFilters<isa, A>, kChannels = kPlaneChannels<isa, A>;

 public:
  CVK_HD GroupedWeights(const TappedWeightGradient<T>& p, const ConvCut& cut)
      : p_(p),
        s_(p.shape),
        cut_(cut),
        plan_(p.shape),
        filter_tiles_(ceil_div<int64_t>(s_.group_filters(), kFilters)),
        channel_tiles_(ceil_div<int64_t>(s_.group_channels(), kChannels)),
        sums_memory_(tiles() * kLanes * static_cast<int64_t>(sizeof(A))),
        masks_memory_(plan_.vectors * static_cast<int64_t>(sizeof(uint32_t))) {
    plan_.pixels.reserve(plan_.images * plan_.pixels.size());
    plan_.results.reserve(plan_.images * plan_.results.size());
    plan_.pixels.clear(plan_.images);
    plan_.results.clear(plan_.images);
  }
  CVK_HD ~GroupedWeights() {}

  CVK_HD void item(int64_t index) {
    const int64_t part = index % cut_.parts, group = index / cut_.parts * plan_.groups;
    const int groups = static_cast<int>(min_of<int64_t>(plan_.groups, s_.groups - group));
    for (int64_t i = 0; i < tiles(); ++i) S::store(sums() + i * kLanes, typename S::Vec{});
    const int64_t end = (part + 1) * plan_.steps / cut_.parts;
    for (int64_t step = part * plan_.steps / cut_.parts; step < end; ++step) {
      const int64_t image = step / plan_.row_blocks * plan_.images;
      const int first = static_cast<int>(step % plan_.row_blocks) * plan_.rows;
      const int rows = min_of(plan_.rows, plan_.grid.y.grid - first);
      const int64_t images = min_of(plan_.images, s_.batch - image);
      const bool finite = copy(image, images, group, groups, first, rows);
      multiply(groups, images, rows, finite);
    }
    put(part, group, groups);
  }

 private:
  CVK_HD A* sums() const { return sums_memory_.template as<A>(); }
  CVK_HD int64_t tiles() const { return int64_t{plan_.groups} * filter_tiles_ * channel_tiles_ * plan_.grid.taps(); }
  CVK_HD int64_t tile(int64_t group, int64_t filter_tile, int64_t channel_tile, int tap) const {
    return ((group * filter_tiles_ + filter_tile) * channel_tiles_ + channel_tile) * plan_.grid.taps() + tap;
  }

  // Whether all pixels are finite.
  CVK_HD bool copy(int64_t image, int64_t images, int64_t group, int groups, int first, int rows) {
    const bool last = s_.channels_last;
    const int64_t channel = group * s_.group_channels(), filter = group * s_.group_filters();
    WindowSource<T> input{p_.input + image * s_.channels * s_.pixels() + channel * (last ? 1 : s_.pixels()),
                          groups * static_cast<int>(s_.group_channels()), s_.channels, last};
    WindowSource<T> grad{p_.grad_output + image * s_.filters * s_.out_pixels() + filter * (last ? 1 : s_.out_pixels()),
                         groups * static_cast<int>(s_.group_filters()), s_.filters, last};
    bool finite = true;
    for (int64_t k = 0; k < images; ++k) {
      plan_.pixels.copy(input, first, rows, k);
      plan_.results.copy(grad, first, rows, k);
      input.at += s_.channels * s_.pixels();
      grad.at += s_.filters * s_.out_pixels();
      plan_.results.clear_rows(rows, plan_.rows, k);
      finite = finite && plan_.pixels.finite(k);
    }
    return finite;
  }

  CVK_HD void multiply(int groups, int64_t images, int rows, bool finite) {
    const int64_t positions = (rows - 1) * plan_.pixels.pitch() + plan_.grid.x.grid;
    const int64_t vectors = ceil_div<int64_t>(positions, kLanes);
    const uint32_t* masks = nullptr;
    if (!finite) {
      uint32_t* mask = masks_memory_.template as<uint32_t>();
      for (int64_t v = 0; v < vectors; ++v) {
        mask[v] = 0;
        for (int i = 0; i < kLanes; ++i) {
          const int64_t at = v * kLanes + i;
          const bool wanted = at < positions && at % plan_.pixels.pitch() < plan_.grid.x.grid;
          mask[v] |= uint32_t{wanted} << i;
        }
      }
      masks = mask;
    }
    for (int64_t v = 0; v < vectors; v += kDotPlanesChunk) {
      const int64_t count = min_of<int64_t>(kDotPlanesChunk, vectors - v);
      for (int g = 0; g < groups; ++g) {
        for (int64_t f = 0; f < filter_tiles_; ++f) {
          for (int64_t c = 0; c < channel_tiles_; ++c) {
            multiply_tile(g, f, c, v, count, images, masks);
          }
        }
      }
    }
  }
  CVK_HD void multiply_tile(int g, int64_t f, int64_t c, int64_t v, int64_t count, int64_t images,
                            const uint32_t* masks) {
    const int64_t filters = s_.group_filters(), channels = s_.group_channels();
    PixelPlanes<A> results, pixels;
    results.plane = plan_.results.plane();
    results.image = plan_.results.size();
    results.count = static_cast<int>(filters - f * kFilters);
    results.at = plan_.results.data() + (g * filters + f * kFilters) * results.plane + v * kLanes;
    pixels.plane = plan_.pixels.plane();
    pixels.image = plan_.pixels.size();
    pixels.count = static_cast<int>(channels - c * kChannels);
    A* sum = sums() + tile(g, f, c, 0) * kLanes;
    for (int t = 0; t < plan_.grid.taps(); ++t, sum += kLanes) {
      pixels.at =
          plan_.pixels.data() + plan_.pixels.place(static_cast<int>(g * channels + c * kChannels), t) + v * kLanes;
      const typename S::Vec more = masks == nullptr
                                       ? dot_planes<isa>(results, pixels, images, count, 0)
                                       : dot_planes<isa, A, true>(results, pixels, images, count, 0, masks + v);
      S::store(sum, S::load(sum) + more);
    }
  }

  CVK_HD void put(int64_t part, int64_t group, int groups) const {
    const int64_t filters = s_.group_filters(), channels = s_.group_channels();
    const int64_t tap = p_.weight_at(0, 0, 1) - p_.weight_at(0, 0, 0);
    const A* from = sums();
    for (int64_t first = group * filters; first < (group + groups) * filters; first += filters) {
      for (int64_t f = 0; f < filters; f += kFilters) {
        for (int64_t c = 0; c < channels; c += kChannels, from += int64_t{plan_.grid.taps()} * kLanes) {
          for (int i = 0; i < min_of<int64_t>(kFilters, filters - f); ++i) {
            for (int j = 0; j < min_of<int64_t>(kChannels, channels - c); ++j) {
              const int64_t weight = p_.weight_at(first + f + i, c + j, 0);
              const A* sum = from + i * kChannels + j;
              for (int t = 0; t < plan_.grid.taps(); ++t) p_.put(part, weight + t * tap, sum[int64_t{t} * kLanes]);
            }
          }
        }
      }
    }
  }

  const TappedWeightGradient<T>& p_;
  const ConvShape& s_;
  const ConvCut& cut_;
  GroupedWeightPlan<isa, T> plan_;        // its windows hold the images of a step, one after the other
  int64_t filter_tiles_, channel_tiles_;  // of a group
  Scratch sums_memory_, masks_memory_;
};

}  // namespace cvk
