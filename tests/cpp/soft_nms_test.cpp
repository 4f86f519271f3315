// Soft-NMS without torch: the CPU kernels of every instruction set and the emulated CUDA kernel, cut up in several ways,
// against the plain loop bit for bit, and against numbers worked by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "boxes.h"
#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/soft_nms/soft_nms.h"
#include "kernels/soft_nms/soft_nms_math.h"

namespace {

using namespace cvk;
using namespace cvk_test;

struct Problem : Boxes {
  SoftNmsMethod method = SoftNmsMethod::kLinear;
  double threshold = 0.3, sigma = 0.5, min_score = 1e-3;
  OverlapCriterion criterion = OverlapCriterion::kIou;
  double beta = 1;
  int64_t max_output = 1 << 30;
};

Problem random_problem(const std::string& kind, int64_t count, uint64_t seed) {
  Problem p;
  static_cast<Boxes&>(p) = random_boxes(kind, count, seed);
  return p;
}

template <class A>
struct Answer {
  std::vector<int64_t> keep;
  std::vector<A> scores;

  bool operator==(const Answer& other) const { return keep == other.keep && scores == other.scores; }
};
template <class A>
void PrintTo(const Answer<A>& answer, std::ostream* out) {
  *out << "keep " << ::testing::PrintToString(answer.keep) << ", scores " << ::testing::PrintToString(answer.scores);
}

template <class A>
Answer<A> by_definition(const Problem& p) {
  const std::vector<A> b = converted<A>(p.boxes);
  std::vector<A> current = converted<A>(p.scores);
  const A threshold = overlap_threshold<A>(p.threshold), sigma = static_cast<A>(p.sigma);
  const A min_score = static_cast<A>(p.min_score);
  const OverlapRule<A> rule{p.criterion, static_cast<A>(p.beta)};
  for (A& score : current) score = score >= min_score ? score : A(-1);
  Answer<A> answer;
  while (static_cast<int64_t>(answer.keep.size()) < p.max_output) {
    int64_t best = -1;
    for (int64_t i = 0; i < p.count(); ++i) {
      if (current[i] >= A(0) && (best < 0 || current[i] > current[best])) best = i;
    }
    if (best < 0) break;
    answer.keep.push_back(best);
    answer.scores.push_back(current[best]);
    current[best] = A(-1);
    const Box<A> chosen{b[4 * best], b[4 * best + 1], b[4 * best + 2], b[4 * best + 3]};
    for (int64_t i = 0; i < p.count(); ++i) {
      if (current[i] < A(0) || (!p.classes.empty() && p.classes[i] != p.classes[best])) continue;
      const Box<A> box{b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]};
      const A intersection = box_intersection(chosen, box);
      const A united = box_union(box_area(chosen), box_area(box), intersection);
      const A overlap = box_overlap(chosen, box, intersection, united, rule);
      current[i] = soft_nms_decayed(current[i], soft_nms_weight(overlap, p.method, threshold, sigma), min_score);
    }
  }
  return answer;
}

// `batch` images in memory: the problem, and the problem without its first box as all the others.
template <class A>
struct Images {
  std::vector<A> boxes, scores;
  std::vector<int64_t> classes, keep, kept;
  std::vector<A> new_scores;
  SoftNmsParams<A> params{};

  Images(const Problem& p, int64_t batch) {
    const int64_t n = p.count(), most = std::min<int64_t>(p.max_output, n + 3);
    for (int64_t image = 0; image < batch; ++image) {
      for (double value : p.boxes) boxes.push_back(static_cast<A>(value));
      for (double value : p.scores) scores.push_back(static_cast<A>(value));
      classes.insert(classes.end(), p.classes.begin(), p.classes.end());
      if (image > 0 && n > 0) scores[image * n] = static_cast<A>(kNan);
    }
    keep.assign(batch * most, -7);
    new_scores.assign(batch * most, A(-7));
    kept.assign(batch, -7);
    params.batch = batch;
    params.count = n;
    params.max_output = most;
    params.boxes = boxes.data();
    params.scores = scores.data();
    params.classes = p.classes.empty() ? nullptr : classes.data();
    params.method = p.method;
    params.threshold = overlap_threshold<A>(p.threshold);
    params.sigma = static_cast<A>(p.sigma);
    params.min_score = static_cast<A>(p.min_score);
    params.overlap = {p.criterion, static_cast<A>(p.beta)};
    params.keep = keep.data();
    params.new_scores = new_scores.data();
    params.kept = kept.data();
  }

