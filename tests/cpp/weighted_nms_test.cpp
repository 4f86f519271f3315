// The merge rules without torch: the CPU kernels of every instruction set and the emulated CUDA kernels against the
// definitions, summed in long double, and against numbers worked by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "boxes.h"
#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/weighted_nms/weighted_nms.h"
#include "kernels/weighted_nms/weighted_nms_math.h"

namespace {

using namespace cvk;
using namespace cvk_test;

using Indices = std::vector<int64_t>;

struct Problem : Boxes {
  double threshold = 0.3;
  OverlapCriterion criterion = OverlapCriterion::kIou;
  double beta = 1;
  Indices keep;                   // [slots]; for merge followed by -1
  Indices owner;                  // [N], for merge
  std::vector<double> variances;  // [N, 4] or empty
  double sigma = 0.1;             // sigma_t with variances, sigma of the penalty
};

template <class A>
Box<A> box_at(const std::vector<A>& boxes, int64_t i) {
  return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

template <class A>
A overlap_of(const Problem& p, const std::vector<A>& boxes, int64_t i, int64_t j, OverlapCriterion criterion) {
  const Box<A> a = box_at(boxes, i), b = box_at(boxes, j);
  const A intersection = box_intersection(a, b), united = box_union(box_area(a), box_area(b), intersection);
  return box_overlap(a, b, intersection, united, OverlapRule<A>{criterion, static_cast<A>(p.beta)});
}

bool same_class(const Problem& p, int64_t i, int64_t j) { return p.classes.empty() || p.classes[i] == p.classes[j]; }

// Greedy NMS by the criterion, for keep and owner; `slots` rows.
template <class A>
void suppress(Problem* p, int64_t slots) {
  const std::vector<A> boxes = converted<A>(p->boxes), scores = converted<A>(p->scores);
  p->keep.clear();
  p->owner.assign(p->scores.size(), -1);
  for (int64_t i : visits(scores)) {
    for (size_t row = 0; row < p->keep.size() && p->owner[i] < 0; ++row) {
      const int64_t k = p->keep[row];
      if (same_class(*p, i, k) && static_cast<double>(overlap_of(*p, boxes, k, i, p->criterion)) > p->threshold) {
        p->owner[i] = static_cast<int64_t>(row);
      }
    }
    if (p->owner[i] < 0 && static_cast<int64_t>(p->keep.size()) < slots) {
      p->owner[i] = static_cast<int64_t>(p->keep.size());
      p->keep.push_back(i);
    }
  }
}

// Sums of one coordinate.
struct Mean {
  long double differences = 0, weights = 0;
  void add(double weight, double difference) {
    weights += weight;
    differences += static_cast<long double>(weight) * difference;
  }
  double moved(double coordinate) const {
    return weights > 0 ? static_cast<double>(coordinate + differences / weights) : coordinate;
  }
};

template <class A>
std::vector<double> merged(const Problem& p, int64_t slots) {
  const std::vector<A> boxes = converted<A>(p.boxes), scores = converted<A>(p.scores);
  std::vector<double> result(4 * slots, 0.0);
  for (size_t row = 0; row < p.keep.size(); ++row) {
    const int64_t k = p.keep[row];
    for (int c = 0; c < 4; ++c) {
      Mean mean;
      mean.add(scores[k], 0);
      for (int64_t j = 0; j < p.count(); ++j) {
        const A weight = weight_of_overlap(overlap_of(p, boxes, k, j, p.criterion));
        if (j == k || p.owner[j] != static_cast<int64_t>(row) || !(weight > 0)) continue;
        mean.add(scores[j] * weight, boxes[4 * j + c] - boxes[4 * k + c]);
      }
      result[4 * row + c] = mean.moved(boxes[4 * k + c]);
    }
  }
  return result;
}

template <class A>
std::vector<double> voted(const Problem& p) {
  const std::vector<A> boxes = converted<A>(p.boxes), scores = converted<A>(p.scores);
  const std::vector<A> variances = converted<A>(p.variances);
  std::vector<double> result;
  for (int64_t k : p.keep) {
    for (int c = 0; c < 4; ++c) {
      Mean mean;
      const bool takes_part = scores[k] == scores[k];
      for (int64_t j = 0; j < p.count() && takes_part; ++j) {
        if (!same_class(p, j, k) || !(scores[j] == scores[j])) continue;
        const double apart = j == k ? 0 : static_cast<double>(boxes[4 * j + c] - boxes[4 * k + c]);
        if (variances.empty()) {
          const A overlap = j == k ? A(1) : overlap_of(p, boxes, k, j, p.criterion);
          const bool after = j == k || scores[j] < scores[k] || (scores[j] == scores[k] && j > k);
          if (after && overlap > 0 && static_cast<double>(overlap) > (j == k ? -1 : p.threshold)) {
            mean.add(scores[j] * overlap, apart);
          }
        } else {
          const A iou = j == k ? A(1) : overlap_of(p, boxes, k, j, OverlapCriterion::kIou);
          const double variance = variances[4 * j + c];
          if (iou > 0 && variance > 0 && std::isfinite(variance)) {
            mean.add(std::exp(-(1.0 - iou) * (1.0 - iou) / static_cast<A>(p.sigma)) / variance, apart);
          }
        }
      }
      result.push_back(mean.moved(boxes[4 * k + c]));
    }
  }
  return result;
}

template <class A>
std::vector<double> penalised(const Problem& p) {
  const std::vector<A> boxes = converted<A>(p.boxes), scores = converted<A>(p.scores);
  std::vector<double> result;
  for (int64_t j = 0; j < p.count(); ++j) {
    double squares = 0;
    for (int64_t k : p.keep) {
      const bool before = scores[j] < scores[k] || (scores[j] == scores[k] && k < j);
      const double weight = weight_of_overlap(overlap_of(p, boxes, k, j, p.criterion));
      if (before && same_class(p, j, k)) squares += weight * weight;
    }
    result.push_back(scores[j] * std::exp(-squares / static_cast<A>(p.sigma)));
  }
  return result;
}

template <class T>
std::vector<T> joined(std::vector<T> first, const std::vector<T>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

enum class Pass { kMerge, kVote, kPenalty };

// Merge has a second image: shifted, with every other score halved, one owner less.
Problem second_image(const Problem& p) {
  Problem second = p;
  for (double& coordinate : second.boxes) coordinate += 3;
  for (int64_t i = 0; i < p.count(); i += 2) second.scores[i] /= 2;
  const int64_t last = p.count() - 1;
  if (last >= 0 && p.owner[last] >= 0 && p.keep[p.owner[last]] != last) second.owner[last] = -1;
  return second;
}

// What the parameters point to.
template <class A>
struct Arrays {
  std::vector<A> boxes, scores, variances, result;
  Indices keep, owner;
  WeightedNmsMergeParams<A> merge{};
  WeightedNmsVoteParams<A> vote{};
  WeightedNmsPenaltyParams<A> penalty{};

  Arrays(const Problem& p, Pass pass, int64_t slots)
      : boxes(converted<A>(p.boxes)),
        scores(converted<A>(p.scores)),
        variances(converted<A>(p.variances)),
        keep(p.keep),
        owner(p.owner) {
    const int64_t count = p.count();
    const int64_t* const classes = p.classes.empty() ? nullptr : p.classes.data();
    const OverlapRule<A> rule{p.criterion, static_cast<A>(p.beta)};
    if (pass == Pass::kMerge) {
      const Problem second = second_image(p);
      keep.resize(slots, -1);
      keep.insert(keep.end(), keep.begin(), keep.end());
      boxes = converted<A>(joined(p.boxes, second.boxes));
      scores = converted<A>(joined(p.scores, second.scores));
      owner = joined(p.owner, second.owner);
    }
    const int64_t rows = static_cast<int64_t>(keep.size());
    result.assign(pass == Pass::kPenalty ? count : 4 * rows, A(-7));
    merge = {2, count, slots, boxes.data(), scores.data(), keep.data(), owner.data(), rule, result.data()};
    vote.count = penalty.count = count;
    vote.slots = penalty.slots = rows;
    vote.boxes = penalty.boxes = boxes.data();
    vote.scores = penalty.scores = scores.data();
    vote.classes = penalty.classes = classes;
    vote.keep = penalty.keep = keep.data();
    vote.variances = variances.empty() ? nullptr : variances.data();
    vote.sigma_t = penalty.sigma = static_cast<A>(p.sigma);
    vote.threshold = overlap_threshold<A>(p.threshold);
    vote.overlap = penalty.overlap = rule;
    vote.voted = penalty.new_scores = result.data();
  }
};

template <Isa isa, class A>
std::vector<A> on_cpu(const Problem& p, Pass pass, int64_t slots, const Parallel& parallel) {
  Arrays<A> arrays(p, pass, slots);
  if (p.count() == 0 && pass != Pass::kMerge) return {};  // the binding starts nothing
  if (pass == Pass::kMerge) {
    for (int64_t image : {1, 0}) weighted_nms_merge_cpu<isa>(arrays.merge, image);
  } else if (pass == Pass::kVote) {
    weighted_nms_vote_cpu<isa>(arrays.vote, parallel);
  } else {
    weighted_nms_penalty_cpu<isa>(arrays.penalty, parallel);
  }
  return arrays.result;
}

// Each image's boxes by ascending owner, ties by rank.
Indices grouped_by_owner(const Problem& p, const Indices& owner) {
  const int64_t count = p.count();
  Indices result;
  for (int64_t image = 0; image < 2; ++image) {
    Indices order = sorted_by_score(p.scores);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return owner[image * count + a] < owner[image * count + b]; });
    result.insert(result.end(), order.begin(), order.end());
  }
  return result;
}

template <class A>
std::vector<A> on_emulation(const Problem& p, Pass pass, int64_t slots, uint64_t seed) {
  Arrays<A> arrays(p, pass, slots);
  emulation::set_seed(seed);
  CudaStatus status = 0;
  if (pass == Pass::kMerge) {
    const Indices grouped = grouped_by_owner(p, arrays.owner);
    status = weighted_nms_merge_cuda(arrays.merge, grouped.data(), nullptr);
  } else if (pass == Pass::kVote) {
    status = weighted_nms_vote_cuda(arrays.vote, nullptr);
  } else {
    status = weighted_nms_penalty_cuda(arrays.penalty, nullptr);
  }
  EXPECT_EQ(status, 0) << emulation::last_error_message();
  return arrays.result;
}

// Within rounding of the expected number or, where it is given, of the number that was moved there.
template <class A>
void expect_close(const std::vector<A>& actual, const std::vector<double>& expected, const std::string& what,
                  const std::vector<double>& moved = {}) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  const double tolerance = sizeof(A) == 4 ? 2e-5 : 1e-12;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = expected[i];
    const double scale = std::max({1.0, std::abs(e), moved.empty() ? 0.0 : std::abs(moved[i])});
    const bool same = a == e || (a != a && e != e) || std::abs(a - e) <= tolerance * scale;
    ASSERT_TRUE(same) << what << ": element " << i << " is " << a << ", not " << e;
  }
}

