// Matrix NMS without torch: the CPU kernels of every instruction set and the emulated CUDA kernels against the formula pair by
// pair, bit for bit, from boxes and from a matrix, and against numbers worked by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "boxes.h"
#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/matrix_nms/matrix_nms.h"
#include "kernels/matrix_nms/matrix_nms_math.h"

namespace {

using namespace cvk;
using namespace cvk_test;

struct Problem : Boxes {
  MatrixNmsKernel kernel = MatrixNmsKernel::kGaussian;
  double sigma = 0.5;
  OverlapCriterion criterion = OverlapCriterion::kIou;
  double beta = 1;
  std::vector<double> overlaps;  // [N, N]; empty with boxes
};

Problem random_problem(const std::string& kind, int64_t count, uint64_t seed) {
  Problem p;
  static_cast<Boxes&>(p) = random_boxes(kind, count, seed);
  return p;
}

// The overlaps of boxes, or the matrix.
template <class A>
std::vector<A> overlaps_of(const Problem& p) {
  if (!p.overlaps.empty()) return converted<A>(p.overlaps);
  const std::vector<A> b = converted<A>(p.boxes);
  const OverlapRule<A> rule{p.criterion, static_cast<A>(p.beta)};
  const int64_t n = p.count();
  std::vector<A> result(n * n);
  for (int64_t i = 0; i < n * n; ++i) {
    const A *x = &b[4 * (i / n)], *y = &b[4 * (i % n)];
    const Box<A> first{x[0], x[1], x[2], x[3]}, second{y[0], y[1], y[2], y[3]};
    const A intersection = box_intersection(first, second);
    const A united = box_union(box_area(first), box_area(second), intersection);
    result[i] = box_overlap(first, second, intersection, united, rule);
  }
  return result;
}

template <class A>
std::vector<A> by_definition(const Problem& p) {
  const int64_t n = p.count();
  const std::vector<A> overlaps = overlaps_of<A>(p);
  std::vector<A> scores = converted<A>(p.scores), compensation(n, A(0));
  const std::vector<int64_t> order = visits(scores);
  const auto weight = [&](int64_t i, int64_t j) {
    return p.classes.empty() || p.classes[i] == p.classes[j] ? weight_of_overlap(overlaps[i * n + j]) : A(0);
  };
  for (size_t j = 0; j < order.size(); ++j) {
    for (size_t i = 0; i < j; ++i) {
      compensation[order[j]] = std::max(compensation[order[j]], weight(order[i], order[j]));
    }
  }
  std::vector<A> result = scores;
  for (size_t j = 0; j < order.size(); ++j) {
    A folded = matrix_nms_start<A>(p.kernel);
    for (size_t i = 0; i < j; ++i) {
      folded = matrix_nms_fold(folded, weight(order[i], order[j]), compensation[order[i]], p.kernel);
    }
    result[order[j]] = scores[order[j]] * matrix_nms_decay(folded, p.kernel, static_cast<A>(p.sigma));
  }
  return result;
}

// What the parameters point to.
template <class A>
struct Arrays {
  std::vector<A> boxes, overlaps, scores, new_scores;
  MatrixNmsParams<A> params{};

  explicit Arrays(const Problem& p)
      : boxes(converted<A>(p.boxes)),
        overlaps(converted<A>(p.overlaps)),
        scores(converted<A>(p.scores)),
        new_scores(p.scores.size(), A(-7)) {
    params.count = p.count();
    params.boxes = overlaps.empty() ? boxes.data() : nullptr;
    params.overlaps = overlaps.empty() ? nullptr : overlaps.data();
    params.scores = scores.data();
    params.classes = p.classes.empty() ? nullptr : p.classes.data();
    params.kernel = p.kernel;
    params.sigma = static_cast<A>(p.sigma);
    params.overlap = {p.criterion, static_cast<A>(p.beta)};
    params.new_scores = new_scores.data();
  }
};

template <Isa isa, class A>
std::vector<A> on_cpu(const Problem& p, const Parallel& parallel) {
  if (p.count() == 0) return {};  // the binding starts nothing
  Arrays<A> arrays(p);
  matrix_nms_cpu<isa>(arrays.params, parallel);
  return arrays.new_scores;
}

template <class A>
std::vector<A> on_emulation(const Problem& p, uint64_t seed) {
  Arrays<A> arrays(p);
  const std::vector<int64_t> order = sorted_by_score(arrays.scores);
  std::vector<char> scratch(matrix_nms_scratch_cuda(arrays.params));
  emulation::poison(scratch.data(), scratch.size());
  emulation::set_seed(seed);
  EXPECT_EQ(matrix_nms_cuda(arrays.params, order.data(), scratch.data(), nullptr), 0)
      << emulation::last_error_message();
  return arrays.new_scores;
}

// NaN equals NaN.
template <class A>
void expect_same(const std::vector<A>& actual, const std::vector<A>& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool same = actual[i] == expected[i] || (actual[i] != actual[i] && expected[i] != expected[i]);
    ASSERT_TRUE(same) << what << ": new score " << i << " is " << actual[i] << ", not " << expected[i];
  }
}

template <class A>
void expect_all_backends(const Problem& p, const std::string& what) {
  const std::vector<A> expected = by_definition<A>(p);
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV4) expect_same(on_cpu<Isa::kV4, A>(p, Parallel{}), expected, what + ", v4");
  if (cpu_isa() >= Isa::kV3) expect_same(on_cpu<Isa::kV3, A>(p, Parallel{}), expected, what + ", v3");
