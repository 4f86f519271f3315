// NMS without torch: the CPU kernels of every instruction set and the emulated CUDA kernels against keeps worked by hand,
// against the plain greedy loop, and so against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "boxes.h"
#include "common/box_segments.h"
#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/nms/nms.h"
#include "kernels/nms/nms_places.h"

namespace {

using namespace cvk;
using namespace cvk_test;

struct Problem : Boxes {
  double threshold = 0.5;
  int64_t max_output = 1 << 30;
  OverlapCriterion criterion = OverlapCriterion::kIou;
  double beta = 1;
  std::vector<double> densities;  // [N] or empty
};

Problem random_problem(const std::string& kind, int64_t count, uint64_t seed) {
  Problem p;
  static_cast<Boxes&>(p) = random_boxes(kind, count, seed);
  return p;
}

using Keep = std::vector<int64_t>;

struct Answer {
  Keep keep;
  Keep owner;  // empty where nobody asked

  bool operator==(const Answer& other) const { return keep == other.keep && owner == other.owner; }
};
void PrintTo(const Answer& answer, std::ostream* out) {
  *out << "keep " << ::testing::PrintToString(answer.keep) << ", owner " << ::testing::PrintToString(answer.owner);
}

// The IoU by arithmetic of its own, the other criteria by box_overlap.
template <class A>
bool exceeds(const A* x, const A* y, double threshold, const Problem& p) {
  volatile A area_x = (x[2] - x[0]) * (x[3] - x[1]);  // volatile: no contraction, one rounding per operation
  volatile A area_y = (y[2] - y[0]) * (y[3] - y[1]);
  const A width = std::min(x[2], y[2]) - std::max(x[0], y[0]);
  const A height = std::min(x[3], y[3]) - std::max(x[1], y[1]);
  volatile A inter = (width > 0 ? width : A(0)) * (height > 0 ? height : A(0));
  volatile A both = area_x + area_y;
  volatile A united = both - inter;
  volatile A overlap = inter / united;
  if (p.criterion != OverlapCriterion::kIou) {
    const OverlapRule<A> rule{p.criterion, static_cast<A>(p.beta)};
    const Box<A> a{x[0], x[1], x[2], x[3]}, b{y[0], y[1], y[2], y[3]};
    overlap = box_overlap<A>(a, b, inter, united, rule);
  }
  return static_cast<double>(overlap) > threshold;
}

template <class A, class S>
Answer by_definition(const Problem& p, bool owners) {
  const std::vector<A> b = converted<A>(p.boxes), densities = converted<A>(p.densities);
  Answer answer;
  if (owners) answer.owner.assign(p.scores.size(), -1);
  for (int64_t i : visits(converted<S>(p.scores))) {
    int64_t owner = -1;
    for (size_t k = 0; k < answer.keep.size() && owner < 0; ++k) {
      const int64_t j = answer.keep[k];
      if (!p.classes.empty() && p.classes[i] != p.classes[j]) continue;
      double threshold = p.threshold;
      if (!densities.empty() && densities[j] > threshold) threshold = densities[j];
      if (exceeds(&b[4 * j], &b[4 * i], threshold, p)) owner = static_cast<int64_t>(k);
    }
    if (owner < 0 && static_cast<int64_t>(answer.keep.size()) < p.max_output) {
      owner = static_cast<int64_t>(answer.keep.size());
      answer.keep.push_back(i);
    }
    if (owners) answer.owner[i] = owner;
  }
  return answer;
}

template <Isa isa, class A, class S>
Answer on_cpu(const Problem& p, const Parallel& parallel, bool owners) {
  const std::vector<A> boxes = converted<A>(p.boxes), densities = converted<A>(p.densities);
  const std::vector<S> scores = converted<S>(p.scores);
  Answer answer;
  answer.keep.assign(std::min(p.count(), p.max_output), -7);
  if (owners) answer.owner.assign(p.count(), -7);
  NmsParams<A, S> params{};
  params.count = p.count();
  params.boxes = boxes.data();
  params.scores = scores.data();
  params.classes = p.classes.empty() ? nullptr : p.classes.data();
  params.densities = p.densities.empty() ? nullptr : densities.data();
  params.threshold = overlap_threshold<A>(p.threshold);
  params.overlap = {p.criterion, static_cast<A>(p.beta)};
  params.max_output = p.max_output;
  params.keep = answer.keep.data();
  params.owner = owners ? answer.owner.data() : nullptr;
  const int64_t kept = nms_cpu<isa>(params, parallel);
  EXPECT_LE(kept, static_cast<int64_t>(answer.keep.size()));
  answer.keep.resize(kept);
  return answer;
}

Keep kept(const Problem& p) { return on_cpu<Isa::kBaseline, float, float>(p, Parallel{}, false).keep; }

// Two images at once: the problem and the problem without its first box.
template <class A, class S>
std::vector<Answer> on_emulation(const Problem& p, uint64_t seed, bool owners) {
  const int64_t n = p.count(), batch = 2;
  std::vector<A> boxes = converted<A>(p.boxes), densities = converted<A>(p.densities);
  boxes.insert(boxes.end(), boxes.begin(), boxes.end());
  densities.insert(densities.end(), densities.begin(), densities.end());
  std::vector<S> scores = converted<S>(p.scores);
  scores.insert(scores.end(), scores.begin(), scores.end());
  if (n > 0) scores[n] = static_cast<S>(kNan);
  std::vector<int64_t> classes = p.classes;
  classes.insert(classes.end(), p.classes.begin(), p.classes.end());
  std::vector<int64_t> order;
  std::vector<float> ordered;
  for (int64_t image = 0; image < batch; ++image) {
    const std::vector<S> own(scores.begin() + image * n, scores.begin() + (image + 1) * n);
    for (int64_t i : sorted_by_score(own)) {
      order.push_back(i);
      ordered.push_back(static_cast<float>(own[i]));
    }
  }
  const int64_t most = std::min<int64_t>(p.max_output, n + 3);
  std::vector<int64_t> keep(batch * most, -7), kept(batch, -7), owner(batch * n, -7);
  NmsBatchParams<A> params{};
  params.batch = batch;
  params.count = n;
  params.max_output = most;
  params.boxes = boxes.data();
  params.order = order.data();
  params.ordered_scores = ordered.data();
  params.classes = p.classes.empty() ? nullptr : classes.data();
  params.densities = p.densities.empty() ? nullptr : densities.data();
  params.threshold = overlap_threshold<A>(p.threshold);
  params.overlap = {p.criterion, static_cast<A>(p.beta)};
  params.keep = keep.data();
  params.kept = kept.data();
  params.owner = owners ? owner.data() : nullptr;
  std::vector<char> scratch(nms_scratch_cuda(params));
  emulation::poison(scratch.data(), scratch.size());
  emulation::set_seed(seed);
  EXPECT_EQ(nms_cuda(params, scratch.data(), nullptr), 0) << emulation::last_error_message();
  std::vector<Answer> result;
  for (int64_t image = 0; image < batch; ++image) {
    const int64_t own = kept[image];
    EXPECT_GE(own, 0);
    EXPECT_LE(own, most);
    const Keep row(keep.begin() + image * most, keep.begin() + (image + 1) * most);
    for (int64_t i = std::max<int64_t>(own, 0); i < most; ++i) EXPECT_EQ(row[i], -1) << "padding";
    Answer answer;
    answer.keep.assign(row.begin(), row.begin() + std::min(std::max<int64_t>(own, 0), most));
    if (owners) answer.owner.assign(owner.begin() + image * n, owner.begin() + (image + 1) * n);
    result.push_back(answer);
  }
  return result;
}

template <class A, class S>
void expect_all_backends(const Problem& p, const std::string& what, bool emulated = true) {
  for (bool owners : {false, true}) {
    const Answer expected = by_definition<A, S>(p, owners);
    const std::string asked = what + (owners ? ", owners" : "");
#if defined(__x86_64__)
    if (cpu_isa() >= Isa::kV4) {
      EXPECT_EQ((on_cpu<Isa::kV4, A, S>(p, Parallel{}, owners)), expected) << asked << ", v4";
    }
    if (cpu_isa() >= Isa::kV3) {
      EXPECT_EQ((on_cpu<Isa::kV3, A, S>(p, Parallel{}, owners)), expected) << asked << ", v3";
    }
#endif
    EXPECT_EQ((on_cpu<Isa::kBaseline, A, S>(p, Parallel{}, owners)), expected) << asked << ", baseline";
    EXPECT_EQ((on_cpu<Isa::kBaseline, A, S>(p, backwards(), owners)), expected) << asked << ", slices backwards";
    if (!emulated) continue;
    Problem second = p;
    if (p.count() > 0) second.scores[0] = kNan;
    const uint64_t seed = owners ? static_cast<uint64_t>(p.count() + 5) : 0;
    const std::vector<Answer> actual = on_emulation<A, S>(p, seed, owners);
    EXPECT_EQ(actual[0], expected) << asked << ", emulated, seed " << seed;
    EXPECT_EQ(actual[1], (by_definition<A, S>(second, owners))) << asked << ", emulated, second image, seed " << seed;
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
    return kept(p);
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
  EXPECT_EQ(kept(p), (Keep{0}));
  EXPECT_EQ((on_cpu<Isa::kBaseline, double, float>(p, Parallel{}, false).keep), (Keep{0, 1}));
  expect_all_backends<float, double>(p, "threshold");
  expect_all_backends<double, double>(p, "threshold");
}

TEST(Nms, NanAndTies) {
  Problem p;
  p.boxes = {0, 0, 4, 4, 0, 0, 4, 4, 0, 0, kNan, 4, 0, 0, 4, 4};
  p.scores = {kNan, 0.5, 0.5, 0.5};
  for (double threshold : {-0.5, 0.0, 0.5}) {
    p.threshold = threshold;
    EXPECT_EQ(kept(p), (Keep{1, 2}));
    expect_all_backends<float, float>(p, "nan");
  }
  // Minus zero equals zero, so the index decides.
  p.boxes = {0, 0, 4, 4, 10, 0, 14, 4, 20, 0, 24, 4};
  p.scores = {-0.0, 0.0, -0.0};
  EXPECT_EQ(kept(p), (Keep{0, 1, 2}));
  EXPECT_EQ((on_cpu<Isa::kBaseline, float, double>(p, Parallel{}, false).keep), (Keep{0, 1, 2}));
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

TEST(Nms, Criteria) {
  // IoU 1/3, enclosing box 15 x 10, centres 5 apart: GIoU 1/3 - 0, DIoU 1/3 - 25 / 325 = 0.2564, and with beta 0.5
  // 1/3 - 0.2774 = 0.0560. The aspects are equal: CIoU is DIoU.
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10};
  p.scores = {0.9, 0.8};
  const auto both_kept = [&](OverlapCriterion criterion, double beta, double threshold) {
    p.criterion = criterion;
    p.beta = beta;
    p.threshold = threshold;
    expect_all_backends<float, float>(p, "criterion");
    expect_all_backends<double, double>(p, "criterion, double");
    return kept(p).size() == 2;
  };
  EXPECT_FALSE(both_kept(OverlapCriterion::kGiou, 1, 0.333));
  EXPECT_TRUE(both_kept(OverlapCriterion::kGiou, 1, 0.334));
  EXPECT_FALSE(both_kept(OverlapCriterion::kDiou, 1, 0.256));
  EXPECT_TRUE(both_kept(OverlapCriterion::kDiou, 1, 0.257));
  EXPECT_FALSE(both_kept(OverlapCriterion::kDiou, 0.5, 0.055));
  EXPECT_TRUE(both_kept(OverlapCriterion::kDiou, 0.5, 0.057));
  EXPECT_FALSE(both_kept(OverlapCriterion::kCiou, 1, 0.256));
  EXPECT_TRUE(both_kept(OverlapCriterion::kCiou, 1, 0.257));
  // Apart: intersection 0, enclosing box 20 x 10, union 150: GIoU -1/4.
  p.boxes = {0, 0, 10, 10, 15, 0, 20, 10};
  EXPECT_FALSE(both_kept(OverlapCriterion::kGiou, 1, -0.26));
  EXPECT_TRUE(both_kept(OverlapCriterion::kGiou, 1, -0.24));
}

TEST(Nms, Densities) {
  // The chain: A and B overlap by 1/3, A and C by 1/9, B and C by 7/13. The density of the kept box counts, not of the other.
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10, 8, 0, 18, 10};
  p.scores = {0.9, 0.8, 0.7};
  p.threshold = 0.1;
  const auto keep = [&](std::vector<double> densities) {
    p.densities = densities;
    expect_all_backends<float, float>(p, "densities");
    expect_all_backends<double, float>(p, "densities, double");
    return kept(p);
  };
  EXPECT_EQ(keep({0, 0, 0}), (Keep{0}));
  EXPECT_EQ(keep({kNan, 1, 1}), (Keep{0}));
  EXPECT_EQ(keep({0.2, 0, 0}), (Keep{0, 2}));
  EXPECT_EQ(keep({0.4, 0, 0}), (Keep{0, 1}));
  EXPECT_EQ(keep({0.4, 0.6, 0}), (Keep{0, 1, 2}));
  EXPECT_EQ(keep({kInf, 0.5, 0}), (Keep{0, 1}));
}

TEST(Nms, Owners) {
  // Three boxes at one place, two at another, a NaN score, one box apart.
  Problem p;
  p.boxes = {0, 0, 4, 4, 50, 0, 54, 4, 0, 0, 4, 4, 50, 0, 54, 4, 0, 0, 4, 4, 0, 0, 4, 4, 90, 0, 94, 4};
  p.scores = {0.3, 0.8, 0.9, 0.1, 0.7, kNan, 0.2};
  const auto owner = [&](int64_t max_output) {
    p.max_output = max_output;
    expect_all_backends<float, float>(p, "owners");
    return on_cpu<Isa::kBaseline, float, float>(p, Parallel{}, true).owner;
  };
  EXPECT_EQ(owner(9), (Keep{0, 1, 0, 1, 0, -1, 2}));
  EXPECT_EQ(owner(2), (Keep{0, 1, 0, 1, 0, -1, -1}));
  EXPECT_EQ(owner(1), (Keep{0, -1, 0, -1, 0, -1, -1}));
  EXPECT_EQ(owner(0), (Keep{-1, -1, -1, -1, -1, -1, -1}));
  p.max_output = 9;
  p.classes = {1, 1, 1, 2, 2, 1, 2};
  EXPECT_EQ(owner(9), (Keep{0, 1, 0, 4, 2, -1, 3}));
}

// ---- Against the definition

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
        p.max_output = 1 << 30;
        p.classes = random_classes(count, 3, 9);
        expect_all_backends<float, float>(p, what + ", classes", emulated && count <= 65);
      }
    }
  }
}

