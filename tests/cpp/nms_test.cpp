// NMS without torch: the CPU kernels of every instruction set and the emulated CUDA kernels against keeps worked by hand,
// against the plain greedy loop, and so against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/nms/nms.h"
#include "kernels/nms/nms_math.h"

namespace {

using namespace cvk;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

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

struct Problem {
  std::vector<double> boxes;     // [N, 4]
  std::vector<double> scores;    // [N]
  std::vector<int64_t> classes;  // [N] or empty
  double threshold = 0.5;
  int64_t max_output = 1 << 30;

  int64_t count() const { return static_cast<int64_t>(scores.size()); }
};

using Keep = std::vector<int64_t>;

template <class A>
std::vector<A> converted(const std::vector<double>& values) {
  return std::vector<A>(values.begin(), values.end());
}

// Order of visits: descending score, ties by index; NaN scores left out.
template <class S>
Keep visits(const std::vector<S>& scores) {
  Keep order;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] == scores[i]) order.push_back(static_cast<int64_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return order;
}

template <class A, class S>
Keep by_definition(const Problem& p) {
  const std::vector<A> b = converted<A>(p.boxes);
  Keep keep;
  for (int64_t i : visits(converted<S>(p.scores))) {
    if (static_cast<int64_t>(keep.size()) >= p.max_output) break;
    bool suppressed = false;
    const A* const y = &b[4 * i];
    for (int64_t j : keep) {
      if (!p.classes.empty() && p.classes[i] != p.classes[j]) continue;
      const A* const x = &b[4 * j];
      volatile A area_x = (x[2] - x[0]) * (x[3] - x[1]);  // volatile: no contraction, one rounding per operation
      volatile A area_y = (y[2] - y[0]) * (y[3] - y[1]);
      const A width = std::min(x[2], y[2]) - std::max(x[0], y[0]);
      const A height = std::min(x[3], y[3]) - std::max(x[1], y[1]);
      volatile A inter = (width > 0 ? width : A(0)) * (height > 0 ? height : A(0));
      volatile A both = area_x + area_y;
      volatile A united = both - inter;
      volatile A iou = inter / united;
      if (static_cast<double>(iou) > p.threshold) {
        suppressed = true;
        break;
      }
    }
    if (!suppressed) keep.push_back(i);
  }
  return keep;
}

// A parallel loop that runs its slices one by one, the last first.
Parallel backwards() {
  Parallel parallel;
  parallel.threads = 3;
  parallel.start = [](void*, int64_t items, int64_t grain, Parallel::Body body, void* argument) {
    grain = std::max<int64_t>(grain, 1);
    for (int64_t first = (items - 1) / grain * grain; first >= 0; first -= grain) {
      body(argument, first, std::min(first + grain, items));
    }
  };
  return parallel;
}

template <Isa isa, class A, class S>
Keep on_cpu(const Problem& p, const Parallel& parallel) {
  const std::vector<A> boxes = converted<A>(p.boxes);
  const std::vector<S> scores = converted<S>(p.scores);
  Keep keep(std::min(p.count(), p.max_output), -7);
  NmsParams<A, S> params{};
  params.count = p.count();
  params.boxes = boxes.data();
  params.scores = scores.data();
  params.classes = p.classes.empty() ? nullptr : p.classes.data();
  params.threshold = nms_threshold<A>(p.threshold);
  params.max_output = p.max_output;
  params.keep = keep.data();
  const int64_t kept = nms_cpu<isa>(params, parallel);
  EXPECT_LE(kept, static_cast<int64_t>(keep.size()));
  keep.resize(kept);
  return keep;
}

