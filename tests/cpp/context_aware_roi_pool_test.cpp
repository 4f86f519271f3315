// Context-aware RoI Pool without torch: CPU kernels of every instruction set and the emulated CUDA kernels against numbers worked by hand,
// against plain loops in double precision, and against each other.
#include "kernels/context_aware_roi_pool/context_aware_roi_pool.h"

#include "roi_problem.h"

namespace {

using namespace cvk;
using namespace cvk::test;

template <class I>
struct OpOf {
  using Index = I;
  template <class T>
  using Params = ContextAwareRoiPoolParams<T>;

  template <Isa isa, class P>
  static int64_t layout(P& p) {
    return context_aware_roi_pool_layout_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void plan(const P& p, int64_t first, int64_t last) {
    context_aware_roi_pool_plan_cpu<isa>(p, first, last);
  }
  template <Isa isa, class P>
  static int64_t forward_items(P& p) {
    return context_aware_roi_pool_forward_items_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void forward(const P& p, int64_t first, int64_t last) {
    context_aware_roi_pool_forward_cpu<isa>(p, first, last);
  }
  template <Isa isa, class P>
  static int64_t backward_items(const P& p) {
    return context_aware_roi_pool_backward_items_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void backward(const P& p, int64_t first, int64_t last) {
    context_aware_roi_pool_backward_cpu<isa>(p, first, last);
  }
  template <class P>
  static int64_t scratch(const P& p) {
    return context_aware_roi_pool_forward_scratch_cuda(p);
  }
  template <class P>
  static CudaStatus forward_cuda(const P& p, void* scratch) {
    return context_aware_roi_pool_forward_cuda(p, scratch, nullptr);
  }
  template <class P>
  static CudaStatus backward_cuda(const P& p) {
    return context_aware_roi_pool_backward_cuda(p, nullptr);
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

// What the cells of an axis take from its pixels, and the cells of its bins.
struct Axis {
  std::vector<std::vector<double>> taps;  // [cells on the map][extent]
  std::vector<int> first, last;           // [bins]

  Axis(double low, double high, double scale, int bins, int extent) : first(bins), last(bins) {
    const double from = std::round(low * scale), to = std::round(high * scale);
    if (!std::isfinite(from) || !std::isfinite(to)) return;
    const double size = std::max(to - from + 1, 1.0);
    const auto clip = [](double at, double most) { return static_cast<int>(std::min(std::max(at, 0.0), most)); };
    const int begin = clip(from, extent), end = clip(from + size, extent);
    const int factor = size < bins ? static_cast<int>(std::ceil(bins / size)) : 1;
    for (int cell = 0; cell < (end - begin) * factor; ++cell) {
      const double at = std::min(std::max(begin + (cell + 0.5) / factor - 0.5, double(begin)), double(end - 1));
      taps.emplace_back(extent);
      for (int pixel = begin; pixel < end; ++pixel) taps.back()[pixel] = std::max(0.0, 1 - std::fabs(at - pixel));
    }
    for (int bin = 0; bin < bins; ++bin) {
      const double share = size * factor / bins, shift = (from - begin) * factor;
      first[bin] = clip(std::floor(bin * share) + shift, static_cast<double>(taps.size()));
      last[bin] = clip(std::ceil((bin + 1) * share) + shift, static_cast<double>(taps.size()));
    }
  }
};

Result by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  Result result{std::vector<double>(p.outputs()), std::vector<double>(p.inputs())};
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 5];
    if (!(box[0] > -1 && box[0] < s.batch)) continue;
    const Axis ys(box[2], box[4], s.spatial_scale, s.pooled_height, s.height);
    const Axis xs(box[1], box[3], s.spatial_scale, s.pooled_width, s.width);
    const auto for_each_pixel = [&](int row, int column, auto&& f) {
      for (int y = 0; y < s.height; ++y) {
        for (int x = 0; x < s.width; ++x) {
          const double weight = ys.taps[row][y] * xs.taps[column][x];
          if (weight != 0) f(y * s.width + x, weight);
        }
      }
    };
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t plane = (static_cast<int64_t>(box[0]) * s.channels + c) * s.pixels();
      for (int i = 0; i < s.pooled_height; ++i) {
        for (int j = 0; j < s.pooled_width; ++j) {
          const int64_t at = ((k * s.channels + c) * s.pooled_height + i) * s.pooled_width + j;
          int best_row = -1, best_column = -1;
          for (int row = ys.first[i]; row < ys.last[i]; ++row) {
            for (int column = xs.first[j]; column < xs.last[j]; ++column) {
              double value = 0;
              for_each_pixel(row, column, [&](int pixel, double weight) { value += weight * p.input[plane + pixel]; });
              // Values are of some eighths: what differs by less differs by rounding, and the earlier cell stays.
              if (best_row >= 0 && !(value > result.output[at] + 1e-9)) continue;
              result.output[at] = value;
              best_row = row;
              best_column = column;
            }
          }
          if (best_row < 0) continue;
          for_each_pixel(best_row, best_column, [&](int pixel, double weight) {
            result.grad_input[plane + pixel] += weight * p.grad_output[at];
          });
        }
      }
    }
  }
  return result;
}

template <class T>
class ContextAwareRoiPool : public ::testing::Test {};
using Types = ::testing::Types<half_t, bfloat16_t, float, double>;
TYPED_TEST_SUITE(ContextAwareRoiPool, Types);

Problem make(int64_t n, int64_t c, int h, int w, int ph, int pw, const std::vector<std::vector<double>>& boxes) {
  return cvk::test::make(n, c, c, h, w, ph, pw, boxes);
}

// ---- By hand

TYPED_TEST(ContextAwareRoiPool, ASmallBoxIsEnlarged) {
  // Two pixels in four bins: cells 0, 2, 6, 8. Their gradient goes back by the same quarters.
  Problem p = make(1, 1, 1, 3, 1, 4, {{0, 0, 0, 1, 0}});
  p.input = {0, 8, 100};
  p.grad_output = {1, 2, 4, 8};
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output, (std::vector<double>{0, 2, 6, 8})) << name;
    EXPECT_EQ(r.grad_input, (std::vector<double>{3.5, 11.5, 0})) << name;
  });
}

