// RoI Align without torch: CPU kernels of every instruction set and the emulated CUDA kernels against numbers worked by
// hand, against plain loops in double precision, and against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/isa.h"
#include "emulation/runtime_api.h"
#include "kernels/roi_align/roi_align.h"

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
  bool maximum = false;
  std::vector<double> input;        // [N, C, H, W]
  std::vector<double> boxes;        // [K, 5]
  std::vector<double> grad_output;  // [K, C, PH, PW]

  int64_t outputs() const { return shape.boxes * shape.channels * shape.bins(); }
  int64_t inputs() const { return shape.batch * shape.channels * shape.pixels(); }
};

struct Result {
  std::vector<double> output;      // [K, C, PH, PW]
  std::vector<double> grad_input;  // [N, C, H, W]
};

// ---- The definition, in plain loops

struct Tap {
  int y, x;
  double weight;
};

std::vector<Tap> taps_of(double y, double x, int height, int width) {
  if (!(y >= -1 && y <= height && x >= -1 && x <= width) || height == 0 || width == 0) return {};
  y = std::max(y, 0.0);
  x = std::max(x, 0.0);
  int y0 = std::min(static_cast<int>(y), height - 1), x0 = std::min(static_cast<int>(x), width - 1);
  int y1 = std::min(y0 + 1, height - 1), x1 = std::min(x0 + 1, width - 1);
  const double ly = y1 > y0 ? y - y0 : 0, lx = x1 > x0 ? x - x0 : 0;
  return {{y0, x0, (1 - ly) * (1 - lx)}, {y0, x1, (1 - ly) * lx}, {y1, x0, ly * (1 - lx)}, {y1, x1, ly * lx}};
}

