// Rotated boxes without torch: overlaps worked by hand; the CPU kernels of every instruction set and the emulated CUDA kernels
// against the scalar overlap, bit for bit, and against the plain greedy loop.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "common/box_overlap.h"
#include "common/elementary.h"
#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/nms_rotated/nms_rotated.h"
#include "kernels/nms_rotated/nms_rotated_math.h"

namespace {

using namespace cvk;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kPi = 3.14159265358979323846;

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

using Values = std::vector<double>;
using Keep = std::vector<int64_t>;

template <class A>
std::vector<A> converted(const Values& values) {
  return std::vector<A>(values.begin(), values.end());
}

// NaN equals NaN, zeros differ by sign.
template <class T>
std::vector<uint64_t> bits(const std::vector<T>& values) {
  std::vector<uint64_t> result;
  for (const T& value : values) {
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    result.push_back(word);
  }
  return result;
}

template <class T>
void spoil(std::vector<T>& values) {
  for (T& value : values) std::memset(static_cast<void*>(&value), 0xff, sizeof(T));
}

template <class A>
A overlap(const Values& a, const Values& b, bool over_first = false, bool clockwise = true) {
  const std::vector<A> first = converted<A>(a), second = converted<A>(b);
  return rotated_overlap(rotated_box(first.data(), clockwise), rotated_box(second.data(), clockwise), over_first);
}

// ---- Sine and cosine

TEST(NmsRotated, SineAndCosine) {
  Random random(1);
  const auto check = [](double angle) {
    double sine, cosine;
    sine_cosine(angle, &sine, &cosine);
    EXPECT_NEAR(sine, std::sin(angle), 0x1p-52) << angle;
    EXPECT_NEAR(cosine, std::cos(angle), 0x1p-52) << angle;
    double minus_sine, same_cosine;
    sine_cosine(-angle, &minus_sine, &same_cosine);
    EXPECT_EQ(minus_sine, -sine);
    EXPECT_EQ(same_cosine, cosine);
  };
  for (int i = 0; i < 20000; ++i) check(random.real(-20, 20));
  for (int i = 0; i < 20000; ++i) check(random.real(-0x1p20, 0x1p20));
  for (int k = -40; k <= 40; ++k) {
    for (double off : {0.0, 1e-12, -1e-7}) check(k * kPi / 4 + off);
  }
  double sine, cosine;
  sine_cosine(0, &sine, &cosine);
  EXPECT_EQ(sine, 0);
  EXPECT_EQ(cosine, 1);
}

// ---- Overlaps by hand

TEST(NmsRotated, OverlapsByHand) {
  // A unit square and the same turned by 45 degrees have an octagon of area 2 (sqrt 2 - 1) in common.
  EXPECT_NEAR(overlap<double>({0, 0, 1, 1, 0}, {0, 0, 1, 1, kPi / 4}), std::sqrt(0.5), 1e-15);
  EXPECT_NEAR(overlap<float>({0, 0, 1, 1, 0}, {0, 0, 1, 1, kPi / 4}), std::sqrt(0.5), 1e-7);
  EXPECT_NEAR(overlap<double>({0, 0, 1, 1, 0}, {0, 0, 1, 1, kPi / 4}, true), 2 * (std::sqrt(2) - 1), 1e-15);
  EXPECT_NEAR(overlap<double>({5, 5, 6, 2, 0}, {5, 5, 6, 2, kPi / 2}), 0.2, 1e-15);  // a cross
  EXPECT_EQ(overlap<double>({0, 0, 2, 2, 0}, {2, 0, 2, 2, 0}), 0);                   // a side in common
  EXPECT_EQ(overlap<double>({0, 0, 2, 2, 0}, {2, 2, 2, 2, 0}), 0);                   // a corner
  EXPECT_EQ(overlap<double>({0, 0, 10, 1, kPi / 4}, {1.5, -1.5, 10, 1, kPi / 4}), 0);
  EXPECT_EQ(overlap<float>({0, 0, 4, 4, 0}, {1, 0, 4, 4, 0}), 12.0f / 20.0f);
  // Where y points down, a positive angle turns the bar's right end down.
  EXPECT_GT(overlap<double>({3, 3, 1, 1, 0}, {0, 0, 10, 1, kPi / 4}, true), 0.8);
  EXPECT_EQ(overlap<double>({3, 3, 1, 1, 0}, {0, 0, 10, 1, kPi / 4}, true, false), 0);
}

TEST(NmsRotated, IdenticalBoxesHaveExactlyOne) {
  Random random(3);
  for (int i = 0; i < 2000; ++i) {
    const double x = random.real(-1e4, 1e4), y = random.real(-1e4, 1e4), angle = random.real(-9, 9);
    const double w = std::pow(10, random.real(-3, 3)), h = std::pow(10, random.real(-3, 3));
    const Values box{x, y, w, h, angle};
    ASSERT_EQ(overlap<float>(box, box), 1.0f);
    ASSERT_EQ(overlap<double>(box, box), 1.0);
    ASSERT_EQ(overlap<float>(box, box, true, false), 1.0f);
    // Within another, or larger: never above 1.
    const double other = random.real(0.5, 2);
    ASSERT_LE(overlap<float>(box, {x, y, w * other, h * other, angle + random.real(-1, 1)}), 1.0f);
    ASSERT_LE(overlap<float>(box, {x, y, w * other, h * other, angle + random.real(-1, 1)}, true), 1.0f);
  }
}

TEST(NmsRotated, BoxesThatOverlapNothing) {
  const Values good{1, 1, 2, 2, 0.3};
  for (int column = 0; column < 5; ++column) {
    for (double value : {kNan, kInf, -kInf}) {
      Values bad = good;
      bad[column] = value;
      EXPECT_EQ(overlap<float>(good, bad), 0);
      EXPECT_EQ(overlap<float>(bad, good, true), 0);
      EXPECT_EQ(overlap<double>(bad, bad), 0);
    }
  }
  for (const Values& size : {Values{0, 1}, Values{1, -1}, Values{-1, -1}, Values{1e-30, 1e-30}, Values{1e30, 1e30}}) {
    const Values bad{1, 1, size[0], size[1], 0};
    EXPECT_EQ(overlap<float>(bad, bad), 0);
    EXPECT_EQ(overlap<float>(good, bad), 0);
  }
  EXPECT_EQ(overlap<float>(good, {1, 1, 2, 2, 0x1p20 + 1}), 0);
  EXPECT_GT(overlap<float>(good, {1, 1, 2, 2, 0x1p20}), 0);
}

// ---- Every backend

Values random_boxes(const std::string& kind, int64_t count, uint64_t seed) {
  Random random(seed);
  const double strange[] = {kNan, kInf, -kInf, 1e9, -1e9, 1e-30, 3e38, 0.0};
  const double side = 25 * std::sqrt(static_cast<double>(count));
  Values boxes;
  for (int64_t i = 0; i < count; ++i) {
    double box[5] = {random.real(0, side), random.real(0, side), random.real(5, 105), random.real(5, 105),
                     random.real(-4, 4)};
    if (kind == "whole") {  // many that coincide, touch or lie in one another
      for (int c = 0; c < 4; ++c) box[c] = random.whole(0, 9);
      box[4] = kPi / 4 * random.whole(-4, 5);
    } else if (kind == "crowd") {
      const int cluster = random.whole(0, 4);
      box[0] = 60 * cluster + random.real(0, 8), box[1] = 9 * cluster + random.real(0, 8);
      box[2] = 40 + random.real(0, 5), box[3] = 20 + random.real(0, 5), box[4] = cluster + random.real(0, 0.3);
    } else if (kind == "sizes") {
      box[2] = std::pow(10.0, random.real(-3, 3)), box[3] = std::pow(10.0, random.real(-3, 3));
    } else if (kind == "far") {
      box[0] += 1e5, box[1] -= 1e5;
    } else if (kind == "vast" && random.whole(0, 8) == 0) {  // the area is a number, that of the bounds is not
      box[2] = random.whole(0, 2) == 0 ? 1e25 : 1e-12, box[3] = 1 / box[2];
    } else if (kind == "strange" && random.whole(0, 4) == 0) {
      box[random.whole(0, 5)] = strange[random.whole(0, 8)];
    }
    boxes.insert(boxes.end(), box, box + 5);
  }
  return boxes;
}

const char* const kKinds[] = {"spread", "crowd", "whole", "sizes", "far", "strange"};

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

// Calls f with the tag of every instruction set of this machine.
template <class F>
void with_each_isa(F&& f) {
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV4) f(IsaTag<Isa::kV4>{});
  if (cpu_isa() >= Isa::kV3) f(IsaTag<Isa::kV3>{});
#endif
  f(IsaTag<Isa::kBaseline>{});
}