  Answer<A> answer(int64_t image) const {
    const int64_t most = params.max_output, used = std::min(std::max<int64_t>(kept[image], 0), most);
    EXPECT_EQ(kept[image], used);
    for (int64_t i = used; i < most; ++i) {
      EXPECT_EQ(keep[image * most + i], -1) << "padding";
      EXPECT_EQ(new_scores[image * most + i], A(0)) << "padding";
    }
    return {std::vector<int64_t>(keep.begin() + image * most, keep.begin() + image * most + used),
            std::vector<A>(new_scores.begin() + image * most, new_scores.begin() + image * most + used)};
  }
};

template <Isa isa, class A>
Answer<A> on_cpu(const Problem& p, const Parallel& parallel) {
  Images<A> images(p, 2);
  soft_nms_cpu<isa>(images.params, 0, parallel);
  return images.answer(0);
}

// Blocks 0: the plan that soft_nms_tuning.h makes.
template <class A>
void expect_emulated(const Problem& p, const Answer<A>& expected, int64_t batch, SoftNmsPlan plan, uint64_t seed,
                     const std::string& what) {
  Images<A> images(p, batch);
  std::vector<char> scratch(soft_nms_scratch_cuda(images.params));
  emulation::poison(scratch.data(), scratch.size());
  emulation::set_seed(seed);
  const CudaStatus status = plan.blocks == 0 ? soft_nms_cuda(images.params, scratch.data(), nullptr)
                                             : soft_nms_cuda(images.params, plan, scratch.data(), nullptr);
  ASSERT_EQ(status, 0) << emulation::last_error_message();
  const std::string how = what + ", emulated, " + std::to_string(plan.blocks) + " blocks of " +
                          std::to_string(plan.threads) + ", seed " + std::to_string(seed);
  EXPECT_EQ(images.answer(0), expected) << how;
  if (batch == 1) return;
  Problem second = p;
  if (p.count() > 0) second.scores[0] = kNan;
  const Answer<A> expected_second = by_definition<A>(second);
  for (int64_t image = 1; image < batch; ++image)
    EXPECT_EQ(images.answer(image), expected_second) << how << ", image 1";
}

template <class A>
void expect_all_backends(const Problem& p, const std::string& what, bool emulated = true) {
  const Answer<A> expected = by_definition<A>(p);
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV4) {
    EXPECT_EQ((on_cpu<Isa::kV4, A>(p, Parallel{})), expected) << what << ", v4";
  }
  if (cpu_isa() >= Isa::kV3) {
    EXPECT_EQ((on_cpu<Isa::kV3, A>(p, Parallel{})), expected) << what << ", v3";
  }
#endif
  EXPECT_EQ((on_cpu<Isa::kBaseline, A>(p, Parallel{})), expected) << what << ", baseline";
  EXPECT_EQ((on_cpu<Isa::kBaseline, A>(p, backwards())), expected) << what << ", slices backwards";
  if (!emulated) return;
  const uint64_t seed = static_cast<uint64_t>(p.count());
  expect_emulated<A>(p, expected, 3, {0, 0}, seed, what);       // as users get it
  expect_emulated<A>(p, expected, 2, {32, 2}, seed + 1, what);  // two images of two blocks
  expect_emulated<A>(p, expected, 1, {64, 3}, seed + 2, what);  // one of three
}

// ---- By hand

Problem chain() {
  // A and B overlap by 1/3, A and C by 1/9, B and C by 7/13.
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10, 8, 0, 18, 10};
  p.scores = {0.9, 0.8, 0.7};
  return p;
}

void expect_close(const Problem& p, const std::vector<int64_t>& keep, const std::vector<double>& scores) {
  expect_all_backends<float>(p, "by hand");
  expect_all_backends<double>(p, "by hand, double");
  const Answer<double> actual = on_cpu<Isa::kBaseline, double>(p, Parallel{});
  EXPECT_EQ(actual.keep, keep);
  ASSERT_EQ(actual.scores.size(), scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    EXPECT_TRUE(actual.scores[i] == scores[i] || std::abs(actual.scores[i] - scores[i]) < 1e-6)
        << i << ": " << actual.scores[i] << " is not " << scores[i];
  }
}

