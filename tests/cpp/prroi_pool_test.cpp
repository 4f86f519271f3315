// Precise RoI Pooling without torch: CPU kernels of every instruction set and the emulated CUDA kernels against numbers worked
// by hand, against plain loops in double precision, and against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/prroi_pool/prroi_pool.h"

namespace {

using namespace cvk;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Small whole numbers over 8: exact in every dtype.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  int whole(int low, int high) {  // low <= result < high
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return low + static_cast<int>((state_ >> 33) % static_cast<uint64_t>(high - low));
  }
  double eighth(int low, int high) { return whole(8 * low, 8 * high) / 8.0; }

 private:
  uint64_t state_;
};

struct Problem {
  RoiShape shape{};
  std::vector<double> input;        // [N, C, H, W]
  std::vector<double> boxes;        // [K, 5]
  std::vector<double> grad_output;  // [K, C, PH, PW]

  int64_t outputs() const { return shape.boxes * shape.channels * shape.bins(); }
  int64_t inputs() const { return shape.batch * shape.channels * shape.pixels(); }
};

struct Result {
  std::vector<double> output;      // [K, C, PH, PW]
  std::vector<double> grad_input;  // [N, C, H, W]
  std::vector<double> grad_boxes;  // [K, 5]
};

// ---- The definition, in plain loops

double kernel(double t) { return std::max(0.0, 1 - std::fabs(t)); }

// Its integral from minus infinity to t.
double integral(double t) {
  if (t < -1) return 0;
  if (t > 1) return 1;
  return t < 0 ? (t + 1) * (t + 1) / 2 : 1 - (1 - t) * (1 - t) / 2;
}

struct Axis {
  std::vector<double> weight, by_low, by_high;  // [bins, extent]: means, derivatives with respect to the box's ends
};

Axis axis_of(double low, double high, int bins, int extent) {
  const size_t count = static_cast<size_t>(bins) * extent;
  Axis axis{std::vector<double>(count), std::vector<double>(count), std::vector<double>(count)};
  if (!(high > low) || std::isinf(high - low) || std::isinf(low)) return axis;
  const double bin = (high - low) / bins;
  for (int i = 0; i < bins; ++i) {
    const double from = low + i * bin, to = from + bin;
    const double u = static_cast<double>(i) / bins, v = (i + 1.0) / bins;
    for (int p = 0; p < extent; ++p) {
      const double mean = (integral(to - p) - integral(from - p)) / bin;
      const double by_from = (mean - kernel(from - p)) / bin, by_to = (kernel(to - p) - mean) / bin;
      axis.weight[i * extent + p] = mean;
      axis.by_low[i * extent + p] = by_from * (1 - u) + by_to * (1 - v);
      axis.by_high[i * extent + p] = by_from * u + by_to * v;
    }
  }
  return axis;
}

Result by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  Result result{std::vector<double>(p.outputs()), std::vector<double>(p.inputs()), std::vector<double>(s.boxes * 5)};
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 5];
    if (!(box[0] > -1 && box[0] < s.batch)) continue;
    const double scale = s.spatial_scale;
    const Axis ys = axis_of(box[2] * scale, box[4] * scale, s.pooled_height, s.height);
    const Axis xs = axis_of(box[1] * scale, box[3] * scale, s.pooled_width, s.width);
    for (int64_t at = 0; at < s.channels * s.bins(); ++at) {
      const int64_t c = at / s.bins(), i = at % s.bins() / s.pooled_width, j = at % s.bins() % s.pooled_width;
      const int64_t plane = (static_cast<int64_t>(box[0]) * s.channels + c) * s.pixels();
      const double grad = p.grad_output[k * s.channels * s.bins() + at];
      double sum = 0;
      for (int64_t pixel = 0; pixel < s.pixels(); ++pixel) {
        const int64_t y = i * s.height + pixel / s.width, x = j * s.width + pixel % s.width;
        const double value = p.input[plane + pixel];
        sum += ys.weight[y] * xs.weight[x] * value;
        result.grad_input[plane + pixel] += ys.weight[y] * xs.weight[x] * grad;
        double* grad_box = &result.grad_boxes[k * 5];
        grad_box[1] += ys.weight[y] * xs.by_low[x] * value * grad * scale;
        grad_box[2] += ys.by_low[y] * xs.weight[x] * value * grad * scale;
        grad_box[3] += ys.weight[y] * xs.by_high[x] * value * grad * scale;
        grad_box[4] += ys.by_high[y] * xs.weight[x] * value * grad * scale;
      }
      result.output[k * s.channels * s.bins() + at] = sum;
    }
  }
  return result;
}

