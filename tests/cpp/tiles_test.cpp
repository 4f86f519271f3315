// Products of bfloat16 in tiles: the unit by hand, against a loop, and where it must fault; the micro-kernel at every edge; whole
// convolutions against the definition, on the baseline and through the library of AVX-512.
//
// Scratch begins as NaN here, so that what is multiplied behind the end of a depth shows.
#include "gemm/tiles_cpu.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <thread>

#include "gemm/tapped_cpu.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv_transpose2d/conv_transpose2d.h"
#include "tests/cpp/amx_trap.h"
#include "tests/cpp/convolution.h"

// What common/scratch.h allocates with.
void* operator new(std::size_t size, std::align_val_t alignment) {
  const std::size_t unit = static_cast<std::size_t>(alignment), bytes = (size + unit - 1) / unit * unit;
  void* memory = std::aligned_alloc(unit, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return std::memset(memory, 0xff, bytes);
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace cvk;

// Before anything asks which unit there is.
[[maybe_unused]] const int kAsked = setenv("CVKERNELS_CPU_TILES", "emulated", 1);

constexpr Isa kIsa = Isa::kBaseline;
template <class U>
using TileOf = GemmTile<kIsa, tile_word_t<U>>;

uint32_t word(float first, float second) {
  return from_acc<bfloat16_t>(first).bits | uint32_t{from_acc<bfloat16_t>(second).bits} << 16;
}

// Tiles 0 (sums), 1 (left) and 2 (right) of so many rows and columns and words of depth.
TileConfig three_tiles(int rows, int columns, int words) {
  TileConfig config{};
  config.palette = 1;
  const int of_rows[] = {rows, rows, words}, of_columns[] = {columns, words, columns};
  for (int i = 0; i < 3; ++i) {
    config.rows[i] = static_cast<uint8_t>(of_rows[i]);
    config.row_bytes[i] = static_cast<uint16_t>(of_columns[i] * 4);
  }
  return config;
}

template <class U>
void multiply_three(float* sums, int64_t sums_stride, const uint32_t* left, int64_t left_stride, const uint32_t* right,
                    int64_t right_stride) {
  U::template load<0>(sums, sums_stride * 4);
  U::template load<1>(left, left_stride * 4);
  U::template load<2>(right, right_stride * 4);
  U::template multiply<0, 1, 2>();
  U::template store<0>(sums, sums_stride * 4);
}

// The unit in C++, and the instructions: on a machine without them these end up in it too, as they are encoded.
template <class U>
class TilesTest : public testing::Test {};
#if defined(__x86_64__) && defined(__linux__)
template <>
class TilesTest<AmxTiles<kIsa>> : public testing::Test {
 protected:
  void SetUp() override {
    if (!AmxTrap::cpu_has_tiles()) {
      trap_.emplace();
      before_ = AmxTrap::count();
    } else if (!AmxTrap::tiles_are_granted()) {
      GTEST_SKIP() << "the system does not grant AMX";
    }
  }
  void TearDown() override {
    if (trap_.has_value()) {
      EXPECT_GT(AmxTrap::count(), before_);
    }
  }

 private:
  std::optional<AmxTrap> trap_;
  int64_t before_ = 0;
};
using Units = testing::Types<EmulatedTiles<kIsa>, AmxTiles<kIsa>>;
#else
using Units = testing::Types<EmulatedTiles<kIsa>>;
#endif
TYPED_TEST_SUITE(TilesTest, Units);

TYPED_TEST(TilesTest, ProductByHand) {
  using U = TypeParam;
  const uint32_t left[2][2] = {{word(1, 2), word(3, 4)}, {word(5, 6), word(7, 8)}};
  const uint32_t right[2][2] = {{word(1, 10), word(-1, 0.5f)}, {word(100, 1000), word(0, 2)}};
  float sums[2][2] = {{1, 0}, {0, -14}};
  U::configure(three_tiles(2, 2, 2));
  multiply_three<U>(sums[0], 2, left[0], 2, right[0], 2);
  U::release();
  EXPECT_EQ(sums[0][0], 1 + 1 + 20 + 300 + 4000);
  EXPECT_EQ(sums[0][1], -1 + 1 + 0 + 8);
  EXPECT_EQ(sums[1][0], 5 + 60 + 700 + 8000);
  EXPECT_EQ(sums[1][1], -14 - 5 + 3 + 0 + 16);
}

TYPED_TEST(TilesTest, ProductEqualsALoop) {
  using U = TypeParam;
  Random random(3);
  const auto eighth = [&] { return static_cast<float>(random.whole(-16, 17)) / 8; };
  for (const int rows : {1, 2, 15, 16}) {
    for (const int columns : {1, 3, 16}) {
      for (const int words : {1, 7, 16}) {
        const int pitch = 19;
        std::vector<float> left(rows * 2 * words), right(2 * words * columns), sums(rows * pitch, 0.125f);
        for (float& value : left) value = eighth();
        for (float& value : right) value = eighth();
        std::vector<uint32_t> a(rows * pitch, ~0u), b(words * pitch, ~0u);
        for (int k = 0; k < words; ++k) {
          for (int i = 0; i < rows; ++i)
            a[i * pitch + k] = word(left[i * 2 * words + 2 * k], left[i * 2 * words + 2 * k + 1]);
          for (int j = 0; j < columns; ++j)
            b[k * pitch + j] = word(right[2 * k * columns + j], right[(2 * k + 1) * columns + j]);
        }
        U::configure(three_tiles(rows, columns, words));
        multiply_three<U>(sums.data(), pitch, a.data(), pitch, b.data(), pitch);
        U::release();
        for (int i = 0; i < rows; ++i) {
          for (int j = 0; j < pitch; ++j) {
            float expected = 0.125f;
            for (int k = 0; j < columns && k < 2 * words; ++k)
              expected += left[i * 2 * words + k] * right[k * columns + j];
            ASSERT_EQ(sums[i * pitch + j], expected)
                << rows << " x " << columns << " x " << words << " " << i << "," << j;
          }
        }
      }
    }
  }
}

// Numbers below 2^-126 are zeros of their sign: in either factor, in the sums read, in those written; NaN and infinity are kept.
TYPED_TEST(TilesTest, SmallNumbersAreZero) {
  using U = TypeParam;
  const auto product = [](float a, float b, float sum) {
    const uint32_t left = word(a, 0), right = word(b, 0);
    U::configure(three_tiles(1, 1, 1));
    multiply_three<U>(&sum, 1, &left, 1, &right, 1);
    U::release();
    return sum;
  };
  EXPECT_EQ(product(0x1p-127f, 0x1p127f, 0), 0);
  EXPECT_EQ(product(0x1p127f, 0x1p-127f, 0), 0);
  EXPECT_EQ(product(0x1p-126f, 0x1p126f, 0), 1);
  EXPECT_EQ(product(0x1p-100f, 0x1p-27f, 0), 0);
  EXPECT_EQ(product(0, 0, 0x1p-127f), 0);
  EXPECT_EQ(product(0, 0, 0x1p-126f), 0x1p-126f);
  EXPECT_EQ(product(-0x1p-126f, 1, 0x1.8p-126f), 0);
  EXPECT_EQ(product(std::numeric_limits<float>::infinity(), 2, 1), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(product(std::numeric_limits<float>::infinity(), 0, 1)));
  EXPECT_TRUE(std::isnan(product(std::nanf(""), 1, 1)));
}

using TilesDeathTest = testing::Test;

TEST_F(TilesDeathTest, Faults) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  using U = EmulatedTiles<kIsa>;
  float sums[16 * 16] = {};
  const auto use = [&] { U::store<0>(sums, 64); };
  EXPECT_DEATH(use(), "none is configured on this thread");
  EXPECT_DEATH(
      {
        U::configure(whole_tiles());
        std::thread(use).join();
      },
      "none is configured on this thread");
  EXPECT_DEATH(
      {
        U::configure(whole_tiles());
        U::release();
        use();
      },
      "none is configured on this thread");
  const auto with = [&](const TileConfig& config) {
    U::configure(config);
    use();
    U::multiply<0, 1, 2>();
  };
  TileConfig config = whole_tiles();
  config.rows[0] = 17;
  EXPECT_DEATH(with(config), "too large a tile");
  config = whole_tiles();
  config.row_bytes[8] = 64;
  EXPECT_DEATH(with(config), "reserved bytes");
  config = whole_tiles();
  config.palette = 2;
  EXPECT_DEATH(with(config), "palette");
  config = whole_tiles();
  config.rows[0] = config.row_bytes[0] = 0;
  EXPECT_DEATH(with(config), "tilestored");
  config = three_tiles(4, 5, 6);
  config.rows[2] = 5;
  EXPECT_DEATH(with(config), "shapes of the tiles");
  config = three_tiles(4, 5, 6);
  config.rows[1] = 3;
  EXPECT_DEATH(with(config), "shapes of the tiles");
}

// ---- the micro-kernel

// Elements [k, k + depth) of 33 rows and columns as a block's operands, everything else NaN.
TYPED_TEST(TilesTest, BlockAtEveryEdge) {
  using Word = tile_word_t<TypeParam>;
  using Tile = TileOf<TypeParam>;
  constexpr int kMost = 33, kDeepest = 641;
  Random random(5);
  std::vector<float> left(kMost * kDeepest), right(kMost * kDeepest), bias(2 * kMost);
  for (float& value : left) value = static_cast<float>(random.whole(-8, 9));
  for (float& value : right) value = static_cast<float>(random.whole(-8, 9));
  for (float& value : bias) value = static_cast<float>(random.whole(-99, 99));
  const int64_t panel_size = int64_t{Tile::kDepth} * Tile::kColumns;
  const GemmSession<Word> session;
  for (const int depth : {1, 2, 31, 32, 33, 640, 641}) {
    // The products of all, once.
    std::vector<float> products(kMost * kMost);
    for (int i = 0; i < kMost; ++i) {
      for (int j = 0; j < kMost; ++j) {
        for (int k = 0; k < depth; ++k) products[i * kMost + j] += left[i * kDeepest + k] * right[j * kDeepest + k];
      }
    }
    for (const int rows : {1, 15, 16, 17, 31, 32, 33}) {
      for (const int columns : {1, 15, 16, 17, 31, 32, 33}) {
        for (const int how : {0, 1, 2}) {  // sums; finished with a bias of rows; of columns, and ReLU
          std::vector<float> sums(4 * Tile::kSize, std::nanf("")), results(rows * (columns + 3), 7.0f);
          const GemmFinish<float> finish{results.data(), columns + 3, bias.data(), how == 1, how == 2};
          for (int from = 0; from < depth; from += DepthBlocks<kIsa, Word>::kMost) {
            const int count = min_of(depth - from, DepthBlocks<kIsa, Word>::kMost), words = ceil_div(count, 2);
            std::vector<Word> a(2 * Tile::kRows * Tile::kPitch), b(2 * panel_size);
            memset(static_cast<void*>(a.data()), 0xff, a.size() * sizeof(Word));
            memset(static_cast<void*>(b.data()), 0xff, b.size() * sizeof(Word));
            const auto pair = [&](const std::vector<float>& values, int i, int k) {
              const float* at = &values[i * kDeepest + from + k];
              return word(at[0], k + 1 < count ? at[1] : 0.0f);
            };
            for (int k = 0; k < words; ++k) {
              for (int i = 0; i < rows; ++i) a[i * Tile::kPitch + k].bits = pair(left, i, 2 * k);
              for (int j = 0; j < columns; ++j) {
                b[j / Tile::kColumns * panel_size + k * Tile::kColumns + j % Tile::kColumns].bits =
                    pair(right, j, 2 * k);
              }
            }
            pad_rows<kIsa>(rows, words, a.data());
            for (int j = 0; j < 2; ++j) pad_panel<kIsa>(words, Tile::kColumns, b.data() + j * panel_size);
            const bool last = from + count == depth;
            gemm_block<kIsa>(rows, columns, gemm_operands<Word>(count), GemmRows<Word>{a.data(), Tile::kPitch},
                             b.data(), Tile::kColumns, panel_size, sums.data(), 2, from > 0,
                             last && how > 0 ? &finish : nullptr);
          }
          for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < columns + 3; ++j) {
              const float* tile = &sums[(i / Tile::kRows * 2 + j / Tile::kColumns) * Tile::kSize];
              const float product = j < columns ? products[i * kMost + j] : 0;
              const float expected[] = {product, product + bias[i], max_of(0.0f, product + bias[j])};
              const float result = how == 0 ? tile[i % Tile::kRows * Tile::kColumns + j % Tile::kColumns]
                                            : results[i * (columns + 3) + j];
              if (j >= columns && how == 0) continue;
              ASSERT_EQ(result, j < columns ? expected[how] : 7.0f)
                  << rows << " x " << columns << " x " << depth << ", how " << how << ": " << i << ", " << j;
            }
          }
        }
      }
    }
  }
}