TEST(SoftNms, Linear) {
  Problem p = chain();
  expect_close(p, {0, 2, 1}, {0.9, 0.7, 0.8 * (2.0 / 3) * (6.0 / 13)});
  p.threshold = 0.1;  // A lowers C to 0.622, above B at 0.533
  expect_close(p, {0, 2, 1}, {0.9, 0.7 * 8 / 9, 0.8 * (2.0 / 3) * (6.0 / 13)});
  p.min_score = 0.25;
  expect_close(p, {0, 2}, {0.9, 0.7 * 8 / 9});
  p.classes = {7, 8, 7};
  expect_close(p, {0, 1, 2}, {0.9, 0.8, 0.7 * 8 / 9});
  p.max_output = 2;
  expect_close(p, {0, 1}, {0.9, 0.8});
  p.max_output = 0;
  expect_close(p, {}, {});
}

TEST(SoftNms, Gaussian) {
  Problem p = chain();
  p.method = SoftNmsMethod::kGaussian;
  const auto decay = [&](double overlap) { return std::exp(-overlap * overlap / p.sigma); };
  // 0.7 * 0.975610 = 0.682928, above 0.8 * 0.800737 = 0.640590, which C lowers to 0.358708.
  expect_close(p, {0, 2, 1}, {0.9, 0.7 * decay(1.0 / 9), 0.8 * decay(1.0 / 3) * decay(7.0 / 13)});
  EXPECT_NEAR(0.8 * decay(1.0 / 3) * decay(7.0 / 13), 0.358708, 1e-6);
  p.sigma = 0.1;
  expect_close(p, {0, 2, 1}, {0.9, 0.7 * decay(1.0 / 9), 0.8 * decay(1.0 / 3) * decay(7.0 / 13)});
  p.min_score = 0.02;
  expect_close(p, {0, 2}, {0.9, 0.7 * decay(1.0 / 9)});
}

TEST(SoftNms, Hard) {
  Problem p = chain();
  p.method = SoftNmsMethod::kHard;
  expect_close(p, {0, 2}, {0.9, 0.7});
  p.threshold = 0.4;
  expect_close(p, {0, 1}, {0.9, 0.8});
  p.threshold = -0.1;  // disjoint boxes are removed, too
  p.boxes = {0, 0, 10, 10, 50, 0, 60, 10, 0, 0, 10, 10};
  expect_close(p, {0}, {0.9});
  p.classes = {1, 2, 1};
  expect_close(p, {0, 1}, {0.9, 0.8});
}

TEST(SoftNms, Diou) {
  // IoU 1/3 less 25 / 325 of centre distance.
  Problem p = chain();
  p.boxes.resize(8);
  p.scores.resize(2);
  p.criterion = OverlapCriterion::kDiou;
  p.threshold = 0.2;
  expect_close(p, {0, 1}, {0.9, 0.8 * (1 - 1.0 / 3 + 1.0 / 13)});
}

TEST(SoftNms, OddScores) {
  Problem p;
  p.boxes = {0, 0, 4, 4, 0, 0, 4, 4, 9, 0, 13, 4, 9, 0, 13, 4, 0, 0, kNan, 4, 20, 0, 24, 4};
  p.min_score = 0;
  // A copy of a box weighs nothing: 0, or NaN where it was infinite, which is out.
  p.scores = {0.5, 0.5, kInf, kInf, 0.5, -0.0};
  expect_close(p, {2, 0, 4, 1, 5}, {kInf, 0.5, 0.5, 0, 0});
  p.scores = {kNan, 0.5, -1, kNan, 0.25, 0};
  expect_close(p, {1, 4, 5}, {0.5, 0.25, 0});
  p.scores = {kNan, kNan, -1, kNan, -kInf, kNan};
  expect_close(p, {}, {});
  p.scores = {0, 0, 0, 0, 0, 0};
  expect_close(p, {0, 1, 2, 3, 4, 5}, {0, 0, 0, 0, 0, 0});
}

// ---- Against the definition

