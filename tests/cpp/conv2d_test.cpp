// conv2d without torch: CPU kernels of every instruction set and the emulated CUDA kernels against the definition in plain
// loops, bit for bit, in every layout and dtype.
#include "kernels/conv2d/conv2d.h"

#include <cmath>
#include <limits>

#include "emulation/runtime_api.h"
#include "tests/cpp/convolution.h"

namespace {

using namespace cvk;

template <class T>
class Conv2dTest : public testing::Test {};
using Types = testing::Types<float, double, half_t, bfloat16_t>;
TYPED_TEST_SUITE(Conv2dTest, Types);

// The tensors of a problem.
template <class T>
struct Buffers {
  explicit Buffers(const ConvProblem& p, const ConvShape& s, bool with_bias)
      : shape(s),
        input(conv_tensor<T>(p.input, s.batch, s.channels, s.pixels(), s.channels_last)),
        weight(conv_tensor<T>(p.weight, s.filters, s.group_channels(), s.kernel_size(), s.weight_channels_last)),
        grad(conv_tensor<T>(p.grad, s.batch, s.filters, s.out_pixels(), s.channels_last)),
        bias(conv_tensor<T>(p.bias, 1, s.filters, 1, false)),
        output(conv_nans<T>(p.grad.size())),
        grad_weight(conv_nans<T>(p.weight.size())),
        with_bias(with_bias) {
    std::vector<double> expected = p.output;
    if (with_bias) {
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += p.bias[i / s.out_pixels() % s.filters];
    }
    expected_output = conv_tensor<T>(expected, s.batch, s.filters, s.out_pixels(), s.channels_last);
    expected_weight =
        conv_tensor<T>(p.grad_weight, s.filters, s.group_channels(), s.kernel_size(), s.weight_channels_last);
  }
  Conv2dParams<T> params() {
    Conv2dParams<T> params{};
    params.shape = shape;
    params.input = input.data();
    params.weight = weight.data();
    params.bias = with_bias ? bias.data() : nullptr;
    params.output = output.data();
    params.grad_output = grad.data();
    params.grad_weight = grad_weight.data();
    return params;
  }
  void check(const std::string& what) {
    expect_equal(output, expected_output, what + ", output");
    expect_equal(grad_weight, expected_weight, what + ", weights");
  }

