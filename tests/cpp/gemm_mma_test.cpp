// The tensor-core engine under emulation: every kind of product, both orders of each operand, vectors and single elements, odd
// sizes, splits, against a naive product.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "gemm/gemm_mma.cuh"

namespace {

using namespace cvk;

template <GemmMath math, class Shape, bool kLeftDepthInner, bool kRightDepthInner, class T>
__global__ void __launch_bounds__(Shape::kThreads)
    product_kernel(DenseGatherer<T> left, DenseGatherer<T> right, GemmExtent extent, Acc<T>* out) {  // [splits, m, n]
  const GemmBlock block = gemm_block<Shape>(extent, blockIdx.x);
  const auto& result = gemm_tile<math, Shape, kLeftDepthInner, kRightDepthInner>(left, right, extent, block);
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows * Shape::kColumns; i += Shape::kThreads) {
    const int64_t m = block.first_row + i / Shape::kColumns, n = block.first_column + i % Shape::kColumns;
    if (m < extent.rows && n < extent.columns) {
      out[(block.split * extent.rows + m) * extent.columns + n] =
          result.values[i / Shape::kColumns][i % Shape::kColumns];
    }
  }
}

// Deterministic numbers in [-1, 1] that no format holds exactly.
double number(int64_t i, int64_t j) {
  const double x =
      std::sin(static_cast<double>(12.9898 * static_cast<double>(i) + 78.233 * static_cast<double>(j))) * 43758.5453;
  return 2 * (x - std::floor(x)) - 1;
}

// outers x inners elements; lines are whole chunks of 16 bytes, with zeros behind a depth that is none, and NaN behind rows.
template <class T>
struct Matrix {
  std::vector<T> memory;
  int64_t outers, inners, stride;
  T* data;

  Matrix(int64_t rows, int64_t depth, bool depth_inner, int64_t which)
      : outers(depth_inner ? rows : depth), inners(depth_inner ? depth : rows) {
    stride = round_up<int64_t>(inners, kWide<T>);
    memory.assign(outers * stride + 64, from_acc<T>(static_cast<Acc<T>>(NAN)));
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    data = memory.data() + ((64 - address % 64) % 64) / sizeof(T);
    for (int64_t o = 0; o < outers; ++o) {
      for (int64_t i = 0; i < inners; ++i) {
        data[o * stride + i] =
            from_acc<T>(static_cast<Acc<T>>(depth_inner ? number(which + o, i) : number(which + i, o)));
      }
      for (int64_t i = inners; depth_inner && i < stride; ++i) data[o * stride + i] = T{};
    }
  }
  DenseGatherer<T> gatherer() const {
    const int chunks = static_cast<int>(stride / kWide<T>);
    return {data, static_cast<int>(outers), chunks, chunks};
  }
  double at(int64_t row, int64_t k, bool depth_inner) const {
    return static_cast<double>(to_acc(depth_inner ? data[row * stride + k] : data[k * stride + row]));
  }
};

template <GemmMath math, class Shape, bool kLeftDepthInner, bool kRightDepthInner, class T>
void expect_product(int64_t m, int64_t n, int64_t k, int splits, double tolerance) {
  SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + ", " +
               std::to_string(splits) + " splits, depth " + (kLeftDepthInner ? "inner, " : "outer, ") +
               (kRightDepthInner ? "inner" : "outer"));
  const Matrix<T> a(m, k, kLeftDepthInner, 0), b(n, k, kRightDepthInner, 1000);
  const GemmExtent extent = gemm_extent<Shape>(m, n, k, splits);
  std::vector<Acc<T>> out(extent.splits * m * n, static_cast<Acc<T>>(NAN));
  const DenseGatherer<T> left = a.gatherer(), right = b.gatherer();
  const int64_t blocks = extent.row_tiles * extent.column_tiles * extent.splits;
  const LaunchConfig config = gemm_config<math, Shape, GemmShared<T, Shape, kLeftDepthInner, kRightDepthInner>>(blocks);
  ASSERT_EQ(launch(product_kernel<math, Shape, kLeftDepthInner, kRightDepthInner, T>, config, nullptr, left, right,
                   extent, out.data()),
            cudaSuccess)
      << emulation::last_error_message();
  double worst = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double expected = 0, actual = 0;
      for (int64_t p = 0; p < k; ++p) expected += a.at(i, p, kLeftDepthInner) * b.at(j, p, kRightDepthInner);
      for (int s = 0; s < extent.splits; ++s) actual += static_cast<double>(out[(s * m + i) * n + j]);
      worst = std::isnan(actual) ? INFINITY : std::max(worst, std::fabs(actual - expected));
    }
  }
  EXPECT_LE(worst, tolerance * std::sqrt(static_cast<double>(k)));
}

