// The matrix engine: products of every size around its tiles against a naive product on every instruction set, and its parts
// (packing, gathering, cutting the depth, the geometry of phases) on the baseline.
#include "gemm/convolution.h"

#include <cmath>

#include "gemm/few_pixels_cpu.h"
#include "gemm/grouped_cpu.h"
#include "gemm/grouped_weight_cpu.h"
#include "gemm/plane_map_cpu.h"
#include "gemm/plane_weight_cpu.h"
#include "gemm/small_map_cpu.h"
#include "gemm/tapped_cpu.h"
#include "gemm/winograd_weight_cpu.h"
#include "kernels/conv2d/conv2d.h"
#include "tests/cpp/convolution.h"

namespace {

using namespace cvk;

template <class T>
class GemmTest : public testing::Test {};
using Types = testing::Types<float, double, half_t, bfloat16_t>;
TYPED_TEST_SUITE(GemmTest, Types);

// A product is a 1 x 1 convolution: rows are pixels, columns filters, the depth channels.
TYPED_TEST(GemmTest, EqualsTheNaiveProduct) {
  using T = TypeParam;
  const int sizes[] = {1, 2, 3, 5, 6, 7, 13, 14, 15, 16, 17, 31, 32, 33, 63, 112, 113, 129};
  const int depths[] = {1, 2, 15, 144, 145, 288, 289, 700};
  int turn = 0;
  for (const int m : sizes) {
    for (const int n : {1, 7, 8, 9, 16, 17, 31, 32, 33, 65, 257}) {
      const int depth = depths[turn++ % 8];
      const ConvShape any = conv_shape(1, depth, 1, m, n, 1, 1);
      Random random(turn);
      const std::vector<double> left = random.eighths(m * depth), right = random.eighths(n * depth);
      std::vector<double> product(static_cast<size_t>(m) * n);
      for (int i = 0; i < m; ++i) {
        for (int j = 0; j < n; ++j) {
          for (int k = 0; k < depth; ++k) product[j * m + i] += left[k * m + i] * right[j * depth + k];
        }
      }
      for (const bool last : {false, true}) {
        ConvShape s = any;
        s.channels_last = last;
        const auto a = conv_tensor<T>(left, 1, depth, m, last), b = conv_tensor<T>(right, n, depth, 1, false);
        const auto expected = conv_tensor<T>(product, 1, n, m, last);
        for_each_isa([&](auto isa) {
          auto result = conv_nans<T>(expected.size());
          Conv2dParams<T> params{};
          params.shape = s;
          params.input = a.data();
          params.weight = b.data();
          params.output = result.data();
          in_slices(conv2d_forward_items_cpu<isa.value>(params, 3), false,
                    [&](int64_t first, int64_t end) { conv2d_forward_cpu<isa.value>(params, first, end); });
          expect_equal(result, expected,
                       std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(depth) + " " +
                           isa_name(isa.value));
        });
      }
    }
  }
}

constexpr Isa kIsa = Isa::kBaseline;
using Tile = GemmTile<kIsa, float>;

TEST(Gemm, BlockOfTiles) {
  const int rows = 2 * Tile::kRows + 3, columns = 3 * Tile::kColumns - Tile::kLanes - 1, depth = 37;
  Random random(1);
  std::vector<float> left((rows + 1) * Tile::kPitch), right(depth * 4 * Tile::kColumns);
  for (float& value : left) value = static_cast<float>(random.whole(-9, 10));
  for (float& value : right) value = static_cast<float>(random.whole(-9, 10));
  std::vector<float> sums(3 * 3 * Tile::kSize, 7.0f);
  for (const bool add : {false, true}) {
    gemm_block<kIsa, float, float>(rows, columns, depth, {left.data(), Tile::kPitch}, right.data(), 4 * Tile::kColumns,
                                   Tile::kColumns, sums.data(), 3, add, nullptr);
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      float expected = 0;
      for (int p = 0; p < depth; ++p) expected += left[i * Tile::kPitch + p] * right[p * 4 * Tile::kColumns + j];
      const float* tile = &sums[(i / Tile::kRows * 3 + j / Tile::kColumns) * Tile::kSize];
      EXPECT_EQ(tile[i % Tile::kRows * Tile::kColumns + j % Tile::kColumns], 2 * expected) << i << ", " << j;
    }
  }
}

