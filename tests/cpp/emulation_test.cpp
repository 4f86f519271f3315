// The emulated CUDA backend computes what CUDA defines. emulation_faults_test.cpp has the other
// half.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "emulation_kernels.cuh"

namespace {

using namespace cvk_test;
namespace emulation = cvk::emulation;

constexpr int kSeeds = 20;

class Emulation : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("CVKERNELS_EMULATION_SEED");
    emulation::set_seed(0);
  }
};

// ---- What CUDA defines --------------------------------------------------------------------------

TEST_F(Emulation, EveryThreadOfA3dGridRunsOnce) {
  const dim3 grid(3, 4, 5), block(7, 3, 2);
  std::vector<Indices> out(3 * 4 * 5 * 7 * 3 * 2, Indices{~0u, ~0u, 0});
  ASSERT_EQ(cvk::launch(indices_kernel, {grid, block}, nullptr, out.data()), cudaSuccess);
  for (unsigned i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i].thread, i % 42);
    EXPECT_EQ(out[i].block, i / 42);
    EXPECT_EQ(out[i].visits, 1u);
  }
}

template <class T>
void sum_blocks(int blocks, int threads, int n, T expected) {
  std::vector<T> input(n);
  std::iota(input.begin(), input.end(), T(1));
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    T total = 0;
    ASSERT_EQ(cvk::launch(block_sum_kernel<T>, {dim3(blocks), dim3(threads)}, nullptr, input.data(), &total, n),
              cudaSuccess);
    EXPECT_EQ(total, expected);
  }
}

TEST_F(Emulation, SumsOfABlock) {
  sum_blocks<int>(1, 32, 32, 528);            // 32 * 33 / 2
  sum_blocks<int>(1, 1024, 1024, 524800);     // 1024 * 1025 / 2
  sum_blocks<float>(1, 256, 200, 20100.0f);   // 200 * 201 / 2, exact in fp32
  sum_blocks<double>(5, 128, 601, 180901.0);  // 601 * 602 / 2
}

TEST_F(Emulation, WarpCollectives) {
  std::vector<WarpResults> out(32);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    ASSERT_EQ(cvk::launch(warp_kernel, {dim3(1), dim3(32)}, nullptr, out.data()), cudaSuccess);
    for (int lane = 0; lane < 32; ++lane) {
      const WarpResults& r = out[lane];
      EXPECT_EQ(r.indexed, (lane + 3) % 32 * 10);
      EXPECT_EQ(r.up, lane < 5 ? lane : lane - 5);
      EXPECT_EQ(r.down, lane > 26 ? lane : lane + 5);
      EXPECT_EQ(r.exchanged, lane ^ 9);
      EXPECT_EQ(r.up_of_8, lane % 8 < 3 ? lane : lane - 3);
      EXPECT_EQ(r.down_of_8, lane % 8 > 4 ? lane : lane + 3);
      EXPECT_EQ(r.indexed_of_8, lane / 8 * 8 + 2);  // 10 modulo 8
      EXPECT_EQ(r.down_double, (lane == 31 ? 31 : lane + 1) + 0.25);
      EXPECT_EQ(r.exchanged_wide, (1LL << 40) + (lane ^ 1));
      EXPECT_EQ(r.ballot, 0x49249249u);  // bits 0, 3, 6, ..., 30
      EXPECT_EQ(r.match, lane >= 30 ? 0xc0000000u : 0x1fu << (lane / 5 * 5));
      EXPECT_EQ(r.any_none, 0);
      EXPECT_EQ(r.any_one, 1);
      EXPECT_EQ(r.all_most, 0);
      EXPECT_EQ(r.all_all, 1);
      EXPECT_EQ(r.sum, 496 - 640);
      EXPECT_EQ(r.smallest, -20);
      EXPECT_EQ(r.largest, 11);
      EXPECT_EQ(r.bits_and, 0xe0u | 0x10u);
      EXPECT_EQ(r.bits_or, 0xffffffffu);
      EXPECT_EQ(r.bits_xor, 5u);
    }
  }
}