template <class A, class T>
void expect_overlaps(const Values& boxes1, const Values& boxes2, bool over_first, bool aligned, bool clockwise,
                     bool emulated, const std::string& what) {
  const std::vector<A> first = converted<A>(boxes1), second = converted<A>(boxes2);
  NmsRotatedIouParams<A, T> params{};
  params.rows = static_cast<int64_t>(first.size()) / 5;
  params.columns = static_cast<int64_t>(second.size()) / 5;
  params.boxes1 = first.data();
  params.boxes2 = second.data();
  params.over_first = over_first;
  params.aligned = aligned;
  params.clockwise = clockwise;
  std::vector<T> expected;
  for (int64_t i = 0; i < params.rows; ++i) {
    for (int64_t j = aligned ? i : 0; j < (aligned ? i + 1 : params.columns); ++j) {
      expected.push_back(from_acc<T>(
          rotated_overlap(rotated_box(&first[5 * i], clockwise), rotated_box(&second[5 * j], clockwise), over_first)));
    }
  }
  std::vector<T> actual(expected.size());
  params.overlaps = actual.data();
  with_each_isa([&](auto isa) {
    for (const Parallel& parallel : {Parallel{}, backwards()}) {
      spoil(actual);
      nms_rotated_iou_cpu<decltype(isa)::value>(params, parallel);
      EXPECT_EQ(bits(actual), bits(expected)) << what << ", " << isa_name(isa);
    }
  });
  if (!emulated) return;
  spoil(actual);
  std::vector<char> scratch(nms_rotated_iou_scratch_cuda(params));
  emulation::poison(scratch.data(), scratch.size());
  EXPECT_EQ(nms_rotated_iou_cuda(params, scratch.data(), nullptr), 0) << emulation::last_error_message();
  EXPECT_EQ(bits(actual), bits(expected)) << what << ", emulated";
}