// Joining in pairs keeps every bit, and an odd depth ends with a zero.
TEST(Gemm, PairsOfBfloat16) {
  constexpr int kLanes = Simd<kIsa, float>::kLanes;
  for (const int depth : {1, 2, 3, 7, 8, 9, 15, 16, 17, 40}) {
    const auto value = [](int k, int j) { return static_cast<uint16_t>(0x7f00 + 31 * k + 7 * j); };  // NaN among them
    const auto wide = [](uint16_t bits) { return bit_cast<float>(uint32_t{bits} << 16); };
    std::vector<float> row(depth + 2 * kLanes, 7.0f), rows(depth * 2 * kLanes);
    for (int k = 0; k < depth; ++k) {
      row[k] = wide(value(k, 0));
      for (int j = 0; j < 2 * kLanes; ++j) rows[k * 2 * kLanes + j] = wide(value(k, j));
    }
    std::vector<word_t> joined(ceil_div(depth, 2) * 2 * kLanes);
    pair_rows<kIsa>(rows.data(), 2 * kLanes, depth, 2 * kLanes, 2 * kLanes, joined.data());
    pair_row<kIsa>(row.data(), depth, reinterpret_cast<word_t*>(row.data()));  // in place
    for (int k = 0; k < depth; k += 2) {
      const auto expected = [&](int j) { return value(k, j) | (k + 1 < depth ? uint32_t{value(k + 1, j)} << 16 : 0u); };
      EXPECT_EQ(bit_cast<uint32_t>(row[k / 2]), expected(0)) << depth << ", " << k;
      for (int j = 0; j < 2 * kLanes; ++j) EXPECT_EQ(joined[k * kLanes + j].bits, expected(j)) << depth << ", " << k;
    }
  }
}

// A block of words holds whole pairs of channels, or one channel of more taps than it is deep.
TEST(Gemm, DepthBlocksOfPairs) {
  using Blocks = DepthBlocks<kIsa, word_t>;
  for (const int taps : {1, 9, 25, 49, 143, 287, 320, 321, 1000}) {
    for (const int64_t channels : {2, 30, 62, 64, 66, 100, 578}) {
      const Blocks blocks(channels, taps);
      int64_t depth = 0;
      for (int64_t b = 0; b < blocks.count(); ++b) {
        EXPECT_LE(blocks[b].depth(), Blocks::kMost);
        if (2 * taps <= Blocks::kMost) EXPECT_EQ(blocks[b].channels % 2, 0) << channels << " channels, " << taps;
        depth += blocks[b].depth();
      }
      EXPECT_EQ(depth, channels * taps);
    }
  }
}

// How a product of a shape is computed, weights in the layout of the maps.
ConvCut cut_of(ConvShape shape, bool channels_last, bool transposed = false) {
  shape.channels_last = shape.weight_channels_last = channels_last;
  TappedProduct<float> p{};
  p.shape = shape;
  p.transposed = transposed;
  ConvCut cut{};
  product_items<kIsa>(p, 1, cut);
  return cut;
}

// Which convolutions are multiplied without packing weights; conv2d_test computes these.
TEST(Gemm, SmallMapPays) {
  for (const bool last : {false, true}) {
    int64_t taken = 0;
    for (const ConvShape& shape : small_map_shapes()) taken += cut_of(shape, last).form == ConvForm::kSmallMap;
    EXPECT_GE(taken, last ? 12 : 10) << "of those that conv2d_test computes";
    EXPECT_EQ(cut_of(conv_shape(1, 2048, 7, 7, 512, 1, 1), last).form,
              last ? ConvForm::kSmallMap : ConvForm::kPlaneMap);
    EXPECT_EQ(cut_of(conv_shape(1, 512, 7, 7, 512, 3, 3, 1, 1), last).form, ConvForm::kSmallMap);
    EXPECT_EQ(cut_of(conv_shape(1, 512, 14, 14, 512, 3, 3, 2, 1), last).form, ConvForm::kSmallMap);
    EXPECT_NE(cut_of(conv_shape(1, 64, 14, 14, 256, 1, 1), last).form, ConvForm::kSmallMap) << "little depth";
    EXPECT_NE(cut_of(conv_shape(1, 512, 28, 28, 128, 1, 1), last).form, ConvForm::kSmallMap) << "many pixels";
    EXPECT_NE(cut_of(conv_shape(1, 256, 14, 14, 256, 3, 3, 1, 1), last).form, ConvForm::kSmallMap) << "Winograd's form";
  }
  ConvShape mixed = conv_shape(1, 512, 7, 7, 512, 3, 3, 1, 1);
  mixed.channels_last = true;
  TappedProduct<float> p{};
  p.shape = mixed;
  EXPECT_TRUE(small_map_pays<kIsa>(p, tapped_cycles<kIsa>(p))) << "weights in another order than pixels";
  EXPECT_EQ(small_map_image<kIsa>(p).rest, 0) << "a row's copies would be in the pixels' order";
}

