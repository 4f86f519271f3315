// im2col and its adjoint without torch: CPU kernels of every instruction set and the emulated CUDA kernels against plain loops.
#include "kernels/im2col/im2col.h"

#include "emulation/runtime_api.h"
#include "tests/cpp/convolution.h"

namespace {

using namespace cvk;

template <class T>
class Im2colTest : public testing::Test {};
using Types = testing::Types<float, double, half_t, bfloat16_t>;
TYPED_TEST_SUITE(Im2colTest, Types);

struct Problem {
  explicit Problem(const ConvShape& s, uint64_t seed) : shape(s) {
    Random random(seed);
    map = random.eighths(s.batch * s.channels * s.pixels());
    given = random.eighths(s.batch * s.channels * s.kernel_size() * s.out_pixels());
    columns.resize(given.size());
    sums.resize(map.size());
    int64_t at = 0;
    for (int64_t plane = 0; plane < s.batch * s.channels; ++plane) {
      for (int i = 0; i < s.kernel_height; ++i) {
        for (int j = 0; j < s.kernel_width; ++j) {
          for (int y = 0; y < s.out_height; ++y) {
            for (int x = 0; x < s.out_width; ++x, ++at) {
              const int v = y * s.stride_y - s.pad_top + i * s.dilation_y;
              const int u = x * s.stride_x - s.pad_left + j * s.dilation_x;
              if (v < 0 || v >= s.height || u < 0 || u >= s.width) continue;
              columns[at] = map[(plane * s.height + v) * s.width + u];
              sums[(plane * s.height + v) * s.width + u] += given[at];
            }
          }
        }
      }
    }
  }
  ConvShape shape;
  std::vector<double> map, given, columns, sums;
};

TYPED_TEST(Im2colTest, EqualsPlainLoops) {
  using T = TypeParam;
  uint64_t seed = 0;
  for (const ConvShape& any : conv_shapes()) {
    const Problem problem(any, ++seed);
    if (problem.map.empty()) continue;
    emulation::set_seed(seed);
    for (const bool last : {false, true}) {
      ConvShape s = any;
      s.channels_last = last;
      const auto map = conv_tensor<T>(problem.map, s.batch, s.channels, s.pixels(), last);
      const auto plain = [&](const std::vector<double>& values) {
        return conv_tensor<T>(values, 1, 1, static_cast<int64_t>(values.size()), false);
      };
      const auto given = plain(problem.given), columns = plain(problem.columns), sums = plain(problem.sums);
      std::ostringstream what;
      what << s;
      for (const bool at_once : {true, false}) {
        for_each_isa([&](auto isa) {
          auto result = conv_nans<T>(columns.size());
          const Im2colParams<T> forward{s, map.data(), result.data()};
          in_slices(im2col_items(forward), at_once,
                    [&](int64_t first, int64_t end) { im2col_cpu<isa.value>(forward, first, end); });
          expect_equal(result, columns, what.str() + isa_name(isa.value));
          auto back = conv_nans<T>(map.size());
          const Im2colParams<T> backward{s, given.data(), back.data()};
          in_slices(im2col_backward_items(backward), at_once,
                    [&](int64_t first, int64_t end) { im2col_backward_cpu<isa.value>(backward, first, end); });
          expect_equal(back, sums, what.str() + " back " + isa_name(isa.value));
        });
      }
      auto result = conv_nans<T>(columns.size());
      ASSERT_EQ(im2col_cuda(Im2colParams<T>{s, map.data(), result.data()}, nullptr), 0);
      expect_equal(result, columns, what.str());
      auto back = conv_nans<T>(map.size());
      ASSERT_EQ(im2col_backward_cuda(Im2colParams<T>{s, given.data(), back.data()}, nullptr), 0);
      expect_equal(back, sums, what.str());
    }
  }
}

}  // namespace
