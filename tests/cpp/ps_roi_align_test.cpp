// Position-sensitive RoI Align without torch: CPU kernels of every instruction set and the emulated CUDA kernels against
// numbers worked by hand, against plain loops in double precision, and against each other.
#include "kernels/ps_roi_align/ps_roi_align.h"

#include "roi_problem.h"

namespace {

using namespace cvk;
using namespace cvk::test;

struct Op {
  template <class T>
  using Params = PsRoiAlignParams<T>;

  template <Isa isa, class P>
  static int64_t layout(P& p) {
    return ps_roi_align_layout_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void plan(const P& p, int64_t first, int64_t last) {
    ps_roi_align_plan_cpu<isa>(p, first, last);
  }
  template <Isa isa, class P>
  static int64_t forward_items(const P& p) {
    return ps_roi_align_forward_items_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void forward(const P& p, int64_t first, int64_t last) {
    ps_roi_align_forward_cpu<isa>(p, first, last);
  }
  template <Isa isa, class P>
  static int64_t backward_items(const P& p) {
    return ps_roi_align_backward_items_cpu<isa>(p);
  }
  template <Isa isa, class P>
  static void backward(const P& p, int64_t first, int64_t last) {
    ps_roi_align_backward_cpu<isa>(p, first, last);
  }
  template <class P>
  static int64_t scratch(const P&) {
    return 0;
  }
  template <class P>
  static CudaStatus forward_cuda(const P& p, void*) {
    return ps_roi_align_forward_cuda(p, nullptr);
  }
  template <class P>
  static CudaStatus backward_cuda(const P& p) {
    return ps_roi_align_backward_cuda(p, nullptr);
  }
  template <class P>
  static void set_indices(P&, int32_t*, bool) {}
};

// ---- The definition, in plain loops

Result by_definition(const Problem& p) {
  const RoiShape& s = p.shape;
  Result result{std::vector<double>(p.outputs()), std::vector<double>(p.inputs())};
  for (int64_t k = 0; k < s.boxes; ++k) {
    const double* box = &p.boxes[k * 5];
    if (!(box[0] > -1 && box[0] < s.batch) || s.pixels() == 0) continue;
    const double x1 = box[1] * s.spatial_scale - 0.5, y1 = box[2] * s.spatial_scale - 0.5;
    const double bin_h = (box[4] - box[2]) * s.spatial_scale / s.pooled_height;
    const double bin_w = (box[3] - box[1]) * s.spatial_scale / s.pooled_width;
    const auto grid = [&](double bin) {
      return s.sampling_ratio > 0 ? s.sampling_ratio : static_cast<int>(std::ceil(bin));
    };
    const int gy = grid(bin_h), gx = grid(bin_w);
    for (int64_t at = 0; at < p.out_channels * s.bins(); ++at) {  // the value's place is its channel
      const int i = static_cast<int>(at % s.bins()) / s.pooled_width, j = static_cast<int>(at % s.pooled_width);
      const int64_t plane = (static_cast<int64_t>(box[0]) * s.channels + at) * s.pixels();
      const double share = 1.0 / std::max(gy * gx, 1);
      for (int iy = 0; iy < gy; ++iy) {
        for (int ix = 0; ix < gx; ++ix) {
          double y = y1 + i * bin_h + (iy + 0.5) * bin_h / gy, x = x1 + j * bin_w + (ix + 0.5) * bin_w / gx;
          if (!(y >= -1 && y <= s.height && x >= -1 && x <= s.width)) continue;
          y = std::min(std::max(y, 0.0), s.height - 1.0);
          x = std::min(std::max(x, 0.0), s.width - 1.0);
          const int y0 = static_cast<int>(y), x0 = static_cast<int>(x);
          for (int dy = 0; dy < 2; ++dy) {
            for (int dx = 0; dx < 2; ++dx) {
              const double weight = (dy ? y - y0 : 1 - (y - y0)) * (dx ? x - x0 : 1 - (x - x0)) * share;
              if (weight == 0) continue;
              const int64_t pixel = plane + (y0 + dy) * s.width + x0 + dx;
              result.output[k * s.channels + at] += weight * p.input[pixel];
              result.grad_input[pixel] += weight * p.grad_output[k * s.channels + at];
            }
          }
        }
      }
    }
  }
  return result;
}

template <class T>
class PsRoiAlign : public ::testing::Test {};
using Types = ::testing::Types<half_t, bfloat16_t, float, double>;
TYPED_TEST_SUITE(PsRoiAlign, Types);

// ---- By hand

TYPED_TEST(PsRoiAlign, EachBinHasAChannelOfItsOwn) {
  // Channel c is 100 c + 10 y + x. Box (1, 1)-(5, 5) in 2 x 2 bins: bin (i, j) is centred on (2 i + 1.5, 2 j + 1.5).
  Problem p = make(1, 4, 1, 8, 8, 2, 2, {{0, 1, 1, 5, 5}});
  for (int i = 0; i < 4 * 64; ++i) p.input[i] = (100 * (i / 64) + 10 * (i / 8 % 8) + i % 8) / 4.0;
  for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
    expect_near(r.output, {16.5 / 4, 118.5 / 4, 236.5 / 4, 338.5 / 4}, tolerance<TypeParam>(), name);
  });
}

TYPED_TEST(PsRoiAlign, BadBoxesAreZeros) {
  Problem p = make(2, 4, 1, 5, 6, 2, 2,
                   {{0, kNan, 0, 4, 4}, {1, 0, 0, kInf, 4}, {0, -kInf, -kInf, kInf, kInf}, {1, 1, 1, 5, 5}});
  for (double& value : p.input) value = std::fabs(value) + 1;
  for (int ratio : {0, 2}) {
    p.shape.sampling_ratio = ratio;
    for_each_backend<Op, TypeParam>(p, [&](const Result& r, const char* name) {
      for (int i = 0; i < 3 * 4; ++i) EXPECT_EQ(r.output[i], 0) << name;
      for (int i = 3 * 4; i < 4 * 4; ++i) EXPECT_GT(r.output[i], 0) << name;
      for (int i = 0; i < 4 * 30; ++i) EXPECT_EQ(r.grad_input[i], 0) << name;
    });
  }
}

TYPED_TEST(PsRoiAlign, BadImageIndex) { expect_bad_image_index_is_harmless<Op, TypeParam>(8, 2, by_definition); }

// ---- Against the definition

struct Setting {
  const char* name;
  int64_t n, out;
  int h, w, ph, pw, boxes, ratio;
};

// Bins are powers of two and boxes whole, so that a bin's size is exact in float32.
const Setting kSettings[] = {{"small", 2, 3, 5, 6, 2, 2, 4, 2},       {"one channel", 1, 1, 7, 4, 1, 1, 5, 1},
                             {"groups", 1, 15, 6, 5, 2, 1, 3, 2},     {"many", 1, 37, 4, 5, 1, 2, 3, 2},
                             {"wide", 1, 2, 3, 40, 1, 8, 3, 4},       {"adaptive", 2, 5, 9, 8, 2, 4, 5, 0},
                             {"one pixel", 2, 2, 1, 1, 2, 2, 3, 2},   {"no boxes", 2, 3, 4, 4, 2, 2, 0, 2},
                             {"no channels", 2, 0, 4, 4, 2, 2, 2, 2}, {"no rows", 1, 2, 0, 4, 2, 2, 2, 2},
                             {"crowd", 1, 2, 6, 6, 2, 2, 40, 2},      {"bins", 1, 1, 9, 9, 1, 128, 2, 2}};

TYPED_TEST(PsRoiAlign, EqualsTheDefinition) {
  for (const Setting& s : kSettings) {
    for (bool channels_last : {false, true}) {
      Problem p = make(s.n, s.out * s.ph * s.pw, s.out, s.h, s.w, s.ph, s.pw, some_boxes(s.boxes, s.n, s.h, s.w, 5));
      p.shape.sampling_ratio = s.ratio;
      p.shape.channels_last = channels_last;
      const Result expected = by_definition(p);
      for_each_backend<Op, TypeParam>(p, [&](const Result& actual, const char* backend) {
        const std::string what = std::string(s.name) + ", " + backend + (channels_last ? ", channels last" : "");
        expect_near(actual.output, expected.output, tolerance<TypeParam>(), what + ", output");
        expect_near(actual.grad_input, expected.grad_input, tolerance<TypeParam>(), what + ", gradient");
      });
    }
  }
}

TYPED_TEST(PsRoiAlign, SlicesAndThreadOrdersChangeNoBit) {
  expect_order_changes_no_bit<Op, TypeParam>(make(2, 45, 5, 9, 11, 3, 3, some_boxes(12, 2, 9, 11, 9)));
}

}  // namespace
