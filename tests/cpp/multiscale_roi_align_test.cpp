// Multi-level RoI Align without torch: the rule of levels by hand, its kernels, and pooling over several maps, which is what RoI
// Align gives map by map. CPU kernels of every instruction set and the emulated CUDA kernels.
#include "kernels/multiscale_roi_align/multiscale_roi_align.h"

#include "emulation/runtime_api.h"
#include "kernels/multiscale_roi_align/multiscale_roi_align_math.h"
#include "kernels/roi_align/roi_align.h"
#include "tests/cpp/rois.h"

namespace {

using namespace cvk;
using namespace cvk_test;

template <class A>
std::vector<A> least_areas(const std::vector<double>& scales, double canonical_scale = 224,
                           int64_t canonical_level = 4) {
  std::vector<A> least(kRoiMaxLevels + 1);
  const NearestFunctions<A> functions;
  const LevelRule<A, NearestFunctions<A>> rule(canonical_scale, canonical_level, functions);
  rule.least_areas(scales.data(), static_cast<int>(scales.size()), least.data());
  return least;
}

// ---- The rule

template <class A>
class LevelRules : public ::testing::Test {};
using Arithmetic = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LevelRules, Arithmetic);

TYPED_TEST(LevelRules, LeastAreasAreSquaresLessTheEpsilon) {
  const std::vector<TypeParam> least = least_areas<TypeParam>({0.25, 0.125, 1.0 / 16, 1.0 / 32});
  EXPECT_EQ(least[0], 0);
  for (int level = 1; level < 4; ++level) {
    const double side = 56.0 * (1 << level);  // 112, 224, 448
    // log2 of the side may lack 1e-6: of the area that is 2 ln 2 1e-6, and levels below 8 round by 2^-22 at most.
    EXPECT_NEAR(least[level] / (side * side), 1 - 2 * std::log(2.0) * 1e-6, 2 * std::log(2.0) * 0x1p-22) << level;
  }
  EXPECT_TRUE(std::isnan(least[4]));  // the last level has no end
}

TYPED_TEST(LevelRules, LeastAreasAreTheLeast) {
  for (double scale : {224.0, 100.0, 333.0, 1e-3, 1e7}) {
    for (int64_t canon : {-3, 0, 4, 9}) {
      const std::vector<double> scales{1, 0.5, 0.25, 0.125, 1.0 / 16, 1.0 / 32, 1.0 / 64, 1.0 / 128};
      const std::vector<TypeParam> least = least_areas<TypeParam>(scales, scale, canon);
      const auto value = [&](TypeParam area) {
        const TypeParam ratio = std::sqrt(area) / static_cast<TypeParam>(scale);
        const TypeParam logarithm = static_cast<TypeParam>(std::log2(static_cast<double>(ratio)));
        const TypeParam shifted = static_cast<TypeParam>(canon) + logarithm;
        return std::floor(shifted + static_cast<TypeParam>(1e-6));
      };
      for (int level = 1; level < 8; ++level) {
        EXPECT_GE(value(least[level]), level) << scale << ' ' << canon;
        EXPECT_LT(value(std::nextafter(least[level], TypeParam(0))), level) << scale << ' ' << canon;
      }
    }
  }
}

TYPED_TEST(LevelRules, ExtremeArgumentsEnd) {
  for (double scale : {1e-300, 1e300}) {
    for (int64_t canon : {int64_t{-1000000000}, int64_t{1000000000}}) {
      const std::vector<TypeParam> least = least_areas<TypeParam>({1, 1e-300}, scale, canon);
      EXPECT_EQ(least[0], 0);
      EXPECT_FALSE(least[1] < 0);
    }
  }
}

