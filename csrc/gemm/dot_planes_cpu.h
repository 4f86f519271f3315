// A register tile of dot products along the pixels of planes: as many sums as a vector has lanes, of some filters by some channels.
//
// A tile of 16 by AVX-512 takes 8 cycles a vector and reading it 4, or up to 8 where vectors lie across cache lines; adding up the
// lanes 40, after kDotPlanesChunk vectors.
#pragma once

#include <cstdint>

#include "gemm/dot_cpu.h"

namespace cvk {

template <Isa isa, class A>
inline constexpr int kPlaneFilters = Simd<isa, A>::kLanes >= 8 ? 4 : 2;
template <Isa isa, class A>
inline constexpr int kPlaneChannels = Simd<isa, A>::kLanes / kPlaneFilters<isa, A>;

// The planes of some channels. A tile reads the last of `count` again where it wants more.
template <class A>
struct PixelPlanes {
  const A* at;
  int64_t plane, image;  // from channel to channel, from image to image
  int count;
};

// Sum i * kPlaneChannels + j: results' plane i by pixels' plane j, over `vectors` vectors of some images and `rest` pixels behind
// them. Of a vector of pixels only the lanes in `masks`, if there are any, bit by bit.
template <Isa isa, class A, bool masked = false>
__attribute__((noinline)) typename Simd<isa, A>::Vec dot_planes(const PixelPlanes<A>& results,
                                                                const PixelPlanes<A>& pixels, int64_t images,
                                                                int64_t vectors, int rest,
                                                                const uint32_t* masks = nullptr) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  constexpr int kLanes = S::kLanes, kFilters = kPlaneFilters<isa, A>, kChannels = kPlaneChannels<isa, A>;
  Vec sum[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) sum[i] = Vec{};
  const A *from[kFilters], *with[kChannels];
  for (int i = 0; i < kFilters; ++i) from[i] = results.at + min_of(i, results.count - 1) * results.plane;
  for (int j = 0; j < kChannels; ++j) with[j] = pixels.at + min_of(j, pixels.count - 1) * pixels.plane;
  const auto add = [&](const auto& load, const auto& load_pixels) __attribute__((always_inline)) {
    Vec value[kChannels];
#pragma GCC unroll 4
    for (int j = 0; j < kChannels; ++j) value[j] = load_pixels(with[j]);
#pragma GCC unroll 4
    for (int i = 0; i < kFilters; ++i) {
      const Vec factor = load(from[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kChannels; ++j) {
        sum[i * kChannels + j] = S::mul_add(factor, value[j], sum[i * kChannels + j]);
      }
    }
  };
  for (int64_t k = 0; k < images; ++k) {
    for (int64_t v = 0; v < vectors; ++v) {
      const auto load = [=](const A* plane) { return S::load(plane + v * kLanes); };
      if constexpr (masked) {
        add(load, [=](const A* plane) { return S::load_lanes(Vec{}, plane + v * kLanes, masks[v]); });
      } else {
        add(load, load);
      }
    }
    if (rest > 0) {
      const auto load = [=](const A* plane) { return S::load_partial(plane + vectors * kLanes, rest); };
      add(load, load);
    }
    for (int i = 0; i < kFilters; ++i) from[i] += results.image;
    for (int j = 0; j < kChannels; ++j) with[j] += pixels.image;
  }
  return sums_of_lanes<isa, A>(sum);
}

}  // namespace cvk
