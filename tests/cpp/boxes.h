// Boxes and helpers that the tests of the NMS family share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "common/parallel.h"

namespace cvk_test {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  int whole(int low, int high) {  // low <= result < high
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return low + static_cast<int>((state_ >> 33) % static_cast<uint64_t>(high - low));
  }
  double real(double low, double high) { return low + (high - low) * whole(0, 1 << 24) / (1 << 24); }

 private:
  uint64_t state_;
};

struct Boxes {
  std::vector<double> boxes;     // [N, 4]
  std::vector<double> scores;    // [N]
  std::vector<int64_t> classes;  // [N] or empty

  int64_t count() const { return static_cast<int64_t>(scores.size()); }
};

template <class A>
std::vector<A> converted(const std::vector<double>& values) {
  return std::vector<A>(values.begin(), values.end());
}

// Order of visits: descending score, ties by index; NaN scores left out.
template <class S>
std::vector<int64_t> visits(const std::vector<S>& scores) {
  std::vector<int64_t> order;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] == scores[i]) order.push_back(static_cast<int64_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return order;
}

// All boxes as torch sorts them by descending score: NaN first, ties by index.
template <class S>
std::vector<int64_t> sorted_by_score(const std::vector<S>& scores) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const bool nan_a = scores[a] != scores[a], nan_b = scores[b] != scores[b];
    return nan_a || nan_b ? nan_a && !nan_b : scores[a] > scores[b];
  });
  return order;
}

// A parallel loop that runs its slices one by one, the last first.
inline cvk::Parallel backwards() {
  cvk::Parallel parallel;
  parallel.threads = 3;
  parallel.start = [](void*, int64_t items, int64_t grain, cvk::Parallel::Body body, void* argument) {
    grain = std::max<int64_t>(grain, 1);
    for (int64_t first = (items - 1) / grain * grain; first >= 0; first -= grain) {
      body(argument, first, std::min(first + grain, items));
    }
  };
  return parallel;
}

inline Boxes random_boxes(const std::string& kind, int64_t count, uint64_t seed) {
  Random random(seed);
  Boxes p;
  const double strange[] = {kNan, kInf, -kInf, 1e9, -1e9, 1e-30};
  const double side = 25 * std::sqrt(static_cast<double>(count));
  for (int64_t i = 0; i < count; ++i) {
    double x, y, w, h;
    if (kind == "whole") {
      x = random.whole(0, 9), y = random.whole(0, 9), w = random.whole(-2, 7), h = random.whole(-2, 7);
    } else if (kind == "crowd") {
      const int cluster = random.whole(0, 4);
      x = 60 * cluster + random.real(0, 5), y = 9 * cluster + random.real(0, 5);
      w = 40 + random.real(0, 5), h = 30 + random.real(0, 5);
    } else if (kind == "sizes") {
      x = random.real(0, 900), y = random.real(0, 900);
      w = std::pow(10.0, random.real(-3, 3)), h = std::pow(10.0, random.real(-3, 3));
    } else {
      x = random.real(0, side), y = random.real(0, side), w = random.real(5, 105), h = random.real(5, 105);
    }
    double box[4] = {x, y, x + w, y + h};
    if (kind == "strange" && random.whole(0, 4) == 0) box[random.whole(0, 4)] = strange[random.whole(0, 6)];
    p.boxes.insert(p.boxes.end(), box, box + 4);
    p.scores.push_back(random.whole(0, 20) == 0 && kind == "strange" ? kNan : random.whole(0, 200) / 200.0);
  }
  return p;
}

inline constexpr const char* kKinds[] = {"spread", "crowd", "whole", "sizes", "strange"};

inline std::vector<int64_t> random_classes(int64_t count, int classes, uint64_t seed) {
  Random random(seed);
  std::vector<int64_t> result;
  for (int64_t i = 0; i < count; ++i) result.push_back((int64_t{random.whole(0, classes)} << 32) - 5);
  return result;
}

}  // namespace cvk_test