TEST(NmsRotated, OverlapsAreTheSameBitsEverywhere) {
  for (const char* kind : kKinds) {
    for (int64_t count : {0, 1, 15, 33}) {
      const std::string what = std::string(kind) + " " + std::to_string(count);
      const Values boxes1 = random_boxes(kind, count, 5), boxes2 = random_boxes(kind, 19, 6);
      expect_overlaps<float, float>(boxes1, boxes2, false, false, true, true, what);
      expect_overlaps<float, half_t>(boxes2, boxes1, true, false, true, count == 15, what + ", iof");
      expect_overlaps<double, double>(boxes1, boxes2, false, false, false, count == 15, what + ", double");
      const Values same = random_boxes(kind, count, 7);
      expect_overlaps<float, float>(boxes1, same, false, true, true, true, what + ", aligned");
      expect_overlaps<float, bfloat16_t>(boxes1, boxes1, true, true, false, count == 15, what + ", same");
      expect_overlaps<double, double>(boxes1, same, false, true, true, false, what + ", aligned, double");
    }
  }
  // Long rows are cut into tiles; many pairs, into slices.
  const Values many = random_boxes("crowd", 5000, 8), few = random_boxes("crowd", 3, 9);
  expect_overlaps<float, float>(few, many, false, false, true, false, "long rows");
  expect_overlaps<float, float>(many, few, false, false, true, false, "long columns");
  expect_overlaps<float, float>(many, many, false, true, true, false, "many pairs");
}

struct Problem {
  Values boxes, scores;  // [N, 5], [N]
  Keep classes;          // [N] or empty
  double threshold = 0.5;
  int64_t max_output = 1 << 30;
  bool clockwise = true;

  int64_t count() const { return static_cast<int64_t>(scores.size()); }
};

// Order of visits: descending score, ties by index; NaN scores first or left out.
template <class S>
Keep visits(const std::vector<S>& scores, bool with_nan) {
  Keep order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto is_nan = [&](int64_t i) { return scores[i] != scores[i]; };
  if (!with_nan) order.erase(std::remove_if(order.begin(), order.end(), is_nan), order.end());
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return is_nan(a) || is_nan(b) ? is_nan(a) && !is_nan(b) : scores[a] > scores[b];
  });
  return order;
}

template <class A, class S>
Keep by_definition(const Problem& p) {
  const std::vector<A> boxes = converted<A>(p.boxes);
  Keep keep;
  for (int64_t i : visits(converted<S>(p.scores), false)) {
    if (static_cast<int64_t>(keep.size()) >= p.max_output) break;
    const RotatedBox<A> box = rotated_box(&boxes[5 * i], p.clockwise);
    bool suppressed = false;
    for (int64_t k : keep) {
      if (!p.classes.empty() && p.classes[i] != p.classes[k]) continue;
      suppressed |= rotated_overlap(rotated_box(&boxes[5 * k], p.clockwise), box, false) > p.threshold;
    }
    if (!suppressed) keep.push_back(i);
  }
  return keep;
}