Result by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  Result result{std::vector<double>(p.outputs()), std::vector<double>(p.inputs())};
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 5];
    if (!(box[0] > -1 && box[0] < s.batch)) continue;
    const int64_t image = static_cast<int64_t>(box[0]);
    const double offset = s.aligned ? 0.5 : 0.0;
    const double x1 = box[1] * s.spatial_scale - offset, y1 = box[2] * s.spatial_scale - offset;
    double width = box[3] * s.spatial_scale - offset - x1, height = box[4] * s.spatial_scale - offset - y1;
    if (!s.aligned) {
      if (width < 1) width = 1;
      if (height < 1) height = 1;
    }
    const double bin_h = height / s.pooled_height, bin_w = width / s.pooled_width;
    const auto grid = [&](double bin) {
      if (s.sampling_ratio > 0) return s.sampling_ratio;
      const double samples = std::ceil(bin);
      return samples > 0 ? static_cast<int>(std::min(samples, 100.0)) : 0;
    };
    const int gy = grid(bin_h), gx = grid(bin_w);
    for (int64_t c = 0; c < s.channels; ++c) {
      const double* map = p.input.data() + (image * s.channels + c) * s.pixels();
      double* grad = result.grad_input.data() + (image * s.channels + c) * s.pixels();
      for (int ph = 0; ph < s.pooled_height; ++ph) {
        for (int pw = 0; pw < s.pooled_width; ++pw) {
          const int64_t at = ((k * s.channels + c) * s.pooled_height + ph) * s.pooled_width + pw;
          double sum = 0, best = -kInf;
          std::vector<Tap> best_taps;
          const double count = std::max(gy * gx, 1);
          for (int iy = 0; iy < gy; ++iy) {
            for (int ix = 0; ix < gx; ++ix) {
              const double y = y1 + ph * bin_h + (iy + 0.5) * bin_h / gy;
              const double x = x1 + pw * bin_w + (ix + 0.5) * bin_w / gx;
              const std::vector<Tap> taps = taps_of(y, x, s.height, s.width);
              double value = 0;
              for (const Tap& tap : taps) {
                value += tap.weight * map[tap.y * s.width + tap.x];
                if (!p.maximum) grad[tap.y * s.width + tap.x] += tap.weight / count * p.grad_output[at];
              }
              sum += value;
              if (value > best) {
                best = value;
                best_taps = taps;
              }
            }
          }
          result.output[at] = p.maximum ? (gy * gx > 0 ? best : 0) : sum / count;
          for (const Tap& tap : best_taps) {
            if (p.maximum) grad[tap.y * s.width + tap.x] += tap.weight * p.grad_output[at];
          }
        }
      }
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
        argmax(p.outputs(), -12345) {
    for (int64_t i = 0; i < p.inputs(); ++i) input[input_at[i]] = from_acc<T>(Acc<T>(p.input[i]));
    for (int64_t i = 0; i < p.outputs(); ++i) grad_output[output_at[i]] = from_acc<T>(Acc<T>(p.grad_output[i]));
    for (double value : p.boxes) boxes.push_back(static_cast<Acc<T>>(value));
  }

  RoiAlignParams<T> params(bool maximum, bool backward) {
    RoiAlignParams<T> result{};
    result.shape = shape;
    result.boxes = boxes.data();
    if (backward) {
      result.grad_output = grad_output.data();
      result.set_map(nullptr, grad_input.data());
      result.saved_argmax = maximum ? argmax.data() : nullptr;
    } else {
      result.set_map(input.data(), nullptr);
      result.output = output.data();
      result.argmax = maximum ? argmax.data() : nullptr;
    }
    return result;
  }

  Result result() const {
    Result values;
    for (int64_t at : output_at) values.output.push_back(to_acc(output[at]));
    for (int64_t at : input_at) values.grad_input.push_back(to_acc(grad_input[at]));
    return values;
  }

  RoiShape shape;
  std::vector<int64_t> input_at, output_at;
  std::vector<T> input, output, grad_output, grad_input;
  std::vector<int32_t> argmax;
  std::vector<Acc<T>> boxes;
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

template <Isa isa, class T>
void pass_on_cpu(Buffers<T>& buffers, bool maximum, bool backward, bool at_once, int64_t* bad_row) {
  RoiAlignParams<T> params = buffers.params(maximum, backward);
  const int64_t k = params.shape.boxes;
  std::vector<int64_t> order(k), image_of(k), record_begin(k + 1), image_begin(params.shape.batch + 1);
  params.plan.order = order.data();
  params.plan.image_of = image_of.data();
  params.plan.record_begin = record_begin.data();
  params.plan.image_begin = image_begin.data();
  std::vector<Keyed<uint32_t>> places(2 * k);
  params.plan.places = places.data();
  const int64_t bytes = roi_align_layout_cpu<isa>(params);
  if (bytes < 0) {
    if (bad_row != nullptr) *bad_row = -1 - bytes;
    return;
  }
  std::vector<char> arena(bytes);
  params.plan.arena = arena.data();
  if (params.shape.channels == 0) return;
  over(k, at_once, [&](int64_t first, int64_t last) { roi_align_plan_cpu<isa>(params, first, last); });
  if (backward) {
    over(roi_align_backward_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { roi_align_backward_cpu<isa>(params, first, last); });
  } else if (k > 0) {
    over(roi_align_forward_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { roi_align_forward_cpu<isa>(params, first, last); });
  }
}

template <Isa isa, class T>
Result on_cpu(const Problem& p, bool at_once = true) {
  Buffers<T> buffers(p);
  pass_on_cpu<isa>(buffers, p.maximum, false, at_once, nullptr);
  pass_on_cpu<isa>(buffers, p.maximum, true, at_once, nullptr);
  return buffers.result();
}

template <class T>
Result on_emulation(const Problem& p, uint64_t seed) {
  Buffers<T> buffers(p);
  emulation::set_seed(seed);
  const RoiAlignParams<T> forward = buffers.params(p.maximum, false);
  if (p.outputs() > 0) {
    std::vector<char> scratch(roi_align_forward_scratch_cuda(forward));
    emulation::poison(scratch.data(), scratch.size());
    EXPECT_EQ(roi_align_forward_cuda(forward, scratch.data(), nullptr), 0) << emulation::last_error_message();
  }
  if (p.inputs() > 0) {
    EXPECT_EQ(roi_align_backward_cuda(buffers.params(p.maximum, true), nullptr), 0) << emulation::last_error_message();
  }
  return buffers.result();
}

// ---- The gradient with respect to the boxes

// Of the mean, in plain loops.
std::vector<double> boxes_by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  std::vector<double> result(s.boxes * 5);
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 5];
    if (!(box[0] > -1 && box[0] < s.batch)) continue;
    const int64_t image = static_cast<int64_t>(box[0]);
    const double offset = s.aligned ? 0.5 : 0.0;
    const double x1 = box[1] * s.spatial_scale - offset, y1 = box[2] * s.spatial_scale - offset;
    double width = box[3] * s.spatial_scale - offset - x1, height = box[4] * s.spatial_scale - offset - y1;
    const bool fixed_x = !s.aligned && width < 1, fixed_y = !s.aligned && height < 1;
    if (fixed_x) width = 1;
    if (fixed_y) height = 1;
    const int g = s.sampling_ratio;
    for (int64_t at = 0; at < s.channels * s.bins() * g * g; ++at) {
      const int ix = static_cast<int>(at % g), iy = static_cast<int>(at / g % g);
      const int64_t bin = at / g / g % s.bins(), c = at / g / g / s.bins();
      // How far along the box the sample is, 0 to 1.
      const double v = (bin / s.pooled_width + (iy + 0.5) / g) / s.pooled_height;
      const double u = (bin % s.pooled_width + (ix + 0.5) / g) / s.pooled_width;
      const double y = y1 + v * height, x = x1 + u * width;
      if (!(y >= -1 && y <= s.height && x >= -1 && x <= s.width) || s.pixels() == 0) continue;
      const double* map = p.input.data() + (image * s.channels + c) * s.pixels();
      const auto value = [&](double row, double column) {
        double sum = 0;
        for (const Tap& tap : taps_of(row, column, s.height, s.width)) sum += tap.weight * map[tap.y * s.width + tap.x];
        return sum;
      };
      const double grad = p.grad_output[(k * s.channels + c) * s.bins() + bin] / (g * g);
      // Linear up to the next pixel to the right, so a difference is the derivative there.
      const bool moves_y = y >= 0 && y < s.height - 1, moves_x = x >= 0 && x < s.width - 1;
      const double dy = moves_y ? (value(std::floor(y) + 1, x) - value(std::floor(y), x)) * grad * s.spatial_scale : 0;
      const double dx = moves_x ? (value(y, std::floor(x) + 1) - value(y, std::floor(x))) * grad * s.spatial_scale : 0;
      result[k * 5 + 1] += fixed_x ? dx : (1 - u) * dx;
      result[k * 5 + 3] += fixed_x ? 0 : u * dx;
      result[k * 5 + 2] += fixed_y ? dy : (1 - v) * dy;
      result[k * 5 + 4] += fixed_y ? 0 : v * dy;
    }
  }
  return result;
}