// ---- whole convolutions

std::vector<bfloat16_t> expected_of(const std::vector<double>& sums, const std::vector<double>& bias, bool with_bias,
                                    Activation activation, const ConvShape& s, int64_t columns, int64_t inner) {
  std::vector<double> values = sums;
  for (size_t i = 0; i < values.size(); ++i) {
    if (with_bias) values[i] += bias[i / inner % columns];
    values[i] = activate(activation, static_cast<float>(values[i]));
  }
  return conv_tensor<bfloat16_t>(values, s.batch, columns, inner, s.channels_last);
}

// A tapped product on the baseline, in items from the last to the first.
template <class Word>
void run(const TappedProduct<bfloat16_t>& p, int threads) {
  ConvCut cut{};
  cut_product<kIsa, Word>(p, threads, cut);
  in_slices(tapped_items(p, cut), false,
            [&](int64_t first, int64_t last) { tapped_product_of<kIsa, Word>(p, cut, first, last); });
}

TYPED_TEST(TilesTest, ConvolutionsEqualTheDefinition) {
  using Word = tile_word_t<TypeParam>;
  uint64_t seed = 0;
  for (const ConvShape& any : conv_shapes()) {
    ++seed;
    if (is_depthwise(any)) continue;
    const ConvProblem problem(any, seed);
    for_each_layout(any, [&](const ConvShape& s) {
      const bool with_bias = seed % 2 == 0;
      const Activation activation = seed % 3 == 0 ? Activation::kRelu : Activation::kNone;
      const auto input = conv_tensor<bfloat16_t>(problem.input, s.batch, s.channels, s.pixels(), s.channels_last);
      const auto grad = conv_tensor<bfloat16_t>(problem.grad, s.batch, s.filters, s.out_pixels(), s.channels_last);
      const auto weight = conv_tensor<bfloat16_t>(problem.weight, s.filters, s.group_channels(), s.kernel_size(),
                                                  s.weight_channels_last);
      const auto bias = conv_tensor<bfloat16_t>(problem.bias, 1, s.filters, 1, false);
      const auto back_bias = conv_tensor<bfloat16_t>(problem.input_bias, 1, s.channels, 1, false);
      auto output = conv_nans<bfloat16_t>(problem.output.size()), back = conv_nans<bfloat16_t>(problem.back.size());
      const TappedProduct<bfloat16_t> forward{
          s, false, input.data(), weight.data(), with_bias ? bias.data() : nullptr, activation, output.data()};
      const TappedProduct<bfloat16_t> transposed{
          s, true, grad.data(), weight.data(), with_bias ? back_bias.data() : nullptr, activation, back.data()};
      std::ostringstream what;
      what << s;
      if (pairs_fit<kIsa>(forward) && !output.empty()) {
        run<Word>(forward, 3);
        expect_equal(output,
                     expected_of(problem.output, problem.bias, with_bias, activation, s, s.filters, s.out_pixels()),
                     what.str());
      }
      if (pairs_fit<kIsa>(transposed) && !back.empty()) {
        run<Word>(transposed, 3);
        expect_equal(back,
                     expected_of(problem.back, problem.input_bias, with_bias, activation, s, s.channels, s.pixels()),
                     what.str() + ", transposed");
      }
    });
  }
}

