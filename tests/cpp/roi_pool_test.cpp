// RoI Pool without torch: CPU kernels of every instruction set and the emulated CUDA kernels against numbers worked by hand,
// against plain loops in double precision, and against each other.
#include "kernels/roi_pool/roi_pool.h"

#include "roi_problem.h"

namespace {

using namespace cvk;
using namespace cvk::test;

template <class I>
struct OpOf {
  using Index = I;
  template <class T>
  using Params = RoiPoolParams<T>;

  template <Isa isa, class P>
  static int64_t layout(P& p) {
    return roi_pool_layout_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void plan(const P& p, int64_t first, int64_t last) {
    roi_pool_plan_cpu<isa>(p, first, last);
  }
  template <Isa isa, class P>
  static int64_t forward_items(P& p) {
    return roi_pool_forward_items_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void forward(const P& p, int64_t first, int64_t last) {
    roi_pool_forward_cpu<isa>(p, first, last);
  }
  template <Isa isa, class P>
  static int64_t backward_items(const P& p) {
    return roi_pool_backward_items_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void backward(const P& p, int64_t first, int64_t last) {
    roi_pool_backward_cpu<isa>(p, first, last);
  }
  template <class P>
  static int64_t scratch(const P& p) {
    return roi_pool_forward_scratch_cuda(p);
  }
  template <class P>
  static CudaStatus forward_cuda(const P& p, void* scratch) {
    return roi_pool_forward_cuda(p, scratch, nullptr);
  }
  template <class P>
  static CudaStatus backward_cuda(const P& p) {
    return roi_pool_backward_cuda(p, nullptr);
  }
  template <class P>
  static void set_indices(P& p, Index* argmax, bool backward) {
    if (backward) {
      p.saved_argmax = {argmax, sizeof(Index) == 2};
    } else {
      p.argmax = {argmax, sizeof(Index) == 2};
    }
  }
};
using Op = OpOf<int32_t>;

// ---- The definition, in plain loops

struct Range {
  int first, last;
};

Range range_of(double low, double high, double scale, int bin, int bins, int extent) {
  const double from = std::round(low * scale), to = std::round(high * scale);
  if (!std::isfinite(from) || !std::isfinite(to)) return {0, 0};
  const double size = std::max(to - from + 1, 1.0);
  const double first = std::floor(bin * (size / bins)) + from, last = std::ceil((bin + 1) * (size / bins)) + from;
  const auto clip = [&](double at) { return static_cast<int>(std::min(std::max(at, 0.0), double(extent))); };
  return {clip(first), clip(last)};
}

Result by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  Result result{std::vector<double>(p.outputs()), std::vector<double>(p.inputs())};
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 5];
    if (!(box[0] > -1 && box[0] < s.batch)) continue;
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t plane = (static_cast<int64_t>(box[0]) * s.channels + c) * s.pixels();
      for (int i = 0; i < s.pooled_height; ++i) {
        for (int j = 0; j < s.pooled_width; ++j) {
          const int64_t at = ((k * s.channels + c) * s.pooled_height + i) * s.pooled_width + j;
          const Range ys = range_of(box[2], box[4], s.spatial_scale, i, s.pooled_height, s.height);
          const Range xs = range_of(box[1], box[3], s.spatial_scale, j, s.pooled_width, s.width);
          int64_t best = -1;
          for (int y = ys.first; y < ys.last; ++y) {
            for (int x = xs.first; x < xs.last; ++x) {
              const int64_t pixel = plane + y * s.width + x;
              if (best < 0 || p.input[pixel] > p.input[best]) best = pixel;
            }
          }
          if (best < 0) continue;
          result.output[at] = p.input[best];
          result.grad_input[best] += p.grad_output[at];
        }
      }
    }
  }
  return result;
}

template <class T>
class RoiPool : public ::testing::Test {};
using Types = ::testing::Types<half_t, bfloat16_t, float, double>;
TYPED_TEST_SUITE(RoiPool, Types);

Problem make(int64_t n, int64_t c, int h, int w, int ph, int pw, const std::vector<std::vector<double>>& boxes) {
  return cvk::test::make(n, c, c, h, w, ph, pw, boxes);
}

// ---- By hand

TYPED_TEST(RoiPool, BinsShareAPixel) {
  // Map 10 y + x. Box (1, 1)-(5, 5): 5 pixels in 2 bins, [1, 4) and [3, 6).
  Problem p = make(1, 1, 8, 8, 2, 2, {{0, 1, 1, 5, 5}});
  for (int i = 0; i < 64; ++i) p.input[i] = 10 * (i / 8) + i % 8;
  p.grad_output = {1, 2, 3, 4};
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output, (std::vector<double>{33, 35, 53, 55})) << name;
    EXPECT_EQ(r.grad_input[3 * 8 + 3], 1) << name;
    EXPECT_EQ(r.grad_input[5 * 8 + 5], 4) << name;
  });
}

TYPED_TEST(RoiPool, TheFirstOfEqualMaximaTakesTheGradient) {
  Problem p = make(1, 1, 3, 3, 1, 1, {{0, 0, 0, 2, 2}});
  p.input = {0, 1, 2, 1, 0, 2, 2, 1, 0};
  p.grad_output = {4};
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output[0], 2) << name;
    EXPECT_EQ(r.grad_input, (std::vector<double>{0, 0, 4, 0, 0, 0, 0, 0, 0})) << name;
  });
}

