// Matrix instructions and asynchronous copies of the emulated backend (common/ptx.cuh), element by element against the layouts
// of fragments as the PTX manual gives them.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/ptx.cuh"

namespace {

using namespace cvk;

class Matrix : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("CVKERNELS_EMULATION_SEED");
    emulation::set_seed(0);
  }
};

// Small whole numbers, exact in every format and sum.
float value(int row, int column, int which) { return static_cast<float>((row * 7 + column * 3 + which * 5) % 11 - 5); }

// ---- The manual's formulas. `i` counts the elements of a lane's fragment.
struct Place {
  int row, column;
};
Place a16(int lane, int i) {  // m16n8k16, A
  const bool upper = i < 2 || (4 <= i && i < 6);
  return {lane / 4 + (upper ? 0 : 8), lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}
Place b16(int lane, int i) { return {lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8), lane / 4}; }
Place c16(int lane, int i) { return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)}; }
Place a8(int lane, int i) {  // m16n8k8, A
  return {lane / 4 + (i == 0 || i == 2 ? 0 : 8), lane % 4 + (i < 2 ? 0 : 4)};
}
Place b8(int lane, int i) { return {lane % 4 + (i == 0 ? 0 : 4), lane / 4}; }

uint16_t bits_of(float x, half_t) { return from_acc<half_t>(x).bits; }
uint16_t bits_of(float x, bfloat16_t) { return from_acc<bfloat16_t>(x).bits; }

template <class T>
__global__ void half_product_kernel(const float* a, const float* b, float* c) {  // [16, 16], [16, 8], [16, 8]
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t left[4] = {}, right[2] = {};
  float sum[4];
  for (int i = 0; i < 8; ++i) {
    const Place at = a16(lane, i);
    left[i / 2] |= uint32_t{bits_of(a[at.row * 16 + at.column], T{})} << (16 * (i & 1));
  }
  for (int i = 0; i < 4; ++i) {
    const Place at = b16(lane, i);
    right[i / 2] |= uint32_t{bits_of(b[at.row * 8 + at.column], T{})} << (16 * (i & 1));
  }
  for (int i = 0; i < 4; ++i) sum[i] = c[c16(lane, i).row * 8 + c16(lane, i).column];
  matrix_multiply(left, right, sum, T{});
  for (int i = 0; i < 4; ++i) c[c16(lane, i).row * 8 + c16(lane, i).column] = sum[i];
}

__global__ void tf32_product_kernel(const float* a, const float* b, float* c) {  // [16, 8], [8, 8], [16, 8]
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t left[4], right[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) left[i] = to_tf32(a[a8(lane, i).row * 8 + a8(lane, i).column]);
  for (int i = 0; i < 2; ++i) right[i] = to_tf32(b[b8(lane, i).row * 8 + b8(lane, i).column]);
  for (int i = 0; i < 4; ++i) sum[i] = c[c16(lane, i).row * 8 + c16(lane, i).column];
  matrix_multiply_tf32(left, right, sum);
  for (int i = 0; i < 4; ++i) c[c16(lane, i).row * 8 + c16(lane, i).column] = sum[i];
}

__global__ void double_product_kernel(const double* a, const double* b, double* c) {  // [8, 4], [4, 8], [8, 8]
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  double sum[2] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1]};
  matrix_multiply(a[g * 4 + t], b[t * 8 + g], sum);
  c[g * 8 + 2 * t] = sum[0];
  c[g * 8 + 2 * t + 1] = sum[1];
}

template <class A>
void expect_product(int m, int n, int k, void (*kernel)(const A*, const A*, A*)) {
  std::vector<A> a(m * k), b(k * n), c(m * n), expected(m * n);
  for (int i = 0; i < m; ++i) {
    for (int p = 0; p < k; ++p) a[i * k + p] = value(i, p, 0);
  }
  for (int p = 0; p < k; ++p) {
    for (int j = 0; j < n; ++j) b[p * n + j] = value(p, j, 1);
  }
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      c[i * n + j] = expected[i * n + j] = value(i, j, 2);
      for (int p = 0; p < k; ++p) expected[i * n + j] += a[i * k + p] * b[p * n + j];
    }
  }
  ASSERT_EQ(launch(kernel, {dim3(1), dim3(32)}, nullptr, a.data(), b.data(), c.data()), cudaSuccess)
      << emulation::last_error_message();
  EXPECT_EQ(c, expected);
}

TEST_F(Matrix, Products) {
  expect_product<float>(16, 8, 16, half_product_kernel<half_t>);
  expect_product<float>(16, 8, 16, half_product_kernel<bfloat16_t>);
  expect_product<float>(16, 8, 8, tf32_product_kernel);
  expect_product<double>(8, 8, 4, double_product_kernel);
}