template <GemmMath math, class Shape, class T, bool kLeftDepthInner, bool kRightDepthInner>
void expect_products(double tolerance) {
  expect_product<math, Shape, kLeftDepthInner, kRightDepthInner, T>(Shape::kRows, Shape::kColumns, Shape::kDepth * 2, 1,
                                                                    tolerance);
  expect_product<math, Shape, kLeftDepthInner, kRightDepthInner, T>(Shape::kRows + 24, 40, Shape::kDepth * 7 + 8, 3,
                                                                    tolerance);
  expect_product<math, Shape, kLeftDepthInner, kRightDepthInner, T>(37, 21, Shape::kDepth * 3 + 5, 2, tolerance);
  expect_product<math, Shape, kLeftDepthInner, kRightDepthInner, T>(3, 70, 1, 4, tolerance);
}

template <GemmMath math, class Shape, class T>
void expect_all_orders(double tolerance) {
  emulation::set_seed(3);
  expect_products<math, Shape, T, true, true>(tolerance);
  expect_products<math, Shape, T, true, false>(tolerance);
  expect_products<math, Shape, T, false, true>(tolerance);
  expect_products<math, Shape, T, false, false>(tolerance);
}

TEST(GemmMma, Half) { expect_all_orders<GemmMath::kHalf, GemmHalfSmall, half_t>(1e-6); }
TEST(GemmMma, Bfloat16) { expect_all_orders<GemmMath::kHalf, GemmHalfSmall, bfloat16_t>(1e-6); }
TEST(GemmMma, Tf32) { expect_all_orders<GemmMath::kTf32, GemmFloatSmall, float>(2e-3); }
TEST(GemmMma, ThreeTimesTf32) { expect_all_orders<GemmMath::k3xTf32, GemmFloatSmall, float>(1e-6); }
TEST(GemmMma, Double) { expect_all_orders<GemmMath::kDouble, GemmDoubleSmall, double>(1e-14); }
TEST(GemmMma, NarrowTiles) {
  expect_all_orders<GemmMath::kHalf, GemmHalfNarrow, half_t>(1e-6);
  expect_all_orders<GemmMath::kTf32, GemmFloatNarrow, float>(2e-3);
  expect_all_orders<GemmMath::k3xTf32, GemmFloatNarrow, float>(1e-6);
  expect_all_orders<GemmMath::kDouble, GemmDoubleNarrow, double>(1e-14);
}

// The shapes that large problems take.
TEST(GemmMma, LargerTiles) {
  expect_product<GemmMath::kHalf, GemmHalfLarge, true, true, half_t>(200, 136, 96, 1, 1e-6);
  expect_product<GemmMath::kHalf, GemmHalfLarge, false, false, bfloat16_t>(136, 200, 72, 1, 1e-6);
  expect_product<GemmMath::kHalf, GemmHalfMedium, true, true, half_t>(200, 72, 96, 1, 1e-6);
  expect_product<GemmMath::kTf32, GemmTf32Medium, false, false, float>(132, 72, 40, 1, 2e-3);
  expect_product<GemmMath::kTf32, GemmTf32Large, true, true, float>(132, 136, 40, 1, 2e-3);
}

