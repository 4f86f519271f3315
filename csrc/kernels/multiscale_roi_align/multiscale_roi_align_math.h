// The rule of Lin et al. 2017 (FPN) for the level of a box, as the least area of each level. On the host, once per call.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/dtype.h"
#include "common/roi_levels.h"

namespace cvk {

constexpr double kLevelEpsilon = 1e-6;  // the paper's rule has none; torchvision's keeps exact sizes on their level

// Roots and logarithms of n numbers in place, rounded to the nearest. Which way they round decides for areas that are within a
// unit in the last place of a level's least, so that a library which is to agree with another must take its functions.
template <class A>
struct NearestFunctions {
  void sqrt(A* values, int n) const {
    for (int i = 0; i < n; ++i) values[i] = std::sqrt(values[i]);
  }
  void log2(A* values, int n) const {
    for (int i = 0; i < n; ++i) values[i] = static_cast<A>(std::log2(static_cast<double>(values[i])));
  }
};

// The level of a map, counted from the image: 2 for a scale of 1/4.
inline int level_of_scale(double spatial_scale) {
  const float narrow = static_cast<float>(spatial_scale);
  const bool in_range = narrow > 0.0f && narrow <= std::numeric_limits<float>::max();
  return static_cast<int>(-static_cast<float>(std::log2(in_range ? static_cast<double>(narrow) : spatial_scale)));
}

template <class A, class Functions>
class LevelRule {
 public:
  LevelRule(double canonical_scale, int64_t canonical_level, const Functions& functions)
      : scale_(static_cast<A>(canonical_scale)), level_(static_cast<A>(canonical_level)), functions_(functions) {}

  // Fills least[0 .. count] for roi_level_of_area.
  void least_areas(const double* spatial_scales, int count, A* least) const {
    const int first = level_of_scale(spatial_scales[0]), last = level_of_scale(spatial_scales[count - 1]);
    const int steps = last - first < count ? last - first : count;
    least[0] = A(0);
    for (int i = 1; i <= count; ++i) least[i] = std::numeric_limits<A>::quiet_NaN();
    // All levels at once, each near where it should begin: the rule's roundings move that by a few units in the last place.
    A areas[kRoiMaxLevels * kTried];
    for (int i = 0; i < steps; ++i) {
      const double side = scale_ * std::exp2(static_cast<double>(A(first + 1 + i) - level_) - kLevelEpsilon);
      const Bits middle = bit_cast<Bits>(static_cast<A>(side * side));
      const Bits begin = middle > kTried / 2 ? middle - kTried / 2 : 0;
      for (int j = 0; j < kTried; ++j) areas[i * kTried + j] = bit_cast<A>(begin + static_cast<Bits>(j));
    }
    A values[kRoiMaxLevels * kTried];
    evaluate(areas, values, steps * kTried);
    for (int i = 0; i < steps; ++i) {
      const A level = A(first + 1 + i);
      int j = 0;
      while (j < kTried && !(values[i * kTried + j] >= level)) ++j;
      least[i + 1] = j > 0 && j < kTried ? areas[i * kTried + j] : search(level);
    }
  }

 private:
  using Bits = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;
  static constexpr int kTried = 64;

  // The rule before it is clamped, each step rounded to A.
  void evaluate(const A* areas, A* values, int n) const {
    for (int i = 0; i < n; ++i) values[i] = areas[i];
    functions_.sqrt(values, n);
    for (int i = 0; i < n; ++i) values[i] = values[i] / scale_;
    functions_.log2(values, n);
    for (int i = 0; i < n; ++i) {
      values[i] = level_ + values[i];
      values[i] = std::floor(values[i] + static_cast<A>(kLevelEpsilon));
    }
  }

  // The least of all areas whose value is `level` or more; infinity where there is none.
  A search(A level) const {
    Bits from = 0, to = bit_cast<Bits>(std::numeric_limits<A>::infinity());  // the bits of numbers are in their order
    while (to - from > 1) {
      const Bits step = (to - from) / kTried + 1;
      A areas[kTried], values[kTried];
      for (int j = 0; j < kTried; ++j) {
        const Bits at = from + step * static_cast<Bits>(j + 1);
        areas[j] = bit_cast<A>(at < to ? at : to);
      }
      evaluate(areas, values, kTried);
      int j = 0;
      while (j < kTried && !(values[j] >= level)) ++j;
      if (j > 0) from = bit_cast<Bits>(areas[j - 1]);
      if (j < kTried) to = bit_cast<Bits>(areas[j]);
      if (j == kTried || from >= to) break;
    }
    return bit_cast<A>(to);
  }

  const A scale_, level_;
  const Functions& functions_;
};

}  // namespace cvk
