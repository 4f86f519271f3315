// conv_transpose2d without torch: CPU kernels of every instruction set and the emulated CUDA kernels against the definition in
// plain loops, bit for bit, in every layout and dtype.
#include "kernels/conv_transpose2d/conv_transpose2d.h"

#include "emulation/runtime_api.h"
#include "tests/cpp/convolution.h"

namespace {

using namespace cvk;

template <class T>
class ConvTranspose2dTest : public testing::Test {};
using Types = testing::Types<float, double, half_t, bfloat16_t>;
TYPED_TEST_SUITE(ConvTranspose2dTest, Types);

template <class T>
struct Buffers {
  Buffers(const ConvProblem& p, const ConvShape& s, bool with_bias)
      : shape(s),
        input(conv_tensor<T>(p.grad, s.batch, s.filters, s.out_pixels(), s.channels_last)),
        weight(conv_tensor<T>(p.weight, s.filters, s.group_channels(), s.kernel_size(), s.weight_channels_last)),
        bias(conv_tensor<T>(p.input_bias, 1, s.channels, 1, false)),
        output(conv_nans<T>(p.input.size())),
        with_bias(with_bias) {
    std::vector<double> values = p.back;
    if (with_bias) {
      for (size_t i = 0; i < values.size(); ++i) values[i] += p.input_bias[i / s.pixels() % s.channels];
    }
    expected = conv_tensor<T>(values, s.batch, s.channels, s.pixels(), s.channels_last);
  }
  ConvTranspose2dParams<T> params() {
    return {shape, input.data(), weight.data(), with_bias ? bias.data() : nullptr, output.data(), {}};
  }

  ConvShape shape;
  std::vector<T> input, weight, bias, output, expected;
  bool with_bias;
};

template <class T>
void expect_cpu_equals_the_definition(const std::vector<ConvShape>& shapes, uint64_t seed) {
  for (const ConvShape& any : shapes) {
    const ConvProblem problem(any, ++seed);
    if (problem.input.empty()) continue;
    for_each_layout(any, [&](const ConvShape& shape) {
      for_each_isa([&](auto isa) {
        for (const int threads : {1, 5}) {
          Buffers<T> buffers(problem, shape, seed % 2 == 0);
          ConvTranspose2dParams<T> params = buffers.params();
          in_slices(conv_transpose2d_items_cpu<isa.value>(params, threads), threads == 1,
                    [&](int64_t first, int64_t last) { conv_transpose2d_cpu<isa.value>(params, first, last); });
          std::ostringstream what;
          what << shape << ", " << isa_name(isa.value) << ", " << threads << " threads";
          expect_equal(buffers.output, buffers.expected, what.str());
        }
      });
    });
  }
}

TYPED_TEST(ConvTranspose2dTest, CpuEqualsTheDefinition) {
  expect_cpu_equals_the_definition<TypeParam>(conv_shapes(), 0);
}

TYPED_TEST(ConvTranspose2dTest, CpuEqualsTheDefinitionOnPlanes) {
  expect_cpu_equals_the_definition<TypeParam>(plane_map_shapes(), 300);
}

TYPED_TEST(ConvTranspose2dTest, CpuEqualsTheDefinitionOfFewPixels) {
  expect_cpu_equals_the_definition<TypeParam>(few_pixels_shapes(), 500);
}

TYPED_TEST(ConvTranspose2dTest, CpuEqualsTheDefinitionOfPairedPhases) {
  expect_cpu_equals_the_definition<TypeParam>(paired_shapes(), 600);
}

TYPED_TEST(ConvTranspose2dTest, EmulatedCudaEqualsTheDefinition) {
  uint64_t seed = 0;
  for (const ConvShape& any : conv_shapes()) {
    const ConvProblem problem(any, ++seed);
    if (problem.input.empty()) continue;
    emulation::set_seed(seed);
    for_each_layout(any, [&](const ConvShape& shape) {
      Buffers<TypeParam> buffers(problem, shape, seed % 2 == 0);
      ConvTranspose2dParams<TypeParam> params = buffers.params();
      std::vector<char> scratch(conv_transpose2d_scratch_cuda(params));
      ASSERT_EQ(conv_transpose2d_cuda(params, scratch.data(), nullptr), 0) << emulation::last_error_message();
      std::ostringstream what;
      what << shape;
      expect_equal(buffers.output, buffers.expected, what.str());
    });
  }
}

// A map of one pixel and a kernel of powers of ten: what is painted where, by hand.
TEST(ConvTranspose2d, StrideAboveTheKernelLeavesGaps) {
  const std::vector<float> input = {1, 2}, weight = {1, 10}, bias = {0.5f};
  std::vector<float> output(6, -1);
  ConvShape shape = conv_shape(1, 1, 1, 6, 1, 1, 2, 4);
  ASSERT_EQ(shape.out_width, 2);
  ConvTranspose2dParams<float> params{shape, input.data(), weight.data(), bias.data(), output.data(), {}};
  in_slices(conv_transpose2d_items_cpu<Isa::kBaseline>(params, 1), true,
            [&](int64_t first, int64_t last) { conv_transpose2d_cpu<Isa::kBaseline>(params, first, last); });
  EXPECT_EQ(output, (std::vector<float>{1.5f, 10.5f, 0.5f, 0.5f, 2.5f, 20.5f}));
}

}  // namespace