// Which are multiplied without moving either operand.
TEST(Gemm, PlaneMapFits) {
  for (const ConvShape& shape : plane_map_shapes()) {
    EXPECT_EQ(cut_of(shape, false).form, ConvForm::kPlaneMap) << shape;
    EXPECT_NE(cut_of(shape, true).form, ConvForm::kPlaneMap) << shape;
  }
  const auto fits = [](const ConvShape& shape) { return cut_of(shape, false).form == ConvForm::kPlaneMap; };
  EXPECT_TRUE(fits(conv_shape(1, 1024, 14, 14, 256, 1, 1)));
  EXPECT_TRUE(fits(conv_shape(1, 64, 56, 56, 256, 1, 1)));
  EXPECT_TRUE(fits(conv_shape(1, 2048, 7, 7, 512, 1, 1)));
  EXPECT_FALSE(fits(conv_shape(1, 2049, 7, 7, 512, 1, 1))) << "deep";
  EXPECT_TRUE(fits(conv_shape(1, 128, 32, 32, 64, 1, 1)));
  EXPECT_FALSE(fits(conv_shape(1, 129, 32, 32, 64, 1, 1))) << "planes of a page";
  EXPECT_FALSE(fits(conv_shape(1, 64, 3, 1, 64, 1, 1))) << "less than a vector";
  EXPECT_FALSE(fits(conv_shape(1, 64, 14, 14, 64, 1, 1, 2))) << "a stride";
  EXPECT_FALSE(fits(conv_shape(1, 64, 14, 14, 64, 1, 1, 1, 1))) << "padding";
  EXPECT_FALSE(fits(conv_shape(1, 64, 14, 14, 64, 3, 3, 1, 1))) << "taps";
  const ConvCut wide = cut_of(conv_shape(1, 1, 30000, 30000, 1, 1, 1), false);
  EXPECT_EQ(wide.form, ConvForm::kPlaneMap);
  EXPECT_LE(wide.block_pixels, kPlaneMapItemVectors + kFilterVectors) << "work items of bounded size";

  const auto fits_back = [](const ConvShape& shape) { return cut_of(shape, false, true).form == ConvForm::kPlaneMap; };
  int64_t taken = 0;
  for (const ConvShape& shape : plane_map_shapes()) taken += fits_back(shape);
  EXPECT_GE(taken, 6) << "of those that conv_transpose2d_test computes";
  EXPECT_TRUE(fits_back(conv_shape(1, 256, 56, 56, 64, 1, 1)));
  EXPECT_FALSE(fits_back(conv_shape(1, 256, 14, 14, 1024, 1, 1))) << "many weights";
  EXPECT_FALSE(fits_back(conv_shape(1, 33, 14, 14, 64, 1, 1))) << "an odd number of neighbouring weights";
  EXPECT_FALSE(fits_back(conv_shape(1, 64, 3, 7, 64, 1, 1))) << "few pixels";
  EXPECT_FALSE(fits_back(conv_shape(1, 64, 14, 14, 64, 1, 1, 2))) << "a stride";
}

// Which leave weights as they lie because there is nothing else to do.
TEST(Gemm, FewPixelsFit) {
  const auto fits = [](const ConvShape& shape, bool last = false) {
    return cut_of(shape, last, true).form == ConvForm::kFewPixels;
  };
  const auto weights_fit = [](const ConvShape& shape) {
    TappedWeightGradient<float> p{};
    p.shape = shape;
    return few_pixels_fit<kIsa>(p);
  };
  int64_t taken = 0, weights_taken = 0;
  for (const ConvShape& shape : few_pixels_shapes()) {
    EXPECT_EQ(cut_of(shape, true).form, ConvForm::kFewPixels) << shape;
    taken += fits(shape);
    weights_taken += weights_fit(shape);
  }
  EXPECT_GE(taken, 8) << "of those that conv_transpose2d_test computes";
  EXPECT_GE(weights_taken, 5) << "of those that conv2d_test computes";
  EXPECT_TRUE(fits(conv_shape(8, 960, 1, 1, 240, 1, 1)));
  EXPECT_FALSE(fits(conv_shape(9, 960, 1, 1, 240, 1, 1))) << "many images";
  EXPECT_TRUE(fits(conv_shape(1, 960, 2, 4, 240, 1, 1), true));
  EXPECT_FALSE(fits(conv_shape(1, 960, 2, 4, 240, 1, 1))) << "pixels are no rows of channels";
  EXPECT_FALSE(fits(conv_shape(1, 3, 1, 1, 240, 1, 1))) << "less than a vector of channels";
  EXPECT_FALSE(fits(conv_shape(1, 960, 1, 1, 240, 1, 1, 1, 0, 1, 2))) << "groups";
  EXPECT_TRUE(weights_fit(conv_shape(1, 960, 1, 1, 240, 1, 1)));
  EXPECT_FALSE(weights_fit(conv_shape(0, 960, 1, 1, 240, 1, 1))) << "no pixels";
  EXPECT_FALSE(weights_fit(conv_shape(1, 960, 1, 1, 241, 1, 1))) << "an odd number of neighbouring filters";
}

