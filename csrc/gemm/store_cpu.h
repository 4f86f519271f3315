// Sums that wait in scratch become results in the map, on the CPU: with bias and activation, where they do not leave from registers
// (GemmFinish).
#pragma once

#include <cstdint>
#include <utility>

#include "common/simd.h"
#include "gemm/gather_cpu.h"
#include "gemm/tapped.h"

namespace cvk {

// Rows of sums are pixels, columns channels.
template <Isa isa, class P, class T>
CVK_HD void store_rows(const TappedProduct<T>& p, const TapGrid& grid, int64_t first_pixel, int rows,
                       int64_t first_column, int columns, const GemmSums<isa, P>& sums) {
  using S = Simd<isa, Acc<P>>;
  GridWalk walk(grid, first_pixel);
  const int64_t pixels = p.target_plane();
  for (int i = 0; i < rows; ++i, walk.advance(1)) {
    T* out = p.target +
             ((*walk).image * pixels + target_pixel(grid, p.target_width(), (*walk).y, (*walk).x)) * p.columns() +
             first_column;
    for (int j = 0; j < columns; j += S::kLanes) {
      const int count = min_of(S::kLanes, columns - j);
      typename S::Vec value = S::load(sums.at(i, j));
      if (p.bias != nullptr) {
        const T* bias = p.bias + first_column + j;
        value = value + (count == S::kLanes ? S::load(bias) : S::load_partial(bias, count));
      }
      value = activate(p.activation, value);
      if (count == S::kLanes) {
        S::store(out + j, value);
      } else {
        S::store_partial(out + j, value, count);
      }
    }
  }
}

// Columns of sums are pixels, rows channels: a vector of results of one of these, for pixels from `pixel` on.
template <Isa isa, class P, class T>
CVK_HD typename Simd<isa, Acc<P>>::Vec plane_result(const TappedProduct<T>& p, int64_t first_column, int row, int pixel,
                                                    const GemmSums<isa, P>& sums) {
  using S = Simd<isa, Acc<P>>;
  typename S::Vec value = S::load(sums.at(row, pixel));
  if (p.bias != nullptr) value = value + S::broadcast(to_acc(p.bias[first_column + row]));
  return activate(p.activation, value);
}

// Pixels of a phase.
template <Isa isa, class P, class T>
CVK_HD void store_planes(const TappedProduct<T>& p, const TapGrid& grid, int64_t first_pixel, int count,
                         int64_t first_column, int columns, const GemmSums<isa, P>& sums) {
  using S = Simd<isa, Acc<P>>;
  const int64_t plane = p.target_plane();
  const bool dense = grid.x.target_step == 1 && grid.y.target_step == 1;  // rows of pixels follow one another
  GridWalk walk(grid, first_pixel);
  for (int i = 0; i < count; i += S::kLanes) {
    // Runs of pixels whose places in the target follow one another.
    int64_t places[S::kLanes];
    int lanes[S::kLanes], runs = 0;
    const int end = min_of(S::kLanes, count - i);
    for (int lane = 0; lane < end;) {
      const int run = min_of(dense ? walk.left_in_row() : 1, end - lane);
      const int64_t place =
          (*walk).image * p.columns() * plane + target_pixel(grid, p.target_width(), (*walk).y, (*walk).x);
      if (runs == 0 || place != places[runs - 1] + (lane - lanes[runs - 1])) {
        places[runs] = place;
        lanes[runs++] = lane;
      }
      walk.advance(run);
      lane += run;
    }
    for (int j = 0; j < columns; ++j) {
      const typename S::Vec value = plane_result(p, first_column, j, i, sums);
      T* out = p.target + (first_column + j) * plane;
      if (runs == end) {  // each on its own
        for (int lane = 0; lane < end; ++lane) out[places[lane]] = from_acc<T>(value[lane]);
        continue;
      }
      for (int run = 0; run < runs; ++run) {
        const int last = run + 1 < runs ? lanes[run + 1] : end;
        T* to = out + places[run] - lanes[run];
        if (last - lanes[run] == S::kLanes) {
          S::store(to, value);
        } else {
          S::store_lanes(to, value, S::lane_range(lanes[run], last));
        }
      }
    }
  }
}

// Elements of a and b by turns, from the first half of both (0) or from the second (1).
template <Isa isa, class A, int half, int... I>
CVK_HD typename Simd<isa, A>::Vec by_turns(typename Simd<isa, A>::Vec a, typename Simd<isa, A>::Vec b,
                                           std::integer_sequence<int, I...>) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  return __builtin_shufflevector(a, b, ((half * kLanes + I) / 2 + I % 2 * kLanes)...);
}
template <Isa isa, class A, int half>
CVK_HD typename Simd<isa, A>::Vec by_turns(typename Simd<isa, A>::Vec a, typename Simd<isa, A>::Vec b) {
  return by_turns<isa, A, half>(a, b, std::make_integer_sequence<int, Simd<isa, A>::kLanes>{});
}