TYPED_TEST(LevelRules, KernelsAgree) {
  using A = TypeParam;
  std::vector<A> boxes;
  Random random(3);
  for (int k = 0; k < 700; ++k) {
    const double x = random.eighth(-50, 50), y = random.eighth(-50, 50);
    const double side = std::exp2(random.eighth(0, 10));
    for (double value : {0.0, x, y, x + side, y + (k % 9 == 0 ? -side : side)}) boxes.push_back(static_cast<A>(value));
  }
  boxes[3] = static_cast<A>(kNan);
  boxes[8] = static_cast<A>(kInf);
  const std::vector<A> least = least_areas<A>({0.25, 0.125, 1.0 / 16});
  MultiscaleRoiAlignLevelsParams<A> params{};
  params.boxes = boxes.data();
  params.count = 700;
  params.levels = 3;
  std::copy(least.begin(), least.end(), params.least_area);
  std::vector<int64_t> expected;
  for (int k = 0; k < 700; ++k) {
    const A area = (boxes[5 * k + 3] - boxes[5 * k + 1]) * (boxes[5 * k + 4] - boxes[5 * k + 2]);
    expected.push_back(!(area >= 0) ? -1 : area >= least[2] ? 2 : area >= least[1] ? 1 : 0);
  }
  EXPECT_EQ(expected[0], -1);
  EXPECT_EQ(expected[1], 2);
  std::vector<int64_t> levels(700);
  params.output = levels.data();
  for_each_isa([&](auto isa, const char* name) {
    std::fill(levels.begin(), levels.end(), -7);
    over(700, false, [&](int64_t first, int64_t last) {
      multiscale_roi_align_levels_cpu<decltype(isa)::value>(params, first, last);
    });
    EXPECT_EQ(levels, expected) << name;
  });
  std::fill(levels.begin(), levels.end(), -7);
  EXPECT_EQ(multiscale_roi_align_levels_cuda(params, nullptr), 0) << emulation::last_error_message();
  EXPECT_EQ(levels, expected);
}

// ---- Pooling

constexpr int kLevels = 3;

struct Problem {
  RoiShape shape[kLevels];
  bool maximum = false, channels_last = false;
  std::vector<double> maps[kLevels];  // [N, C, H, W]
  std::vector<double> boxes;          // [K, 5]
  std::vector<int64_t> given;         // [K] or none
  std::vector<double> grad_output;    // [K, C, PH, PW]
};

Problem make(bool maximum, bool channels_last, int64_t channels = 19) {
  Problem p;
  p.maximum = maximum;
  p.channels_last = channels_last;
  Random random(11);
  const int64_t count = 23;
  for (int64_t k = 0; k < count; ++k) {
    const double x = random.whole(-20, 150), y = random.whole(-20, 120);
    const double width = random.whole(4, 450), height = random.whole(4, 450);
    const double sign = k % 7 == 3 ? -1 : 1;  // these have no area
    for (double value : {static_cast<double>(k % 2), x, y, x + width, y + sign * height}) p.boxes.push_back(value);
  }
  for (int level = 0; level < kLevels; ++level) {
    p.shape[level] = {2, channels, 40 >> level, 50 >> level, count, 2, 3, 0.25 / (1 << level), 2, true, channels_last};
    p.maps[level] = random.eighths(2 * channels * p.shape[level].pixels(), -8, 8);
  }
  p.grad_output = random.eighths(count * channels * 6, -4, 4);
  return p;
}

struct Result {
  std::vector<double> output;         // [K, C, PH, PW]
  std::vector<double> grad[kLevels];  // [N, C, H, W]
};

template <class T>
struct Buffers {
  explicit Buffers(const Problem& problem) : p(problem) {
    const RoiShape& shape = p.shape[0];
    pooled_at = permutation(shape.boxes, shape.channels, shape.bins(), p.channels_last);
    for (int level = 0; level < kLevels; ++level) {
      map_at[level] = permutation(shape.batch, shape.channels, p.shape[level].pixels(), p.channels_last);
      maps[level] = stored<T>(p.maps[level], map_at[level]);
      grad[level].assign(maps[level].size(), from_acc<T>(static_cast<Acc<T>>(kNan)));
    }
    grad_output = stored<T>(p.grad_output, pooled_at);
    output.assign(grad_output.size(), from_acc<T>(static_cast<Acc<T>>(kNan)));
    argmax.assign(grad_output.size(), -12345);
    for (double value : p.boxes) boxes.push_back(static_cast<Acc<T>>(value));
  }