#if defined(__x86_64__)

// Skips where the library has no emulated unit or the machine no AVX-512.
#define CVK_NEEDS_EMULATED_TILES() \
  if (cpu_bf16_tiles() != Bf16Tiles::kEmulated) GTEST_SKIP() << "no emulated tiles here"

void forward_in_library(Conv2dParams<bfloat16_t>& params, int threads) {
  in_slices(conv2d_forward_items_cpu<Isa::kV4>(params, threads), threads == 1,
            [&](int64_t first, int64_t last) { conv2d_forward_cpu<Isa::kV4>(params, first, last); });
}

TEST(Tiles, LibraryEqualsTheDefinition) {
  CVK_NEEDS_EMULATED_TILES();
  uint64_t seed = 100;
  int in_tiles = 0;
  for (const ConvShape& any : conv_shapes()) {
    const ConvProblem problem(any, ++seed);
    for_each_layout(any, [&](const ConvShape& s) {
      const auto input = conv_tensor<bfloat16_t>(problem.input, s.batch, s.channels, s.pixels(), s.channels_last);
      const auto grad = conv_tensor<bfloat16_t>(problem.grad, s.batch, s.filters, s.out_pixels(), s.channels_last);
      const auto weight = conv_tensor<bfloat16_t>(problem.weight, s.filters, s.group_channels(), s.kernel_size(),
                                                  s.weight_channels_last);
      const auto bias = conv_tensor<bfloat16_t>(problem.bias, 1, s.filters, 1, false);
      std::ostringstream what;
      what << s;
      for (const Activation activation : {Activation::kNone, Activation::kRelu, Activation::kSilu}) {
        auto output = conv_nans<bfloat16_t>(problem.output.size());
        if (output.empty()) break;
        Conv2dParams<bfloat16_t> params{};
        params.shape = s;
        params.input = input.data();
        params.weight = weight.data();
        params.bias = bias.data();
        params.activation = activation;
        params.output = output.data();
        forward_in_library(params, activation == Activation::kNone ? 1 : 4);
        in_tiles += params.cut.operands == ConvOperands::kEmulatedTiles;
        EXPECT_FALSE(params.cut.form == ConvForm::kWinograd && params.cut.operands == ConvOperands::kEmulatedTiles);
        const auto expected = expected_of(problem.output, problem.bias, true, activation, s, s.filters, s.out_pixels());
        if (activation == Activation::kSilu) {  // another rounding of exp at times
          for (size_t i = 0; i < output.size(); ++i) {
            const float value = to_acc(expected[i]);
            ASSERT_NEAR(to_acc(output[i]), value, 0.008f * std::fabs(value)) << what.str() << ", " << i;
          }
        } else {
          expect_equal(output, expected, what.str());
        }
      }
      auto back = conv_nans<bfloat16_t>(problem.back.size());
      if (back.empty()) return;
      ConvTranspose2dParams<bfloat16_t> params{s, grad.data(), weight.data(), nullptr, back.data(), {}, false};
      in_slices(conv_transpose2d_items_cpu<Isa::kV4>(params, 2), false,
                [&](int64_t first, int64_t last) { conv_transpose2d_cpu<Isa::kV4>(params, first, last); });
      expect_equal(back, expected_of(problem.back, {}, false, Activation::kNone, s, s.channels, s.pixels()),
                   what.str() + ", transposed");
    });
  }
  EXPECT_GT(in_tiles, 100);
}