template <Isa isa, class A, class S>
Keep on_cpu(const Problem& p, const Parallel& parallel) {
  const std::vector<A> boxes = converted<A>(p.boxes);
  const std::vector<S> scores = converted<S>(p.scores);
  Keep keep(std::min(p.count(), p.max_output), -7);
  const NmsRotatedParams<A, S> params{p.count(),
                                      boxes.data(),
                                      scores.data(),
                                      p.classes.empty() ? nullptr : p.classes.data(),
                                      overlap_threshold<A>(p.threshold),
                                      p.max_output,
                                      p.clockwise,
                                      keep.data()};
  const int64_t kept = nms_rotated_cpu<isa>(params, parallel);
  EXPECT_LE(kept, static_cast<int64_t>(keep.size()));
  keep.resize(kept);
  return keep;
}

template <class A, class S>
Keep on_emulation(const Problem& p, uint64_t seed) {
  const std::vector<A> boxes = converted<A>(p.boxes);
  const std::vector<S> scores = converted<S>(p.scores);
  const Keep order = visits(scores, true);
  std::vector<float> ordered;
  for (int64_t i : order) ordered.push_back(static_cast<float>(scores[i]));
  const int64_t most = std::min<int64_t>(p.max_output, p.count() + 3);
  Keep keep(most, -7);
  int64_t kept = -7;
  const NmsRotatedOrderedParams<A> params{p.count(),
                                          most,
                                          boxes.data(),
                                          order.data(),
                                          ordered.data(),
                                          p.classes.empty() ? nullptr : p.classes.data(),
                                          overlap_threshold<A>(p.threshold),
                                          p.clockwise,
                                          keep.data(),
                                          &kept};
  std::vector<char> scratch(nms_rotated_scratch_cuda(params));
  emulation::poison(scratch.data(), scratch.size());
  emulation::set_seed(seed);
  EXPECT_EQ(nms_rotated_cuda(params, scratch.data(), nullptr), 0) << emulation::last_error_message();
  EXPECT_GE(kept, 0);
  EXPECT_LE(kept, most);
  keep.resize(std::min(std::max<int64_t>(kept, 0), most));
  return keep;
}

template <class A, class S>
void expect_all_backends(const Problem& p, const std::string& what, bool emulated = true) {
  const Keep expected = by_definition<A, S>(p);
  with_each_isa([&](auto isa) {
    constexpr Isa kIsa = decltype(isa)::value;
    EXPECT_EQ((on_cpu<kIsa, A, S>(p, Parallel{})), expected) << what << ", " << isa_name(kIsa);
    EXPECT_EQ((on_cpu<kIsa, A, S>(p, backwards())), expected) << what << ", slices backwards, " << isa_name(kIsa);
  });
  if (!emulated) return;
  for (uint64_t seed : {uint64_t{0}, uint64_t(p.count() + 5)}) {
    EXPECT_EQ((on_emulation<A, S>(p, seed)), expected) << what << ", emulated, seed " << seed;
  }
}

TEST(NmsRotated, KeepsByHand) {
  // A bar; the same upright (IoU 0.2); the same turned a little.
  Problem p;
  p.boxes = {0, 0, 6, 2, 0, 0, 0, 6, 2, kPi / 2, 0, 0, 6, 2, 0.1};
  p.scores = {0.9, 0.8, 0.7};
  const auto keep = [&](double threshold) {
    p.threshold = threshold;
    expect_all_backends<float, float>(p, "by hand");
    return on_cpu<Isa::kBaseline, float, float>(p, Parallel{});
  };
  EXPECT_EQ(keep(0.5), (Keep{0, 1}));
  EXPECT_EQ(keep(0.19), (Keep{0}));
  EXPECT_EQ(keep(1.0), (Keep{0, 1, 2}));
  EXPECT_EQ(keep(-0.1), (Keep{0}));
  p.classes = {4, 4, 5};
  EXPECT_EQ(keep(-0.1), (Keep{0, 2}));
  EXPECT_EQ(keep(0.19), (Keep{0, 2}));
  p.max_output = 1;
  EXPECT_EQ(keep(0.5), (Keep{0}));
  p.max_output = 0;
  EXPECT_EQ(keep(0.5), (Keep{}));
  p.max_output = 3;
  p.scores = {kNan, 0.5, 0.5};
  p.classes.clear();
  EXPECT_EQ(keep(0.1), (Keep{1}));
  EXPECT_EQ(keep(-0.1), (Keep{1}));
}