TYPED_TEST(RoiPool, TheFirstNanWins) {
  Problem p = make(1, 21, 3, 3, 1, 1, {{0, 0, 0, 2, 2}});
  std::fill(p.input.begin(), p.input.end(), kInf);
  for (int c = 0; c < 21; c += 2) p.input[c * 9 + 4] = p.input[c * 9 + 7] = kNan;
  std::fill(p.grad_output.begin(), p.grad_output.end(), 1.0);
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    for (int c = 0; c < 21; ++c) {
      if (c % 2 == 0) {
        EXPECT_TRUE(std::isnan(r.output[c])) << name;
        EXPECT_EQ(r.grad_input[c * 9 + 4], 1) << name;
      } else {
        EXPECT_EQ(r.output[c], kInf) << name;
        EXPECT_EQ(r.grad_input[c * 9], 1) << name;
      }
    }
  });
}

TYPED_TEST(RoiPool, BadBoxesAreZeros) {
  Problem p =
      make(2, 3, 5, 6, 2, 2, {{0, kNan, 0, 4, 4}, {1, 0, 0, kInf, 4}, {0, -kInf, -kInf, kInf, kInf}, {1, 1, 1, 5, 5}});
  for (double& value : p.input) value = std::fabs(value) + 1;
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    for (int i = 0; i < 3 * 12; ++i) EXPECT_EQ(r.output[i], 0) << name;
    for (int i = 3 * 12; i < 4 * 12; ++i) EXPECT_GT(r.output[i], 0) << name;
    for (int i = 0; i < 3 * 30; ++i) EXPECT_EQ(r.grad_input[i], 0) << name;
  });
}

TYPED_TEST(RoiPool, BadImageIndex) { expect_bad_image_index_is_harmless<Op, TypeParam>(2, 2, by_definition); }

template <class Index, class T>
void expect_foreign_indices_are_dropped() {
  const Problem p = make(1, 2, 4, 4, 1, 2, {{0, 0, 0, 3, 3}});
  const std::vector<Index> foreign{std::numeric_limits<Index>::min(), 16, 5, std::numeric_limits<Index>::max()};
  for (bool channels_last : {false, true}) {
    Problem q = p;
    q.shape.channels_last = channels_last;
    Buffers<OpOf<Index>, T> cpu(q), gpu(q);
    for (auto* buffers : {&cpu, &gpu}) {
      for (int i = 0; i < 4; ++i) buffers->argmax[buffers->output_at[i]] = foreign[i];
    }
    pass_on_cpu<OpOf<Index>, Isa::kBaseline>(cpu, true, true);
    EXPECT_EQ(OpOf<Index>::backward_cuda(gpu.params(true)), 0) << emulation::last_error_message();
    std::vector<double> expected(32);
    expected[16 + 5] = p.grad_output[2];
    EXPECT_EQ(cpu.result().grad_input, expected);
    EXPECT_EQ(gpu.result().grad_input, expected);
  }
}

TYPED_TEST(RoiPool, ForeignIndicesAreDropped) {
  expect_foreign_indices_are_dropped<int16_t, TypeParam>();
  expect_foreign_indices_are_dropped<int32_t, TypeParam>();
}

// ---- Against the definition

struct Setting {
  const char* name;
  int64_t n, c;
  int h, w, ph, pw, boxes;
};

// Bins are powers of two and boxes whole, so that a bin's size is exact in float32.
const Setting kSettings[] = {{"small", 2, 3, 5, 6, 2, 2, 4},       {"one channel", 1, 1, 7, 4, 4, 2, 5},
                             {"channels", 1, 37, 4, 5, 2, 1, 3},   {"wide", 1, 2, 3, 40, 1, 8, 3},
                             {"one pixel", 2, 2, 1, 1, 2, 2, 3},   {"no boxes", 2, 3, 4, 4, 2, 2, 0},
                             {"no channels", 2, 0, 4, 4, 2, 2, 2}, {"no rows", 1, 2, 0, 4, 2, 2, 2},
                             {"crowd", 1, 2, 6, 6, 2, 2, 40},      {"many bins", 1, 2, 9, 9, 16, 256, 2}};

TYPED_TEST(RoiPool, EqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    for (bool channels_last : {false, true}) {
      Problem p = make(s.n, s.c, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
      p.shape.channels_last = channels_last;
      const Result expected = by_definition(p);
      for_each_backend<Op, TypeParam>(p, [&](const Result& actual, const char* backend) {
        const std::string what = std::string(s.name) + ", " + backend + (channels_last ? ", channels last" : "");
        EXPECT_EQ(actual.output, expected.output) << what;
        expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), what + ", gradient");
      });
    }
  }
}

TYPED_TEST(RoiPool, WidthOfIndicesChangesNoBit) {
  for (int channels : {1, 19, 64}) {
    expect_width_changes_no_bit<OpOf, TypeParam>(make(2, channels, 9, 11, 5, 7, some_boxes(6, 2, 9, 11, 4)));
  }
}

TYPED_TEST(RoiPool, SlicesAndThreadOrdersChangeNoBit) {
  expect_order_changes_no_bit<Op, TypeParam>(make(2, 19, 9, 11, 3, 3, some_boxes(12, 2, 9, 11, 9)));
}

}  // namespace
