// The gradient with respect to the weights of 1 x 1 convolutions of planes on the CPU, both operands where they lie: a weight's is the
// dot product of a plane of results and one of pixels (dot_planes_cpu.h). Nothing is gathered or turned, which for few channels
// costs more than the products.
//
// The order of sums is decided by the shape: the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "gemm/dot_planes_cpu.h"
#include "gemm/tapped_weight_cpu.h"

namespace cvk {

// How the pixels are walked: a part of the vectors of one image at a time, or some images, a step.
template <Isa isa, class A>
struct PlaneWeightPlan {
  CVK_HD explicit PlaneWeightPlan(const ConvShape& s)
      : whole(s.pixels() / Simd<isa, A>::kLanes), rest(static_cast<int>(s.pixels() % Simd<isa, A>::kLanes)) {
    pieces = max_of<int64_t>(1, ceil_div(whole, kDotPlanesChunk));
    vectors = ceil_div(whole, pieces);
    const int64_t together = max_of<int64_t>(1, kDotPlanesChunk / max_of<int64_t>(1, whole));
    images = ceil_div(s.batch, ceil_div(s.batch, together));
    steps = ceil_div(s.batch, images) * pieces;
  }
  int64_t whole;  // vectors of an image
  int rest;       // pixels behind them
  int64_t pieces, vectors, images, steps;
};

template <class T>
CVK_HD bool plane_weight_pays(const ConvShape& s) {
  const int64_t channels = s.group_channels(), filters = s.group_filters();
  if (!std::is_same_v<T, Acc<T>> || s.channels_last || !reads_itself(correlation_grid(s)) || s.batch == 0) return false;
  // Planes that don't begin with a cache line take twice as long to read.
  const bool aligned = s.pixels() * static_cast<int64_t>(sizeof(T)) % 64 == 0;
  return s.pixels() >= kPlaneWeightPixels && channels > 0 && filters > 0 && (aligned || filters <= 2 * channels) &&
         channels <= kPlaneWeightSums / 4 && channels * filters <= kPlaneWeightProducts * (channels + filters);
}

template <Isa isa, class T>
CVK_HD ConvCut plane_weight_cut(const ConvShape& s) {
  const PlaneWeightPlan<isa, Acc<T>> plan(s);
  ConvCut cut{};
  cut.form = ConvForm::kPlaneMap;
  const int64_t least = ceil_div(s.group_filters() * s.group_channels(), kPlaneWeightSums);
  cut.parts = min_of(plan.steps, ceil_div<int64_t>(kWeightItems, s.groups * least));
  // Where that gives few items, filters are dealt out as well; pixels are only read again for it.
  const int64_t wanted = min_of(ceil_div<int64_t>(kWeightItems, s.groups * cut.parts),
                                ceil_div<int64_t>(s.group_filters(), kPlaneWeightFilters));
  const int64_t blocks = max_of(least, wanted);
  cut.block_columns =
      static_cast<int>(round_up<int64_t>(ceil_div<int64_t>(s.group_filters(), blocks), kPlaneFilters<isa, Acc<T>>));
  cut.column_blocks = ceil_div<int64_t>(s.group_filters(), cut.block_columns);
  cut.depth_blocks = 1;
  return cut;
}

template <Isa isa, class T>
class PlaneWeights {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kFilters = kPlaneFilters<isa, A>, kChannels = kPlaneChannels<isa, A>;

 public:
  CVK_HD PlaneWeights(const TappedWeightGradient<T>& p, const ConvCut& cut)
      : p_(p),
        cut_(cut),
        plan_(p.shape),
        channels_(p.shape.group_channels()),
        channel_tiles_(ceil_div<int64_t>(channels_, kChannels)),
        // A vector more: results leave from the middle of the last.
        sums_memory_((cut.block_columns / kFilters * channel_tiles_ + 1) * kLanes * static_cast<int64_t>(sizeof(A))) {}
  CVK_HD ~PlaneWeights() {}

  CVK_HD void item(int64_t index) {
    const WeightItem item = weight_item(p_.shape, cut_, index);
    const int64_t tiles = ceil_div(item.filters, kFilters) * channel_tiles_;
    for (int64_t i = 0; i < tiles; ++i) S::store(sums() + i * kLanes, typename S::Vec{});
    const int64_t end = (item.part + 1) * plan_.steps / cut_.parts;
    for (int64_t step = item.part * plan_.steps / cut_.parts; step < end; ++step) {
      multiply(step, item.filter, item.filters, item.group * channels_);
    }
    put(item.part, item.filter, item.filters);
  }

 private:
  CVK_HD A* sums() const { return sums_memory_.template as<A>(); }

  CVK_HD void multiply(int64_t step, int64_t filter, int filters, int64_t channel) const {
    const ConvShape& s = p_.shape;
    const int64_t piece = step % plan_.pieces, image = step / plan_.pieces * plan_.images;
    const int64_t first = piece * plan_.vectors,
                  vectors = max_of<int64_t>(0, min_of(plan_.vectors, plan_.whole - first));
    const int rest = piece == plan_.pieces - 1 ? plan_.rest : 0;
    const int64_t images = min_of(plan_.images, s.batch - image), plane = s.pixels();
    A* sum = sums();
    for (int i = 0; i < filters; i += kFilters) {
      const PixelPlanes<A> results{p_.grad_output + (image * s.filters + filter + i) * plane + first * kLanes, plane,
                                   s.filters * plane, filters - i};
      for (int64_t j = 0; j < channels_; j += kChannels, sum += kLanes) {
        const PixelPlanes<A> pixels{p_.input + (image * s.channels + channel + j) * plane + first * kLanes, plane,
                                    s.channels * plane, static_cast<int>(channels_ - j)};
        S::store(sum, S::load(sum) + dot_planes<isa>(results, pixels, images, vectors, rest));
      }
    }
  }

  CVK_HD void put(int64_t part, int64_t filter, int filters) const {
    const A* sum = sums();
    for (int i = 0; i < filters; i += kFilters) {
      for (int64_t j = 0; j < channels_; j += kChannels, sum += kLanes) {
        const int count = static_cast<int>(min_of<int64_t>(kChannels, channels_ - j));
        for (int k = 0; k < min_of(kFilters, filters - i); ++k) {
          put_run<isa>(p_, part, p_.weight_at(filter + i + k, j, 0), sum + k * kChannels, count);
        }
      }
    }
  }

  const TappedWeightGradient<T>& p_;
  const ConvCut& cut_;
  PlaneWeightPlan<isa, A> plan_;
  int64_t channels_, channel_tiles_;
  Scratch sums_memory_;
};

}  // namespace cvk