TEST(NmsRotated, EqualsTheGreedyLoop) {
  for (const char* kind : kKinds) {
    for (int64_t count : {0, 1, 2, 16, 33, 65, 150}) {
      for (double threshold : {-0.5, 0.0, 0.3, 0.7, 1.0}) {
        const bool emulated = (count <= 65 && threshold == 0.3) || (count == 33 && threshold == -0.5);
        Random random(9);
        Problem p;
        p.boxes = random_boxes(kind, count, 3);
        for (int64_t i = 0; i < count; ++i) p.scores.push_back(random.whole(0, 20) == 0 ? kNan : random.whole(0, 99));
        p.threshold = threshold;
        p.clockwise = count % 2 == 0;
        const std::string what = std::string(kind) + " " + std::to_string(count) + " at " + std::to_string(threshold);
        expect_all_backends<float, float>(p, what, emulated);
        expect_all_backends<double, float>(p, what + ", double", emulated && count == 33);
        p.max_output = count / 3;
        expect_all_backends<float, double>(p, what + ", max_output", emulated && count == 33);
        p.max_output = 1 << 30;
        for (int64_t i = 0; i < count; ++i) p.classes.push_back((int64_t{random.whole(0, 3)} << 32) - 5);
        expect_all_backends<float, float>(p, what + ", classes", emulated);
        p.max_output = count / 3;
        expect_all_backends<double, double>(p, what + ", classes, max_output", emulated && count == 33);
      }
    }
  }
}

TEST(NmsRotated, ManyBoxes) {  // enough for the grid of the CPU kernel
  for (const char* kind : {"spread", "crowd", "whole", "sizes", "far", "strange", "vast"}) {
    for (int64_t classes : {0, 2}) {
      const int64_t count = 2100 * (classes + 1);
      Random random(9);
      Problem p;
      p.boxes = random_boxes(kind, count, 11);
      p.threshold = 0.2;
      for (int64_t i = 0; i < count; ++i) p.scores.push_back(random.whole(0, 3000));
      for (int64_t i = 0; i < count && classes > 0; ++i) p.classes.push_back(random.whole(0, 2));
      const Keep expected = by_definition<float, float>(p);
      const std::string what = std::string(kind) + ", " + std::to_string(classes) + " classes";
      with_each_isa([&](auto isa) {
        constexpr Isa kIsa = decltype(isa)::value;
        EXPECT_EQ((on_cpu<kIsa, float, float>(p, Parallel{})), expected) << what;
        EXPECT_EQ((on_cpu<kIsa, float, float>(p, backwards())), expected) << what << ", slices backwards";
        Problem some = p;
        some.max_output = static_cast<int64_t>(expected.size()) / 2;
        const Keep prefix(expected.begin(), expected.begin() + some.max_output);
        EXPECT_EQ((on_cpu<kIsa, float, float>(some, backwards())), prefix) << what << ", max_output";
      });
    }
  }
}

// The bounds decide only which pairs are worth a test: boxes whose bounds do not overlap do not meet.
TEST(NmsRotated, BoundsNeverHideAnOverlap) {
  Random random(21);
  int apart = 0, close = 0;
  for (int i = 0; i < 300000; ++i) {
    // Boxes of one angle, side by side within a few roundings, anywhere.
    const double far = random.whole(0, 3) == 0 ? 1e5 : 100, angle = random.real(-4, 4);
    const double w = std::pow(10.0, random.real(-2, 2)), h = std::pow(10.0, random.real(-2, 2));
    const double x = random.real(-far, far), y = random.real(-far, far);
    const double step = w * (1 + random.whole(-4, 5) * 0x1p-23), lean = random.whole(0, 2) * random.real(-1e-6, 1e-6);
    const std::vector<float> a = converted<float>({x, y, w, h, angle});
    const std::vector<float> b =
        converted<float>({x + step * std::cos(angle), y + step * std::sin(angle), w, h, angle + lean});
    const RotatedBox<float> first = rotated_box(a.data(), true), second = rotated_box(b.data(), true);
    const Box<float> p = rotated_bounds(first), q = rotated_bounds(second);
    const bool near = p.x1 < q.x2 && q.x1 < p.x2 && p.y1 < q.y2 && q.y1 < p.y2;
    const bool meet = rotated_meet(rotated_pair(first, second));
    ASSERT_TRUE(near || !meet) << x << " " << y << " " << w << " " << h << " " << angle;
    apart += !near;
    close += meet;
  }
  EXPECT_GT(close, 1000);
  RecordProperty("apart", apart);
}

}  // namespace