template <class A>
void expect_all_backends(const Problem& p, Pass pass, const std::string& what, int64_t slots = 0) {
  std::vector<double> expected = pass == Pass::kMerge  ? merged<A>(p, slots)
                                 : pass == Pass::kVote ? voted<A>(p)
                                                       : penalised<A>(p);
  if (pass == Pass::kMerge) {
    const std::vector<double> of_second = merged<A>(second_image(p), slots);
    expected.insert(expected.end(), of_second.begin(), of_second.end());
  }
  std::vector<double> moved;
  if (pass != Pass::kPenalty) {
    for (int64_t k : Arrays<A>(p, pass, slots).keep) {
      for (int c = 0; c < 4; ++c) moved.push_back(k < 0 ? 0 : p.boxes[4 * k + c]);
    }
  }
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV4) {
    expect_close(on_cpu<Isa::kV4, A>(p, pass, slots, Parallel{}), expected, what + ", v4", moved);
  }
  if (cpu_isa() >= Isa::kV3) {
    expect_close(on_cpu<Isa::kV3, A>(p, pass, slots, Parallel{}), expected, what + ", v3", moved);
  }
#endif
  expect_close(on_cpu<Isa::kBaseline, A>(p, pass, slots, Parallel{}), expected, what + ", baseline", moved);
  expect_close(on_cpu<Isa::kBaseline, A>(p, pass, slots, backwards()), expected, what + ", slices backwards", moved);
  const std::vector<A> emulated = on_emulation<A>(p, pass, slots, 0);
  expect_close(emulated, expected, what + ", emulated", moved);
  const std::vector<A> again = on_emulation<A>(p, pass, slots, static_cast<uint64_t>(p.count() + 1));
  for (size_t i = 0; i < emulated.size(); ++i) {
    ASSERT_TRUE(emulated[i] == again[i] || emulated[i] != emulated[i]) << what << ": the seed matters";
  }
}