#endif
  expect_same(on_cpu<Isa::kBaseline, A>(p, Parallel{}), expected, what + ", baseline");
  expect_same(on_cpu<Isa::kBaseline, A>(p, backwards()), expected, what + ", slices backwards");
  for (uint64_t seed : {uint64_t{0}, uint64_t(p.count() + 1)}) {
    expect_same(on_emulation<A>(p, seed), expected, what + ", emulated, seed " + std::to_string(seed));
  }
}

void expect_close(const Problem& p, const std::vector<double>& scores) {
  expect_all_backends<float>(p, "by hand");
  expect_all_backends<double>(p, "by hand, double");
  const std::vector<double> actual = on_emulation<double>(p, 1);
  ASSERT_EQ(actual.size(), scores.size());
  for (size_t i = 0; i < scores.size(); ++i) EXPECT_NEAR(actual[i], scores[i], 1e-9) << i;
}

// ---- By hand

TEST(MatrixNms, Chain) {
  // A and B overlap by 1/3, A and C by 1/9, B and C by 7/13; B is compensated by 1/3.
  Problem p;
  p.boxes = {8, 0, 18, 10, 0, 0, 10, 10, 5, 0, 15, 10};
  p.scores = {0.7, 0.9, 0.8};
  const double ab = 1.0 / 3, ac = 1.0 / 9, bc = 7.0 / 13;
  const double c = std::min(std::exp(-ac * ac / 0.5), std::exp(-(bc * bc - ab * ab) / 0.5));
  expect_close(p, {0.7 * c, 0.9, 0.8 * std::exp(-ab * ab / 0.5)});
  p.kernel = MatrixNmsKernel::kLinear;
  expect_close(p, {0.7 * std::min(1 - ac, (1 - bc) / (1 - ab)), 0.9, 0.8 * (1 - ab)});
  p.classes = {1, 2, 1};
  expect_close(p, {0.7 * (1 - bc), 0.9, 0.8});
}

TEST(MatrixNms, CopiesAndNan) {
  // A copy of a better box vanishes under linear, and says nothing of a third one.
  Problem p;
  p.kernel = MatrixNmsKernel::kLinear;
  p.boxes = {0, 0, 10, 10, 0, 0, 10, 10, 5, 0, 15, 10, 5, 0, 15, 10};
  p.scores = {0.9, 0.9, kNan, 0.6};
  expect_all_backends<float>(p, "copies");
  expect_all_backends<double>(p, "copies, double");
  const std::vector<double> actual = on_emulation<double>(p, 0);
  EXPECT_EQ(actual[0], 0.9);
  EXPECT_EQ(actual[1], 0);
  EXPECT_TRUE(std::isnan(actual[2]));
  EXPECT_NEAR(actual[3], 0.6 * 2 / 3, 1e-12);
}

TEST(MatrixNms, FromAMatrix) {
  // Only what is above the diagonal in order of rank is read: rank is 2, 0, 1.
  Problem p;
  p.overlaps = {kNan, 0.5, kNan, kNan, kNan, kNan, 0.25, 0.75, kNan};
  p.scores = {0.5, 0.25, 1};
  p.kernel = MatrixNmsKernel::kLinear;  // box 0: 0.25 with 2; box 1: 0.75 with 2, 0.5 with 0
  expect_close(p, {0.5 * 0.75, 0.25 * std::min(0.25, 0.5 / 0.75), 1});
  p.classes = {3, 3, 4};
  expect_close(p, {0.5, 0.25 * 0.5, 1});
}

// ---- Against the definition

TEST(MatrixNms, EqualsTheFormula) {
  for (const char* kind : kKinds) {
    for (int64_t count : {0, 1, 2, 31, 32, 33, 65, 150}) {
      for (MatrixNmsKernel kernel : {MatrixNmsKernel::kLinear, MatrixNmsKernel::kGaussian}) {
        Problem p = random_problem(kind, count, 3);
        p.kernel = kernel;
        const std::string what =
            std::string(kind) + " " + std::to_string(count) + ", kernel " + std::to_string(static_cast<int>(kernel));
        expect_all_backends<float>(p, what);
        p.classes = random_classes(count, 3, 9);
        p.sigma = 0.1;
        expect_all_backends<double>(p, what + ", classes, double");
        p.overlaps.resize(count * count);
        Random random(5);
        for (double& overlap : p.overlaps) overlap = random.whole(0, 20) == 0 ? kNan : random.real(-0.2, 1.1);
        expect_all_backends<float>(p, what + ", matrix, classes");
        p.classes.clear();
        expect_all_backends<double>(p, what + ", matrix, double");
      }
    }
  }
}

TEST(MatrixNms, Criteria) {
  for (const char* kind : {"crowd", "strange"}) {
    for (OverlapCriterion criterion : {OverlapCriterion::kGiou, OverlapCriterion::kDiou, OverlapCriterion::kCiou}) {
      Problem p = random_problem(kind, 70, 5);
      p.criterion = criterion;
      p.beta = criterion == OverlapCriterion::kDiou ? 0.7 : 1;
      const std::string what = std::string(kind) + ", criterion " + std::to_string(static_cast<int>(criterion));
      expect_all_backends<float>(p, what);
      p.kernel = MatrixNmsKernel::kLinear;
      expect_all_backends<double>(p, what + ", double");
    }
  }
}

TEST(MatrixNms, ManyBoxes) {  // enough for the grid of the CPU kernel
  for (const char* kind : kKinds) {
    Problem p = random_problem(kind, 700, 11);
    expect_all_backends<float>(p, kind);
    p.kernel = MatrixNmsKernel::kLinear;
    p.classes = random_classes(p.count(), 4, 9);
    expect_all_backends<double>(p, std::string(kind) + ", classes, double");
  }
}

}  // namespace