// Pixels of a row of the target in two vectors by turns, made of the sums of pixels [pixel, pixel + kLanes) of a pair of phases.
struct PairedRun {
  int64_t place;       // of the first lane of both vectors
  uint32_t low, high;  // lanes of the first and of the second
  int pixel;
};

// The same for a pair of phases, `grid` that of the even columns of the target. `runs`: scratch for as many as pixels.
template <Isa isa, class P, class T>
CVK_HD void store_paired_planes(const TappedProduct<T>& p, const TapGrid& grid, int64_t first_pixel, int count,
                                int64_t first_column, int columns, const GemmSums<isa, P>& even,
                                const GemmSums<isa, P>& odd, PairedRun* runs) {
  using S = Simd<isa, Acc<P>>;
  constexpr int kLanes = S::kLanes;
  const int64_t plane = p.target_plane();
  GridWalk walk(grid, first_pixel);
  int all = 0;
  for (int i = 0; i < count; ++all) {
    const GridPixel& at = *walk;
    const int lane = i % kLanes;
    const int run = min_of(walk.left_in_row(), min_of(kLanes - lane, count - i));
    const int begin = 2 * lane, end = begin + min_of(2 * run, p.target_width() - 2 * at.x);
    runs[all].place = at.image * p.columns() * plane + target_pixel(grid, p.target_width(), at.y, at.x) - begin;
    runs[all].low = S::lane_range(min_of(begin, kLanes), min_of(end, kLanes));
    runs[all].high = S::lane_range(max_of(begin - kLanes, 0), max_of(end - kLanes, 0));
    runs[all].pixel = i - lane;
    walk.advance(run);
    i += run;
  }
  const auto store = [](T* to, typename S::Vec value, uint32_t lanes) {
    if (lanes == S::kAllLanes) {
      S::store(to, value);
    } else if (lanes != 0) {
      S::store_lanes(to, value, lanes);
    }
  };
  // Perf: plane by plane, for each has its own pages. 256 -> 256 2x2/2, 32 images of 14x14: 17.0 -> 13.9 ms (two threads of a Xeon).
  for (int j = 0; j < columns; ++j) {
    T* out = p.target + (first_column + j) * plane;
    typename S::Vec low{}, high{};
    for (int i = 0; i < all; ++i) {
      const int pixel = runs[i].pixel;
      if (i == 0 || pixel != runs[i - 1].pixel) {
        const auto first = plane_result(p, first_column, j, pixel, even);
        const auto second = plane_result(p, first_column, j, pixel, odd);
        low = by_turns<isa, Acc<P>, 0>(first, second);
        high = by_turns<isa, Acc<P>, 1>(first, second);
      }
      store(out + runs[i].place, low, runs[i].low);
      store(out + runs[i].place + kLanes, high, runs[i].high);
    }
  }
}

}  // namespace cvk