  RoiAlignParams<T> params(bool backward) {
    RoiAlignParams<T> result{};
    result.shape = p.shape[0];
    result.boxes = boxes.data();
    result.levels.count = kLevels;
    std::vector<double> scales;
    for (int level = 0; level < kLevels; ++level) {
      const RoiShape& shape = p.shape[level];
      scales.push_back(shape.spatial_scale);
      result.levels.maps[level] = {maps[level].data(), grad[level].data(), shape.height, shape.width,
                                   shape.spatial_scale};
    }
    const std::vector<Acc<T>> least = least_areas<Acc<T>>(scales);
    std::copy(least.begin(), least.end(), result.levels.least_area);
    if (!p.given.empty()) result.levels.given = p.given.data();
    if (backward) {
      result.grad_output = grad_output.data();
      result.saved_argmax = p.maximum ? argmax.data() : nullptr;
    } else {
      result.output = output.data();
      result.argmax = p.maximum ? argmax.data() : nullptr;
    }
    return result;
  }

  Result result() const {
    Result values;
    values.output = loaded(output, pooled_at);
    for (int level = 0; level < kLevels; ++level) values.grad[level] = loaded(grad[level], map_at[level]);
    return values;
  }

  const Problem& p;
  std::vector<int64_t> pooled_at, map_at[kLevels];
  std::vector<T> maps[kLevels], grad[kLevels], grad_output, output;
  std::vector<int32_t> argmax;
  std::vector<Acc<T>> boxes;
};

template <Isa isa, class T>
void pass_on_cpu(RoiAlignParams<T> params, bool backward, bool at_once, int levels) {
  PlanVectors memory;
  ASSERT_GE(memory.lay_out(params.shape, params.plan, [&] { return roi_align_layout_cpu<isa>(params); }, levels), 0);
  over(params.shape.boxes, at_once, [&](int64_t first, int64_t last) { roi_align_plan_cpu<isa>(params, first, last); });
  if (backward) {
    over(roi_align_backward_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { roi_align_backward_cpu<isa>(params, first, last); });
  } else {
    over(roi_align_forward_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { roi_align_forward_cpu<isa>(params, first, last); });
  }
}

template <Isa isa, class T>
Result on_cpu(const Problem& p, bool at_once = true) {
  Buffers<T> buffers(p);
  pass_on_cpu<isa>(buffers.params(false), false, at_once, kLevels);
  pass_on_cpu<isa>(buffers.params(true), true, at_once, kLevels);
  return buffers.result();
}

template <class T>
Result on_emulation(const Problem& p, uint64_t seed) {
  Buffers<T> buffers(p);
  emulation::set_seed(seed);
  const RoiAlignParams<T> forward = buffers.params(false);
  std::vector<char> scratch(roi_align_forward_scratch_cuda(forward));
  emulation::poison(scratch.data(), scratch.size());
  EXPECT_EQ(roi_align_forward_cuda(forward, scratch.data(), nullptr), 0) << emulation::last_error_message();
  EXPECT_EQ(roi_align_backward_cuda(buffers.params(true), nullptr), 0) << emulation::last_error_message();
  return buffers.result();
}

// RoI Align of each level's boxes on its own map; boxes of no level give zeros.
template <class T>
Result level_by_level(const Problem& p) {
  Buffers<T> buffers(p);
  const RoiAlignParams<T> all = buffers.params(false);
  const int64_t values = p.shape[0].channels * p.shape[0].bins();
  Result result;
  result.output.assign(buffers.output.size(), 0);
  for (int level = 0; level < kLevels; ++level) {
    Problem part = p;
    part.boxes.clear();
    part.given.clear();
    part.grad_output.clear();
    std::vector<int64_t> rows;
    for (int64_t k = 0; k < p.shape[0].boxes; ++k) {
      if (roi_level(all.levels, all.boxes + 5 * k, k) != level) continue;
      rows.push_back(k);
      part.boxes.insert(part.boxes.end(), &p.boxes[5 * k], &p.boxes[5 * k] + 5);
      part.grad_output.insert(part.grad_output.end(), &p.grad_output[values * k], &p.grad_output[values * k] + values);
    }
    for (RoiShape& shape : part.shape) shape.boxes = static_cast<int64_t>(rows.size());
    Buffers<T> own(part);
    for (bool backward : {false, true}) {
      RoiAlignParams<T> params = own.params(backward);
      params.shape = part.shape[level];
      params.set_map(own.maps[level].data(), own.grad[level].data());
      pass_on_cpu<Isa::kBaseline>(params, backward, true, 1);
    }
    const Result found = own.result();
    for (size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(&found.output[i * values], values, &result.output[rows[i] * values]);
    }
    result.grad[level] = found.grad[level];
    EXPECT_GT(rows.size(), 2u) << "level " << level;
  }
  return result;
}