TYPED_TEST(ContextAwareRoiPool, TheFirstOfEqualCellsTakesTheGradient) {
  // Cells 0, 2, 6, 6, 2, 0 in five bins of 6/5: the middle one has cells 2 and 3.
  Problem p = make(1, 1, 1, 3, 1, 5, {{0, 0, 0, 2, 0}});
  p.input = {0, 8, 0};
  p.grad_output = {0, 0, 4, 0, 0};
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    EXPECT_EQ(r.output, (std::vector<double>{2, 6, 6, 6, 2})) << name;
    EXPECT_EQ(r.grad_input, (std::vector<double>{1, 3, 0})) << name;
  });
}

TYPED_TEST(ContextAwareRoiPool, NanReachesTheCellsThatItHasAPartIn) {
  Problem p = make(1, 21, 1, 4, 1, 12, {{0, 0, 0, 3, 0}});
  std::fill(p.input.begin(), p.input.end(), 1.0);
  for (int c = 0; c < 21; c += 2) p.input[c * 4 + 2] = kNan;
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    for (int c = 0; c < 21; ++c) {
      for (int i = 0; i < 12; ++i) {
        EXPECT_EQ(std::isnan(r.output[c * 12 + i]), c % 2 == 0 && i >= 5 && i < 10) << name << ", " << c << ", " << i;
      }
    }
  });
}

TYPED_TEST(ContextAwareRoiPool, BadBoxesAreZeros) {
  Problem p =
      make(2, 3, 5, 6, 4, 4, {{0, kNan, 0, 4, 4}, {1, 0, 0, kInf, 4}, {0, -kInf, -kInf, kInf, kInf}, {1, 1, 1, 2, 5}});
  for (double& value : p.input) value = std::fabs(value) + 1;
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    for (int i = 0; i < 3 * 48; ++i) EXPECT_EQ(r.output[i], 0) << name;
    for (int i = 3 * 48; i < 4 * 48; ++i) EXPECT_GT(r.output[i], 0) << name;
    for (int i = 0; i < 3 * 30; ++i) EXPECT_EQ(r.grad_input[i], 0) << name;
  });
}

TYPED_TEST(ContextAwareRoiPool, BadImageIndex) {
  expect_bad_image_index_is_harmless<Op, TypeParam>(2, 2, by_definition);
}

