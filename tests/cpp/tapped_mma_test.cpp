// Convolutions on tensor cores under emulation: every tile, split and precision, against the definition in plain loops. The sums
// are exact in every format, so the bits are equal.
#include "gemm/tapped_mma.cuh"

#include <gtest/gtest.h>

#include "emulation/runtime_api.h"
#include "tests/cpp/convolution.h"

namespace {

using namespace cvk;

template <class T>
class TappedMmaTest : public testing::Test {};
using Types = testing::Types<float, double, half_t, bfloat16_t>;
TYPED_TEST_SUITE(TappedMmaTest, Types);

// Shapes that need no vectors, and such that have them.
std::vector<ConvShape> shapes() {
  return {conv_shape(2, 3, 5, 6, 9, 3, 3, 1, 1),         conv_shape(1, 17, 9, 10, 33, 3, 3, 2, 1),
          conv_shape(2, 16, 7, 9, 24, 3, 3, 1, 1),       conv_shape(1, 32, 12, 13, 136, 3, 3, 2, 1),
          conv_shape(1, 32, 6, 7, 48, 3, 2, 1, 1, 2, 2), conv_shape(1, 128, 9, 15, 72, 1, 1),
          conv_shape(2, 3, 12, 13, 24, 7, 7, 2, 3),      conv_shape(1, 4, 11, 9, 9, 3, 4, 2, 2),
          conv_shape(1, 2, 10, 12, 16, 4, 5, 4, 0),      conv_shape(1, 8, 9, 9, 16, 3, 2, 4, 3, 6),
          conv_shape(1, 24, 20, 21, 40, 2, 2, 5)};
}

template <class T>
void expect_all(const ConvShape& any, uint64_t seed, GemmUnits units, int64_t most_splits) {
  const ConvProblem problem(any, seed);
  emulation::set_seed(seed);
  for_each_layout(any, [&](const ConvShape& s) {
    std::ostringstream what;
    what << s << (units.tf32 ? " tf32" : "") << (units.warpgroups ? " warpgroups" : "") << ", splits: " << most_splits;
    const auto input = conv_tensor<T>(problem.input, s.batch, s.channels, s.pixels(), s.channels_last);
    const auto weight =
        conv_tensor<T>(problem.weight, s.filters, s.group_channels(), s.kernel_size(), s.weight_channels_last);
    const auto grad = conv_tensor<T>(problem.grad, s.batch, s.filters, s.out_pixels(), s.channels_last);
    auto output = conv_nans<T>(grad.size()), back = conv_nans<T>(input.size()),
         grad_weight = conv_nans<T>(weight.size());
    const auto run = [&](auto&& product) {
      int64_t bytes = 0;
      product(nullptr, &bytes);
      std::vector<char> scratch(bytes);  // of its exact size, for ASan
      emulation::poison(scratch.data(), scratch.size());
      ASSERT_EQ(product(scratch.data(), nullptr), cudaSuccess) << emulation::last_error_message() << what.str();
    };
    const TappedProduct<T> forward{s, false, input.data(), weight.data(), nullptr, Activation::kNone, output.data()};
    run([&](void* memory, int64_t* used) {
      return tapped_product_mma(forward, units, memory, nullptr, used, most_splits);
    });
    expect_equal(output, conv_tensor<T>(problem.output, s.batch, s.filters, s.out_pixels(), s.channels_last),
                 what.str() + ", output");
    const TappedProduct<T> backward{s, true, grad.data(), weight.data(), nullptr, Activation::kNone, back.data()};
    run([&](void* memory, int64_t* used) {
      return tapped_product_mma(backward, units, memory, nullptr, used, most_splits);
    });
    expect_equal(back, conv_tensor<T>(problem.back, s.batch, s.channels, s.pixels(), s.channels_last),
                 what.str() + ", input");
    const TappedWeightGradient<T> gradient{s, grad.data(), input.data(), grad_weight.data(), nullptr};
    run([&](void* memory, int64_t* used) {
      return tapped_weight_mma(gradient, units, memory, nullptr, used, most_splits);
    });
    expect_equal(
        grad_weight,
        conv_tensor<T>(problem.grad_weight, s.filters, s.group_channels(), s.kernel_size(), s.weight_channels_last),
        what.str() + ", weights");
  });
}

TYPED_TEST(TappedMmaTest, EqualsTheDefinition) {
  uint64_t seed = 0;
  for (const ConvShape& any : shapes()) {
    ++seed;
    for (const int64_t most_splits : {1, 64}) expect_all<TypeParam>(any, seed, {false, false}, most_splits);
    if (sizeof(TypeParam) == 4) expect_all<TypeParam>(any, seed, {true, false}, 64);
    if (sizeof(TypeParam) == 2) expect_all<TypeParam>(any, seed, {false, true}, 64);
  }
}

// What no tap reads, an infinite pixel must not reach: target pixels of phases without taps, and the pixel beside the last tap of an odd
// width, which shares a chunk with it.
TYPED_TEST(TappedMmaTest, InfinitePixelsReachTheirTapsOnly) {
  using T = TypeParam;
  const auto run = [](const TappedProduct<T>& p, GemmUnits units) {
    int64_t bytes = 0;
    tapped_product_mma(p, units, nullptr, nullptr, &bytes);
    std::vector<char> scratch(bytes);
    ASSERT_EQ(tapped_product_mma(p, units, scratch.data(), nullptr, nullptr), cudaSuccess)
        << emulation::last_error_message();
  };
  const T one = from_acc<T>(1), infinite = from_acc<T>(static_cast<Acc<T>>(INFINITY));
  for (const bool warpgroups : {false, true}) {
    const GemmUnits units{false, warpgroups};
    const ConvShape strided = conv_shape(1, 64, 6, 6, 64, 1, 1, 2);
    std::vector<T> grad(64 * 9, one), weight(64 * 64, one), back(64 * 36);
    grad[0] = infinite;
    run({strided, true, grad.data(), weight.data(), nullptr, Activation::kNone, back.data()}, units);
    for (int y = 0; y < 6; ++y) {
      for (int x = 0; x < 6; ++x) {
        const Acc<T> value = to_acc(back[5 * 36 + y * 6 + x]);
        EXPECT_EQ(value, y % 2 + x % 2 > 0 ? Acc<T>(0) : x + y == 0 ? static_cast<Acc<T>>(INFINITY) : Acc<T>(64));
      }
    }
    for (const int width : {3, 4, 7}) {
      const ConvShape few = conv_shape(1, kWide<T> / 2, 8, 16, 8, 8, width, 2);
      std::vector<T> map(few.channels * 8 * 16, one), weights(few.weights(), one), out(8 * few.out_pixels());
      map[width] = infinite;
      run({few, false, map.data(), weights.data(), nullptr, Activation::kNone, out.data()}, units);
      EXPECT_EQ(to_acc(out[0]), static_cast<Acc<T>>(few.channels * 8 * width));
      EXPECT_EQ(to_acc(out[1]), static_cast<Acc<T>>(INFINITY));
    }
  }
}

// Plans: large tiles for large problems, narrow ones for few columns, and parts of the depth where tiles are few.
TEST(TappedMma, Plans) {
  for (const bool warpgroups : {false, true}) {
    const auto plan = [&](int64_t rows, int64_t columns, int64_t depth) {
      return plan_gemm<half_t, false>({false, warpgroups}, rows, columns, depth, 1);
    };
    const auto expect_shape = [&](const GemmPlan& taken, int rows, int columns) {
      const auto check = [&](auto math, auto shape) {
        EXPECT_EQ(math() == GemmMath::kWarpgroup, warpgroups && columns > 16);
        EXPECT_EQ(int{shape.kRows}, rows);
        EXPECT_EQ(int{shape.kColumns}, columns);
        return cudaSuccess;
      };
      with_gemm_shape<half_t, false>({false, warpgroups}, taken, check);
    };
    expect_shape(plan(1 << 20, 256, 2304), 128, warpgroups ? 256 : 128);
    expect_shape(plan(1 << 20, 64, 576), 128, 64);
    expect_shape(plan(1 << 20, 3, 576), 128, 16);
    EXPECT_EQ(plan(1 << 20, 256, 2304).splits, 1);
    EXPECT_GT(plan(64, 64, 1 << 20).splits, 32);
    EXPECT_EQ(plan(64, 64, 5).splits, 1);
    EXPECT_EQ(plan(0, 64, 0).splits, 1);
    const int64_t steps = GemmHalfSmall::kDepth * kGemmMmaLeastSteps;
    EXPECT_LE(plan(64, 64, 3 * steps).splits, 3);
  }
}

}  // namespace