template <class T>
RoiBoxesParams<T> boxes_params(Buffers<T>& buffers, bool maximum, std::vector<Acc<T>>& grad_boxes) {
  RoiBoxesParams<T> params{};
  params.shape = buffers.shape;
  params.input = buffers.input.data();
  params.boxes = buffers.boxes.data();
  params.grad_output = buffers.grad_output.data();
  params.saved_argmax = maximum ? buffers.argmax.data() : nullptr;
  grad_boxes.assign(buffers.shape.boxes * 5, Acc<T>(kNan));
  params.grad_boxes = grad_boxes.data();
  return params;
}

template <Isa isa, class T>
std::vector<double> boxes_on_cpu(const Problem& p, bool at_once = true) {
  Buffers<T> buffers(p);
  pass_on_cpu<isa>(buffers, p.maximum, false, true, nullptr);  // for its indices
  std::vector<Acc<T>> grad_boxes;
  RoiBoxesParams<T> params = boxes_params(buffers, p.maximum, grad_boxes);
  const int64_t k = params.shape.boxes;
  std::vector<int64_t> order(k), image_of(k), record_begin(k + 1), image_begin(params.shape.batch + 1);
  params.plan.order = order.data();
  params.plan.image_of = image_of.data();
  params.plan.record_begin = record_begin.data();
  params.plan.image_begin = image_begin.data();
  std::vector<char> arena(roi_align_boxes_layout_cpu<isa>(params));
  params.plan.arena = arena.data();
  std::vector<Acc<T>> sums(k * params.parts * kRoiSums, Acc<T>(kNan));
  params.sums = sums.data();
  if (params.shape.channels > 0) {
    over(k, at_once, [&](int64_t first, int64_t last) { roi_align_boxes_plan_cpu<isa>(params, first, last); });
    over(roi_align_boxes_items_cpu<isa>(params), at_once,
         [&](int64_t first, int64_t last) { roi_align_boxes_backward_cpu<isa>(params, first, last); });
  }
  over(k, at_once, [&](int64_t first, int64_t last) { roi_align_boxes_finish_cpu<isa>(params, first, last); });
  return std::vector<double>(grad_boxes.begin(), grad_boxes.end());
}

