// Tests of the emulated CUDA backend: it computes what CUDA defines, and it catches what CUDA forbids.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "emulation_kernels.cuh"

#if defined(__SANITIZE_ADDRESS__)
#define CVK_TEST_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CVK_TEST_ASAN
#endif
#endif

namespace {

using namespace cvk_test;
namespace emulation = cvk::emulation;

constexpr int kSeeds = 20;

std::vector<float> iota(int n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

// The launch must fail, and its message must hold every one of the words.
void expect_failure(cudaError_t error, const std::vector<std::string>& words) {
  EXPECT_EQ(error, cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetErrorString(error), emulation::last_error_message());
  for (const std::string& word : words) {
    EXPECT_NE(emulation::last_error_message().find(word), std::string::npos)
        << "'" << word << "' is not in: " << emulation::last_error_message();
  }
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

class Emulation : public ::testing::Test {
 protected:
  void SetUp() override { emulation::set_seed(0); }
};

// ---- What CUDA defines ------------------------------------------------------------------------------------------------

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
    ASSERT_EQ(cvk::launch(block_sum_kernel<T>, {dim3(blocks), dim3(threads)}, nullptr,
                          input.data(), &total, n),
              cudaSuccess);
    EXPECT_EQ(total, expected);
  }
}

TEST_F(Emulation, SumsOfABlock) {
  sum_blocks<int>(1, 32, 32, 528);              // 32 * 33 / 2
  sum_blocks<int>(1, 1024, 1024, 524800);       // 1024 * 1025 / 2
  sum_blocks<float>(1, 256, 200, 20100.0f);     // 200 * 201 / 2, exact in fp32
  sum_blocks<double>(5, 128, 601, 180901.0);    // 601 * 602 / 2
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
    ASSERT_EQ(cvk::launch(split_warp_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
              cudaSuccess);
    for (int lane = 0; lane < 12; ++lane) EXPECT_EQ(out[lane], 11 - lane);
    for (int lane = 12; lane < 32; ++lane) EXPECT_EQ(unsigned(out[lane]), 0xaaaaa000u);
  }
}

TEST_F(Emulation, CollectivesGoOnWithoutExitedLanes) {
  std::vector<unsigned> ballots(32);
  std::vector<float> from_last(32);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    ASSERT_EQ(cvk::launch(exited_lanes_kernel, {dim3(1), dim3(32)}, nullptr, 13, ballots.data(),
                          from_last.data()),
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
  ASSERT_EQ(cvk::launch(exited_lanes_kernel, {dim3(1), dim3(40)}, nullptr, 40, ballots.data(),
                        from_last.data()),
            cudaSuccess);
  EXPECT_EQ(ballots[0], 0xffffffffu);
  EXPECT_EQ(from_last[0], 1.0f);
  EXPECT_EQ(ballots[39], 0xffu);
  EXPECT_TRUE(std::isnan(from_last[39]));
}

TEST_F(Emulation, ActiveMaskIsTheLanesOfTheBranch) {
  std::vector<unsigned> out(32);
  ASSERT_EQ(cvk::launch(active_mask_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
            cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(out[lane], lane % 2 == 0 ? 0x55555555u : 0u);
}

TEST_F(Emulation, VotesOfABlock) {
  std::vector<int> count(96), all(96), any(96);
  ASSERT_EQ(cvk::launch(votes_of_block_kernel, {dim3(1), dim3(96)}, nullptr, count.data(),
                        all.data(), any.data()),
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
    ASSERT_EQ(cvk::launch(named_barriers_kernel, {dim3(1), dim3(128), 128 * sizeof(int)}, nullptr,
                          out.data(), 5),
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
  ASSERT_EQ(cvk::launch(atomics_kernel, {dim3(1), dim3(200)}, nullptr, &a, tickets.data()),
            cudaSuccess);
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
  ASSERT_EQ(cvk::launch(changes_its_parameter_kernel, {dim3(1), dim3(64)}, nullptr,
                        Parameters{100, out.data()}),
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
  ASSERT_EQ(cvk::launch(large_locals_kernel, {dim3(1), dim3(1024)}, nullptr, out.data()),
            cudaSuccess);
  for (int i = 0; i < 1024; ++i) EXPECT_EQ(out[i], 2999LL * 3000 / 2 + 3000LL * i);
}

TEST_F(Emulation, HostThreadsMayLaunchAtOnce) {
  std::vector<int> input(512, 1);
  std::vector<int> totals(4, 0);
  std::vector<std::thread> hosts;
  for (int h = 0; h < 4; ++h) {
    hosts.emplace_back([&, h] {
      for (int repeat = 0; repeat < 20; ++repeat) {
        cvk::launch(block_sum_kernel<int>, {dim3(2), dim3(256)}, nullptr, input.data(), &totals[h],
                    512);
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
  EXPECT_EQ(cudaMemcpyAsync(b.data(), a.data(), 4 * sizeof(int), cudaMemcpyDeviceToDevice),
            cudaSuccess);
  EXPECT_EQ(b, a);
  EXPECT_EQ(cudaMemsetAsync(b.data(), 0, 2 * sizeof(int)), cudaSuccess);
  EXPECT_EQ(b, (std::vector<int>{0, 0, 7, 7}));
}

// ---- Arithmetic -------------------------------------------------------------------------------------------------------

TEST_F(Emulation, RoundedArithmeticIsNeverFused) {
  // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: the last term is lost when the product is rounded and kept by a fused operation.
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

// ---- Poison, seeds and missing barriers -------------------------------------------------------------------------------

TEST_F(Emulation, SharedMemoryIsPoisonedForEveryBlock) {
  std::vector<float> from_static(3 * 64), from_dynamic(3 * 64);
  ASSERT_EQ(cvk::launch(uninitialised_kernel, {dim3(3), dim3(64), 64 * sizeof(float)}, nullptr,
                        from_static.data(), from_dynamic.data()),
            cudaSuccess);
  for (float value : from_static) EXPECT_TRUE(std::isnan(value));
  for (float value : from_dynamic) EXPECT_TRUE(std::isnan(value));
}

TEST_F(Emulation, PoisonIsNanAndMinusOne) {
  double number = 0;
  int64_t index = 0;
  emulation::poison(&number, sizeof(number));
  emulation::poison(&index, sizeof(index));
  EXPECT_TRUE(std::isnan(number));
  EXPECT_EQ(index, -1);
  emulation::poison(nullptr, 0);
}

std::vector<float> reversed(uint64_t seed, bool with_barrier) {
  emulation::set_seed(seed);
  const std::vector<float> input = iota(64);
  std::vector<float> output(64);
  EXPECT_EQ(cvk::launch(reverse_kernel, {dim3(1), dim3(64), 64 * sizeof(float)}, nullptr,
                        input.data(), output.data(), with_barrier),
            cudaSuccess);
  return output;
}

TEST_F(Emulation, AMissingBarrierIsCaught) {
  std::set<std::vector<unsigned>> results;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const std::vector<float> right = reversed(seed, true);
    for (int i = 0; i < 64; ++i) EXPECT_EQ(right[i], 63.0f - i);
    const std::vector<float> broken = reversed(seed, false);
    int poisoned = 0;
    std::vector<unsigned> bits;
    for (float value : broken) {
      poisoned += std::isnan(value);
      bits.push_back(__float_as_uint(value));
    }
    EXPECT_EQ(poisoned, 32) << "of each pair, the thread that comes first reads poison";
    results.insert(bits);
  }
  EXPECT_EQ(results.size(), static_cast<size_t>(kSeeds)) << "every seed gives another result";
}

TEST_F(Emulation, AMissingSecondBarrierIsCaught) {
  const std::vector<float> input = iota(96);
  std::set<std::vector<float>> results;
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<float> right(96), broken(96);
    const cvk::LaunchConfig config{dim3(1), dim3(96), 96 * sizeof(float)};
    ASSERT_EQ(cvk::launch(rotate_kernel, config, nullptr, input.data(), right.data(), 4, true),
              cudaSuccess);
    for (int i = 0; i < 96; ++i) EXPECT_EQ(right[i], (i + 4) % 96);
    ASSERT_EQ(cvk::launch(rotate_kernel, config, nullptr, input.data(), broken.data(), 4, false),
              cudaSuccess);
    EXPECT_NE(broken, right);
    results.insert(broken);
  }
  EXPECT_EQ(results.size(), static_cast<size_t>(kSeeds));
}

TEST_F(Emulation, AMissingSyncwarpIsCaught) {
  std::set<std::vector<int>> results;
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<int> right(32), broken(32);
    const cvk::LaunchConfig config{dim3(1), dim3(32), 32 * sizeof(int)};
    ASSERT_EQ(cvk::launch(warp_exchange_kernel, config, nullptr, right.data(), true), cudaSuccess);
    for (int i = 0; i < 32; ++i) EXPECT_EQ(right[i], (i ^ 1) * 10);
    ASSERT_EQ(cvk::launch(warp_exchange_kernel, config, nullptr, broken.data(), false),
              cudaSuccess);
    EXPECT_EQ(std::count(broken.begin(), broken.end(), -1), 16);
    results.insert(broken);
  }
  EXPECT_EQ(results.size(), static_cast<size_t>(kSeeds));
}

std::vector<int> order_of_threads() {
  int counter = 0;
  std::vector<int> order(4 * 32, -1);
  EXPECT_EQ(cvk::launch(order_kernel, {dim3(4), dim3(32)}, nullptr, &counter, order.data()),
            cudaSuccess);
  return order;
}

TEST_F(Emulation, TheSeedDecidesTheOrder) {
  emulation::set_seed(5);
  const std::vector<int> first = order_of_threads(), second = order_of_threads();
  EXPECT_NE(first, second) << "two launches in a row must differ";
  emulation::set_seed(5);
  EXPECT_EQ(order_of_threads(), first);
  EXPECT_EQ(order_of_threads(), second);
  emulation::set_seed(6);
  EXPECT_NE(order_of_threads(), first);

  std::set<int> first_blocks;  // the order of blocks is shuffled too, and no block starts before the last one has ended
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<int> order = order_of_threads();
    first_blocks.insert(order[0] / 32);
    for (int i = 0; i < 128; ++i) EXPECT_EQ(order[i] / 32, order[i / 32 * 32] / 32);
    std::sort(order.begin(), order.end());
    for (int i = 0; i < 128; ++i) EXPECT_EQ(order[i], i);
  }
  EXPECT_EQ(first_blocks.size(), 4u);
}

TEST_F(Emulation, TheEnvironmentSetsTheSeed) {
  emulation::set_seed(7);
  const std::vector<int> expected = order_of_threads();
  emulation::set_seed(1);
  setenv("CVKERNELS_EMULATION_SEED", "7", 1);
  EXPECT_EQ(order_of_threads(), expected);
  EXPECT_NE(order_of_threads(), expected) << "the variable is applied when it changes, not at every launch";
  for (const char* text : {"-1", "seven", "7x", " 7"}) {
    setenv("CVKERNELS_EMULATION_SEED", text, 1);
    Indices out = {};
    EXPECT_EQ(cvk::launch(indices_kernel, {dim3(1), dim3(1)}, nullptr, &out), cudaErrorInvalidValue);
    EXPECT_EQ(emulation::last_error_message(),
              std::string("CVKERNELS_EMULATION_SEED: expected an unsigned integer, got '") + text + "'");
    EXPECT_EQ(out.visits, 0u);
  }
  unsetenv("CVKERNELS_EMULATION_SEED");
  cudaGetLastError();
}

// ---- What CUDA forbids ------------------------------------------------------------------------------------------------

TEST_F(Emulation, AThreadThatLeavesBeforeABarrierIsAnError) {
  std::vector<int> out(256, 0);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    expect_failure(cvk::launch(leaves_before_barrier_kernel<37>, {dim3(1), dim3(256)}, nullptr, out.data()),
                   {"cvk_test::leaves_before_barrier_kernel<37>, block (0,0,0)", "divergent barrier",
                    "of 256 threads 1 have exited", "255 wait for ever at __syncthreads [emulation_kernels.cuh:",
                    "seed " + std::to_string(seed)});
  }
  EXPECT_EQ(std::count(out.begin(), out.end(), 0), 256) << "nobody passed the barrier";
}

TEST_F(Emulation, TwoBarriersAtOnceAreAnError) {
  std::vector<int> out(64);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    expect_failure(cvk::launch(two_barriers_kernel, {dim3(1), dim3(64)}, nullptr, out.data()),
                   {"two_barriers_kernel", "divergent barrier", "arrives at __syncthreads", "waits at __syncthreads"});
  }
}

TEST_F(Emulation, ABarrierAgainstACollectiveIsAnError) {
  std::vector<int> out(64);
  expect_failure(cvk::launch(barrier_against_shuffle_kernel, {dim3(1), dim3(64)}, nullptr, out.data()),
                 {"barrier_against_shuffle_kernel", "62 wait for ever at __shfl_xor_sync of mask 0xffffffff",
                  "2 wait for ever at __syncthreads"});
}

TEST_F(Emulation, DifferentCollectivesAreAnError) {
  std::vector<int> out(32);
  expect_failure(cvk::launch(mixed_collectives_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
                 {"mixed_collectives_kernel", "16 wait for ever at __shfl_sync", "16 wait for ever at __any_sync"});
}

TEST_F(Emulation, UnequalMasksAreAnError) {
  std::vector<int> out(32);
  expect_failure(cvk::launch(unequal_masks_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
                 {"unequal_masks_kernel", "1 wait for ever at __shfl_sync of mask 0x0000ffff"});
}

TEST_F(Emulation, ALaneOutsideItsMaskIsAnError) {
  std::vector<int> out(32);
  expect_failure(cvk::launch(outside_mask_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
                 {"outside_mask_kernel", "__shfl_sync", "mask 0x0000ffff lacks the calling lane"});
}

TEST_F(Emulation, AShortNamedBarrierIsAnError) {
  std::vector<int> out(64);
  expect_failure(cvk::launch(named_barrier_short_kernel, {dim3(1), dim3(64)}, nullptr, out.data()),
                 {"named_barrier_short_kernel", "32 wait for ever at named barrier 3"});
}

TEST_F(Emulation, AFlagThatNobodySetsIsAnError) {
  const int flag = 0;
  expect_failure(cvk::launch(flag_never_set_kernel, {dim3(1), dim3(2)}, nullptr, &flag),
                 {"flag_never_set_kernel", "spin on a flag"});
}

struct CountsItsEnd {
  int* count;
  ~CountsItsEnd() { ++*count; }
};
__global__ void unwinds_kernel(int* ends) {
  const CountsItsEnd guard{ends};
  if (threadIdx.x != 1) __syncthreads();
}

TEST_F(Emulation, AFailedLaunchUnwindsItsThreads) {
  int ends = 0;
  expect_failure(cvk::launch(unwinds_kernel, {dim3(5), dim3(33)}, nullptr, &ends), {"unwinds_kernel"});
  EXPECT_EQ(ends, 33) << "every thread of the first block, and none of another";
}

__global__ void throws_kernel() {
  if (threadIdx.x == 2) throw std::runtime_error("no");
  __syncthreads();
}
__global__ void traps_kernel() {
  if (threadIdx.x == 2) __trap();
  __syncthreads();
}
__global__ void launches_kernel(Indices* out) {
  cvk::launch(indices_kernel, {dim3(1), dim3(1)}, nullptr, out);
}

TEST_F(Emulation, OtherFailures) {
  expect_failure(cvk::launch(throws_kernel, {dim3(1), dim3(4)}, nullptr),
                 {"throws_kernel, block (0,0,0): an exception left the kernel in thread (2,0,0)"});
  expect_failure(cvk::launch(traps_kernel, {dim3(1), dim3(4)}, nullptr),
                 {"traps_kernel, block (0,0,0): __trap() in thread (2,0,0)"});
  Indices out = {};
  expect_failure(cvk::launch(launches_kernel, {dim3(1), dim3(1)}, nullptr, &out),
                 {"launches_kernel", "a kernel launched a kernel"});
}

TEST_F(Emulation, TheLaunchAfterAFailureIsSound) {
  std::vector<int> out(1024);
  for (int repeat = 0; repeat < 5; ++repeat) {
    EXPECT_EQ(cvk::launch(leaves_before_barrier_kernel<3>, {dim3(1), dim3(1024)}, nullptr, out.data()),
              cudaErrorLaunchFailure);
    sum_blocks<int>(1, 1024, 1024, 524800);
  }
  cudaGetLastError();
}

#if defined(CVK_TEST_ASAN)
TEST(EmulationDeathTest, AsanSeesAccessBeyondSharedMemory) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  int out = 0;
  const auto run = [&](int index) {
    cvk::launch(beyond_shared_kernel, {dim3(1), dim3(1), 5 * sizeof(int)}, nullptr, &out, index);
  };
  run(4);
  run(-5);
  EXPECT_DEATH(run(5), "heap-buffer-overflow");
  EXPECT_DEATH(run(-6), "heap-buffer-overflow");
}
#endif

}  // namespace