// And whose weights' gradient is made of dot products of planes.
TEST(Gemm, PlaneWeightPays) {
  const auto pays = [](const ConvShape& shape) { return plane_weight_pays<float>(shape); };
  int64_t taken = 0;
  for (const ConvShape& shape : plane_map_shapes()) taken += pays(shape);
  EXPECT_GE(taken, 6) << "of those that conv2d_test computes";
  EXPECT_TRUE(pays(conv_shape(8, 16, 112, 112, 64, 1, 1)));
  EXPECT_TRUE(pays(conv_shape(8, 64, 14, 14, 64, 1, 1)));
  EXPECT_FALSE(pays(conv_shape(8, 256, 28, 28, 256, 1, 1))) << "many channels";
  EXPECT_FALSE(pays(conv_shape(8, 24, 14, 14, 120, 1, 1))) << "planes across cache lines";
  EXPECT_FALSE(pays(conv_shape(8, 64, 7, 7, 64, 1, 1))) << "few pixels";
  EXPECT_FALSE(pays(conv_shape(8, 64, 28, 28, 64, 1, 1, 2))) << "a stride";
  EXPECT_FALSE(plane_weight_pays<bfloat16_t>(conv_shape(8, 16, 112, 112, 64, 1, 1))) << "to be converted";
  const PlaneWeightPlan<Isa::kV4, float> small(conv_shape(9, 16, 14, 14, 16, 1, 1)),
      large(conv_shape(9, 16, 99, 99, 16, 1, 1));
  EXPECT_GT(small.images, 1) << "several images at a time";
  EXPECT_EQ(small.pieces, 1);
  EXPECT_EQ(large.images, 1);
  EXPECT_GT(large.pieces, 1) << "an image in pieces";
  const ConvShape many = conv_shape(64, 40, 8, 8, 100000, 1, 1);
  EXPECT_TRUE(pays(many));
  const ConvCut cut = plane_weight_cut<kIsa, float>(many);
  EXPECT_LE(cut.block_columns, kPlaneWeightSums / 40 + 4) << "work items of bounded size";
  EXPECT_EQ(cut.parts, 1) << "no room for parts of so many weights";
  EXPECT_FALSE(pays(conv_shape(1, 100000, 8, 8, 40, 1, 1))) << "a tile of bounded size";
}

// Which convolutions of groups are multiplied without a gather; conv2d_test and conv_transpose2d_test compute these.
TEST(Gemm, GroupedPays) {
  int64_t taken = 0, taken_back = 0;
  for (const bool last : {false, true}) {
    const auto pays = [&](const ConvShape& shape) { return cut_of(shape, last).form == ConvForm::kGrouped; };
    for (const ConvShape& shape : grouped_shapes()) {
      TappedProduct<float> back{};
      back.shape = shape;
      back.transposed = true;
      taken_back += grouped_plan<kIsa>(back).rows > 0;
      taken += shape.batch > 0 && pays(shape);
    }
    EXPECT_TRUE(pays(conv_shape(1, 128, 56, 56, 128, 3, 3, 1, 1, 1, 32)));
    EXPECT_TRUE(pays(conv_shape(1, 128, 56, 56, 128, 3, 3, 2, 1, 1, 32)));
    EXPECT_TRUE(pays(conv_shape(1, 16, 4, 9000, 16, 3, 3, 1, 1, 1, 4))) << "fewer groups in a window";
    EXPECT_FALSE(pays(conv_shape(1, 4, 4, 90000, 4, 3, 3, 1, 1, 1, 2))) << "no row in a window";
    EXPECT_FALSE(pays(conv_shape(1, 128, 28, 28, 128, 3, 3, 1, 1, 1, 4))) << "32 channels";
    EXPECT_FALSE(pays(conv_shape(1, 128, 28, 28, 128, 1, 1, 1, 0, 1, 32))) << "one tap";
    EXPECT_FALSE(pays(conv_shape(1, 32, 28, 28, 32, 3, 3, 1, 1, 1, 32))) << "depthwise";
    EXPECT_FALSE(pays(conv_shape(1, 8, 900, 9, 8, 800, 3, 1, 1, 1, 2))) << "many taps";
    EXPECT_FALSE(pays(conv_shape(1, 32, 2, 2, 32, 3, 3, 1, 1, 1, 2))) << "few pixels";
    ConvShape far = conv_shape(1, 8, 30, 41, 8, 3, 3, 1, 1, 1, 2);
    far.dilation_y = 2147483647;
    EXPECT_FALSE(pays(far)) << "rows far apart";
    far.dilation_y = 1;
    far.stride_x = 2147483647;
    EXPECT_TRUE(pays(far)) << "pixels far apart, each in a slot of its own";
  }
  EXPECT_GE(taken, 24) << "of those that conv2d_test computes";
  EXPECT_GE(taken_back, 16) << "of those that conv_transpose2d_test computes";
}
TEST(Gemm, GroupedWeightPays) {
  const auto pays = [](const ConvShape& shape) {
    return of_small_groups(shape) && grouped_weight_pays(shape, GroupedWeightPlan<Isa::kV4, float>(shape));
  };
  int64_t taken = 0;
  for (const ConvShape& shape : grouped_shapes()) taken += pays(shape);
  EXPECT_GE(taken, 6) << "of those that conv2d_test computes";
  EXPECT_TRUE(pays(conv_shape(8, 128, 56, 56, 128, 3, 3, 1, 1, 1, 32)));
  EXPECT_TRUE(pays(conv_shape(8, 256, 56, 56, 256, 3, 3, 2, 1, 1, 32)));
  EXPECT_FALSE(pays(conv_shape(1, 128, 28, 28, 128, 3, 3, 1, 1, 1, 4))) << "32 channels";
  EXPECT_FALSE(pays(conv_shape(1, 16, 28, 28, 16, 3, 3, 1, 1, 1, 1))) << "one group";
  EXPECT_FALSE(pays(conv_shape(1, 512, 4, 4, 512, 3, 3, 1, 1, 1, 32))) << "few pixels";
  EXPECT_FALSE(pays(conv_shape(1, 16, 28, 28, 496, 3, 3, 1, 1, 1, 16))) << "one channel to a tile of four";
  ConvShape far = conv_shape(1, 8, 30, 41, 8, 3, 3, 1, 1, 1, 2);
  far.dilation_y = far.dilation_x = 2147483647;
  EXPECT_FALSE(pays(far)) << "taps far apart";
  const GroupedWeightPlan<Isa::kV4, float> wide(conv_shape(1, 4, 3, 20000, 4, 3, 3, 1, 1, 1, 2)),
      small(conv_shape(20, 32, 7, 7, 32, 3, 3, 1, 1, 1, 2));
  EXPECT_EQ(wide.rows, 1) << "the least";
  EXPECT_GT(small.images, 1) << "several images at a time";
}

