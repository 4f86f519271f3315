// Rotated RoI Align without torch: CPU kernels of every instruction set and the emulated CUDA kernels against numbers worked by
// hand, against plain loops in double precision, and against each other.
#include <gtest/gtest.h>

#include "emulation/runtime_api.h"
#include "kernels/roi_align_rotated/roi_align_rotated.h"
#include "rois.h"

namespace {

using namespace cvk_test;

constexpr double kPi = 3.14159265358979323846;

struct Problem {
  RoiShape shape{};
  bool clockwise = false;
  std::vector<double> input;        // [N, C, H, W]
  std::vector<double> boxes;        // [K, 6]
  std::vector<double> grad_output;  // [K, C, PH, PW]
};

struct Result {
  std::vector<double> output;      // [K, C, PH, PW]
  std::vector<double> grad_input;  // [N, C, H, W]
};

Result by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  Result result{std::vector<double>(p.grad_output.size()), std::vector<double>(p.input.size())};
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 6];
    if (!(box[0] > -1 && box[0] < s.batch)) continue;
    const double shift = s.aligned ? 0.5 : 0.0;
    const double cx = box[1] * s.spatial_scale - shift, cy = box[2] * s.spatial_scale - shift;
    double width = box[3] * s.spatial_scale, height = box[4] * s.spatial_scale;
    if (!s.aligned) {
      width = std::max(width, 1.0);
      height = std::max(height, 1.0);
    }
    const double angle = p.clockwise ? -box[5] : box[5];
    const double bin_h = height / s.pooled_height, bin_w = width / s.pooled_width;
    const int gy = grid_of(bin_h, s.sampling_ratio), gx = grid_of(bin_w, s.sampling_ratio);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t plane = (static_cast<int64_t>(box[0]) * s.channels + c) * s.pixels();
      for (int i = 0; i < s.pooled_height; ++i) {
        for (int j = 0; j < s.pooled_width; ++j) {
          const int64_t at = ((k * s.channels + c) * s.pooled_height + i) * s.pooled_width + j;
          for (int sample = 0; sample < gy * gx; ++sample) {
            const double v = -height / 2 + (i + (sample / gx + 0.5) / gy) * bin_h;
            const double u = -width / 2 + (j + (sample % gx + 0.5) / gx) * bin_w;
            const double y = v * std::cos(angle) - u * std::sin(angle) + cy;
            const double x = v * std::sin(angle) + u * std::cos(angle) + cx;
            for (const SampleTap& tap : taps_of(y, x, s.height, s.width)) {
              const double weight = tap.weight / (gy * gx);
              result.output[at] += weight * p.input[plane + tap.y * s.width + tap.x];
              result.grad_input[plane + tap.y * s.width + tap.x] += weight * p.grad_output[at];
            }
          }
        }
      }
    }
  }
  return result;
}

// ---- Kernels

template <class T>
struct Buffers {
  explicit Buffers(const Problem& p)
      : shape(p.shape),
        clockwise(p.clockwise),
        input_at(permutation(shape.batch, shape.channels, shape.pixels(), shape.channels_last)),
        output_at(permutation(shape.boxes, shape.channels, shape.bins(), shape.channels_last)),
        input(stored<T>(p.input, input_at)),
        output(p.grad_output.size(), from_acc<T>(Acc<T>(kNan))),
        grad_output(stored<T>(p.grad_output, output_at)),
        grad_input(p.input.size(), from_acc<T>(Acc<T>(kNan))),
        boxes(p.boxes.begin(), p.boxes.end()) {}

  RoiAlignRotatedParams<T> params() {
    RoiAlignRotatedParams<T> result{};
    result.shape = shape;
    result.clockwise = clockwise;
    result.boxes = boxes.data();
    result.input = input.data();
    result.output = output.data();
    result.grad_output = grad_output.data();
    result.grad_input = grad_input.data();
    return result;
  }
  Result result() const { return {loaded(output, output_at), loaded(grad_input, input_at)}; }

  RoiShape shape;
  bool clockwise;
  std::vector<int64_t> input_at, output_at;
  std::vector<T> input, output, grad_output, grad_input;
  std::vector<Acc<T>> boxes;
};