// Every criterion, with and without densities.
TEST(Nms, PoliciesEqualTheGreedyLoop) {
  const OverlapCriterion criteria[] = {OverlapCriterion::kIou, OverlapCriterion::kGiou, OverlapCriterion::kDiou,
                                       OverlapCriterion::kCiou};
  for (const char* kind : kKinds) {
    for (OverlapCriterion criterion : criteria) {
      for (int64_t count : {33, 130}) {
        for (double threshold : {-0.3, 0.0, 0.4}) {
          const bool emulated = count == 33 && threshold != 0.0;
          Problem p = random_problem(kind, count, 7);
          Random random(count);
          p.criterion = criterion;
          p.beta = criterion == OverlapCriterion::kDiou ? 0.6 : 1;
          p.threshold = threshold;
          const std::string what = std::string(kind) + ", criterion " + std::to_string(static_cast<int>(criterion)) +
                                   " at " + std::to_string(threshold);
          expect_all_backends<float, float>(p, what, emulated);
          expect_all_backends<double, float>(p, what + ", double", emulated && threshold > 0);
          for (int64_t i = 0; i < count; ++i) p.densities.push_back(random.whole(0, 9) == 0 ? kNan : random.real(0, 1));
          expect_all_backends<float, float>(p, what + ", densities", emulated);
          p.max_output = count / 4;
          expect_all_backends<double, double>(p, what + ", densities, max_output, double", emulated && threshold > 0);
        }
      }
    }
  }
}