// Which convolutions are multiplied from a padded copy of the map.
TEST(Gemm, ThinMapPays) {
  for (const bool last : {false, true}) {
    for (const ConvShape& shape : thin_map_shapes())
      EXPECT_EQ(cut_of(shape, last).form, ConvForm::kThinMap) << shape << last;
    EXPECT_EQ(cut_of(conv_shape(1, 3, 224, 224, 64, 7, 7, 2, 3), last).form, ConvForm::kThinMap);
    EXPECT_EQ(cut_of(conv_shape(1, 3, 30, 123, 17, 4, 3, 2, 5, 3), last).form == ConvForm::kThinMap, !last)
        << "taps apart";
    EXPECT_NE(cut_of(conv_shape(1, 4, 2000, 1, 16, 3, 1), last).form, ConvForm::kThinMap) << "rows of one pixel";
    EXPECT_NE(cut_of(conv_shape(1, 5, 30, 41, 17, 3, 3), last).form, ConvForm::kThinMap) << "too many channels";
    EXPECT_NE(cut_of(conv_shape(1, 4, 30, 41, 16, 3, 3, 1, 1, 1, 2), last).form, ConvForm::kThinMap) << "groups";
    EXPECT_NE(cut_of(conv_shape(1, 3, 30, 41, 17, 3, 3, 3), last).form, ConvForm::kThinMap) << "a stride of three";
    EXPECT_NE(cut_of(conv_shape(1, 3, 40, 41, 17, 11, 11), last).form, ConvForm::kThinMap) << "many taps";
    ConvShape far = conv_shape(1, 3, 30, 41, 17, 3, 3);
    far.dilation_y = 2147483647;
    EXPECT_NE(cut_of(far, last).form, ConvForm::kThinMap) << "rows far apart";
    far.dilation_y = 1;
    far.stride_y = 2147483647;
    EXPECT_NE(cut_of(far, last).form, ConvForm::kThinMap) << "rows far apart";
  }
}

// A row of results as long as an integer counts: items are counted in 64 bits.
TEST(Gemm, ThinMapsOfTheWidestRows) {
  for (const bool last : {false, true}) {
    ConvShape wide = conv_shape(1, 1, 1, 1, 2, 1, 2);
    wide.out_width = 2147483647;
    wide.pad_left = 1073741823;
    const ConvCut cut = cut_of(wide, last);
    EXPECT_EQ(cut.form, ConvForm::kThinMap);
    EXPECT_GT(cut.pixel_blocks, 2147483647 / 1024);
  }
}

TEST(Gemm, FilterBlocksAreContiguousInAFilter) {
  for (const bool taps_first : {false, true}) {
    for (const int taps : {1, 2, 9, 49, 1000, 1024}) {
      for (const int64_t channels : {1, 3, 40, 512, 1023, 1024, 1025, 5000}) {
        const FilterBlocks<kIsa, float> blocks(channels, taps, taps_first);
        int64_t next = 0;
        for (int64_t b = 0; b < blocks.count(); ++b) {
          const DepthBlock block = blocks[b];
          EXPECT_EQ(blocks.offset(block), next) << channels << " channels, " << taps << " taps, block " << b;
          EXPECT_GT(block.depth(), 0);
          EXPECT_LE(block.depth(), kSmallMapDepth<float>);
          EXPECT_TRUE(taps_first ? block.taps == 1 || block.channels == channels : block.taps == taps);
          next += block.depth();
        }
        EXPECT_EQ(next, channels * taps);
      }
    }
  }
}