template <class T>
class MultiscaleRoiAlign : public ::testing::Test {};
using Types = ::testing::Types<half_t, bfloat16_t, float, double>;
TYPED_TEST_SUITE(MultiscaleRoiAlign, Types);

TYPED_TEST(MultiscaleRoiAlign, EqualsRoiAlignLevelByLevel) {
  for (bool maximum : {false, true}) {
    for (bool channels_last : {false, true}) {
      for (bool given : {false, true}) {
        Problem p = make(maximum, channels_last);
        for (int64_t k = 0; given && k < p.shape[0].boxes; ++k) p.given.push_back(k % kLevels);
        const std::string what =
            std::string(maximum ? "max" : "avg") + (channels_last ? ", channels last" : "") + (given ? ", given" : "");
        const Result expected = level_by_level<TypeParam>(p);
        const auto compare = [&](const Result& actual, const std::string& backend) {
          const double near = tolerance<TypeParam>();
          expect_near(actual.output, expected.output, near, what + ", " + backend + ", output");
          for (int level = 0; level < kLevels; ++level) {
            expect_near(actual.grad[level], expected.grad[level], near,
                        what + ", " + backend + ", gradient " + std::to_string(level));
          }
        };
        for_each_isa([&](auto isa, const char* name) { compare(on_cpu<decltype(isa)::value, TypeParam>(p), name); });
        compare(on_emulation<TypeParam>(p, 1), "emulated");
        const Result own = on_cpu<Isa::kBaseline, TypeParam>(p);
        EXPECT_EQ(own.output, expected.output) << what;  // one engine: the same bits
      }
    }
  }
}

TYPED_TEST(MultiscaleRoiAlign, SlicesAndThreadOrdersChangeNoBit) {
  for (bool channels_last : {false, true}) {
    const Problem p = make(false, channels_last, 37);
    const Result whole = on_cpu<Isa::kBaseline, TypeParam>(p, true),
                 sliced = on_cpu<Isa::kBaseline, TypeParam>(p, false);
    const Result first = on_emulation<TypeParam>(p, 1);
    EXPECT_EQ(whole.output, sliced.output);
    for (int level = 0; level < kLevels; ++level) EXPECT_EQ(whole.grad[level], sliced.grad[level]);
    for (uint64_t seed = 2; seed < 5; ++seed) {
      const Result other = on_emulation<TypeParam>(p, seed);
      EXPECT_EQ(first.output, other.output) << "seed " << seed;
      for (int level = 0; level < kLevels; ++level) EXPECT_EQ(first.grad[level], other.grad[level]) << "seed " << seed;
    }
  }
}

TYPED_TEST(MultiscaleRoiAlign, BadLevels) {
  Problem p = make(false, false);
  p.given.assign(p.shape[0].boxes, 0);
  for (int64_t bad : {int64_t{kLevels}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
    p.given[5] = bad;
    Buffers<TypeParam> buffers(p);
    RoiAlignParams<TypeParam> params = buffers.params(false);
    PlanVectors memory;
    const int64_t code = memory.lay_out(
        params.shape, params.plan, [&] { return roi_align_layout_cpu<Isa::kBaseline>(params); }, kLevels);
    EXPECT_EQ(code, kRoiBadLevel - 5);                    // the CPU reports it
    const Result result = on_emulation<TypeParam>(p, 2);  // CUDA gives zeros
    const int64_t values = p.shape[0].channels * p.shape[0].bins();
    for (int64_t i = 5 * values; i < 6 * values; ++i) EXPECT_EQ(result.output[i], 0);
  }
}

}  // namespace