template <class T>
std::vector<double> boxes_on_emulation(const Problem& p, uint64_t seed) {
  Buffers<T> buffers(p);
  pass_on_cpu<Isa::kBaseline>(buffers, p.maximum, false, true, nullptr);
  emulation::set_seed(seed);
  std::vector<Acc<T>> grad_boxes;
  const RoiBoxesParams<T> params = boxes_params(buffers, p.maximum, grad_boxes);
  std::vector<char> sums(roi_align_boxes_sums_cuda(params)), copy(roi_align_boxes_copy_cuda(params));
  emulation::poison(sums.data(), sums.size());
  emulation::poison(copy.data(), copy.size());
  EXPECT_EQ(roi_align_boxes_backward_cuda(params, sums.data(), copy.data(), nullptr), 0)
      << emulation::last_error_message();
  return std::vector<double>(grad_boxes.begin(), grad_boxes.end());
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
class RoiAlign : public ::testing::Test {
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
TYPED_TEST_SUITE(RoiAlign, Types);

Problem make(int64_t n, int64_t c, int h, int w, int ph, int pw, std::vector<std::vector<double>> boxes) {
  Problem p;
  p.shape = {n, c, h, w, static_cast<int64_t>(boxes.size()), ph, pw, 1.0, 2, true, false};
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
    const double x = random.whole(-3, w), y = random.whole(-3, h);
    boxes.push_back({static_cast<double>(random.whole(0, static_cast<int>(images))), x, y, x + random.whole(0, w + 4),
                     y + random.whole(0, h + 4)});
  }
  return boxes;
}

// ---- By hand

TYPED_TEST(RoiAlign, AverageOfFourSamples) {
  // Map 10 y + x. Box (0, 0)-(2, 2), one bin, 2x2 samples. Not aligned: samples at 0.5 and 1.5, mean = value at (1, 1).
  Problem p = make(1, 1, 4, 4, 1, 1, {{0, 0, 0, 2, 2}});
  for (int i = 0; i < 16; ++i) p.input[i] = 10 * (i / 4) + i % 4;
  p.grad_output = {16};
  p.shape.aligned = false;
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output[0], 11) << name;
    // Weights of the samples along an axis: pixel 0 half of one, pixel 1 half and half, pixel 2 half: 1/4 1/2 1/4.
    const std::vector<double> expected{1, 2, 1, 0, 2, 4, 2, 0, 1, 2, 1, 0, 0, 0, 0, 0};
    EXPECT_EQ(r.grad_input, expected) << name;
  });
  p.shape.aligned = true;  // samples at 0 and 1: pixels (0..1, 0..1), 5.5
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output[0], 5.5) << name;
    const std::vector<double> expected{4, 4, 0, 0, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    EXPECT_EQ(r.grad_input, expected) << name;
  });
  p.maximum = true;  // the last sample, at (1, 1), is the greatest
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output[0], 11) << name;
    EXPECT_EQ(r.grad_input[5], 16) << name;
  });
}

