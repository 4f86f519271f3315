// Deformable RoI pooling without torch: CPU kernels of every instruction set and the emulated CUDA kernels against numbers worked
// by hand, against plain loops in double precision, and against each other.
#include <gtest/gtest.h>

#include "emulation/runtime_api.h"
#include "kernels/deform_roi_pool/deform_roi_pool.h"
#include "rois.h"

namespace {

using namespace cvk_test;

struct Problem {
  RoiShape shape{};
  double gamma = 0.25;
  std::vector<double> input;        // [N, C, H, W]
  std::vector<double> boxes;        // [K, 5]
  std::vector<double> offset;       // [K, 2, PH, PW]
  std::vector<double> grad_output;  // [K, C, PH, PW]
};

struct Result {
  std::vector<double> output;       // [K, C, PH, PW]
  std::vector<double> grad_input;   // [N, C, H, W]
  std::vector<double> grad_offset;  // [K, 2, PH, PW]
};

Result by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  Result result{std::vector<double>(p.grad_output.size()), std::vector<double>(p.input.size()),
                std::vector<double>(p.offset.size())};
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 5];
    if (!(box[0] > -1 && box[0] < s.batch)) continue;
    const double x1 = box[1] * s.spatial_scale - 0.5, y1 = box[2] * s.spatial_scale - 0.5;
    const double width = (box[3] - box[1]) * s.spatial_scale, height = (box[4] - box[2]) * s.spatial_scale;
    const double bin_h = height / s.pooled_height, bin_w = width / s.pooled_width;
    const int gy = grid_of(bin_h, s.sampling_ratio), gx = grid_of(bin_w, s.sampling_ratio);
    for (int i = 0; i < s.pooled_height; ++i) {
      for (int j = 0; j < s.pooled_width; ++j) {
        const int64_t bin = int64_t{i} * s.pooled_width + j;
        const int64_t along_x = 2 * k * s.bins() + bin, along_y = along_x + s.bins();
        const double x_reach = p.gamma * width, y_reach = p.gamma * height;
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t plane = (static_cast<int64_t>(box[0]) * s.channels + c) * s.pixels();
          const int64_t at = (k * s.channels + c) * s.bins() + bin;
          for (int sample = 0; sample < gy * gx; ++sample) {
            const double y = y1 + y_reach * p.offset[along_y] + (i + (sample / gx + 0.5) / gy) * bin_h;
            const double x = x1 + x_reach * p.offset[along_x] + (j + (sample % gx + 0.5) / gx) * bin_w;
            for (const SampleTap& tap : taps_of(y, x, s.height, s.width)) {
              const double pixel = p.input[plane + tap.y * s.width + tap.x], share = 1.0 / (gy * gx);
              result.output[at] += share * tap.weight * pixel;
              result.grad_input[plane + tap.y * s.width + tap.x] += share * tap.weight * p.grad_output[at];
              result.grad_offset[along_x] += share * tap.dx * pixel * x_reach * p.grad_output[at];
              result.grad_offset[along_y] += share * tap.dy * pixel * y_reach * p.grad_output[at];
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
        gamma(p.gamma),
        input_at(permutation(shape.batch, shape.channels, shape.pixels(), shape.channels_last)),
        output_at(permutation(shape.boxes, shape.channels, shape.bins(), shape.channels_last)),
        input(stored<T>(p.input, input_at)),
        output(p.grad_output.size(), from_acc<T>(Acc<T>(kNan))),
        grad_output(stored<T>(p.grad_output, output_at)),
        grad_input(p.input.size(), from_acc<T>(Acc<T>(kNan))),
        boxes(p.boxes.begin(), p.boxes.end()),
        offset(p.offset.begin(), p.offset.end()),
        grad_offset(p.offset.size(), Acc<T>(kNan)) {}

  DeformRoiPoolParams<T> params() {
    DeformRoiPoolParams<T> result{};
    result.shape = shape;
    result.gamma = gamma;
    result.boxes = boxes.data();
    result.offset = offset.data();
    result.input = input.data();
    result.output = output.data();
    result.grad_output = grad_output.data();
    result.grad_input = grad_input.data();
    result.grad_offset = grad_offset.data();
    return result;
  }
  Result result() const {
    return {loaded(output, output_at), loaded(grad_input, input_at),
            std::vector<double>(grad_offset.begin(), grad_offset.end())};
  }

  RoiShape shape;
  double gamma;
  std::vector<int64_t> input_at, output_at;
  std::vector<T> input, output, grad_output, grad_input;
  std::vector<Acc<T>> boxes, offset, grad_offset;
};

template <Isa isa, class T>
Result on_cpu(const Problem& p, bool at_once = true, int64_t* bad_row = nullptr) {
  Buffers<T> buffers(p);
  const RoiShape& shape = p.shape;
  for (bool slopes : {false, true}) {
    DeformRoiPoolParams<T> params = buffers.params();
    PlanVectors memory;
    const int64_t bytes =
        memory.lay_out(shape, params.plan, [&] { return deform_roi_pool_layout_cpu<isa>(params, slopes); });
    if (bytes < 0) {
      if (bad_row != nullptr) *bad_row = -1 - bytes;
      return {};
    }
    if (shape.channels > 0) {
      over(shape.boxes, at_once,
           [&](int64_t first, int64_t last) { deform_roi_pool_plan_cpu<isa>(params, slopes, first, last); });
    }
    if (slopes) {
      const int64_t items = shape.boxes == 0 ? 0 : deform_roi_pool_offset_items_cpu<isa>(params);
      std::vector<Acc<T>> sums(shape.boxes * params.parts * 2 * shape.bins(), Acc<T>(kNan));
      params.sums = sums.data();
      over(items, at_once,
           [&](int64_t first, int64_t last) { deform_roi_pool_offset_sums_cpu<isa>(params, first, last); });
      over(shape.boxes, at_once,
           [&](int64_t first, int64_t last) { deform_roi_pool_offset_cpu<isa>(params, first, last); });
    } else if (shape.channels > 0) {
      over(shape.boxes == 0 ? 0 : deform_roi_pool_forward_items_cpu<isa>(params), at_once,
           [&](int64_t first, int64_t last) { deform_roi_pool_forward_cpu<isa>(params, first, last); });
      over(deform_roi_pool_backward_items_cpu<isa>(params), at_once,
           [&](int64_t first, int64_t last) { deform_roi_pool_backward_cpu<isa>(params, first, last); });
    }
  }
  return buffers.result();
}

template <class T>
Result on_emulation(const Problem& p, uint64_t seed) {
  Buffers<T> buffers(p);
  emulation::set_seed(seed);
  const DeformRoiPoolParams<T> params = buffers.params();
  const auto call = [&](int64_t bytes, auto&& launch) {
    std::vector<char> scratch(bytes);
    emulation::poison(scratch.data(), scratch.size());
    EXPECT_EQ(launch(scratch.data()), 0) << emulation::last_error_message();
  };
  if (!p.grad_output.empty()) {
    call(deform_roi_pool_forward_scratch_cuda(params),
         [&](void* scratch) { return deform_roi_pool_forward_cuda(params, scratch, nullptr); });
  }
  if (!p.input.empty()) {
    call(deform_roi_pool_backward_scratch_cuda(params),
         [&](void* scratch) { return deform_roi_pool_backward_cuda(params, scratch, nullptr); });
  }
  if (!p.offset.empty()) {
    call(deform_roi_pool_offset_scratch_cuda(params),
         [&](void* scratch) { return deform_roi_pool_offset_cuda(params, scratch, nullptr); });
  }
  return buffers.result();
}

template <class T>
class DeformRoiPool : public ::testing::Test {
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
TYPED_TEST_SUITE(DeformRoiPool, Types);

Problem make(int64_t n, int64_t c, int h, int w, int ph, int pw, const std::vector<std::vector<double>>& boxes) {
  Problem p;
  p.shape = {n, c, h, w, static_cast<int64_t>(boxes.size()), ph, pw, 1.0, 2, true, false};
  Random random(17);
  p.input = random.eighths(n * c * p.shape.pixels(), -8, 8);
  p.grad_output = random.eighths(p.shape.boxes * c * p.shape.bins(), -4, 4);
  p.offset = random.eighths(p.shape.boxes * 2 * p.shape.bins(), -2, 2);
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

TYPED_TEST(DeformRoiPool, ShiftedBins) {
  // Map 10 y + x. Box (1, 1)-(5, 3), aligned, two bins across with a sample each at x = 1.5, 3.5, y = 1.5. gamma 1/4: offsets
  // (2, 0) and (-1, 3) shift by (2, 0) and (-1, 1.5) pixels. An offset of 1 is a pixel along x, half along y.
  Problem p = make(1, 1, 8, 8, 1, 2, {{0, 1, 1, 5, 3}});
  for (int i = 0; i < 64; ++i) p.input[i] = 10 * (i / 8) + i % 8;
  p.shape.sampling_ratio = 1;
  p.offset = {2, -1, 0, 3};
  p.grad_output = {1, 2};
  this->for_each_backend(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output, (std::vector<double>{18.5, 32.5})) << name;
    EXPECT_EQ(r.grad_offset, (std::vector<double>{1, 2, 5, 10})) << name;
  });
}

TYPED_TEST(DeformRoiPool, ClampedCoordinatesHaveNoSlope) {
  // One sample at x = -0.5, 0, 6, 7 and 7.5 on the same map, y = 2: clamped at both ends, to the right at a pixel's centre.
  const std::vector<double> xs{-0.5, 0, 6, 7, 7.5}, values{20, 20, 26, 27, 27}, slopes{0, 2, 2, 0, 0};
  for (size_t i = 0; i < xs.size(); ++i) {
    Problem p = make(1, 1, 8, 8, 1, 1, {{0, 3, 2, 5, 3}});
    for (int pixel = 0; pixel < 64; ++pixel) p.input[pixel] = 10 * (pixel / 8) + pixel % 8;
    p.shape.sampling_ratio = 1;
    p.gamma = 1;
    p.offset = {(xs[i] - 3.5) / 2, 0};
    p.grad_output = {1};
    this->for_each_backend(p, [&](const Result& r, const char* name) {
      EXPECT_EQ(r.output[0], values[i]) << name;
      EXPECT_EQ(r.grad_offset, (std::vector<double>{slopes[i], 10})) << name;
    });
  }
}

TYPED_TEST(DeformRoiPool, BadBoxesAndOffsetsAreZeros) {
  Problem p =
      make(2, 3, 5, 6, 2, 2,
           {{1, kNan, 0, 4, 4}, {1, 0, 0, kInf, 4}, {1, -kInf, -kInf, kInf, kInf}, {1, 1, 1, 5, 5}, {0, 1, 1, 5, 5}});
  for (double& value : p.input) value = std::fabs(value) + 1;
  for (double& value : p.offset) value = 0.125;
  for (int i = 0; i < 4; ++i) p.offset[3 * 8 + i] = i % 2 == 0 ? kNan : kInf;  // the fourth box's, along x
  for (int ratio : {0, 2, 7}) {
    p.shape.sampling_ratio = ratio;
    this->for_each_backend(p, [&](const Result& r, const char* name) {
      for (int i = 0; i < 5 * 12; ++i) EXPECT_EQ(r.output[i] > 0, i >= 4 * 12) << name << " at " << i;
      for (int i = 0; i < 4 * 8; ++i) EXPECT_EQ(r.grad_offset[i], 0) << name << " at " << i;
      for (int i = 90; i < 180; ++i) EXPECT_EQ(r.grad_input[i], 0) << name << " at " << i;
    });
  }
}

TYPED_TEST(DeformRoiPool, BadImageIndex) {
  for (double index : {2.0, -1.0, 1e9, kNan, kInf}) {
    const Problem p = make(2, 2, 4, 4, 2, 2, {{0, 0, 0, 3, 3}, {index, 0, 0, 3, 3}, {1, 0, 0, 3, 3}});
    int64_t row = -1;  // the CPU reports it
    on_cpu<Isa::kBaseline, TypeParam>(p, true, &row);
    EXPECT_EQ(row, 1);
    const Result expected = by_definition(p), actual = on_emulation<TypeParam>(p, 3);  // CUDA gives zeros
    expect_near(actual.output, expected.output, tolerance<TypeParam>(), "output");
    expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), "gradient");
    expect_near(actual.grad_offset, expected.grad_offset, 1e-5, "gradient of the offsets");
  }
}

// ---- Against the definition

struct Setting {
  const char* name;
  int64_t n, c;
  int h, w, ph, pw, boxes, ratio;
};

// Bins and grids are powers of two, boxes and offsets in eighths, so that all coordinates are exact.
const Setting kSettings[] = {
    {"small", 2, 3, 5, 6, 2, 2, 4, 2},     {"one channel", 1, 1, 7, 4, 4, 2, 5, 1},
    {"channels", 1, 37, 4, 5, 2, 1, 3, 2}, {"wide", 1, 2, 3, 40, 1, 8, 3, 4},
    {"adaptive", 2, 5, 9, 8, 2, 4, 5, 0},  {"one pixel", 2, 2, 1, 1, 2, 2, 3, 2},
    {"no boxes", 2, 3, 4, 4, 2, 2, 0, 2},  {"no channels", 2, 0, 4, 4, 2, 2, 2, 2},
    {"no rows", 1, 2, 0, 4, 2, 2, 2, 2},   {"crowd", 1, 2, 6, 6, 2, 2, 40, 2},
    {"tiles", 1, 40, 30, 20, 2, 2, 6, 8},
};

TYPED_TEST(DeformRoiPool, EqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    for (bool channels_last : {false, true}) {
      Problem p = make(s.n, s.c, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
      p.shape.sampling_ratio = s.ratio;
      p.shape.channels_last = channels_last;
      const Result expected = by_definition(p);
      this->for_each_backend(p, [&](const Result& actual, const char* backend) {
        const std::string what = std::string(s.name) + ", " + backend + (channels_last ? ", channels last" : "");
        expect_near(actual.output, expected.output, tolerance<TypeParam>(), what + ", output");
        expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), what + ", gradient");
        // Adaptive grids of three samples are not exact, and there a rounding decides on which side of a centre one lies.
        if (s.ratio == 0) return;
        const double limit = std::is_same<TypeParam, double>::value ? 1e-11 : 1e-4;
        expect_near(actual.grad_offset, expected.grad_offset, limit, what + ", gradient of the offsets");
      });
    }
  }
}

TYPED_TEST(DeformRoiPool, SlicesAndThreadOrdersChangeNoBit) {
  for (bool channels_last : {false, true}) {
    Problem p = make(2, 39, 9, 11, 3, 3, some_boxes(12, 2, 9, 11, 9));
    p.shape.channels_last = channels_last;
    const Result whole = on_cpu<Isa::kBaseline, TypeParam>(p, true);
    const Result sliced = on_cpu<Isa::kBaseline, TypeParam>(p, false);
    EXPECT_EQ(whole.output, sliced.output);
    EXPECT_EQ(whole.grad_input, sliced.grad_input);
    EXPECT_EQ(whole.grad_offset, sliced.grad_offset);
    const Result first = on_emulation<TypeParam>(p, 1);
    for (uint64_t seed = 2; seed < 6; ++seed) {
      const Result other = on_emulation<TypeParam>(p, seed);
      EXPECT_EQ(first.output, other.output) << "seed " << seed;
      EXPECT_EQ(first.grad_input, other.grad_input) << "seed " << seed;
      EXPECT_EQ(first.grad_offset, other.grad_offset) << "seed " << seed;
    }
  }
}

}  // namespace