// Neither threads nor the other images of a batch change a bit, where sums are rounded.
TEST(Tiles, BitsAreOfTheImageAlone) {
  CVK_NEEDS_EMULATED_TILES();
  for (const bool last : {false, true}) {
    ConvShape s = conv_shape(3, 96, 13, 11, 70, 3, 3, 1, 1);
    s.channels_last = s.weight_channels_last = last;
    Random random(11);
    const auto numbers = [&](int64_t count) {
      std::vector<bfloat16_t> values(count);
      for (bfloat16_t& value : values)
        value = from_acc<bfloat16_t>(static_cast<float>(random.whole(-9999, 10000)) / 777);
      return values;
    };
    const auto input = numbers(s.batch * s.channels * s.pixels()), weight = numbers(s.weights());
    const auto results = [&](int threads, int64_t first, int64_t images) {
      auto output = conv_nans<bfloat16_t>(images * s.filters * s.out_pixels());
      Conv2dParams<bfloat16_t> params{};
      params.shape = s;
      params.shape.batch = images;
      params.input = input.data() + first * s.channels * s.pixels();
      params.weight = weight.data();
      params.output = output.data();
      forward_in_library(params, threads);
      return output;
    };
    const auto all = results(1, 0, 3);
    for (const int threads : {2, 7, 40})
      expect_equal(results(threads, 0, 3), all, std::to_string(threads) + " threads");
    const int64_t size = s.filters * s.out_pixels();
    for (int64_t i = 0; i < 3; ++i) {
      const std::vector<bfloat16_t> expected(all.begin() + i * size, all.begin() + (i + 1) * size);
      expect_equal(results(3, i, 1), expected, "an image");
    }
  }
}

#endif

}  // namespace