// ---- Kernels

// Offset of [n, c, i] in a tensor [n, channels, inner] or, channels last, [n, inner, channels].
std::vector<int64_t> permutation(int64_t n, int64_t channels, int64_t inner, bool channels_last) {
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

// The tensors of a problem in one dtype and layout. Vectors have the exact size, so that ASan sees a step too far.
template <class T>
struct Buffers {
  explicit Buffers(const Problem& p)
      : shape(p.shape),
        input_at(permutation(shape.batch, shape.channels, shape.pixels(), shape.channels_last)),
        output_at(permutation(shape.boxes, shape.channels, shape.bins(), shape.channels_last)),
        input(p.inputs()),
        output(p.outputs(), from_acc<T>(Acc<T>(kNan))),
        grad_output(p.outputs()),
        grad_input(p.inputs(), from_acc<T>(Acc<T>(kNan))),
        grad_boxes(shape.boxes * 5, Acc<T>(kNan)) {
    for (int64_t i = 0; i < p.inputs(); ++i) input[input_at[i]] = from_acc<T>(Acc<T>(p.input[i]));
    for (int64_t i = 0; i < p.outputs(); ++i) grad_output[output_at[i]] = from_acc<T>(Acc<T>(p.grad_output[i]));
    for (double value : p.boxes) boxes.push_back(static_cast<Acc<T>>(value));
  }

  PrRoIPoolParams<T> params() {
    PrRoIPoolParams<T> result{};
    result.shape = shape;
    result.input = input.data();
    result.boxes = boxes.data();
    result.output = output.data();
    result.grad_output = grad_output.data();
    result.grad_input = grad_input.data();
    return result;
  }

  RoiBoxesParams<T> boxes_params() {
    RoiBoxesParams<T> result{};
    result.shape = shape;
    result.input = input.data();
    result.boxes = boxes.data();
    result.grad_output = grad_output.data();
    result.grad_boxes = grad_boxes.data();
    return result;
  }

  Result result() const {
    Result values;
    for (int64_t at : output_at) values.output.push_back(to_acc(output[at]));
    for (int64_t at : input_at) values.grad_input.push_back(to_acc(grad_input[at]));
    values.grad_boxes.assign(grad_boxes.begin(), grad_boxes.end());
    return values;
  }

  RoiShape shape;
  std::vector<int64_t> input_at, output_at;
  std::vector<T> input, output, grad_output, grad_input;
  std::vector<Acc<T>> boxes, grad_boxes;
};

// How a pass is cut into slices: at once, or item by item from the last to the first.
template <class F>
void over(int64_t items, bool at_once, F&& f) {
  if (at_once) {
    if (items > 0) f(int64_t{0}, items);
    return;
  }
  for (int64_t i = items; i-- > 0;) f(i, i + 1);
}

// The memory of a plan. layout(params) returns the arena's bytes or what is wrong.
struct PlanMemory {
  template <class Params, class Layout>
  PlanMemory(Params& params, Layout&& layout)
      : order(params.shape.boxes),
        image_of(params.shape.boxes),
        record_begin(params.shape.boxes + 1),
        image_begin(params.shape.batch + 1) {
    params.plan.order = order.data();
    params.plan.image_of = image_of.data();
    params.plan.record_begin = record_begin.data();
    params.plan.image_begin = image_begin.data();
    bytes = layout(params);
    arena.resize(std::max<int64_t>(bytes, 0));
    params.plan.arena = arena.data();
  }
  std::vector<int64_t> order, image_of, record_begin, image_begin;
  int64_t bytes;
  std::vector<char> arena;
};

template <Isa isa, class T>
Result on_cpu(const Problem& p, bool at_once = true) {
  Buffers<T> buffers(p);
  const int64_t k = p.shape.boxes;
  PrRoIPoolParams<T> params = buffers.params();
  const PlanMemory memory(params, [](auto& a) { return prroi_pool_layout_cpu<isa>(a); });
  RoiBoxesParams<T> of_boxes = buffers.boxes_params();
  const PlanMemory sloped(of_boxes, [](auto& a) { return prroi_pool_boxes_layout_cpu<isa>(a); });
  std::vector<Acc<T>> sums(k * of_boxes.parts * kRoiSums, Acc<T>(kNan));
  of_boxes.sums = sums.data();
  if (p.shape.channels > 0) {
    over(k, at_once, [&](int64_t first, int64_t last) { prroi_pool_plan_cpu<isa>(params, first, last); });
    over(k, at_once, [&](int64_t first, int64_t last) { prroi_pool_boxes_plan_cpu<isa>(of_boxes, first, last); });
    if (k > 0) {
      over(prroi_pool_forward_items_cpu<isa>(params), at_once,
           [&](int64_t first, int64_t last) { prroi_pool_forward_cpu<isa>(params, first, last); });
      over(prroi_pool_boxes_items_cpu<isa>(of_boxes), at_once,
           [&](int64_t first, int64_t last) { prroi_pool_boxes_backward_cpu<isa>(of_boxes, first, last); });
    }
    over(prroi_pool_backward_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { prroi_pool_backward_cpu<isa>(params, first, last); });
  }
  over(k, at_once, [&](int64_t first, int64_t last) { prroi_pool_boxes_finish_cpu<isa>(of_boxes, first, last); });
  return buffers.result();
}

template <class T>
Result on_emulation(const Problem& p, uint64_t seed) {
  Buffers<T> buffers(p);
  emulation::set_seed(seed);
  const PrRoIPoolParams<T> params = buffers.params();
  const RoiBoxesParams<T> of_boxes = buffers.boxes_params();
  std::vector<char> scratch(prroi_pool_forward_scratch_cuda(params));
  std::vector<char> sums(prroi_pool_boxes_sums_cuda(of_boxes)), copy(prroi_pool_boxes_copy_cuda(of_boxes));
  for (std::vector<char>* memory : {&scratch, &sums, &copy}) emulation::poison(memory->data(), memory->size());
  EXPECT_EQ(prroi_pool_forward_cuda(params, scratch.data(), nullptr), 0) << emulation::last_error_message();
  if (p.inputs() > 0) {
    EXPECT_EQ(prroi_pool_backward_cuda(params, nullptr), 0) << emulation::last_error_message();
  }
  EXPECT_EQ(prroi_pool_boxes_backward_cuda(of_boxes, sums.data(), copy.data(), nullptr), 0)
      << emulation::last_error_message();
  return buffers.result();
}

// ---- Comparing

template <class T>
double tolerance() {
  if (std::is_same<T, double>::value) return 1e-12;
  if (std::is_same<T, float>::value) return 1e-5;
  return std::is_same<T, half_t>::value ? 1.0 / 1024 : 1.0 / 128;
}

void expect_near(const std::vector<double>& actual, const std::vector<double>& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double scale = 0;
  for (double value : expected) scale = std::max(scale, std::fabs(value));
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_LE(std::fabs(actual[i] - expected[i]), tolerance * (std::fabs(expected[i]) + 0.05 * scale))
        << what << " at " << i << ": " << actual[i] << " expected " << expected[i];
  }
}

