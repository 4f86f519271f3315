// The maximum of a bin of channels-last pixels on the CPU, and where it lies. SIMD runs along channels.
#pragma once

#include <cstdint>

#include "common/roi_cells.h"
#include "common/roi_maxima.h"
#include "common/roi_pooling.h"
#include "common/simd.h"

namespace cvk {

// The maxima so far of kVecs vectors of channels.
template <Isa isa, class A, int kVecs, bool kIndices>
struct MaxSoFar {
  using S = Simd<isa, A>;
  typename S::Vec best[kVecs];
  typename S::IntVec index[kIndices ? kVecs : 1];

  // is_greater, lane by lane; without NaN among the values the plain comparison does.
  template <bool kNan>
  CVK_HD void offer(int v, typename S::Vec value, typename S::IntVec at) {
    typename S::IntVec greater = value > best[v];
    if (kNan) greater |= (value != value) & (best[v] == best[v]);
    best[v] = greater ? value : best[v];
    if (kIndices) index[v] = greater ? at : index[v];
  }
};

// `count`: the channels of a vector that is not full (kPartial). Perf: the vectors live in variables of their own and the number of
// loads is known, so that the compiler keeps them in registers and does not store them for each pixel.
template <Isa isa, int kVecs, bool kIndices, bool kNan, bool kPartial, class E, class A>
CVK_HD bool scan_bin(const View<E>& view, const PixelRange& y, const PixelRange& x, int width, int64_t c, int count,
                     MaxSoFar<isa, A, kVecs, kIndices>& maxima) {
  using S = Simd<isa, A>;
  const auto load = [&](const E* p, int v) {
    if constexpr (kPartial) return S::load_partial(p, count);
    return S::load(p + v * S::kLanes);
  };
  const E* first = view.pixel(y.first, x.first) + c;
  MaxSoFar<isa, A, kVecs, kIndices> found;
  typename S::Vec total[kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    found.best[v] = load(first, v);
    total[v] = typename S::Vec{};
    if (kIndices) found.index[v] = typename S::IntVec{} + (y.first * width + x.first);
  }
  for (int row = y.first; row < y.last; ++row) {
    const E* pixel = view.pixel(row, x.first) + c;
    typename S::IntVec at = typename S::IntVec{} + (row * width + x.first);
    for (int column = x.first; column < x.last; ++column, pixel += view.pixel_stride, at += 1) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const typename S::Vec value = load(pixel, v);
        found.template offer<kNan>(v, value, at);
        if (!kNan) total[v] += value;
      }
    }
  }
  typename S::IntVec unordered = typename S::IntVec{};
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) unordered |= total[v] != total[v];
  maxima = found;
  return !S::any(unordered);
}

// The first greatest pixels of a bin that is not empty; their indices are y * width + x. `count`: 0, or the channels of a single
// vector that is not full.
template <Isa isa, int kVecs, bool kIndices, class E, class A>
CVK_HD void max_of_bin(const View<E>& view, const PixelRange& y, const PixelRange& x, int width, int64_t c, int count,
                       MaxSoFar<isa, A, kVecs, kIndices>& maxima) {
  // Perf: a sum costs less than a second comparison, and it is NaN where a value is.
  if constexpr (kVecs == 1) {
    if (count > 0) {
      if (scan_bin<isa, kVecs, kIndices, false, true>(view, y, x, width, c, count, maxima)) return;
      scan_bin<isa, kVecs, kIndices, true, true>(view, y, x, width, c, count, maxima);
      return;
    }
  }
  if (scan_bin<isa, kVecs, kIndices, false, false>(view, y, x, width, c, 0, maxima)) return;
  scan_bin<isa, kVecs, kIndices, true, false>(view, y, x, width, c, 0, maxima);
}

// The maxima of one bin to out[c] and, if wanted, index[c], for the channels [0, channels): find(c, count, found) looks at the
// vectors from channel c on, up to kMost of them (`count` as in max_of_bin).
template <Isa isa, bool kIndices, class A, int kMost, class Out, class Index, class Find>
CVK_HD void over_max_vectors(bool empty, int channels, Out* out, Index* index, Find&& find) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  if (empty) {
    for (int c = 0; c < channels; ++c) {
      out[c] = from_acc<Out>(A(0));
      if (kIndices) index[c] = -1;
    }
    return;
  }
  int c = 0;
  const auto whole = [&](auto vecs) {
    constexpr int kVecs = decltype(vecs)::value;
    for (; c + kVecs * kLanes <= channels; c += kVecs * kLanes) {
      MaxSoFar<isa, A, kVecs, kIndices> found;
      find(c, 0, found);
      for (int v = 0; v < kVecs; ++v) {
        S::store(out + c + v * kLanes, found.best[v]);
        if (kIndices) S::store_narrow(index + c + v * kLanes, found.index[v]);
      }
    }
  };
  if constexpr (kMost >= 4) whole(std::integral_constant<int, 4>{});
  if constexpr (kMost >= 2) whole(std::integral_constant<int, 2>{});
  whole(std::integral_constant<int, 1>{});
  if (c < channels) {
    MaxSoFar<isa, A, 1, kIndices> found;
    find(c, channels - c, found);
    S::store_partial(out + c, found.best[0], channels - c);
    if (kIndices) {
      Index narrow[kLanes];
      S::store_narrow(narrow, found.index[0]);
      memcpy(index + c, narrow, static_cast<size_t>(channels - c) * sizeof(Index));
    }
  }
}

// One bin of pixels; indices are flat in the map.
template <Isa isa, bool kIndices, class A, class E, class Out, class Index>
CVK_HD void pool_max(const View<E>& view, const PixelRange& y, const PixelRange& x, int width, int channels, Out* out,
                     Index* index) {
  over_max_vectors<isa, kIndices, A, 4>(
      y.empty() || x.empty(), channels, out, index,
      [&](int c, int count, auto& found) { max_of_bin(view, y, x, width, c, count, found); });
}

// The gradient of maxima whose indices are flat in the map, to a band of rows [y_begin, y_end).
template <class G, class Index, class A>
CVK_HD void spread_pixels(const G* grad, const Index* argmax, const RoiShape& shape, int channels, int y_begin,
                          int y_end, const RoiBand<A>& band) {
  const int64_t from = static_cast<int64_t>(y_begin) * shape.width, bins = shape.bins();
  const uint64_t count = static_cast<uint64_t>(y_end - y_begin) * static_cast<uint64_t>(shape.width);
  for (int c = 0; c < channels; ++c, grad += bins, argmax += bins) {
    A* const pixels = band.channel(c);
    for (int64_t bin = 0; bin < bins; ++bin) {
      // An index of -1, or one that the operator never gave, is in no band.
      const uint64_t pixel = static_cast<uint64_t>(argmax[bin] - from);
      if (pixel < count) pixels[static_cast<int64_t>(pixel) * band.pixel_stride] += to_acc(grad[bin]);
    }
  }
}

}  // namespace cvk