TEST(Nms, ChunksOfTheCudaKernels) {
  for (const char* kind : {"spread", "strange"}) {
    Problem p = random_problem(kind, 1100, 2);
    p.threshold = 0.3;
    expect_all_backends<float, float>(p, kind);
    Random random(1);
    p.classes = random_classes(p.count(), 3, 1);
    for (int64_t i = 0; i < p.count(); ++i) p.densities.push_back(random.real(0, 1));
    p.criterion = OverlapCriterion::kDiou;
    expect_all_backends<double, float>(p, std::string(kind) + ", densities, double");  // three chunks of 512
  }
  Problem p = random_problem("crowd", 1100, 2);
  p.threshold = 0.3;
  p.max_output = 3;
  expect_all_backends<float, float>(p, "crowd, full within the first chunk");
}

// The order of places, which nms_cpu takes for more boxes than a test wants.
template <class A>
Answer by_place(const Problem& p, const Parallel& parallel) {
  const std::vector<A> boxes = converted<A>(p.boxes), densities = converted<A>(p.densities),
                       scores = converted<A>(p.scores);
  BoxSegments<A> segments;
  segments.template build<Isa::kBaseline>(boxes.data(), scores.data(), nullptr, p.count(), parallel);
  const int64_t ranked = segments.ranked();
  std::vector<A> by_rank(ranked);
  for (int64_t i = 0; i < ranked && !densities.empty(); ++i) by_rank[i] = densities[segments.index(i)];
  const NmsRule<A> rule{overlap_threshold<A>(p.threshold),
                        {p.criterion, static_cast<A>(p.beta)},
                        densities.empty() ? nullptr : by_rank.data(),
                        BoxArrays<A>::kColumns};
  NmsPlaces<Isa::kBaseline, A> places;
  EXPECT_TRUE(places.build(segments.boxes(), 0, ranked, rule, parallel));
  parallel(ranked, 1, [&](int64_t first, int64_t last) { places.decide(first, last); });
  std::vector<int64_t> slot_of(ranked), row_of(ranked, -1);
  for (int64_t slot = 0; slot < ranked; ++slot) slot_of[places.position(slot)] = slot;
  Answer answer;
  answer.owner.assign(p.count(), -1);
  for (int64_t rank = 0; rank < ranked; ++rank) {
    int64_t owner = rank;
    if (places.is_kept(slot_of[rank])) {
      row_of[rank] = static_cast<int64_t>(answer.keep.size());
      answer.keep.push_back(segments.index(rank));
    } else {
      owner = places.owner(slot_of[rank]);
    }
    answer.owner[segments.index(rank)] = row_of[owner];
  }
  return answer;
}

