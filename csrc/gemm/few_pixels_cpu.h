// 1 x 1 convolutions over so few pixels that nothing pays beside reading the weights, or writing them, once: squeeze-and-excitation,
// classifiers. Pixels are rows of contiguous channels, so all operands stay where they lie.
//
//   forward   dot products of filters and pixels
//   backward  rows are pixels, vectors are of neighbouring weights of a filter; some filters at a time, whose weights follow one another
//   weights   rows are filters, vectors are of channels; the depth is pixels
//
// Of float32 and float64; forward of any type.
//
// Bound: bytes of the weights. 960 -> 240, one pixel, two threads of a Xeon, microseconds with the call from Python (18): backward
// 247 -> 37, weights 181 -> 71.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gemm/dot_cpu.h"
#include "gemm/filter_rows_cpu.h"
#include "gemm/tapped.h"

namespace cvk {

CVK_HD bool has_few_pixels(const ConvShape& s) {
  return s.groups == 1 && reads_itself(correlation_grid(s)) && s.batch * s.pixels() <= kFewPixels &&
         (s.channels_last || s.pixels() == 1);
}
template <Isa isa, class T>
CVK_HD bool few_pixels_fit(const TappedProduct<T>& p) {
  const ConvShape& s = p.shape;
  return has_few_pixels(s) &&
         (!p.transposed || (std::is_same_v<T, Acc<T>> && s.filters > 0 && s.channels >= Simd<isa, Acc<T>>::kLanes));
}
// A tile reads an even number of neighbouring filters.
template <Isa isa, class T>
CVK_HD bool few_pixels_fit(const TappedWeightGradient<T>& p) {
  const ConvShape& s = p.shape;
  return has_few_pixels(s) && std::is_same_v<T, Acc<T>> && s.channels >= Simd<isa, Acc<T>>::kLanes && s.filters > 0 &&
         s.filters % 2 == 0 && s.batch * s.pixels() > 0;
}

// Blocks of columns of the product.
template <Isa isa, class T>
CVK_HD ConvCut few_pixels_cut(const TappedProduct<T>& p, int threads) {
  ConvCut cut{};
  cut.form = ConvForm::kFewPixels;
  cut.block_columns = kFewPixelsFilters;
  if (p.transposed) {
    const int64_t even = round_up<int64_t>(ceil_div<int64_t>(p.columns(), threads), Simd<isa, Acc<T>>::kLanes);
    cut.block_columns = static_cast<int>(max_of<int64_t>(kFewPixelsLeast, min_of<int64_t>(even, kFewPixelsColumns)));
  }
  cut.column_blocks = ceil_div<int64_t>(p.columns(), cut.block_columns);
  return cut;
}

template <class T>
CVK_HD ConvCut few_pixels_cut(const TappedWeightGradient<T>& p) {
  ConvCut cut{};
  cut.form = ConvForm::kFewPixels;
  cut.parts = 1;
  cut.block_columns = kFewPixelsFilters;
  cut.column_blocks = ceil_div<int64_t>(p.shape.filters, cut.block_columns);
  return cut;
}

// Calls f(j, vectors, skip) for columns [first, end) of a matrix of as many as a vector has, or more: the last vector begins before
// its first `skip` columns where the matrix ends within it.
template <Isa isa, class A, class F>
CVK_HD void for_each_vectors(int64_t first, int64_t end, const F& f) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  int64_t j = first;
  for (int vectors; j + kLanes <= end; j += vectors * kLanes) {
    vectors = static_cast<int>(min_of<int64_t>(kFilterVectors, (end - j) / kLanes));
    f(j, vectors, 0);
  }
  if (j < end) f(end - kLanes, 1, kLanes - static_cast<int>(end - j));
}

template <Isa isa, class T>
CVK_HD void few_pixels_forward(const TappedProduct<T>& p, int64_t first_filter, int64_t end) {
  using A = Acc<T>;
  using S = Simd<isa, A>;
  const int64_t depth = p.shape.channels, filters = p.shape.filters, pixels = p.shape.batch * p.shape.pixels();
  const auto block = [&](auto columns, int64_t filter, int64_t pixel) {
    constexpr int kColumns = decltype(columns)::value, kRows = kDotRows<isa, A, kColumns>;
    const int rows = static_cast<int>(min_of<int64_t>(kRows, end - filter));
    A sums[S::kLanes], biases[S::kLanes] = {};
    if (p.bias != nullptr) {
      for (int i = 0; i < S::kLanes; ++i) biases[i] = i % kRows < rows ? to_acc(p.bias[filter + i % kRows]) : A(0);
    }
    const typename S::Vec sum =
        dot_tile<isa, A, kColumns>(p.weights + filter * depth, depth, rows, p.source + pixel * depth, depth, depth);
    S::store(sums, activate(p.activation, sum + S::load(biases)));
    for (int c = 0; c < kColumns; ++c) {
      for (int i = 0; i < rows; ++i) p.target[(pixel + c) * filters + filter + i] = from_acc<T>(sums[c * kRows + i]);
    }
  };
  for (int64_t filter = first_filter; filter < end;) {
    // Pixels by two while there are two; the same filters for all of them while these are in cache.
    constexpr int kStep = kDotRows<isa, A, 1>;
    int64_t pixel = 0;
    for (; pixel + 2 <= pixels; pixel += 2) {
      for (int64_t f = filter; f < min_of(end, filter + kStep); f += kDotRows<isa, A, 2>) {
        block(std::integral_constant<int, 2>{}, f, pixel);
      }
    }
    if (pixel < pixels) block(std::integral_constant<int, 1>{}, filter, pixel);
    filter += kStep;
  }
}