TEST(SoftNms, EqualsTheLoop) {
  const SoftNmsMethod methods[] = {SoftNmsMethod::kLinear, SoftNmsMethod::kGaussian, SoftNmsMethod::kHard};
  for (const char* kind : kKinds) {
    for (int64_t count : {0, 1, 2, 31, 32, 33, 65, 150}) {
      for (SoftNmsMethod method : methods) {
        Problem p = random_problem(kind, count, 3);
        p.method = method;
        const bool emulated = count == 33 || method == SoftNmsMethod::kLinear;
        const std::string what =
            std::string(kind) + " " + std::to_string(count) + ", method " + std::to_string(static_cast<int>(method));
        expect_all_backends<float>(p, what, emulated);
        p.min_score = 0.2;
        expect_all_backends<double>(p, what + ", double", emulated && count <= 33);
        p.classes = random_classes(count, 3, 9);
        expect_all_backends<float>(p, what + ", classes", emulated && count <= 65);
        p.max_output = count / 3;
        p.threshold = -0.2;
        p.min_score = 0;
        expect_all_backends<float>(p, what + ", max_output, threshold below 0", emulated && count <= 33);
      }
    }
  }
}

TEST(SoftNms, Criteria) {
  for (const char* kind : {"crowd", "strange"}) {
    for (OverlapCriterion criterion : {OverlapCriterion::kGiou, OverlapCriterion::kDiou, OverlapCriterion::kCiou}) {
      for (SoftNmsMethod method : {SoftNmsMethod::kLinear, SoftNmsMethod::kGaussian}) {
        Problem p = random_problem(kind, 70, 5);
        p.criterion = criterion;
        p.beta = criterion == OverlapCriterion::kDiou ? 0.7 : 1;
        p.method = method;
        const std::string what = std::string(kind) + ", criterion " + std::to_string(static_cast<int>(criterion));
        expect_all_backends<float>(p, what);
        expect_all_backends<double>(p, what + ", double");
      }
    }
  }
}

TEST(SoftNms, ManyBoxes) {  // enough for the grid of the CPU kernel and for several rounds of a block
  for (const char* kind : kKinds) {
    Problem p = random_problem(kind, 1500, 11);
    p.max_output = 40;
    expect_all_backends<float>(p, kind);
    p.method = SoftNmsMethod::kGaussian;
    p.classes = random_classes(p.count(), 5, 9);
    expect_all_backends<double>(p, std::string(kind) + ", classes, double");
    p.max_output = 1 << 30;
    expect_all_backends<float>(p, std::string(kind) + ", all of them", false);
  }
}

TEST(SoftNms, ScoresInGlobalMemoryAndManyBlocks) {
  Problem p = random_problem("crowd", 13000, 2);
  p.max_output = 4;
  const Answer<float> expected = by_definition<float>(p);
  expect_emulated<float>(p, expected, 2, {0, 0}, 3, "one block, scores in global memory");
  p = random_problem("spread", 17000, 2);
  p.max_output = 5;
  EXPECT_EQ(soft_nms_plan<float>(1, 17000, 4).blocks, 4);
  expect_emulated<float>(p, by_definition<float>(p), 1, {0, 0}, 4, "four blocks");
  expect_emulated<double>(p, by_definition<double>(p), 1, {0, 0}, 4, "four blocks, double");
}

TEST(SoftNms, ThePlanFitsTheDevice) {
  for (int64_t batch : {1, 3, 64, 1000}) {
    for (int64_t count : {0, 1, 33, 16383, 16384, 100000, 1000000}) {
      for (int64_t resident : {0, 1, 4, 132, 264}) {
        const SoftNmsPlan plan = soft_nms_plan<float>(batch, count, resident);
        EXPECT_TRUE(plan.threads >= 32 && plan.threads <= 1024 && plan.threads % 32 == 0);
        EXPECT_TRUE(plan.blocks == 1 || (plan.blocks <= kSoftNmsMostBlocks && batch * plan.blocks <= resident));
      }
    }
  }
  EXPECT_EQ(soft_nms_plan<float>(1, 100000, 264).blocks, 24);
  EXPECT_EQ(soft_nms_plan<float>(8, 100000, 132).blocks, 16);
  EXPECT_EQ(soft_nms_plan<double>(1, 5000, 264).threads, 512);
}

}  // namespace
