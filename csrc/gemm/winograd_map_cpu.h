// Tiles of maps for Winograd's forms on the CPU (winograd_cpu.h, winograd_weight_cpu.h): tile (y, x) of an image are the 2 x 2 pixels
// from (2 y, 2 x) on of what a 3 x 3 correlation of step 1 makes, and the 4 x 4 pixels that they see.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/conv_shape.h"
#include "common/scratch.h"
#include "gemm/pack_cpu.h"

namespace cvk {

CVK_HD bool winograd_fits(const ConvShape& s) {
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_y == 1 && s.stride_x == 1 && s.dilation_y == 1 &&
         s.dilation_x == 1;
}

// What a tile of 4 x 4 becomes along one axis, in place: B'.
template <class Vec>
CVK_HD void winograd_source(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec a_c = a - c, b_c = b + c, c_b = c - b, b_d = b - d;
  a = a_c;
  b = b_c;
  c = c_b;
  d = b_d;
}

// Tiles [x, x + count) of a row of tiles; tile `place` of those at work is the first.
struct WinogradRun {
  int64_t image;
  int y, x, count, place;
};

// Tiles of an image.
struct WinogradTiles {
  CVK_HD explicit WinogradTiles(const TapGrid& grid)
      : y(grid.y.grid / 2 + grid.y.grid % 2), x(grid.x.grid / 2 + grid.x.grid % 2) {}

  CVK_HD int64_t count() const { return int64_t{y} * x; }

  template <class F>
  CVK_HD void for_each_run(int64_t first, int tiles, F&& f) const {
    for (int i = 0; i < tiles;) {
      const int64_t rest = (first + i) % count();
      WinogradRun run{(first + i) / count(), static_cast<int>(rest / x), static_cast<int>(rest % x), 0, i};
      run.count = min_of(tiles - i, x - run.x);
      f(run);
      i += run.count;
    }
  }

  int y, x;
};

// A map of either layout.
template <class T>
struct WinogradMap {
  const T* at;
  int64_t height, width, channels;
  bool channels_last;

  CVK_HD const T* pixels(int64_t image, int64_t channel) const {
    return at + image * channels * height * width + channel * (channels_last ? 1 : height * width);
  }
};

// Some pixels with their channels side by side: those of a channels-last map where they lie, planes turned. Zeros outside the map.
template <Isa isa, class T>
class WinogradWindow {
  using A = Acc<T>;

 public:
  CVK_HD WinogradWindow(int rows, int most_width, int64_t most_channels, bool channels_last)
      : rows_(rows),
        turned_(channels_last ? 0 : int64_t{rows} * most_width * kWinogradWindow * static_cast<int64_t>(sizeof(A))),
        zeros_(channels_last ? most_channels * static_cast<int64_t>(sizeof(T)) : 0) {
    if (channels_last) memset(zeros_.template as<char>(), 0, static_cast<size_t>(most_channels) * sizeof(T));
  }

  // Pixels [x, x + width) of rows from y on: use(c, count, at) for some of the channels, [c, c + count) of [first, first + channels), of
  // which at(i, j) has those of pixel (y + i, x + j).
  template <class Use>
  CVK_HD void read(const WinogradMap<T>& map, int64_t image, int64_t y, int64_t x, int width, int64_t first,
                   int channels, const Use& use) const {
    const T* pixels = map.pixels(image, first);
    if (map.channels_last) {
      use(0, channels, [&](int i, int j) {
        const bool inside = y + i >= 0 && y + i < map.height && x + j >= 0 && x + j < map.width;
        return inside ? pixels + ((y + i) * map.width + x + j) * map.channels : zeros_.template as<T>();
      });
      return;
    }
    const int64_t plane = map.height * map.width;
    A* turned = turned_.template as<A>();
    const int begin = static_cast<int>(min_of<int64_t>(width, max_of<int64_t>(0, -x)));
    const int end = static_cast<int>(max_of<int64_t>(begin, min_of<int64_t>(width, map.width - x)));
    for (int c = 0; c < channels; c += kWinogradWindow) {
      const int count = min_of(kWinogradWindow, channels - c);
      for (int i = 0; i < rows_; ++i) {
        A* row = turned + int64_t{i} * width * kWinogradWindow;
        const bool there = y + i >= 0 && y + i < map.height && begin < end;
        const int from = there ? begin : width, to = there ? end : width;
        memset(row, 0, static_cast<size_t>(from) * kWinogradWindow * sizeof(A));
        memset(row + int64_t{to} * kWinogradWindow, 0, static_cast<size_t>(width - to) * kWinogradWindow * sizeof(A));
        if (there) {
          transpose_matrix<isa>(pixels + c * plane + (y + i) * map.width + x + from, plane,
                                row + int64_t{from} * kWinogradWindow, kWinogradWindow, count, to - from);
        }
      }
      use(c, count, [&](int i, int j) { return turned + (int64_t{i} * width + j) * kWinogradWindow; });
    }
  }

 private:
  int rows_;
  Scratch turned_, zeros_;
};

// Tiles of `side` x `side` pixels, two pixels apart, a vector of channels at a time: make(pixels, elements) turns them into 16 elements, of
// which e goes to to[e] + tile * pitch.
template <Isa isa, class A, int side, class At, class Make>
CVK_HD void winograd_transform(const At& at, int tiles, int channels, A* const (&to)[16], int64_t pitch,
                               const Make& make) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  for (int t = 0; t < tiles; ++t) {
    decltype(at(0, 0)) from[side * side];
    for (int e = 0; e < side * side; ++e) from[e] = at(e / side, 2 * t + e % side);
    for (int v = 0; v < channels; v += kLanes) {
      typename S::Vec pixels[side][side], elements[4][4];
      if (v + kLanes <= channels) {
        for (int e = 0; e < side * side; ++e) pixels[e / side][e % side] = S::load(from[e] + v);
      } else {
        for (int e = 0; e < side * side; ++e) {
          pixels[e / side][e % side] = S::load_partial(from[e] + v, channels - v);
        }
      }
      make(pixels, elements);
      for (int e = 0; e < 16; ++e) S::store(to[e] + t * pitch + v, elements[e / 4][e % 4]);
    }
  }
}

// The 16 elements of source pixels: B' d B.
template <Isa isa, class A, class At>
CVK_HD void winograd_transform_source(const At& at, int tiles, int channels, A* const (&to)[16], int64_t pitch) {
  using Vec = typename Simd<isa, A>::Vec;
  winograd_transform<isa, A, 4>(at, tiles, channels, to, pitch, [](const Vec(&d)[4][4], Vec(&v)[4][4]) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) v[i][j] = d[i][j];
    }
    for (int j = 0; j < 4; ++j) winograd_source(v[0][j], v[1][j], v[2][j], v[3][j]);
    for (int i = 0; i < 4; ++i) winograd_source(v[i][0], v[i][1], v[i][2], v[i][3]);
  });
}

}  // namespace cvk