// Which convolutions take Winograd's form; conv2d_test computes some that do.
TEST(Gemm, WinogradPays) {
  const auto pays = [](const ConvShape& shape) { return cut_of(shape, true).form == ConvForm::kWinograd; };
  if (!cpu_may_winograd()) GTEST_SKIP() << "CVKERNELS_WINOGRAD=0";
  EXPECT_TRUE(pays(conv_shape(1, 256, 50, 84, 256, 3, 3, 1, 1)));
  EXPECT_TRUE(pays(conv_shape(2, 40, 29, 31, 70, 3, 3, 1, 1)));
  EXPECT_TRUE(pays(conv_shape(1, 64, 20, 21, 72, 3, 3, 1, 0, 1, 2)));
  EXPECT_TRUE(pays(conv_shape(1, 340, 13, 14, 36, 3, 3, 1, 2)));
  EXPECT_FALSE(pays(conv_shape(1, 31, 50, 84, 256, 3, 3, 1, 1))) << "few channels";
  EXPECT_FALSE(pays(conv_shape(1, 256, 1, 2, 256, 3, 3, 1, 1))) << "few pixels for the weights";
  EXPECT_FALSE(pays(conv_shape(1, 256, 50, 84, 256, 3, 3, 2, 1))) << "a stride";
  EXPECT_FALSE(pays(conv_shape(1, 256, 50, 84, 256, 3, 3, 1, 2, 2))) << "a dilation";
  EXPECT_FALSE(pays(conv_shape(1, 256, 50, 84, 256, 3, 1, 1, 1))) << "another kernel";
}

// Which gradients of weights do, and that work items have every filter, channel and row of tiles once.
TEST(Gemm, WinogradPaysForWeights) {
  const auto pays = [](const ConvShape& shape) { return winograd_weight_pays<kIsa, float>(shape); };
  if (!cpu_may_winograd()) GTEST_SKIP() << "CVKERNELS_WINOGRAD=0";
  EXPECT_FALSE((winograd_weight_pays<kIsa, double>(conv_shape(8, 64, 56, 56, 64, 3, 3, 1, 1))));
  EXPECT_FALSE(pays(conv_shape(8, 15, 56, 56, 64, 3, 3, 1, 1))) << "few channels";
  EXPECT_FALSE(pays(conv_shape(8, 64, 56, 56, 15, 3, 3, 1, 1))) << "few filters";
  EXPECT_FALSE(pays(conv_shape(8, 64, 1, 1, 64, 3, 3, 1, 1))) << "a pixel is a tile";
  EXPECT_FALSE(pays(conv_shape(1, 64, 1, 2000, 64, 3, 3, 1, 1))) << "half of each tile is outside";
  EXPECT_FALSE(pays(conv_shape(1, 32, 2, 20000, 32, 3, 3, 1, 1))) << "one row of tiles: one work item";
  EXPECT_FALSE(pays(conv_shape(0, 64, 8, 8, 64, 3, 3, 1, 1))) << "no images";
  EXPECT_FALSE(pays(conv_shape(8, 64, 56, 56, 64, 3, 3, 2, 1))) << "a stride";
  EXPECT_FALSE(pays(conv_shape(8, 64, 56, 56, 64, 3, 3, 1, 2, 2))) << "a dilation";
  EXPECT_FALSE(pays(conv_shape(8, 64, 56, 56, 64, 3, 1, 1, 1))) << "another kernel";
  for (const ConvShape& shape :
       {conv_shape(8, 64, 56, 56, 64, 3, 3, 1, 1), conv_shape(1, 512, 7, 7, 512, 3, 3, 1, 1),
        conv_shape(1, 16, 28, 28, 16, 3, 3, 1, 1), conv_shape(3, 130, 13, 9, 195, 3, 3, 1, 1),
        conv_shape(64, 256, 2, 2, 256, 3, 3, 1, 1), conv_shape(1, 320, 14, 14, 64, 3, 3, 1, 1)}) {
    EXPECT_TRUE(pays(shape)) << shape;
    const ConvCut cut = winograd_weight_cut<kIsa, float>(shape);
    EXPECT_LE(cut.parts, shape.batch * ((shape.out_height + 1) / 2)) << shape;
    EXPECT_GE(cut.column_blocks * cut.block_columns, shape.group_filters()) << shape;
    EXPECT_LT((cut.column_blocks - 1) * cut.block_columns, shape.group_filters()) << shape;
    EXPECT_LE(cut.block_columns, kWinogradWeightFilters) << shape;
    EXPECT_GE(cut.depth_blocks * kWinogradWeightChannels, shape.group_channels()) << shape;
    EXPECT_GE(weight_items(shape, cut), shape.filters > kWinogradLeastFilters ? 2 : 1) << shape;
  }
}