TEST_F(Emulation, PartsOfAWarpGoTheirOwnWays) {
  std::vector<int> out(32);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    ASSERT_EQ(cvk::launch(split_warp_kernel, {dim3(1), dim3(32)}, nullptr, out.data()), cudaSuccess);
    for (int lane = 0; lane < 12; ++lane) EXPECT_EQ(out[lane], 11 - lane);
    for (int lane = 12; lane < 32; ++lane) EXPECT_EQ(unsigned(out[lane]), 0xaaaaa000u);
  }
}

TEST_F(Emulation, CollectivesGoOnWithoutExitedLanes) {
  std::vector<unsigned> ballots(32);
  std::vector<float> from_last(32);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    ASSERT_EQ(cvk::launch(exited_lanes_kernel, {dim3(1), dim3(32)}, nullptr, 13, ballots.data(), from_last.data()),
              cudaSuccess);
    for (int lane = 0; lane < 13; ++lane) {
      EXPECT_EQ(ballots[lane], 0x1fffu);
      EXPECT_TRUE(std::isnan(from_last[lane])) << "a shuffle from an exited lane must give poison";
    }
  }
}

TEST_F(Emulation, BlockThatIsNotWholeWarps) {
  std::vector<unsigned> ballots(40);
  std::vector<float> from_last(40);
  ASSERT_EQ(cvk::launch(exited_lanes_kernel, {dim3(1), dim3(40)}, nullptr, 40, ballots.data(), from_last.data()),
            cudaSuccess);
  EXPECT_EQ(ballots[0], 0xffffffffu);
  EXPECT_EQ(from_last[0], 1.0f);
  EXPECT_EQ(ballots[39], 0xffu);
  EXPECT_TRUE(std::isnan(from_last[39]));
}

TEST_F(Emulation, ActiveMaskIsTheLanesOfTheBranch) {
  std::vector<unsigned> out(32);
  ASSERT_EQ(cvk::launch(active_mask_kernel, {dim3(1), dim3(32)}, nullptr, out.data()), cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(out[lane], lane % 2 == 0 ? 0x55555555u : lane < 8 ? 0xaau : 0u);
  }
}

TEST_F(Emulation, VotesOfABlock) {
  std::vector<int> count(96), all(96), any(96);
  ASSERT_EQ(cvk::launch(votes_of_block_kernel, {dim3(1), dim3(96)}, nullptr, count.data(), all.data(), any.data()),
            cudaSuccess);
  for (int i = 0; i < 96; ++i) {
    EXPECT_EQ(count[i], 32);
    EXPECT_EQ(all[i], 0 * 2 + 1);
    EXPECT_EQ(any[i], 1 * 2 + 0);
  }
}

TEST_F(Emulation, NamedBarriersSeparateGroups) {
  std::vector<int> out(128);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    ASSERT_EQ(cvk::launch(named_barriers_kernel, {dim3(1), dim3(128), 128 * sizeof(int)}, nullptr, out.data(), 5),
              cudaSuccess);
    for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], (i + 5) % 64);
    for (int i = 64; i < 128; ++i) EXPECT_EQ(out[i], 64 + (i + 1) % 64);
  }
}

TEST_F(Emulation, Atomics) {
  Atomics a = {};
  a.and_int = 0x1ff;
  a.cas = -1;
  a.min_wide = ~0ULL;
  std::vector<int> tickets(200);
  ASSERT_EQ(cvk::launch(atomics_kernel, {dim3(1), dim3(200)}, nullptr, &a, tickets.data()), cudaSuccess);
  std::sort(tickets.begin(), tickets.end());
  for (int i = 0; i < 200; ++i) EXPECT_EQ(tickets[i], i) << "each old value is returned once";
  EXPECT_EQ(a.add_int, 200);
  EXPECT_EQ(a.min_int, -199);
  EXPECT_EQ(a.max_int, 199);
  EXPECT_EQ(a.and_int, 0x100);
  EXPECT_EQ(a.or_int, 0xff);
  EXPECT_TRUE(a.cas >= 0 && a.cas < 200);
  EXPECT_EQ(a.add_unsigned, 600u);
  EXPECT_EQ(a.max_unsigned, 0x80000000u + 199);
  EXPECT_EQ(a.add_wide, 200ULL << 33);
  EXPECT_EQ(a.max_wide, 199ULL << 40);
  EXPECT_EQ(a.min_wide, 1ULL << 40);
  EXPECT_EQ(a.add_float, 100.0f);
  EXPECT_EQ(a.add_double, 50.0);
  EXPECT_TRUE(a.exchanged >= 0 && a.exchanged < 200);
}