// ---- By hand

TEST(WeightedNms, Merge) {
  // A and B overlap by 1/3, A and C by 1/9. A owns B: weights 0.9 and 0.8 / 3, B is 5 to the right.
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10, 8, 0, 18, 10};
  p.scores = {0.9, 0.8, 0.7};
  p.keep = {0, 2};
  p.owner = {0, 0, 1};
  const double shift = 5 * (0.8 / 3) / (0.9 + 0.8 / 3);
  const std::vector<double> expected = {shift, 0, 10 + shift, 10, 8, 0, 18, 10, 0, 0, 0, 0};
  const auto first_image = [&](std::vector<double> all) { return std::vector<double>(all.begin(), all.begin() + 12); };
  expect_all_backends<float>(p, Pass::kMerge, "by hand", 3);
  expect_all_backends<double>(p, Pass::kMerge, "by hand, double", 3);
  expect_close(first_image(on_emulation<double>(p, Pass::kMerge, 3, 0)), expected, "by hand");
  p.scores = {-0.9, 0.1, 0.7};  // weights that sum to nothing positive: A stays
  p.owner = {0, 0, -1};
  expect_close(first_image(on_emulation<double>(p, Pass::kMerge, 3, 0)), {0, 0, 10, 10, 8, 0, 18, 10, 0, 0, 0, 0},
               "negative weights");
  // An owner below threshold 0: the overlap is 0 and the difference infinite.
  p.boxes = {0, 0, 10, 10, -kInf, 0, kInf, 10};
  p.scores = {0.9, 0.8};
  p.keep = {0};
  p.owner = {0, 0};
  expect_all_backends<float>(p, Pass::kMerge, "an infinite member", 1);
}