TEST_F(Matrix, Tf32RoundsToTenBitsTiesAway) {
  const float unit = 0x1p-10f;
  EXPECT_EQ(bit_cast<float>(to_tf32(1 + 0.49f * unit)), 1.0f);
  EXPECT_EQ(bit_cast<float>(to_tf32(1 + 0.5f * unit)), 1 + unit);
  EXPECT_EQ(bit_cast<float>(to_tf32(-1 - 0.5f * unit)), -1 - unit);
  EXPECT_EQ(bit_cast<float>(to_tf32(1 + 1.5f * unit)), 1 + 2 * unit);
  EXPECT_EQ(bit_cast<float>(to_tf32(0x1.fffffep+127f)), INFINITY);
  EXPECT_EQ(bit_cast<float>(to_tf32(-INFINITY)), -INFINITY);
  EXPECT_TRUE(std::isnan(bit_cast<float>(to_tf32(NAN))));
}

// ---- ldmatrix

struct Four {
  uint32_t registers[4];
};

// Element (i, j) of matrix m is 100 m + 10 i + j.
__global__ void load_matrices_kernel(Four* plain, Four* transposed) {
  struct Shared {
    alignas(16) uint16_t rows[32][8];
  };
  auto& shared = static_shared<Shared>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int j = 0; j < 8; ++j) shared.rows[lane][j] = static_cast<uint16_t>(100 * (lane / 8) + 10 * (lane % 8) + j);
  __syncwarp();
  load_matrices(shared.rows[lane], plain[lane].registers);
  load_matrices_transposed(shared.rows[lane], transposed[lane].registers);
}

TEST_F(Matrix, LoadsOfFourMatrices) {
  std::vector<Four> plain(32), transposed(32);
  ASSERT_EQ(launch(load_matrices_kernel, {dim3(1), dim3(32)}, nullptr, plain.data(), transposed.data()), cudaSuccess);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t row = lane / 4, column = lane % 4 * 2;  // of the elements that a lane gets
      const auto element = [&](uint32_t i, uint32_t j) { return 100 * m + 10 * i + j; };
      EXPECT_EQ(plain[lane].registers[m], element(row, column) | element(row, column + 1) << 16);
      EXPECT_EQ(transposed[lane].registers[m], element(column, row) | element(column + 1, row) << 16);
    }
  }
}

// A lane that runs ahead overwrites its row; the instruction has read all rows by then.
__global__ void overwrite_kernel(Four* loaded) {
  struct Shared {
    alignas(16) uint16_t rows[32][8];
  };
  auto& shared = static_shared<Shared>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int j = 0; j < 8; ++j) shared.rows[lane][j] = 1;
  __syncwarp();
  load_matrices(shared.rows[lane], loaded[lane].registers);
  for (int j = 0; j < 8; ++j) shared.rows[lane][j] = 2;
}

TEST_F(Matrix, AWarpExecutesAnInstructionAtOnce) {
  for (int seed = 0; seed < 10; ++seed) {
    emulation::set_seed(seed);
    std::vector<Four> loaded(32);
    ASSERT_EQ(launch(overwrite_kernel, {dim3(1), dim3(32)}, nullptr, loaded.data()), cudaSuccess);
    for (const Four& lane : loaded) {
      for (uint32_t bits : lane.registers) EXPECT_EQ(bits, 0x00010001u);
    }
  }
}

__global__ void divergent_kernel() {
  float sum[4] = {};
  const uint32_t left[4] = {}, right[2] = {};
  if (threadIdx.x != 5) matrix_multiply(left, right, sum, half_t{});
}

__global__ void two_instructions_kernel() {
  float sum[4] = {};
  const uint32_t left[4] = {}, right[2] = {};
  if (threadIdx.x < 16) {
    matrix_multiply(left, right, sum, half_t{});
  } else {
    matrix_multiply(left, right, sum, bfloat16_t{});
  }
}

TEST_F(Matrix, AnInstructionWithoutAllLanesFails) {
  EXPECT_EQ(launch(divergent_kernel, {dim3(1), dim3(32)}, nullptr), cudaErrorLaunchFailure);
  EXPECT_NE(emulation::last_error_message().find("without all 32 lanes"), std::string::npos)
      << emulation::last_error_message();
  EXPECT_EQ(launch(divergent_kernel, {dim3(1), dim3(4)}, nullptr), cudaErrorLaunchFailure);
  EXPECT_EQ(launch(two_instructions_kernel, {dim3(1), dim3(32)}, nullptr), cudaErrorLaunchFailure);
  EXPECT_NE(emulation::last_error_message().find("a matrix instruction"), std::string::npos)
      << emulation::last_error_message();
}