template <class Index, class T>
void expect_foreign_indices_are_dropped() {
  // A bin of the enlarged box has one cell across and two down.
  const Problem p = make(1, 2, 4, 4, 1, 4, {{0, 0, 0, 1, 1}});
  const std::vector<Index> foreign{
      std::numeric_limits<Index>::min(), 2, -1, std::numeric_limits<Index>::max(), 0, 100, -2, 1};
  for (bool channels_last : {false, true}) {
    Problem q = p;
    q.shape.channels_last = channels_last;
    Buffers<OpOf<Index>, T> cpu(q), gpu(q);
    for (auto* buffers : {&cpu, &gpu}) {
      for (int i = 0; i < 8; ++i) buffers->argmax[buffers->output_at[i]] = foreign[i];
    }
    pass_on_cpu<OpOf<Index>, Isa::kBaseline>(cpu, true, true);
    EXPECT_EQ(OpOf<Index>::backward_cuda(gpu.params(true)), 0) << emulation::last_error_message();
    std::vector<double> expected(32);
    expected[16] = p.grad_output[4];
    expected[16 + 5] = p.grad_output[7];
    EXPECT_EQ(cpu.result().grad_input, expected);
    EXPECT_EQ(gpu.result().grad_input, expected);
  }
}

TYPED_TEST(ContextAwareRoiPool, ForeignIndicesAreDropped) {
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
const Setting kSettings[] = {
    {"small", 2, 3, 5, 6, 4, 8, 4},       {"one channel", 1, 1, 7, 4, 4, 2, 5}, {"channels", 1, 37, 4, 5, 4, 4, 3},
    {"wide", 1, 2, 3, 40, 1, 8, 3},       {"one pixel", 2, 2, 1, 1, 2, 4, 3},   {"no boxes", 2, 3, 4, 4, 2, 2, 0},
    {"no channels", 2, 0, 4, 4, 2, 2, 2}, {"no rows", 1, 2, 0, 4, 2, 2, 2},     {"crowd", 1, 2, 6, 6, 4, 4, 40}};

template <class T>
void expect_the_definition(const Problem& p, const char* name) {
  const Result expected = by_definition(p);
  for_each_backend<Op, T>(p, [&](const Result& actual, const char* backend) {
    const std::string what = std::string(name) + ", " + backend + (p.shape.channels_last ? ", channels last" : "");
    expect_near(actual.output, expected.output, tolerance<T>(), what);
    expect_near(actual.grad_input, expected.grad_input, tolerance<T>(), what + ", gradient");
  });
}

TYPED_TEST(ContextAwareRoiPool, EqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    for (bool channels_last : {false, true}) {
      Problem p = make(s.n, s.c, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
      p.shape.channels_last = channels_last;
      expect_the_definition<TypeParam>(p, s.name);
    }
  }
}

TYPED_TEST(ContextAwareRoiPool, EqualsTheDefinitionWithManyBins) {
  // More bins than shared memory has room for, and factors of any size. Neighbours are not equal: of the cells between equal
  // pixels rounding says which is the greatest.
  Problem p = make(1, 2, 9, 9, 16, 256, some_boxes(2, 1, 9, 9, 5));
  Random random(3);
  for (int i = 0; i < 2 * 81; ++i) p.input[i] = 9 * random.whole(0, 16) + 3 * (i / 9 % 3) + i % 3;
  for (bool channels_last : {false, true}) {
    p.shape.channels_last = channels_last;
    expect_the_definition<TypeParam>(p, "many bins");
  }
}

TYPED_TEST(ContextAwareRoiPool, WidthOfIndicesChangesNoBit) {
  for (int channels : {1, 19, 64}) {
    expect_width_changes_no_bit<OpOf, TypeParam>(make(2, channels, 9, 11, 5, 7, some_boxes(6, 2, 9, 11, 4)));
  }
}

TYPED_TEST(ContextAwareRoiPool, SlicesAndThreadOrdersChangeNoBit) {
  expect_order_changes_no_bit<Op, TypeParam>(make(2, 19, 9, 11, 7, 7, some_boxes(12, 2, 9, 11, 9)));
}

}  // namespace
