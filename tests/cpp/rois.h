// Helpers that the tests of the RoI family share: bilinear samples by definition, layouts, slices, the memory of a plan.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/roi_geometry.h"
#include "common/roi_plan.h"

namespace cvk_test {

using namespace cvk;

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();

// Small whole numbers over 8: exact in every dtype.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  int whole(int low, int high) {  // low <= result < high
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return low + static_cast<int>((state_ >> 33) % static_cast<uint64_t>(high - low));
  }
  double eighth(int low, int high) { return whole(8 * low, 8 * high) / 8.0; }
  std::vector<double> eighths(int64_t count, int low, int high) {
    std::vector<double> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(eighth(low, high));
    return values;
  }

 private:
  uint64_t state_;
};

// ---- the bilinear rule, in plain words

struct SampleTap {
  int y, x;
  double weight;  // of the pixel
  double dy, dx;  // derivatives of the weight with respect to the point
};

inline std::vector<SampleTap> taps_of(double y, double x, int height, int width) {
  if (!(y >= -1 && y <= height && x >= -1 && x <= width) || height == 0 || width == 0) return {};
  const bool y_below = y < 0, x_below = x < 0;
  y = std::max(y, 0.0);
  x = std::max(x, 0.0);
  const int y0 = std::min(static_cast<int>(y), height - 1), x0 = std::min(static_cast<int>(x), width - 1);
  const int y1 = std::min(y0 + 1, height - 1), x1 = std::min(x0 + 1, width - 1);
  const double ly = y1 > y0 ? y - y0 : 0, lx = x1 > x0 ? x - x0 : 0;
  const double sy = y1 > y0 && !y_below ? 1 : 0, sx = x1 > x0 && !x_below ? 1 : 0;  // 0 where clamped
  return {{y0, x0, (1 - ly) * (1 - lx), -sy * (1 - lx), -sx * (1 - ly)},
          {y0, x1, (1 - ly) * lx, -sy * lx, sx * (1 - ly)},
          {y1, x0, ly * (1 - lx), sy * (1 - lx), -sx * ly},
          {y1, x1, ly * lx, sy * lx, sx * ly}};
}

inline int grid_of(double bin, int sampling_ratio) {
  if (sampling_ratio > 0) return sampling_ratio;
  const double samples = std::ceil(bin);
  return samples > 0 ? static_cast<int>(std::min(samples, 100.0)) : 0;
}

// ---- tensors

// Offset of [n, c, i] in a tensor [n, channels, inner] or, channels last, [n, inner, channels].
inline std::vector<int64_t> permutation(int64_t n, int64_t channels, int64_t inner, bool channels_last) {
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < inner; ++p) {
        offsets.push_back(channels_last ? (i * inner + p) * channels + c : (i * channels + c) * inner + p);
      }
    }
  }
  return offsets;
}

// Values in another order and type; vectors have the exact size, so that ASan sees a step too far.
template <class T>
std::vector<T> stored(const std::vector<double>& values, const std::vector<int64_t>& at) {
  std::vector<T> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) result[at[i]] = from_acc<T>(static_cast<Acc<T>>(values[i]));
  return result;
}

template <class T>
std::vector<double> loaded(const std::vector<T>& values, const std::vector<int64_t>& at) {
  std::vector<double> result;
  for (int64_t i : at) result.push_back(to_acc(values[i]));
  return result;
}

// ---- calls

// How a pass is cut into slices: at once, or item by item from the last to the first.
template <class F>
void over(int64_t items, bool at_once, F&& f) {
  if (at_once) {
    if (items > 0) f(int64_t{0}, items);
    return;
  }
  for (int64_t i = items; i-- > 0;) f(i, i + 1);
}

// The memory of a plan.
class PlanVectors {
 public:
  // layout() as <op>_layout_cpu. Returns what it does.
  template <class Layout>
  int64_t lay_out(const RoiShape& shape, RoiPlan& plan, Layout&& layout, int levels = 1) {
    order_.resize(shape.boxes);
    image_of_.resize(shape.boxes);
    record_begin_.resize(shape.boxes + 1);
    image_begin_.resize(levels * shape.batch + 1);
    places_.resize(2 * shape.boxes);
    plan.order = order_.data();
    plan.image_of = image_of_.data();
    plan.record_begin = record_begin_.data();
    plan.image_begin = image_begin_.data();
    plan.places = places_.data();
    const int64_t bytes = layout();
    if (bytes > 0) arena_.resize(bytes);
    plan.arena = arena_.data();
    return bytes;
  }

 private:
  std::vector<int64_t> order_, image_of_, record_begin_, image_begin_;
  std::vector<Keyed<uint32_t>> places_;
  std::vector<char> arena_;
};

// ---- comparing

template <class T>
double tolerance() {
  if (std::is_same<T, double>::value) return 1e-12;
  if (std::is_same<T, float>::value) return 1e-5;
  return std::is_same<T, half_t>::value ? 1.0 / 1024 : 1.0 / 128;
}

inline void expect_near(const std::vector<double>& actual, const std::vector<double>& expected, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double scale = 0;
  for (double value : expected) scale = std::max(scale, std::fabs(value));
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_LE(std::fabs(actual[i] - expected[i]), tolerance * (std::fabs(expected[i]) + 0.05 * scale))
        << what << " at " << i << ": " << actual[i] << " expected " << expected[i];
  }
}

// f(isa, name) for every instruction set of this machine.
template <class F>
void for_each_isa(F&& f) {
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV4) f(IsaTag<Isa::kV4>{}, "v4");
  if (cpu_isa() >= Isa::kV3) f(IsaTag<Isa::kV3>{}, "v3");
#endif
  f(IsaTag<Isa::kBaseline>{}, "baseline");
}

}  // namespace cvk_test