// ---- cp.async

struct Pieces {
  alignas(16) float values[32][4];
};

// Lane l copies row l, lanes from `valid` on zeros; each reads its neighbour's row. `waits` and `barrier` may be left out.
__global__ void copy_kernel(const Pieces* from, Pieces* to, int valid, bool waits, bool barrier) {
  auto& shared = static_shared<Pieces>();
  const int lane = static_cast<int>(threadIdx.x), neighbour = (lane + 1) % 32;
  copy_async<16>(shared.values[lane], from->values[lane], lane < valid);
  copy_async_commit();
  if (waits) copy_async_wait<0>();
  if (barrier) __syncwarp();
  for (int i = 0; i < 4; ++i) to->values[lane][i] = shared.values[neighbour][i];
}

bool copies(int seed, bool waits, bool barrier) {
  emulation::set_seed(seed);
  Pieces from, to;
  for (int i = 0; i < 128; ++i) from.values[i / 4][i % 4] = static_cast<float>(i);
  EXPECT_EQ(launch(copy_kernel, {dim3(1), dim3(32)}, nullptr, &from, &to, 20, waits, barrier), cudaSuccess);
  for (int i = 0; i < 128; ++i) {
    const int source = (i / 4 + 1) % 32;
    if (to.values[i / 4][i % 4] != (source < 20 ? static_cast<float>(4 * source + i % 4) : 0.0f)) return false;
  }
  return true;
}

TEST_F(Matrix, CopiesAreThereAfterWaitAndBarrier) {
  for (int seed = 0; seed < 20; ++seed) EXPECT_TRUE(copies(seed, true, true));
}

TEST_F(Matrix, AMissingWaitOrBarrierShows) {
  int wrong_without_wait = 0, wrong_without_barrier = 0;
  for (int seed = 0; seed < 20; ++seed) {
    wrong_without_wait += !copies(seed, false, true);
    wrong_without_barrier += !copies(seed, true, false);
  }
  EXPECT_GT(wrong_without_wait, 15);
  EXPECT_GT(wrong_without_barrier, 15);
}

// Two groups; the wait for the older leaves the younger under way, in some order of the seeds.
__global__ void groups_kernel(const Pieces* from, float* old, float* young) {
  auto& shared = static_shared<Pieces>();
  shared.values[0][0] = shared.values[1][0] = -1.0f;
  copy_async<4>(&shared.values[0][0], &from->values[0][0], true);
  copy_async_commit();
  copy_async<8>(&shared.values[1][0], &from->values[1][0], true);
  copy_async_commit();
  copy_async_wait<1>();
  *old = shared.values[0][0];
  *young = shared.values[1][0];
  copy_async_wait<0>();
  *young += shared.values[1][0];
}

TEST_F(Matrix, GroupsAreWaitedForInOrder) {
  Pieces from;
  for (int i = 0; i < 128; ++i) from.values[i / 4][i % 4] = static_cast<float>(i);
  bool early = false, late = false;
  for (int seed = 0; seed < 20; ++seed) {
    emulation::set_seed(seed);
    float old = 0, young = 0;
    ASSERT_EQ(launch(groups_kernel, {dim3(1), dim3(1)}, nullptr, &from, &old, &young), cudaSuccess);
    EXPECT_EQ(old, 0.0f);
    early = early || young == 8.0f;  // 4 + 4
    late = late || young == 3.0f;    // -1 + 4
  }
  EXPECT_TRUE(early && late);
}

__global__ void unaligned_kernel(const Pieces* from) {
  auto& shared = static_shared<Pieces>();
  copy_async<16>(&shared.values[0][0], &from->values[0][1], true);
}

TEST_F(Matrix, AnUnalignedCopyFails) {
  Pieces from{};
  EXPECT_EQ(launch(unaligned_kernel, {dim3(1), dim3(1)}, nullptr, &from), cudaErrorLaunchFailure);
  EXPECT_NE(emulation::last_error_message().find("asynchronous copy of 16 bytes"), std::string::npos);
}

// ---- products of a warpgroup

// Element (line, index) of lines of 64, as the swizzle lays it.
int swizzled(int line, int index) { return line * 64 + ((index / 8) ^ (line % 8)) * 8 + index % 8; }