  ConvShape shape;
  std::vector<T> input, weight, grad, bias, output, grad_weight, expected_output, expected_weight;
  bool with_bias;
};

template <Isa isa, class T>
void run_on_cpu(Buffers<T>& buffers, int threads, bool at_once) {
  Conv2dParams<T> params = buffers.params();
  if (!buffers.output.empty()) {
    in_slices(conv2d_forward_items_cpu<isa>(params, threads), at_once,
              [&](int64_t first, int64_t last) { conv2d_forward_cpu<isa>(params, first, last); });
  }
  if (buffers.grad_weight.empty()) return;
  const int64_t items = conv2d_weight_items_cpu<isa>(params);
  std::vector<Acc<T>> partials(params.cut.parts > 1 ? params.cut.parts * params.shape.weights() : 0);
  if (params.cut.parts > 1) params.partials = partials.data();
  in_slices(items, at_once, [&](int64_t first, int64_t last) { conv2d_weight_cpu<isa>(params, first, last); });
  if (params.cut.parts > 1) {
    in_slices(params.shape.weights(), at_once,
              [&](int64_t first, int64_t last) { conv2d_weight_sum_cpu<isa>(params, first, last); });
  }
}

template <class T>
CudaStatus forward_on_cuda(const Conv2dParams<T>& params) {
  std::vector<char> scratch(conv2d_forward_scratch_cuda(params));
  emulation::poison(scratch.data(), scratch.size());
  return conv2d_forward_cuda(params, scratch.data(), nullptr);
}
template <class T>
CudaStatus weight_on_cuda(const Conv2dParams<T>& params) {
  std::vector<char> scratch(conv2d_weight_scratch_cuda(params));
  emulation::poison(scratch.data(), scratch.size());
  return conv2d_weight_cuda(params, scratch.data(), nullptr);
}

template <class T>
void expect_cpu_equals_the_definition(const std::vector<ConvShape>& shapes, uint64_t seed) {
  for (const ConvShape& any : shapes) {
    const ConvProblem problem(any, ++seed);
    for_each_layout(any, [&](const ConvShape& shape) {
      for_each_isa([&](auto isa) {
        for (const int threads : {1, 5}) {
          Buffers<T> buffers(problem, shape, seed % 2 == 0);
          run_on_cpu<isa.value>(buffers, threads, threads == 1);
          std::ostringstream what;
          what << shape << ", " << isa_name(isa.value) << ", " << threads << " threads";
          buffers.check(what.str());
        }
      });
    });
  }
}

TYPED_TEST(Conv2dTest, CpuEqualsTheDefinition) { expect_cpu_equals_the_definition<TypeParam>(conv_shapes(), 0); }

TYPED_TEST(Conv2dTest, CpuEqualsTheDefinitionOnThinMaps) {
  std::vector<ConvShape> shapes = thin_map_shapes();
  shapes.push_back(conv_shape(1, 3, 30, 123, 17, 4, 3, 2, 5, 3));  // planes only: taps apart
  expect_cpu_equals_the_definition<TypeParam>(shapes, 200);
}

TYPED_TEST(Conv2dTest, CpuEqualsTheDefinitionOnSmallMaps) {
  expect_cpu_equals_the_definition<TypeParam>(small_map_shapes(), 100);
}

TYPED_TEST(Conv2dTest, CpuEqualsTheDefinitionOnGroups) {
  expect_cpu_equals_the_definition<TypeParam>(grouped_shapes(), 400);
}

// Rows of pixels follow one another in a window: what is not finite at the end of one must not reach weights that don't see it.
TYPED_TEST(Conv2dTest, WeightsOfGroupsSeeTheirOwnPixelsOnly) {
  for (const ConvShape& any : grouped_shapes()) {
    if (any.batch == 0) continue;
    ConvProblem problem(any, 500);
    problem.input[any.pixels() - 1] = std::numeric_limits<double>::infinity();
    problem.input[(any.batch * any.channels - 1) * any.pixels() + any.width - 1] = std::nan("");
    problem.compute();
    for_each_layout(any, [&](const ConvShape& shape) {
      for_each_isa([&](auto isa) {
        Buffers<TypeParam> buffers(problem, shape, false);
        run_on_cpu<isa.value>(buffers, 1, true);
        for (size_t i = 0; i < buffers.grad_weight.size(); ++i) {
          const auto actual = to_acc(buffers.grad_weight[i]), expected = to_acc(buffers.expected_weight[i]);
          if (std::isfinite(expected)) {
            ASSERT_EQ(actual, expected) << shape << ", element " << i;
          } else {
            ASSERT_FALSE(std::isfinite(actual)) << shape << ", element " << i;
          }
        }
      });
    });
  }
}

TYPED_TEST(Conv2dTest, CpuEqualsTheDefinitionOnPlanes) {
  expect_cpu_equals_the_definition<TypeParam>(plane_map_shapes(), 300);
}

TYPED_TEST(Conv2dTest, CpuEqualsTheDefinitionOfFewPixels) {
  expect_cpu_equals_the_definition<TypeParam>(few_pixels_shapes(), 500);
}

TYPED_TEST(Conv2dTest, EmulatedCudaEqualsTheDefinition) {
  uint64_t seed = 0;
  for (const ConvShape& any : conv_shapes()) {
    const ConvProblem problem(any, ++seed);
    emulation::set_seed(seed);
    for_each_layout(any, [&](const ConvShape& shape) {
      Buffers<TypeParam> buffers(problem, shape, seed % 2 == 0);
      const Conv2dParams<TypeParam> params = buffers.params();
      std::ostringstream what;
      what << shape;
      if (!buffers.output.empty()) {
        ASSERT_EQ(forward_on_cuda(params), 0) << emulation::last_error_message();
      }
      if (!buffers.grad_weight.empty()) {
        ASSERT_EQ(weight_on_cuda(params), 0) << emulation::last_error_message();
      }
      buffers.check(what.str());
    });
  }
}

// Every instruction set and CUDA use one formula: the same bits but for the fused operation that a sum may contain.
TEST(Conv2d, ActivationsAreApplied) {
  for (const ConvShape& shape : {conv_shape(1, 3, 7, 9, 20, 3, 3, 1, 1), conv_shape(1, 8, 7, 9, 8, 3, 3, 1, 1, 1, 8)}) {
    const ConvProblem problem(shape, 3);
    for (const Activation activation :
         {Activation::kRelu, Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
      for_each_layout(shape, [&](const ConvShape& s) {
        Buffers<float> buffers(problem, s, true);
        std::vector<float> expected = buffers.expected_output;
        for (float& value : expected) value = activate(activation, value);
        for_each_isa([&](auto isa) {
          Conv2dParams<float> params = buffers.params();
          params.activation = activation;
          in_slices(conv2d_forward_items_cpu<isa.value>(params, 1), true,
                    [&](int64_t first, int64_t last) { conv2d_forward_cpu<isa.value>(params, first, last); });
          expect_equal(buffers.output, expected, isa_name(isa.value));
        });
        Conv2dParams<float> params = buffers.params();
        params.activation = activation;
        ASSERT_EQ(forward_on_cuda(params), 0);
        expect_equal(buffers.output, expected, "emulated");
      });
    }
  }
}

// Few weights and many pixels: the pixels are cut into parts whose sums are added.
TEST(Conv2d, WeightGradientInParts) {
  for (const int groups : {1, 2}) {
    const ConvShape shape = conv_shape(1, 2, 80, 81, 2, 2, 2, 1, 0, 1, groups);
    const ConvProblem problem(shape, 9);
    for_each_layout(shape, [&](const ConvShape& s) {
      for_each_isa([&](auto isa) {
        Buffers<float> buffers(problem, s, false);
        Conv2dParams<float> params = buffers.params();
        conv2d_weight_items_cpu<isa.value>(params);
        EXPECT_GT(params.cut.parts, 1);
        run_on_cpu<isa.value>(buffers, 1, true);
        buffers.check(isa_name(isa.value));
      });
    });
  }
}

// On CUDA: so many parts that several threads add those of one weight.
TEST(Conv2d, DepthwiseWeightGradientInManyParts) {
  ConvShape shape = conv_shape(2, 64, 40, 64, 64, 3, 3, 1, 1, 1, 64);
  shape.channels_last = true;
  Buffers<float> buffers(ConvProblem(shape, 5), shape, false);
  EXPECT_GE(conv2d_weight_scratch_cuda(buffers.params()), 64 * shape.weights() * static_cast<int64_t>(sizeof(float)));
  ASSERT_EQ(weight_on_cuda(buffers.params()), 0) << emulation::last_error_message();
  expect_equal(buffers.grad_weight, buffers.expected_weight, "weights");
}

}  // namespace