// Two images at once: the problem and the problem without its first box.
template <class A, class S>
std::vector<Keep> on_emulation(const Problem& p, uint64_t seed) {
  const int64_t n = p.count(), batch = 2;
  std::vector<A> boxes = converted<A>(p.boxes);
  boxes.insert(boxes.end(), boxes.begin(), boxes.end());
  std::vector<S> scores = converted<S>(p.scores);
  scores.insert(scores.end(), scores.begin(), scores.end());
  if (n > 0) scores[n] = static_cast<S>(kNan);
  std::vector<int64_t> classes = p.classes;
  classes.insert(classes.end(), p.classes.begin(), p.classes.end());
  std::vector<int64_t> order;
  std::vector<float> ordered;
  for (int64_t image = 0; image < batch; ++image) {  // as torch sorts: NaN first
    const std::vector<S> own(scores.begin() + image * n, scores.begin() + (image + 1) * n);
    Keep ranks(n);
    std::iota(ranks.begin(), ranks.end(), 0);
    std::stable_sort(ranks.begin(), ranks.end(), [&](int64_t a, int64_t b) {
      const bool nan_a = own[a] != own[a], nan_b = own[b] != own[b];
      return nan_a || nan_b ? nan_a && !nan_b : own[a] > own[b];
    });
    for (int64_t i : ranks) {
      order.push_back(i);
      ordered.push_back(static_cast<float>(own[i]));
    }
  }
  const int64_t most = std::min<int64_t>(p.max_output, n + 3);
  std::vector<int64_t> keep(batch * most, -7), kept(batch, -7);
  NmsBatchParams<A> params{};
  params.batch = batch;
  params.count = n;
  params.max_output = most;
  params.boxes = boxes.data();
  params.order = order.data();
  params.ordered_scores = ordered.data();
  params.classes = p.classes.empty() ? nullptr : classes.data();
  params.threshold = nms_threshold<A>(p.threshold);
  params.keep = keep.data();
  params.kept = kept.data();
  std::vector<char> scratch(nms_scratch_cuda(params));
  emulation::poison(scratch.data(), scratch.size());
  emulation::set_seed(seed);
  EXPECT_EQ(nms_cuda(params, scratch.data(), nullptr), 0) << emulation::last_error_message();
  std::vector<Keep> result;
  for (int64_t image = 0; image < batch; ++image) {
    const int64_t own = kept[image];
    EXPECT_GE(own, 0);
    EXPECT_LE(own, most);
    const Keep row(keep.begin() + image * most, keep.begin() + (image + 1) * most);
    for (int64_t i = std::max<int64_t>(own, 0); i < most; ++i) EXPECT_EQ(row[i], -1) << "padding";
    result.push_back(Keep(row.begin(), row.begin() + std::min(std::max<int64_t>(own, 0), most)));
  }
  return result;
}

template <class A, class S>
void expect_all_backends(const Problem& p, const std::string& what, bool emulated = true) {
  const Keep expected = by_definition<A, S>(p);
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV4) {
    EXPECT_EQ((on_cpu<Isa::kV4, A, S>(p, Parallel{})), expected) << what << ", v4";
  }
  if (cpu_isa() >= Isa::kV3) {
    EXPECT_EQ((on_cpu<Isa::kV3, A, S>(p, Parallel{})), expected) << what << ", v3";
  }
#endif
  EXPECT_EQ((on_cpu<Isa::kBaseline, A, S>(p, Parallel{})), expected) << what << ", baseline";
  EXPECT_EQ((on_cpu<Isa::kBaseline, A, S>(p, backwards())), expected) << what << ", slices backwards";
  if (!emulated) return;
  Problem second = p;
  if (p.count() > 0) second.scores[0] = kNan;
  const Keep expected_second = by_definition<A, S>(second);
  for (uint64_t seed : {uint64_t{0}, uint64_t(p.count() + 5)}) {
    const std::vector<Keep> actual = on_emulation<A, S>(p, seed);
    EXPECT_EQ(actual[0], expected) << what << ", emulated, seed " << seed;
    EXPECT_EQ(actual[1], expected_second) << what << ", emulated, second image, seed " << seed;
  }
}

// ---- By hand

TEST(Nms, ChainOfThree) {
  // A and B overlap by 1/3, A and C by 1/9, B and C by 7/13.
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10, 8, 0, 18, 10};
  p.scores = {0.9, 0.8, 0.7};
  const auto keep = [&](double threshold) {
    p.threshold = threshold;
    expect_all_backends<float, float>(p, "chain");
    return on_cpu<Isa::kBaseline, float, float>(p, Parallel{});
  };
  EXPECT_EQ(keep(0.5), (Keep{0, 1}));
  EXPECT_EQ(keep(0.3), (Keep{0, 2}));
  EXPECT_EQ(keep(0.1), (Keep{0}));
  EXPECT_EQ(keep(0.6), (Keep{0, 1, 2}));
  EXPECT_EQ(keep(-0.1), (Keep{0}));
  p.classes = {4, 5, 4};
  EXPECT_EQ(keep(0.1), (Keep{0, 1}));
  p.max_output = 1;
  EXPECT_EQ(keep(0.1), (Keep{0}));
  p.max_output = 0;
  EXPECT_EQ(keep(0.1), (Keep{}));
}