template <class T>
class PrRoIPool : public ::testing::Test {
 protected:
  // Runs f(result, name) for every backend of this machine.
  template <class F>
  void for_each_backend(const Problem& p, F&& f) {
#if defined(__x86_64__)
    if (cpu_isa() >= Isa::kV4) f(on_cpu<Isa::kV4, T>(p), "v4");
    if (cpu_isa() >= Isa::kV3) f(on_cpu<Isa::kV3, T>(p), "v3");
#endif
    f(on_cpu<Isa::kBaseline, T>(p), "baseline");
    f(on_emulation<T>(p, 0), "emulated");
    f(on_emulation<T>(p, 7), "emulated, another order");
  }
};

using Types = ::testing::Types<half_t, bfloat16_t, float, double>;
TYPED_TEST_SUITE(PrRoIPool, Types);

Problem make(int64_t n, int64_t c, int h, int w, int ph, int pw, std::vector<std::vector<double>> boxes) {
  Problem p;
  p.shape = {n, c, h, w, static_cast<int64_t>(boxes.size()), ph, pw, 1.0, 1, false, false};
  Random random(17);
  for (int64_t i = 0; i < p.inputs(); ++i) p.input.push_back(random.eighth(-8, 8));
  for (int64_t i = 0; i < p.outputs(); ++i) p.grad_output.push_back(random.eighth(-4, 4));
  for (const auto& box : boxes) p.boxes.insert(p.boxes.end(), box.begin(), box.end());
  return p;
}