TEST(Gemm, DepthBlocksCoverTheDepthOnce) {
  for (const int taps : {1, 2, 9, 25, 49, 143, 144, 287, 288, 289, 1000}) {
    for (const int64_t channels : {0, 1, 3, 15, 16, 17, 31, 32, 33, 64, 100, 289, 577}) {
      const DepthBlocks<kIsa, float> blocks(channels, taps);
      std::vector<int> seen(channels * taps);
      for (int64_t b = 0; b < blocks.count(); ++b) {
        const DepthBlock block = blocks[b];
        ASSERT_GT(block.depth(), 0) << channels << " channels, " << taps << " taps";
        ASSERT_LE(block.depth(), Tile::kDepth);
        for (int c = 0; c < block.channels; ++c) {
          for (int t = 0; t < block.taps; ++t) ++seen[(block.c + c) * taps + block.t + t];
        }
      }
      for (const int count : seen) ASSERT_EQ(count, 1) << channels << " channels, " << taps << " taps";
    }
  }
  EXPECT_EQ((DepthBlocks<kIsa, float>(8, 0).count()), 0);
}

// The phases of the transposed form partition its products.
TEST(Gemm, PhasesCoverEveryProductOnce) {
  for (int stride = 1; stride <= 6; ++stride) {
    for (int dilation = 1; dilation <= 6; ++dilation) {
      for (int kernel = 1; kernel <= 5; ++kernel) {
        for (int pad = 0; pad <= 4; ++pad) {
          const int target = 13, source = (target + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
          if (target + 2 * pad < dilation * (kernel - 1) + 1) continue;
          std::vector<int> seen(target * kernel), wanted(target * kernel);
          for (int y = 0; y < target; ++y) {
            for (int k = 0; k < kernel; ++k)
              wanted[y * kernel + k] = transposed_source(y, k, stride, pad, dilation, source) >= 0;
          }
          for (int phase = 0; phase < phase_count(target, stride); ++phase) {
            const TapAxis axis = transposed_axis(phase, source, target, kernel, stride, pad, dilation);
            for (int i = 0; i < axis.grid; ++i) {
              const int y = axis.target_first + i * axis.target_step;
              ASSERT_LT(y, target);
              for (int t = 0; t < axis.taps; ++t) {
                const int at = i * axis.source_step + axis.first_offset + t * axis.offset_step;
                if (at < 0 || at >= source) continue;
                ASSERT_EQ(at, transposed_source(y, axis.kernel(t), stride, pad, dilation, source));
                ASSERT_EQ(tap_of(axis, axis.kernel(t)), t);
                ++seen[y * kernel + axis.kernel(t)];
              }
            }
          }
          ASSERT_EQ(seen, wanted) << stride << " " << dilation << " " << kernel << " " << pad;
        }
      }
    }
  }
}

// Work items of a product of several phases cover all pixels by all columns of each phase once, in any number of shares.
TEST(Gemm, ItemsCoverEveryPhaseOnce) {
  int shared = 0;
  for (const ConvShape& any : {conv_shape(2, 40, 60, 71, 24, 3, 3, 2, 1), conv_shape(1, 600, 21, 22, 8, 1, 1, 3),
                               conv_shape(1, 6, 40, 90, 4, 2, 5, 2, 1, 1, 2), conv_shape(3, 8, 5, 4, 8, 3, 3, 4, 1)}) {
    for (const bool last : {false, true}) {
      for (const int threads : {1, 2, 5, 7}) {
        TappedProduct<float> p{};
        p.shape = any;
        p.shape.channels_last = p.shape.weight_channels_last = last;
        p.transposed = true;
        const ConvCut cut = tapped_cut<kIsa>(p, threads);
        shared += cut.shares > 1;
        EXPECT_EQ(cut.phases, !last && any.stride_x == 2 ? 2 : 1) << any;
        // Of a target pixel and column.
        std::vector<int> seen(p.shape.batch * p.target_plane() * p.columns());
        for (int64_t index = 0; index < tapped_items(p, cut); ++index) {
          const TapItem item = tap_item(p, cut, index);
          for (int i = 0; i < item.pixels; ++i) {
            const int64_t pixel = item.first_pixel + i, image = pixel / item.grids[0].pixels();
            const int at = static_cast<int>(pixel % item.grids[0].pixels());
            const int y = at / item.grids[0].x.grid, x = at % item.grids[0].x.grid;
            const auto see = [&](const TapGrid& grid) {
              const int64_t place = target_pixel(grid, p.target_width(), y, x);
              for (int j = 0; j < item.width; ++j) {
                const int64_t column = item.group * p.group_columns() + item.first_column + j;
                ++seen.at((image * p.target_plane() + place) * p.columns() + column);
              }
            };
            see(item.grids[0]);
            if (item.phases > 1 && 2 * x + 1 < p.target_width()) see(item.grids[1]);
          }
        }
        EXPECT_EQ(seen, std::vector<int>(seen.size(), 1)) << any << ", " << threads << " threads" << last;
      }
    }
  }
  EXPECT_GT(shared, 8) << "work in shares";
  TappedProduct<float> alike{};
  alike.shape = conv_shape(2, 40, 60, 70, 24, 2, 2, 2);
  alike.transposed = true;
  EXPECT_EQ(tapped_cut<kIsa>(alike, 2).shares, 1) << "phases of as many taps";
}

TEST(Gemm, TransposeIntoPanel) {
  const int columns = Tile::kColumns - 3, length = 2 * Tile::kLanes + 1;
  std::vector<float> from(columns * length), to(length * Tile::kColumns, -1.0f);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i);
  transpose_into_panel<kIsa>(
      from.data(), length, columns, length, Tile::kColumns, [&](int i) { return i == 4 ? -1 : length - 1 - i; },
      to.data());
  for (int i = 0; i < length; ++i) {
    for (int j = 0; j < Tile::kColumns; ++j) {
      const float expected = i == 4 ? -1.0f : j < columns ? from[j * length + i] : 0.0f;
      EXPECT_EQ(to[(length - 1 - i) * Tile::kColumns + j], expected) << i << ", " << j;
    }
  }
}