template <Isa isa, class T>
Result on_cpu(const Problem& p, bool at_once = true, int64_t* bad_row = nullptr) {
  Buffers<T> buffers(p);
  RoiAlignRotatedParams<T> params = buffers.params();
  PlanVectors memory;
  const int64_t bytes = memory.lay_out(p.shape, params.plan, [&] { return roi_align_rotated_layout_cpu<isa>(params); });
  if (bytes < 0) {
    if (bad_row != nullptr) *bad_row = -1 - bytes;
    return {};
  }
  const RoiShape& shape = p.shape;
  if (shape.channels > 0) {
    over(shape.boxes, at_once,
         [&](int64_t first, int64_t last) { roi_align_rotated_plan_cpu<isa>(params, first, last); });
    over(shape.boxes == 0 ? 0 : roi_align_rotated_forward_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { roi_align_rotated_forward_cpu<isa>(params, first, last); });
    over(roi_align_rotated_backward_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { roi_align_rotated_backward_cpu<isa>(params, first, last); });
  }
  return buffers.result();
}

template <class T>
Result on_emulation(const Problem& p, uint64_t seed) {
  Buffers<T> buffers(p);
  emulation::set_seed(seed);
  const RoiAlignRotatedParams<T> params = buffers.params();
  if (!p.grad_output.empty()) {
    std::vector<char> scratch(roi_align_rotated_forward_scratch_cuda(params));
    emulation::poison(scratch.data(), scratch.size());
    EXPECT_EQ(roi_align_rotated_forward_cuda(params, scratch.data(), nullptr), 0) << emulation::last_error_message();
  }
  if (!p.input.empty()) {
    EXPECT_EQ(roi_align_rotated_backward_cuda(params, nullptr), 0) << emulation::last_error_message();
  }
  return buffers.result();
}

template <class T>
class RoiAlignRotated : public ::testing::Test {
 protected:
  // Runs f(result, name) for every backend of this machine.
  template <class F>
  void for_each_backend(const Problem& p, F&& f) {
    for_each_isa([&](auto isa, const char* name) { f(on_cpu<isa.value, T>(p), name); });
    f(on_emulation<T>(p, 0), "emulated");
    f(on_emulation<T>(p, 7), "emulated, another order");
  }
};

using Types = ::testing::Types<half_t, bfloat16_t, float, double>;
TYPED_TEST_SUITE(RoiAlignRotated, Types);

Problem make(int64_t n, int64_t c, int h, int w, int ph, int pw, const std::vector<std::vector<double>>& boxes) {
  Problem p;
  p.shape = {n, c, h, w, static_cast<int64_t>(boxes.size()), ph, pw, 1.0, 2, true, false};
  Random random(17);
  p.input = random.eighths(n * c * p.shape.pixels(), -8, 8);
  p.grad_output = random.eighths(p.shape.boxes * c * p.shape.bins(), -4, 4);
  for (const auto& box : boxes) p.boxes.insert(p.boxes.end(), box.begin(), box.end());
  return p;
}

std::vector<std::vector<double>> some_boxes(int count, int64_t images, int h, int w, uint64_t seed) {
  Random random(seed);
  std::vector<std::vector<double>> boxes;
  for (int i = 0; i < count; ++i) {
    // Thirds keep samples off the rim of the map, where rounding decides whether they are inside.
    boxes.push_back({static_cast<double>(random.whole(0, static_cast<int>(images))), random.whole(-2, w + 2) + 1.0 / 3,
                     random.whole(-2, h + 2) + 1.0 / 3, random.whole(0, w + 4) + 0.3, random.whole(0, h + 4) + 0.7,
                     random.eighth(-7, 7)});
  }
  return boxes;
}

// ---- By hand