std::vector<std::vector<double>> some_boxes(int count, int64_t images, int h, int w, uint64_t seed) {
  Random random(seed);
  std::vector<std::vector<double>> boxes;
  for (int i = 0; i < count; ++i) {
    const double x = random.eighth(-3, w), y = random.eighth(-3, h);
    boxes.push_back({static_cast<double>(random.whole(0, static_cast<int>(images))), x, y, x + random.eighth(0, w + 4),
                     y + random.eighth(0, h + 4)});
  }
  return boxes;
}

// ---- By hand

TYPED_TEST(PrRoIPool, IntegralsOfTheKernel) {
  // A column of ones at x = 4. Means over [4, 5], [3.5, 4.5], [2, 6] and [4.5, 5.5].
  Problem p = make(1, 1, 9, 9, 1, 1, {{0, 4, 2, 5, 4}, {0, 3.5, 2, 4.5, 4}, {0, 2, 2, 6, 4}, {0, 4.5, 2, 5.5, 4}});
  for (int i = 0; i < 81; ++i) p.input[i] = i % 9 == 4;
  p.grad_output = {1, 1, 1, 1};
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output, (std::vector<double>{0.5, 0.75, 0.25, 0.125})) << name;
    // With respect to x1 and x2 (mean - f(x1)) / length and (f(x2) - mean) / length.
    for (int k = 0; k < 4; ++k) {
      const double low = p.boxes[k * 5 + 1], high = p.boxes[k * 5 + 3], mean = r.output[k];
      EXPECT_NEAR(r.grad_boxes[k * 5 + 1], (mean - kernel(low - 4)) / (high - low), 1e-6) << name << k;
      EXPECT_NEAR(r.grad_boxes[k * 5 + 3], (kernel(high - 4) - mean) / (high - low), 1e-6) << name << k;
      EXPECT_EQ(r.grad_boxes[k * 5], 0) << name;
    }
  });
}

TYPED_TEST(PrRoIPool, TinyBinsFarFromTheOriginAreExact) {
  // A bin of 2^-20 pixels at 5000: the value of its point, and the slope of the map. On a ramp both are known.
  Problem p = make(1, 1, 1, 6000, 1, 1, {{0, 5000, -0.5, 5000 + 1 / 1024.0, 0.5}, {0, 0.25, 0, 0.25 + 1e-30, 1}});
  for (int i = 0; i < 6000; ++i) p.input[i] = i % 2;
  p.grad_output = {1, 1};
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    // Of one row the kernel along y has the means 3/4 and 1/2.
    EXPECT_NEAR(r.output[0], 0.75 / 2048, 1e-6) << name;
    EXPECT_NEAR(r.grad_boxes[1], 0.75 / 2, 1e-6) << name;
    EXPECT_NEAR(r.grad_boxes[3], 0.75 / 2, 1e-6) << name;
    // In the rounded x1 the second box has no width.
    EXPECT_EQ(r.output[1], 0) << name;
  });
}

TYPED_TEST(PrRoIPool, BoxesWithoutAreaAreZeros) {
  Problem p = make(2, 3, 5, 6, 2, 2,
                   {{0, kNan, 0, 4, 4},
                    {1, 0, 0, kInf, 4},
                    {0, -kInf, -kInf, kInf, kInf},
                    {0, 2, 2, 2, 4},
                    {1, 4, 1, 3, 4},
                    {1, 1, 1, 5, 5}});
  for (double& value : p.input) value = std::fabs(value) + 1;
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    for (int i = 0; i < 5 * 12; ++i) EXPECT_EQ(r.output[i], 0) << name;
    for (int i = 5 * 12; i < 6 * 12; ++i) EXPECT_GT(r.output[i], 0) << name;
    for (int i = 0; i < 3 * 30; ++i) EXPECT_EQ(r.grad_input[i], 0) << name;
    for (int i = 0; i < 5 * 5; ++i) EXPECT_EQ(r.grad_boxes[i], 0) << name;
  });
}