TEST_F(Emulation, AThreadMayWaitForAFlag) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    int flag = 0, seen = 0;
    ASSERT_EQ(cvk::launch(flag_kernel, {dim3(1), dim3(64)}, nullptr, &flag, &seen), cudaSuccess);
    EXPECT_EQ(seen, 1);
  }
}

struct Parameters {
  int value;
  int* out;
};
__global__ void changes_its_parameter_kernel(Parameters p) {
  p.value += static_cast<int>(threadIdx.x);
  p.out[threadIdx.x] = p.value;
}

TEST_F(Emulation, EveryThreadHasItsOwnCopyOfTheArguments) {
  std::vector<int> out(64);
  ASSERT_EQ(cvk::launch(changes_its_parameter_kernel, {dim3(1), dim3(64)}, nullptr, Parameters{100, out.data()}),
            cudaSuccess);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], 100 + i);
}

__global__ void large_locals_kernel(long long* out) {
  int local[3000];
  for (int i = 0; i < 3000; ++i) local[i] = i + static_cast<int>(threadIdx.x);
  __syncthreads();
  long long sum = 0;
  for (int value : local) sum += value;
  out[threadIdx.x] = sum;
}

TEST_F(Emulation, LocalsSurviveABarrier) {
  std::vector<long long> out(1024);
  ASSERT_EQ(cvk::launch(large_locals_kernel, {dim3(1), dim3(1024)}, nullptr, out.data()), cudaSuccess);
  for (int i = 0; i < 1024; ++i) EXPECT_EQ(out[i], 2999LL * 3000 / 2 + 3000LL * i);
}

TEST_F(Emulation, HostThreadsMayLaunchAtOnce) {
  std::vector<int> input(512, 1);
  std::vector<int> totals(4, 0);
  std::vector<std::thread> hosts;
  for (int h = 0; h < 4; ++h) {
    hosts.emplace_back([&, h] {
      for (int repeat = 0; repeat < 20; ++repeat) {
        cvk::launch(block_sum_kernel<int>, {dim3(2), dim3(256)}, nullptr, input.data(), &totals[h], 512);
      }
    });
  }
  for (std::thread& host : hosts) host.join();
  for (int total : totals) EXPECT_EQ(total, 20 * 512);
}

TEST_F(Emulation, AnEmptyGridIsANoOp) {
  EXPECT_EQ(cvk::launch(indices_kernel, {dim3(0), dim3(32)}, nullptr, nullptr), cudaSuccess);
  EXPECT_EQ(cvk::launch(indices_kernel, {dim3(1, 0), dim3(32)}, nullptr, nullptr), cudaSuccess);
}

TEST_F(Emulation, ImpossibleLaunchesAreRefused) {
  const auto refused = [](const cvk::LaunchConfig& config) {
    const cudaError_t error = cvk::launch(indices_kernel, config, nullptr, nullptr);
    return error == cudaErrorInvalidConfiguration &&
           emulation::last_error_message().find("cvk_test::indices_kernel: ") == 0;
  };
  EXPECT_TRUE(refused({dim3(1), dim3(1025)}));
  EXPECT_TRUE(refused({dim3(1), dim3(64, 32)}));
  EXPECT_TRUE(refused({dim3(1), dim3(1, 1, 65)}));
  EXPECT_TRUE(refused({dim3(1), dim3(0)}));
  EXPECT_TRUE(refused({dim3(1, 65536), dim3(1)}));
  EXPECT_TRUE(refused({dim3(1), dim3(1), 164 * 1024}));
  cudaGetLastError();
}