TYPED_TEST(RoiAlign, FirstOfEqualSamplesTakesTheGradient) {
  Problem p = make(1, 1, 4, 4, 1, 1, {{0, 0, 0, 4, 4}});
  std::fill(p.input.begin(), p.input.end(), 3.0);
  p.grad_output = {4};
  p.maximum = true;  // samples at 0.5 and 2.5 along both axes, all 3
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output[0], 3) << name;
    const std::vector<double> expected{1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    EXPECT_EQ(r.grad_input, expected) << name;
  });
}

TYPED_TEST(RoiAlign, BorderRule) {
  // One row of ones; samples at x = -2, -1, ..., 5: -1 and 4 are the last inside [-1, 4].
  Problem p = make(1, 1, 1, 4, 1, 8, {{0, -2, 0, 6, 1}});
  std::fill(p.input.begin(), p.input.end(), 1.0);
  p.shape.sampling_ratio = 1;
  p.shape.aligned = true;
  p.shape.spatial_scale = 1.0;
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output, (std::vector<double>{0, 1, 1, 1, 1, 1, 1, 0})) << name;
  });
}

TYPED_TEST(RoiAlign, BadBoxesAreZeros) {
  Problem p =
      make(2, 3, 5, 6, 2, 2, {{0, kNan, 0, 4, 4}, {1, 0, 0, kInf, 4}, {0, -kInf, -kInf, kInf, kInf}, {1, 1, 1, 5, 5}});
  for (double& value : p.input) value = std::fabs(value) + 1;
  for (bool aligned : {false, true}) {
    for (int ratio : {0, 2}) {
      for (bool maximum : {false, true}) {
        p.shape.aligned = aligned;
        p.shape.sampling_ratio = ratio;
        p.maximum = maximum;
        this->for_each_backend(p, [&](const Result& r, const char* name) {
          for (int i = 0; i < 3 * 12; ++i) EXPECT_EQ(r.output[i], 0) << name << " aligned " << aligned;
          for (int i = 3 * 12; i < 4 * 12; ++i) EXPECT_GT(r.output[i], 0) << name;
          for (int i = 0; i < 3 * 30; ++i) EXPECT_EQ(r.grad_input[i], 0) << name;
        });
      }
    }
  }
}

TYPED_TEST(RoiAlign, BadImageIndex) {
  for (double index : {2.0, -1.0, 1e9, kNan, kInf}) {
    Problem p = make(2, 2, 4, 4, 2, 2, {{0, 0, 0, 3, 3}, {index, 0, 0, 3, 3}, {1, 0, 0, 3, 3}});
    Buffers<TypeParam> buffers(p);
    int64_t row = -1;  // the CPU reports it
    pass_on_cpu<Isa::kBaseline>(buffers, false, false, true, &row);
    EXPECT_EQ(row, 1);
    for (bool maximum : {false, true}) {  // CUDA gives zeros
      p.maximum = maximum;
      const Result expected = by_definition(p), actual = on_emulation<TypeParam>(p, 3);
      expect_near(actual.output, expected.output, tolerance<TypeParam>(), "output");
      expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), "gradient");
    }
  }
}

// ---- Against the definition

struct Setting {
  const char* name;
  int64_t n, c;
  int h, w, ph, pw, boxes, ratio;
};

// Bins and grids are powers of two and boxes whole, so that all coordinates are exact and maxima tie alike.
const Setting kSettings[] = {
    {"small", 2, 3, 5, 6, 2, 2, 4, 2},     {"one channel", 1, 1, 7, 4, 4, 2, 5, 1},
    {"channels", 1, 37, 4, 5, 2, 1, 3, 2}, {"wide", 1, 2, 3, 40, 1, 8, 3, 4},
    {"adaptive", 2, 5, 9, 8, 2, 4, 5, 0},  {"one pixel", 2, 2, 1, 1, 2, 2, 3, 2},
    {"no boxes", 2, 3, 4, 4, 2, 2, 0, 2},  {"no channels", 2, 0, 4, 4, 2, 2, 2, 2},
    {"no rows", 1, 2, 0, 4, 2, 2, 2, 2},   {"crowd", 1, 2, 6, 6, 2, 2, 40, 2},
};