TEST(Nms, PlacesEqualTheGreedyLoop) {
  for (const char* kind : kKinds) {
    for (double threshold : {0.0, 0.3, 0.7}) {
      for (const bool adaptive : {false, true}) {
        Problem p = random_problem(kind, 1200, 13);
        Random random(3);
        p.threshold = threshold;
        if (adaptive) {
          p.criterion = OverlapCriterion::kDiou;
          for (int64_t i = 0; i < p.count(); ++i) p.densities.push_back(random.real(0, 1));
        }
        const std::string what =
            std::string(kind) + " at " + std::to_string(threshold) + (adaptive ? ", adaptive" : "");
        for (const Parallel& parallel : {Parallel{}, backwards()}) {
          EXPECT_EQ(by_place<float>(p, parallel), (by_definition<float, float>(p, true))) << what;
          EXPECT_EQ(by_place<double>(p, parallel), (by_definition<double, double>(p, true))) << what;
        }
      }
    }
  }
}

TEST(Nms, PlacesOfAChain) {  // the first box in the order of places asks the second, which asks the third ...
  Problem p;
  const int64_t count = 20000;
  Answer expected;
  for (int64_t i = 0; i < count; ++i) {
    p.boxes.insert(p.boxes.end(), {4.0 * i, 0, 4.0 * i + 10, 10});
    p.scores.push_back(static_cast<double>(i));
  }
  p.threshold = 0.3;  // 6 / 14 with the next, 2 / 18 with the one after it
  for (int64_t i = count - 1; i >= 0; i -= 2) expected.keep.push_back(i);
  for (int64_t i = 0; i < count; ++i) expected.owner.push_back((count - 1 - i) / 2);
  EXPECT_TRUE(by_place<float>(p, Parallel{}) == expected);
  EXPECT_TRUE(by_place<float>(p, backwards()) == expected);
}