TEST_F(Emulation, MemoryFunctions) {
  std::vector<int> a(4, 7), b(4, 0);
  EXPECT_EQ(cudaMemcpyAsync(b.data(), a.data(), 4 * sizeof(int), cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(b, a);
  EXPECT_EQ(cudaMemsetAsync(b.data(), 0, 2 * sizeof(int)), cudaSuccess);
  EXPECT_EQ(b, (std::vector<int>{0, 0, 7, 7}));
}

// ---- Arithmetic ---------------------------------------------------------------------------------

TEST_F(Emulation, RoundedArithmeticIsNeverFused) {
  // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: the last term is lost when the product is rounded and kept
  // by a fused operation.
  volatile float a = 1.0f + 0x1p-12f, one = 1.0f;
  const float product = __fmul_rn(a, a);
  EXPECT_EQ(__fmul_rn(a, a) - one, 0x1p-11f);
  EXPECT_EQ(__fsub_rn(__fmul_rn(a, a), one), 0x1p-11f);
  EXPECT_EQ(__fadd_rn(product, -one), 0x1p-11f);
  EXPECT_EQ(__fmaf_rn(a, a, -one), 0x1p-11f + 0x1p-24f);
  volatile double d = 1.0 + 0x1p-27, done = 1.0;
  EXPECT_EQ(__dmul_rn(d, d) - done, 0x1p-26);
  EXPECT_EQ(__fma_rn(d, d, -done), 0x1p-26 + 0x1p-54);
  EXPECT_EQ(__fdiv_rn(one, 3.0f), 1.0f / 3.0f);
  EXPECT_EQ(__fsqrt_rn(2.0f), 1.41421356f);
}

TEST_F(Emulation, BitFunctions) {
  EXPECT_EQ(__popc(0xf00fu), 8);
  EXPECT_EQ(__popcll(0xf00f00000000ull), 8);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(0x80), 8);
  EXPECT_EQ(__ffsll(1LL << 40), 41);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clz(-1), 0);
  EXPECT_EQ(__clzll(0), 64);
  EXPECT_EQ(__clzll(1LL << 40), 23);
  EXPECT_EQ(__brev(1u), 0x80000000u);
  EXPECT_EQ(__brev(0x12345678u), 0x1e6a2c48u);
  EXPECT_EQ(__brevll(2u), 0x4000000000000000u);
  EXPECT_EQ(__umulhi(0x80000000u, 6u), 3u);
  EXPECT_EQ(__float_as_uint(1.0f), 0x3f800000u);
  EXPECT_EQ(__float_as_int(-0.0f), static_cast<int>(0x80000000u));
  EXPECT_EQ(__int_as_float(0x40000000), 2.0f);
  EXPECT_EQ(__longlong_as_double(__double_as_longlong(1.5)), 1.5);
}

TEST_F(Emulation, ConversionsSaturate) {
  EXPECT_EQ(__float2int_rz(-1.75f), -1);
  EXPECT_EQ(__float2int_rd(-1.25f), -2);
  EXPECT_EQ(__float2int_ru(1.25f), 2);
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rz(NAN), 0);
  EXPECT_EQ(__float2int_rz(INFINITY), 2147483647);
  EXPECT_EQ(__float2int_rz(-3e9f), -2147483647 - 1);
}

TEST_F(Emulation, MinAndMaxIgnoreNan) {
  EXPECT_EQ(min(NAN, 2.0f), 2.0f);
  EXPECT_EQ(max(2.0, double(NAN)), 2.0);
  EXPECT_EQ(min(-3, 2), -3);
  EXPECT_EQ(max(int64_t{5}, int64_t{7}), 7);
}

TEST_F(Emulation, VectorTypesHaveCudasAlignment) {
  EXPECT_EQ(alignof(float4), 16u);
  EXPECT_EQ(alignof(int4), 16u);
  EXPECT_EQ(alignof(double2), 16u);
  EXPECT_EQ(alignof(float2), 8u);
  EXPECT_EQ(sizeof(uint3), 12u);
}

}  // namespace