TYPED_TEST(RoiAlign, EqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    for (bool maximum : {false, true}) {
      for (bool channels_last : {false, true}) {
        for (bool aligned : {false, true}) {
          Problem p = make(s.n, s.c, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
          p.shape.sampling_ratio = s.ratio;
          p.shape.aligned = aligned;
          p.shape.channels_last = channels_last;
          p.maximum = maximum;
          // Adaptive grids are powers of two only for some boxes; equal maxima may then round apart.
          const bool gradient = !(maximum && s.ratio == 0);
          const Result expected = by_definition(p);
          this->for_each_backend(p, [&](const Result& actual, const char* backend) {
            const std::string what = std::string(s.name) + ", " + backend + (maximum ? ", max" : ", avg") +
                                     (channels_last ? ", channels last" : "") + (aligned ? ", aligned" : "");
            expect_near(actual.output, expected.output, tolerance<TypeParam>(), what + ", output");
            if (gradient) {
              expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), what + ", gradient");
            }
          });
        }
      }
    }
  }
}

TYPED_TEST(RoiAlign, SlicesAndThreadOrdersChangeNoBit) {
  for (bool channels_last : {false, true}) {
    for (bool maximum : {false, true}) {
      Problem p = make(2, 19, 9, 11, 3, 3, some_boxes(12, 2, 9, 11, 9));
      p.shape.channels_last = channels_last;
      p.maximum = maximum;
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
}

TYPED_TEST(RoiAlign, GradientOfBoxesEqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    if (s.ratio == 0) continue;
    for (bool maximum : {false, true}) {
      for (bool channels_last : {false, true}) {
        for (bool aligned : {false, true}) {
          Problem p = make(s.n, s.c, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
          p.shape.sampling_ratio = s.ratio;
          p.shape.aligned = aligned;
          p.shape.channels_last = channels_last;
          p.maximum = maximum;
          const std::string what = std::string(s.name) + (maximum ? ", max" : ", avg") +
                                   (channels_last ? ", channels last" : "") + (aligned ? ", aligned" : "");
          // Half the sums cancel, so float32 arithmetic is the measure also for half inputs.
          const double near = std::is_same<TypeParam, double>::value ? 1e-12 : 1e-5;
          const auto baseline = boxes_on_cpu<Isa::kBaseline, TypeParam>(p);
          if (!maximum) expect_near(baseline, boxes_by_definition(p), near, what);
#if defined(__x86_64__)
          if (cpu_isa() >= Isa::kV4) expect_near(boxes_on_cpu<Isa::kV4, TypeParam>(p), baseline, near, what + " v4");
          if (cpu_isa() >= Isa::kV3) expect_near(boxes_on_cpu<Isa::kV3, TypeParam>(p), baseline, near, what + " v3");
#endif
          expect_near(boxes_on_emulation<TypeParam>(p, 1), baseline, near, what + " emulated");
        }
      }
    }
  }
}

TYPED_TEST(RoiAlign, GradientOfBoxesIsBitwiseRepeatable) {
  for (bool channels_last : {false, true}) {
    for (bool maximum : {false, true}) {
      Problem p = make(2, 70, 9, 11, 3, 3, some_boxes(12, 2, 9, 11, 9));
      p.shape.channels_last = channels_last;
      p.maximum = maximum;
      EXPECT_EQ((boxes_on_cpu<Isa::kBaseline, TypeParam>(p, true)),
                (boxes_on_cpu<Isa::kBaseline, TypeParam>(p, false)));
      const auto first = boxes_on_emulation<TypeParam>(p, 1);
      for (uint64_t seed = 2; seed < 5; ++seed) EXPECT_EQ(first, boxes_on_emulation<TypeParam>(p, seed)) << seed;
    }
  }
}

}  // namespace