TYPED_TEST(RoiAlignRotated, QuarterTurns) {
  // Map 10 y + x, box of 4 x 4 about (4, 4), one sample a bin, 1 from the centre (3.5, 3.5). Counter-clockwise, the box's right
  // comes to the map's top.
  const double expected[4][4] = {
      {27.5, 29.5, 47.5, 49.5}, {47.5, 27.5, 49.5, 29.5}, {49.5, 47.5, 29.5, 27.5}, {29.5, 49.5, 27.5, 47.5}};
  for (bool clockwise : {false, true}) {
    for (int turns = 0; turns < 4; ++turns) {
      Problem p = make(1, 1, 8, 8, 2, 2, {{0, 4, 4, 4, 4, (clockwise ? -1 : 1) * turns * kPi / 2}});
      for (int i = 0; i < 64; ++i) p.input[i] = 10 * (i / 8) + i % 8;
      p.shape.sampling_ratio = 1;
      p.clockwise = clockwise;
      this->for_each_backend(p, [&](const Result& r, const char* name) {
        for (int i = 0; i < 4; ++i) {
          EXPECT_NEAR(r.output[i], expected[turns][i], 50 * tolerance<TypeParam>()) << name << ", " << turns;
        }
      });
    }
  }
}

TYPED_TEST(RoiAlignRotated, TheCentreStaysInPlace) {
  // One sample at (1.5, 2), whatever the angle: half of each of two pixels.
  for (double angle : {0.0, 0.5, -7.0}) {
    Problem p = make(1, 1, 4, 4, 1, 1, {{0, 2.5, 2, 1, 1, angle}});
    p.shape.sampling_ratio = 1;
    p.grad_output = {4};
    this->for_each_backend(p, [&](const Result& r, const char* name) {
      EXPECT_EQ(r.output[0], (p.input[6] + p.input[10]) / 2) << name;
      std::vector<double> expected(16);
      expected[6] = expected[10] = 2;
      EXPECT_EQ(r.grad_input, expected) << name;
    });
  }
}

TYPED_TEST(RoiAlignRotated, BadBoxesAreZeros) {
  std::vector<std::vector<double>> boxes;
  for (int at = 1; at < 6; ++at) {
    for (double value : {kNan, kInf}) {
      boxes.push_back({1, 3, 3, 3, 3, 1});
      boxes.back()[at] = value;
    }
  }
  boxes.push_back({1, 3, 3, 3, 3, 2e6});  // an angle without digits
  boxes.push_back({0, 3, 2, 4, 4, 1});
  Problem p = make(2, 3, 5, 6, 2, 2, boxes);
  for (double& value : p.input) value = std::fabs(value) + 1;
  for (bool aligned : {false, true}) {
    for (int ratio : {0, 2}) {
      p.shape.aligned = aligned;
      p.shape.sampling_ratio = ratio;
      this->for_each_backend(p, [&](const Result& r, const char* name) {
        const size_t last = r.output.size() - 12;
        for (size_t i = 0; i < r.output.size(); ++i) {
          EXPECT_EQ(r.output[i] > 0, i >= last) << name << " aligned " << aligned << " at " << i;
        }
        for (size_t i = 90; i < r.grad_input.size(); ++i) EXPECT_EQ(r.grad_input[i], 0) << name;
      });
    }
  }
}

TYPED_TEST(RoiAlignRotated, BadImageIndex) {
  for (double index : {2.0, -1.0, 1e9, kNan, kInf}) {
    const Problem p = make(2, 2, 4, 4, 2, 2, {{0, 2, 2, 3, 3, 1}, {index, 2, 2, 3, 3, 1}, {1, 2, 2, 3, 3, 1}});
    int64_t row = -1;  // the CPU reports it
    on_cpu<Isa::kBaseline, TypeParam>(p, true, &row);
    EXPECT_EQ(row, 1);
    const Result expected = by_definition(p), actual = on_emulation<TypeParam>(p, 3);  // CUDA gives zeros
    expect_near(actual.output, expected.output, tolerance<TypeParam>(), "output");
    expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), "gradient");
  }
}

// ---- Against the definition

struct Setting {
  const char* name;
  int64_t n, c;
  int h, w, ph, pw, boxes, ratio;
};