TYPED_TEST(PrRoIPool, BadImageIndex) {
  for (double index : {2.0, -1.0, 1e9, kNan, kInf}) {
    Problem p = make(2, 2, 4, 4, 2, 2, {{0, 0, 0, 3, 3}, {index, 0, 0, 3, 3}, {1, 0, 0, 3, 3}});
    Buffers<TypeParam> buffers(p);
    PrRoIPoolParams<TypeParam> params = buffers.params();
    const PlanMemory memory(params, [](auto& a) { return prroi_pool_layout_cpu<Isa::kBaseline>(a); });
    EXPECT_EQ(memory.bytes, -2);                                                       // the CPU reports row 1
    const Result expected = by_definition(p), actual = on_emulation<TypeParam>(p, 3);  // CUDA gives zeros
    expect_near(actual.output, expected.output, tolerance<TypeParam>(), "output");
    expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), "gradient");
    expect_near(actual.grad_boxes, expected.grad_boxes, 1e-5, "gradient of boxes");
  }
}

// ---- Against the definition

struct Setting {
  const char* name;
  int64_t n, c;
  int h, w, ph, pw, boxes;
};

const Setting kSettings[] = {
    {"small", 2, 3, 5, 6, 2, 2, 4},    {"one channel", 1, 1, 7, 4, 4, 2, 5}, {"channels", 1, 37, 4, 5, 2, 1, 3},
    {"wide", 1, 2, 3, 400, 1, 2, 3},   {"large", 2, 5, 19, 28, 2, 3, 5},     {"one pixel", 2, 2, 1, 1, 2, 2, 3},
    {"no boxes", 2, 3, 4, 4, 2, 2, 0}, {"no channels", 2, 0, 4, 4, 2, 2, 2}, {"no rows", 1, 2, 0, 4, 2, 2, 2},
    {"crowd", 1, 2, 6, 6, 2, 2, 40},   {"many bins", 1, 2, 5, 4, 1, 300, 2},
};

TYPED_TEST(PrRoIPool, EqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    for (bool channels_last : {false, true}) {
      Problem p = make(s.n, s.c, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
      p.shape.channels_last = channels_last;
      const Result expected = by_definition(p);
      this->for_each_backend(p, [&](const Result& actual, const char* backend) {
        const std::string what = std::string(s.name) + ", " + backend + (channels_last ? ", channels last" : "");
        expect_near(actual.output, expected.output, tolerance<TypeParam>(), what + ", output");
        expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), what + ", gradient");
        // Half the sums cancel; arithmetic is float32 for half inputs, too.
        const double near = std::is_same<TypeParam, double>::value ? 1e-11 : 2e-5;
        expect_near(actual.grad_boxes, expected.grad_boxes, near, what + ", gradient of boxes");
      });
    }
  }
}

TYPED_TEST(PrRoIPool, SlicesAndThreadOrdersChangeNoBit) {
  for (bool channels_last : {false, true}) {
    Problem p = make(2, 70, 9, 11, 3, 3, some_boxes(12, 2, 9, 11, 9));
    p.shape.channels_last = channels_last;
    const Result whole = on_cpu<Isa::kBaseline, TypeParam>(p, true);
    const Result sliced = on_cpu<Isa::kBaseline, TypeParam>(p, false);
    EXPECT_EQ(whole.output, sliced.output);
    EXPECT_EQ(whole.grad_input, sliced.grad_input);
    EXPECT_EQ(whole.grad_boxes, sliced.grad_boxes);
    const Result first = on_emulation<TypeParam>(p, 1);
    for (uint64_t seed = 2; seed < 5; ++seed) {
      const Result other = on_emulation<TypeParam>(p, seed);
      EXPECT_EQ(first.output, other.output) << "seed " << seed;
      EXPECT_EQ(first.grad_input, other.grad_input) << "seed " << seed;
      EXPECT_EQ(first.grad_boxes, other.grad_boxes) << "seed " << seed;
    }
  }
}

}  // namespace