TEST(Nms, LargeSegment) {  // decided in the order of places: places apart from each other, three boxes in each
  const int64_t places = kNmsPlacedSegment, count = 3 * places;
  Problem p;
  Random random(5);
  Answer expected;
  for (int64_t i = 0; i < count; ++i) {
    const double x = 16.0 * static_cast<double>(i % places % 512), y = 16.0 * static_cast<double>(i % places / 512);
    p.boxes.insert(p.boxes.end(), {x, y, x + 9, y + 8});
    p.scores.push_back(random.whole(0, 1 << 20));
  }
  std::vector<int64_t> row_of(places, -1);
  for (int64_t i : visits(converted<float>(p.scores))) {
    int64_t& row = row_of[i % places];
    if (row >= 0) continue;
    row = static_cast<int64_t>(expected.keep.size());
    expected.keep.push_back(i);
  }
  for (int64_t i = 0; i < count; ++i) expected.owner.push_back(row_of[i % places]);
  for (const Parallel& parallel : {Parallel{}, backwards()}) {
    EXPECT_TRUE((on_cpu<Isa::kBaseline, float, float>(p, parallel, true)) == expected);
    EXPECT_TRUE((on_cpu<Isa::kBaseline, float, float>(p, parallel, false)).keep == expected.keep);
  }
  p.max_output = 100;  // found among the first
  const Keep best(expected.keep.begin(), expected.keep.begin() + p.max_output);
  EXPECT_TRUE((on_cpu<Isa::kBaseline, float, float>(p, backwards(), false)).keep == best);
  p.max_output = places / 2;
  const Answer cut = on_cpu<Isa::kBaseline, float, float>(p, backwards(), true);
  expected.keep.resize(p.max_output);
  for (int64_t& row : expected.owner) row = row < p.max_output ? row : -1;
  EXPECT_TRUE(cut == expected);
}

TEST(Nms, ManyBoxes) {  // enough for the grid of the CPU kernel
  for (const char* kind : kKinds) {
    for (double threshold : {0.0, 0.2, 0.5, 0.9}) {
      Problem p = random_problem(kind, 1500, 11);
      p.threshold = threshold;
      const std::string what = std::string(kind) + " at " + std::to_string(threshold);
      expect_all_backends<float, float>(p, what, false);
      expect_all_backends<double, double>(p, what, false);
      p.classes = random_classes(p.count(), 5, 9);
      p.max_output = 300;
      expect_all_backends<float, float>(p, what + ", classes", false);
    }
  }
}

}  // namespace