// Every shape of warpgroups. Seeds differ in when copies and products happen: as soon or as late as they may.
template <class Shape, class T>
void expect_warpgroup() {
  constexpr GemmMath kMath = GemmMath::kWarpgroup;
  const int rows = Shape::kRows, columns = Shape::kColumns;
  emulation::set_seed(5);
  expect_product<kMath, Shape, true, true, T>(rows, columns, 128, 1, 1e-6);
  expect_product<kMath, Shape, false, false, T>(rows + 24, columns - 8, 64 * 6 + 8, 2, 1e-6);
  expect_product<kMath, Shape, true, true, T>(37, 21, 64 * 5 + 5, 1, 1e-6);
  expect_product<kMath, Shape, true, false, T>(40, columns, 100, 1, 1e-6);
  expect_product<kMath, Shape, false, true, T>(rows, 24, 72, 1, 1e-6);
  expect_product<kMath, Shape, true, true, T>(3, 70, 1, 4, 1e-6);
}
TEST(GemmMma, WarpgroupHuge) { expect_warpgroup<GemmGroupHuge, half_t>(); }
TEST(GemmMma, WarpgroupTall) { expect_warpgroup<GemmGroupTall, bfloat16_t>(); }
TEST(GemmMma, WarpgroupLarge) { expect_warpgroup<GemmGroupLarge, half_t>(); }
TEST(GemmMma, WarpgroupMedium) { expect_warpgroup<GemmGroupMedium, bfloat16_t>(); }
TEST(GemmMma, WarpgroupWide) { expect_warpgroup<GemmGroupWide, half_t>(); }

TEST(GemmMma, SeedsAgree) {  // a missing barrier or wait would show
  for (int seed = 0; seed < 6; ++seed) {
    emulation::set_seed(seed);
    expect_product<GemmMath::kHalf, GemmHalfSmall, true, true, half_t>(80, 72, 32 * 9, 1, 1e-6);
    expect_product<GemmMath::kHalf, GemmHalfSmall, false, false, half_t>(80, 72, 32 * 6, 1, 1e-6);
    expect_product<GemmMath::kWarpgroup, GemmGroupMedium, true, true, half_t>(80, 72, 64 * 9, 1, 1e-6);
    expect_product<GemmMath::kWarpgroup, GemmGroupWide, true, true, bfloat16_t>(70, 40, 64 * 9, 1, 1e-6);
    expect_product<GemmMath::kWarpgroup, GemmGroupWide, false, false, half_t>(64, 72, 64 * 7, 1, 1e-6);
  }
}

TEST(GemmMma, NothingToAdd) {  // no depth: zeros
  expect_product<GemmMath::kHalf, GemmHalfSmall, true, true, half_t>(5, 7, 0, 1, 0);
  expect_product<GemmMath::kWarpgroup, GemmGroupWide, true, true, half_t>(5, 7, 0, 1, 0);
}

TEST(GemmMma, InfinitiesAsInFloat) {
  using Shape = GemmFloatSmall;
  std::vector<float> a(64 * 16, 1.0f), b(64 * 16, 1.0f), out(64 * 64);
  a[3 * 16 + 5] = INFINITY;   // times 1
  b[7 * 16 + 2] = -INFINITY;  // times 1
  const GemmExtent extent = gemm_extent<Shape>(64, 64, 16, 1);
  const DenseGatherer<float> left{a.data(), 64, 4, 4}, right{b.data(), 64, 4, 4};
  ASSERT_EQ(launch(product_kernel<GemmMath::k3xTf32, Shape, true, true, float>,
                   {dim3(1), dim3(Shape::kThreads), sizeof(GemmShared<float, Shape, true, true>)}, nullptr, left, right,
                   extent, out.data()),
            cudaSuccess);
  EXPECT_EQ(out[0], 16.0f);
  EXPECT_EQ(out[3 * 64 + 0], INFINITY);
  EXPECT_EQ(out[0 * 64 + 7], -INFINITY);
  EXPECT_TRUE(std::isnan(out[3 * 64 + 7]));
}

}  // namespace