TEST(WeightedNms, VoteByVariance) {
  // IoU 1/3: weights exp(-(2/3)^2 / 0.1) = 0.011743 over the variances.
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10};
  p.scores = {0.9, 0.8};
  p.keep = {0};
  p.variances = {1, 1, 2, kInf, 0.01, -1, 0.02, 0.5};
  const double w = std::exp(-4.0 / 9 / 0.1);
  const std::vector<double> expected = {5 * (w / 0.01) / (1 + w / 0.01), 0, 10 + 5 * (w / 0.02) / (0.5 + w / 0.02), 10};
  expect_all_backends<float>(p, Pass::kVote, "by hand");
  expect_all_backends<double>(p, Pass::kVote, "by hand, double");
  expect_close(on_emulation<double>(p, Pass::kVote, 0, 0), expected, "by hand");
  p.scores[1] = kNan;
  expect_close(on_emulation<double>(p, Pass::kVote, 0, 0), {0, 0, 10, 10}, "a NaN score does not vote");
  p.keep = {1, 0};
  expect_all_backends<float>(p, Pass::kVote, "a NaN score is not moved");
}

TEST(WeightedNms, VoteByScore) {
  // A overlaps B by 1/3 and C by 1/9; B overlaps C by 7/13. A box votes for what is ranked before it.
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10, 8, 0, 18, 10};
  p.scores = {0.9, 0.8, 0.7};
  p.keep = {1, 0};
  p.threshold = 0.1;
  const double of_b = 3 * (0.7 * 7 / 13) / (0.8 + 0.7 * 7 / 13);
  const double of_a = (5 * 0.8 / 3 + 8 * 0.7 / 9) / (0.9 + 0.8 / 3 + 0.7 / 9);
  expect_all_backends<float>(p, Pass::kVote, "by hand");
  expect_close(on_emulation<double>(p, Pass::kVote, 0, 0), {5 + of_b, 0, 15 + of_b, 10, of_a, 0, 10 + of_a, 10},
               "by hand");
}