const Setting kSettings[] = {
    {"small", 2, 3, 5, 6, 2, 2, 4, 2},     {"one channel", 1, 1, 7, 4, 4, 2, 5, 1},
    {"channels", 1, 37, 4, 5, 2, 1, 3, 2}, {"wide", 1, 2, 3, 40, 1, 8, 3, 4},
    {"adaptive", 2, 5, 9, 8, 2, 4, 5, 0},  {"one pixel", 2, 2, 1, 1, 2, 2, 3, 2},
    {"no boxes", 2, 3, 4, 4, 2, 2, 0, 2},  {"no channels", 2, 0, 4, 4, 2, 2, 2, 2},
    {"no rows", 1, 2, 0, 4, 2, 2, 2, 2},   {"crowd", 1, 2, 6, 6, 2, 2, 40, 2},
    {"sparse", 1, 3, 40, 41, 1, 1, 4, 2},  {"dense", 1, 2, 5, 5, 1, 2, 3, 11},
    {"large", 1, 2, 90, 80, 1, 2, 3, 0},
};

TYPED_TEST(RoiAlignRotated, EqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    for (bool channels_last : {false, true}) {
      for (bool aligned : {false, true}) {
        Problem p = make(s.n, s.c, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
        p.shape.sampling_ratio = s.ratio;
        p.shape.aligned = aligned;
        p.shape.channels_last = channels_last;
        p.clockwise = channels_last;
        const Result expected = by_definition(p);
        this->for_each_backend(p, [&](const Result& actual, const char* backend) {
          const std::string what = std::string(s.name) + ", " + backend + (channels_last ? ", channels last" : "") +
                                   (aligned ? ", aligned" : "");
          // Sine, cosine and coordinates are rounded too, those of a large map to fewer digits.
          const double limit = (4 + s.h / 5.0) * tolerance<TypeParam>();
          expect_near(actual.output, expected.output, limit, what + ", output");
          expect_near(actual.grad_input, expected.grad_input, limit, what + ", gradient");
        });
      }
    }
  }
}

TYPED_TEST(RoiAlignRotated, SlicesAndThreadOrdersChangeNoBit) {
  for (bool channels_last : {false, true}) {
    Problem p = make(2, 19, 9, 11, 3, 3, some_boxes(12, 2, 9, 11, 9));
    p.shape.channels_last = channels_last;
    const Result whole = on_cpu<Isa::kBaseline, TypeParam>(p, true);
    const Result sliced = on_cpu<Isa::kBaseline, TypeParam>(p, false);
    EXPECT_EQ(whole.output, sliced.output);
    EXPECT_EQ(whole.grad_input, sliced.grad_input);
    const Result first = on_emulation<TypeParam>(p, 1);
    for (uint64_t seed = 2; seed < 6; ++seed) {
      const Result other = on_emulation<TypeParam>(p, seed);
      EXPECT_EQ(first.output, other.output) << "seed " << seed;
      EXPECT_EQ(first.grad_input, other.grad_input) << "seed " << seed;
    }
  }
}

TYPED_TEST(RoiAlignRotated, HugeBoxesNeedLittleMemory) {
  // A thousand boxes much larger than the map, and thin ones across it.
  std::vector<std::vector<double>> boxes;
  for (int i = 0; i < 500; ++i) {
    boxes.push_back({0, 50, 40, 1e6, 1e6, i / 80.0});
    boxes.push_back({0, 50, 40, 1e6, 0.01, i / 80.0});
  }
  Problem p = make(1, 1, 80, 100, 7, 7, boxes);
  for (int ratio : {0, 2}) {
    p.shape.sampling_ratio = ratio;
    Buffers<TypeParam> buffers(p);
    RoiAlignRotatedParams<TypeParam> params = buffers.params();
    PlanVectors memory;
    const int64_t bytes =
        memory.lay_out(p.shape, params.plan, [&] { return roi_align_rotated_layout_cpu<Isa::kBaseline>(params); });
    EXPECT_LT(bytes, 200e6);
    roi_align_rotated_plan_cpu<Isa::kBaseline>(params, 0, p.shape.boxes);  // ASan sees a record too small
  }
}

}  // namespace