TEST(Nms, ThresholdIsARealNumber) {
  // inter 3, union 10: float rounds 0.3 up, above the double 0.3.
  Problem p;
  p.boxes = {0, 0, 10, 1, 0, 0, 3, 1};
  p.scores = {1, 0.5};
  p.threshold = 0.3;
  EXPECT_EQ((on_cpu<Isa::kBaseline, float, float>(p, Parallel{})), (Keep{0}));
  EXPECT_EQ((on_cpu<Isa::kBaseline, double, float>(p, Parallel{})), (Keep{0, 1}));
  expect_all_backends<float, double>(p, "threshold");
  expect_all_backends<double, double>(p, "threshold");
}

TEST(Nms, NanAndTies) {
  Problem p;
  p.boxes = {0, 0, 4, 4, 0, 0, 4, 4, 0, 0, kNan, 4, 0, 0, 4, 4};
  p.scores = {kNan, 0.5, 0.5, 0.5};
  for (double threshold : {-0.5, 0.0, 0.5}) {
    p.threshold = threshold;
    EXPECT_EQ((on_cpu<Isa::kBaseline, float, float>(p, Parallel{})), (Keep{1, 2}));
    expect_all_backends<float, float>(p, "nan");
  }
  // Minus zero equals zero, so the index decides.
  p.boxes = {0, 0, 4, 4, 10, 0, 14, 4, 20, 0, 24, 4};
  p.scores = {-0.0, 0.0, -0.0};
  EXPECT_EQ((on_cpu<Isa::kBaseline, float, float>(p, Parallel{})), (Keep{0, 1, 2}));
  EXPECT_EQ((on_cpu<Isa::kBaseline, float, double>(p, Parallel{})), (Keep{0, 1, 2}));
  expect_all_backends<float, float>(p, "zeros");
  expect_all_backends<double, double>(p, "zeros");
}

TEST(Nms, SubnormalAreas) {
  // Areas of 3 and 2 units of the smallest float, IoU 2 / 3; a product with the threshold would round.
  Problem p;
  const double w = std::ldexp(1.0, -75), h = std::ldexp(1.0, -74);
  p.boxes = {0, 0, 3 * w, h, 0, 0, 2 * w, h};
  p.scores = {1, 0.5};
  for (double threshold : {0.34, 0.5, 0.6, 0.66, 0.67}) {
    p.threshold = threshold;
    expect_all_backends<float, float>(p, "subnormal " + std::to_string(threshold));
  }
}

// ---- Against the definition

Problem random_problem(const std::string& kind, int64_t count, uint64_t seed) {
  Random random(seed);
  Problem p;
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

const char* const kKinds[] = {"spread", "crowd", "whole", "sizes", "strange"};

TEST(Nms, EqualsTheGreedyLoop) {
  for (const char* kind : kKinds) {
    for (int64_t count : {0, 1, 2, 31, 32, 33, 64, 65, 150}) {
      for (double threshold : {-0.5, 0.0, 0.3, 0.7, 1.0}) {
        // An emulated launch costs tens of milliseconds under ASan: every threshold, every count, not every pair.
        const bool emulated = threshold == 0.3 || count == 65;
        Problem p = random_problem(kind, count, 3);
        p.threshold = threshold;
        const std::string what = std::string(kind) + " " + std::to_string(count) + " at " + std::to_string(threshold);
        expect_all_backends<float, float>(p, what, emulated);
        expect_all_backends<double, float>(p, what + ", double", emulated && count <= 33);
        p.max_output = count / 3;
        expect_all_backends<float, double>(p, what + ", max_output", emulated && count <= 33);
        Random random(9);
        p.max_output = 1 << 30;
        for (int64_t i = 0; i < count; ++i) p.classes.push_back((int64_t{random.whole(0, 3)} << 32) - 5);
        expect_all_backends<float, float>(p, what + ", classes", emulated && count <= 65);
      }
    }
  }
}

TEST(Nms, ManyBoxes) {  // enough for the grid of the CPU kernel
  for (const char* kind : kKinds) {
    for (double threshold : {0.0, 0.2, 0.5, 0.9}) {
      Problem p = random_problem(kind, 1500, 11);
      p.threshold = threshold;
      const std::string what = std::string(kind) + " at " + std::to_string(threshold);
      expect_all_backends<float, float>(p, what, false);
      expect_all_backends<double, double>(p, what, false);
      Random random(9);
      for (int64_t i = 0; i < p.count(); ++i) p.classes.push_back(random.whole(0, 5));
      p.max_output = 300;
      expect_all_backends<float, float>(p, what + ", classes", false);
    }
  }
}

}  // namespace