// A gatherer is any class with these two members: one that samples halfway between a pixel and its right neighbour.
template <Isa isa>
struct HalfwayGatherer {
  const float* map;  // [H, W, C]
  int64_t channels;
  TapGrid grid{};
  int64_t first = 0;

  void place(const TapGrid& on, int64_t pixel, int) {
    grid = on;
    first = pixel;
  }
  void gather(const DepthBlock& block, int begin, int rows, float* to) const {
    for (int i = 0; i < rows; ++i, to += GemmTile<isa, float>::kPitch) {
      GridWalk walk(grid, first + begin + i);
      for (int k = 0; k < block.depth(); ++k) {
        const int t = block.t + k / block.channels, y = (*walk).y + t / grid.x.taps, x = (*walk).x + t % grid.x.taps;
        const float* at = map + (int64_t{y} * grid.x.extent + x) * channels + block.c + k % block.channels;
        to[k] = (at[0] + (x + 1 < grid.x.extent ? at[channels] : 0.0f)) / 2;
      }
    }
  }
};

// A convolution of it is that of the averaged map.
TEST(Gemm, AGathererOfOnesOwn) {
  for (const int channels : {3, 40}) {
    for (const int filters : {5, 33}) {
      ConvShape s = conv_shape(1, channels, 9, 8, filters, 3, 2);
      s.channels_last = s.weight_channels_last = true;
      Random random(7);
      const auto numbers = [&](int64_t count) {
        std::vector<float> values(count);
        for (float& value : values) value = static_cast<float>(random.whole(-8, 9));
        return values;
      };
      const std::vector<float> map = numbers(s.pixels() * channels), weights = numbers(s.weights());
      std::vector<float> averaged = map;
      for (int64_t i = 0; i < s.pixels(); ++i) {
        for (int c = 0; c < channels; ++c) {
          const bool edge = i % s.width == s.width - 1;
          averaged[i * channels + c] = (map[i * channels + c] + (edge ? 0.0f : map[(i + 1) * channels + c])) / 2;
        }
      }
      std::vector<float> expected = conv_nans<float>(s.out_pixels() * filters), result = expected;
      TappedProduct<float> p{s, false, averaged.data(), weights.data(), nullptr, Activation::kNone, expected.data()};
      const ConvCut cut = tapped_cut<kIsa>(p, 2);
      tapped_product<kIsa>(p, cut, 0, tapped_items(p, cut));
      p.target = result.data();
      TapScratch<kIsa, float> scratch(p, cut);
      for (int64_t i = 0; i < tapped_items(p, cut); ++i) {
        multiply_rows<kIsa>(p, tap_item(p, cut, i), scratch, HalfwayGatherer<kIsa>{map.data(), channels});
      }
      EXPECT_EQ(result, expected) << channels << " -> " << filters;
    }
  }
}

// Activations against the C library, in scalars; vectors are compared with these in conv2d_test.
TEST(Gemm, Activations) {
  for (double x = -9; x <= 9; x += 0.0625) {
    const double cubic = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    const double expected[] = {x, x > 0 ? x : 0, x / (1 + std::exp(-x)), x * std::erfc(-x * std::sqrt(0.5)) / 2,
                               x * (1 + std::tanh(cubic)) / 2};
    for (int i = 0; i < 5; ++i) {
      const double bound = std::fabs(expected[i]) + 2e-2;
      EXPECT_NEAR(activate(static_cast<Activation>(i), x), expected[i], 2e-14 * bound) << i << " " << x;
      EXPECT_NEAR(activate(static_cast<Activation>(i), static_cast<float>(x)), expected[i], 2e-6 * bound)
          << i << " " << x;
    }
  }
}

}  // namespace