TEST(WeightedNms, Penalty) {
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10, 8, 0, 18, 10, 0, 0, 10, 10};
  p.scores = {0.9, 0.8, 0.7, kNan};
  p.keep = {0, 1};
  p.sigma = 0.5;
  const double ab = 1.0 / 9, ac = 1.0 / 81, bc = 49.0 / 169;
  expect_all_backends<float>(p, Pass::kPenalty, "by hand");
  expect_close(on_emulation<double>(p, Pass::kPenalty, 0, 0),
               {0.9, 0.8 * std::exp(-ab / 0.5), 0.7 * std::exp(-(ac + bc) / 0.5), kNan}, "by hand");
}

TEST(WeightedNms, IndicesOfNothingOnCuda) {
  Problem p;
  p.boxes = {0, 0, 10, 10, 5, 0, 15, 10};
  p.scores = {0.9, 0.8};
  p.keep = {-1, 2, 1};
  expect_close(on_emulation<float>(p, Pass::kVote, 0, 0), {0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 15, 10}, "vote");
  expect_close(on_emulation<float>(p, Pass::kPenalty, 0, 0), {0.9f, 0.8f}, "penalty");
}

// ---- Against the definition

Problem random_problem(const std::string& kind, int64_t count, uint64_t seed) {
  Problem p;
  static_cast<Boxes&>(p) = random_boxes(kind, count, seed);
  return p;
}

template <class A>
void expect_passes(Problem p, const std::string& what) {
  const int64_t count = p.count();
  suppress<A>(&p, count / 3);
  expect_all_backends<A>(p, Pass::kMerge, what + ", merge", count / 3);
  suppress<A>(&p, count);
  expect_all_backends<A>(p, Pass::kMerge, what + ", merge", count + 2);
  expect_all_backends<A>(p, Pass::kVote, what + ", vote");
  expect_all_backends<A>(p, Pass::kPenalty, what + ", penalty");
  const double odd[] = {0, -1, kNan, kInf, 1e-6};
  Random random(4);
  for (int64_t i = 0; i < 4 * count; ++i) {
    p.variances.push_back(random.whole(0, 12) == 0 ? odd[random.whole(0, 5)] : random.real(0.1, 2));
  }
  expect_all_backends<A>(p, Pass::kVote, what + ", vote by variance");
}

TEST(WeightedNms, EqualsTheDefinitions) {
  for (const char* kind : kKinds) {
    for (int64_t count : {0, 1, 2, 31, 33, 150}) {
      for (double threshold : {-0.2, 0.0, 0.4}) {
        Problem p = random_problem(kind, count, 3);
        p.threshold = threshold;
        const std::string what = std::string(kind) + " " + std::to_string(count) + " at " + std::to_string(threshold);
        expect_passes<float>(p, what);
        p.classes = random_classes(count, 3, 9);
        p.criterion = threshold > 0 ? OverlapCriterion::kDiou : OverlapCriterion::kGiou;
        expect_passes<double>(p, what + ", classes, double");
      }
    }
  }
}

TEST(WeightedNms, ManyBoxes) {  // enough for the grid of the CPU kernels
  for (const char* kind : {"spread", "sizes", "strange"}) {
    Problem p = random_problem(kind, 550, 11);
    expect_passes<float>(p, kind);
    p.criterion = OverlapCriterion::kCiou;
    p.classes = random_classes(p.count(), 2, 9);
    expect_passes<double>(p, std::string(kind) + ", classes, double");
  }
}

}  // namespace