template <Isa isa, class T>
CVK_HD void few_pixels_back(const TappedProduct<T>& p, int64_t first, int64_t end) {
  using S = Simd<isa, T>;
  constexpr int kLanes = S::kLanes;
  const int64_t columns = p.shape.channels, depth = p.shape.filters;
  const int pixels = static_cast<int>(p.shape.batch * p.shape.pixels());
  // Tile by tile; one of a single vector takes the room of two.
  static_assert(kFewPixels % 2 == 0, "a pixel alone is computed twice");
  constexpr int kSize = kFewPixels * kLanes;
  T sums[(kFewPixelsColumns / kLanes + 2) * kSize];
  const auto sums_of = [&](int64_t j, int skip) { return sums + ((j + skip - first) / kLanes + (skip > 0)) * kSize; };
  for (int64_t o = 0; o < depth; o += kFewPixelsDepth) {
    const int steps = static_cast<int>(min_of<int64_t>(kFewPixelsDepth, depth - o));
    for_each_vectors<isa, T>(first, end, [&](int64_t j, int vectors, int skip) {
      const int stride = filter_sums_stride<isa, T>(vectors * kLanes);
      for (int i = 0, count; i < pixels; i += count) {
        count = filter_rows<isa>(pixels - i);
        const GemmTarget<T, T> target{sums_of(j, skip) + i * stride, o > 0, nullptr};
        multiply_filters<isa>(p.source + i * depth + o, depth, count,
                              GemmPanel<T>{p.weights + o * columns + j, columns}, vectors * kLanes, steps, target);
      }
    });
  }
  for_each_vectors<isa, T>(first, end, [&](int64_t j, int vectors, int skip) {
    const int stride = filter_sums_stride<isa, T>(vectors * kLanes), count = kLanes - skip;
    for (int i = 0; i < pixels; ++i) {
      const T* from = sums_of(j, skip) + i * stride + skip;
      for (int v = 0; v < vectors; ++v, from += kLanes) {
        const int64_t column = j + skip + v * kLanes;
        typename S::Vec value = S::load_partial(from, count);
        if (p.bias != nullptr) value = value + S::load_partial(p.bias + column, count);
        S::store_partial(p.target + i * columns + column, activate(p.activation, value), count);
      }
    }
  });
}

// Items are blocks of columns.
template <Isa isa, class T>
CVK_HD void few_pixels_slice(const TappedProduct<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  for (int64_t index = first; index < last; ++index) {
    const int64_t column = index * cut.block_columns, end = min_of<int64_t>(p.columns(), column + cut.block_columns);
    if constexpr (std::is_same_v<T, Acc<T>>) {
      if (p.transposed) {
        few_pixels_back<isa>(p, column, end);
        continue;
      }
    }
    few_pixels_forward<isa>(p, column, end);
  }
}

// Items are blocks of filters.
template <Isa isa, class T>
CVK_HD void few_pixels_slice(const TappedWeightGradient<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  constexpr int kLanes = Simd<isa, T>::kLanes;
  const int64_t channels = p.shape.channels, filters = p.shape.filters;
  const int pixels = static_cast<int>(p.shape.batch * p.shape.pixels());
  const int64_t end = min_of<int64_t>(filters, last * cut.block_columns);
  int count;
  for (int64_t o = first * cut.block_columns; o < end; o += count) {
    count = filter_rows<isa>(static_cast<int>(end - o));
    for_each_vectors<isa, T>(0, channels, [&](int64_t j, int vectors, int) {  // columns before the last are put twice
      const GemmFinish<T> finish{p.grad_weight + o * channels + j, channels, nullptr, false, false};
      const GemmTarget<T, T> target{nullptr, false, &finish};
      multiply_filter_rows<isa>(GemmColumns<T>{p.grad_output + o, filters}, count, GemmPanel<T>{p.input + j, channels},
                                vectors * kLanes, pixels, target);
    });
  }
}

}  // namespace cvk