template <int columns, bool kLeftOuter, bool kRightOuter, class T>
__global__ void warpgroup_product_kernel(const float* a, const float* b, float* c,
                                         int shift) {  // [64, 32], [columns, 32]
  struct alignas(1024) Shared {
    T left[80 * 64], right[columns * 64];
  };
  auto& shared = *dynamic_shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < 64 * 32; i += 128) {
    const int row = i / 32, k = i % 32;
    shared.left[kLeftOuter ? swizzled(k, row) : swizzled(row + shift, k)] = from_acc<T>(a[i]);
  }
  for (int i = thread; i < columns * 32; i += 128) {
    const int row = i / 32, k = i % 32;
    // Lines of depths: 64 rows, then the next 64 behind 32 lines.
    shared.right[kRightOuter ? row / 64 * 32 * 64 + swizzled(k, row % 64) : swizzled(row, k)] = from_acc<T>(b[i]);
  }
  warpgroup_publish();
  __syncthreads();
  const WarpgroupOperand left(shared.left + (kLeftOuter ? 0 : shift * 64), 0), right(shared.right, 32 * 128);
  float sums[columns / 2];
  warpgroup_begin();
  for (int k = 0; k < 32; k += 16) {
    warpgroup_multiply<kLeftOuter, kRightOuter>(left.plus(k * (kLeftOuter ? 128 : 2)),
                                                right.plus(k * (kRightOuter ? 128 : 2)), k > 0, sums, T{});
  }
  warpgroup_commit();
  warpgroup_wait<0>();
  warpgroup_finished(sums);
  const int warp = thread / 32, lane = thread % 32;
  for (int i = 0; i < columns / 2; ++i) {  // the manual's formula of D
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    c[row * columns + column] = sums[i];
  }
}

template <int columns, bool kLeftOuter, bool kRightOuter, class T>
void expect_warpgroup_product(int shift = 0) {
  std::vector<float> a(64 * 32), b(columns * 32), c(64 * columns, NAN), expected(64 * columns);
  for (int i = 0; i < 64 * 32; ++i) a[i] = value(i / 32, i % 32, 0);
  for (int i = 0; i < columns * 32; ++i) b[i] = value(i % 32, i / 32, 1);
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < columns; ++j) {
      for (int k = 0; k < 32; ++k) expected[i * columns + j] += a[i * 32 + k] * b[j * 32 + k];
    }
  }
  for (int seed = 0; seed < 3; ++seed) {
    emulation::set_seed(seed);
    const LaunchConfig config{dim3(1), dim3(128), (80 + columns) * 64 * sizeof(T)};
    ASSERT_EQ(launch(warpgroup_product_kernel<columns, kLeftOuter, kRightOuter, T>, config, nullptr, a.data(), b.data(),
                     c.data(), shift),
              cudaSuccess)
        << emulation::last_error_message();
    EXPECT_EQ(c, expected);
  }
}

TEST_F(Matrix, WarpgroupProducts) {
  expect_warpgroup_product<64, false, false, half_t>();
  expect_warpgroup_product<128, false, false, bfloat16_t>();
  expect_warpgroup_product<256, false, false, half_t>();
  expect_warpgroup_product<64, true, true, bfloat16_t>();
  expect_warpgroup_product<128, true, true, half_t>();
  expect_warpgroup_product<256, true, true, bfloat16_t>();
  expect_warpgroup_product<128, true, false, half_t>();
  expect_warpgroup_product<128, false, true, half_t>();
}

TEST_F(Matrix, WarpgroupRowsBeginAnywhere) {  // an H200 does the same, with base offset 0
  for (int shift = 1; shift < 16; shift += 3) expect_warpgroup_product<64, false, false, half_t>(shift);
}

// Without the wait, sums are late for one seed or another.
__global__ void impatient_kernel(float* c) {
  struct alignas(1024) Shared {
    half_t values[64 * 64];
  };
  auto& shared = *dynamic_shared<Shared>();
  for (int i = static_cast<int>(threadIdx.x); i < 64 * 64; i += 128) shared.values[i] = from_acc<half_t>(1.0f);
  __syncthreads();
  const WarpgroupOperand operand(shared.values, 0);
  float sums[32] = {};
  warpgroup_multiply<false, false>(operand, operand, false, sums, half_t{});
  warpgroup_commit();
  c[threadIdx.x] = sums[0];
  warpgroup_wait<0>();
}

TEST_F(Matrix, WarpgroupProductsAreUnderWayUntilTheWait) {
  std::vector<float> c(128);
  bool late = false, early = false;
  for (int seed = 0; seed < 4; ++seed) {
    emulation::set_seed(seed);
    ASSERT_EQ(launch(impatient_kernel, {dim3(1), dim3(128), 64 * 64 * 2}, nullptr, c.data()), cudaSuccess);
    for (float value : c) (value == 16.0f ? early : late) = true;
  }
  EXPECT_TRUE(early && late);
}

}  // namespace
