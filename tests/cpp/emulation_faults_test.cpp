// The emulated CUDA backend catches what CUDA forbids: missing barriers show as poison and as
// differences between seeds, impossible ones as errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
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

class EmulationFaults : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("CVKERNELS_EMULATION_SEED");
    emulation::set_seed(0);
  }
};

// ---- Poison, seeds and missing barriers ---------------------------------------------------------

TEST_F(EmulationFaults, SharedMemoryIsPoisonedForEveryBlock) {
  std::vector<float> from_static(3 * 64), from_dynamic(3 * 64);
  ASSERT_EQ(cvk::launch(uninitialised_kernel, {dim3(3), dim3(64), 64 * sizeof(float)}, nullptr, from_static.data(),
                        from_dynamic.data()),
            cudaSuccess);
  for (float value : from_static) EXPECT_TRUE(std::isnan(value));
  for (float value : from_dynamic) EXPECT_TRUE(std::isnan(value));
}

TEST_F(EmulationFaults, PoisonIsNanAndMinusOne) {
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
  EXPECT_EQ(cvk::launch(reverse_kernel, {dim3(1), dim3(64), 64 * sizeof(float)}, nullptr, input.data(), output.data(),
                        with_barrier),
            cudaSuccess);
  return output;
}

TEST_F(EmulationFaults, AMissingBarrierIsCaught) {
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

TEST_F(EmulationFaults, AMissingSecondBarrierIsCaught) {
  const std::vector<float> input = iota(96);
  std::set<std::vector<float>> results;
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<float> right(96), broken(96);
    const cvk::LaunchConfig config{dim3(1), dim3(96), 96 * sizeof(float)};
    ASSERT_EQ(cvk::launch(rotate_kernel, config, nullptr, input.data(), right.data(), 4, true), cudaSuccess);
    for (int i = 0; i < 96; ++i) EXPECT_EQ(right[i], (i + 4) % 96);
    ASSERT_EQ(cvk::launch(rotate_kernel, config, nullptr, input.data(), broken.data(), 4, false), cudaSuccess);
    EXPECT_NE(broken, right);
    results.insert(broken);
  }
  EXPECT_EQ(results.size(), static_cast<size_t>(kSeeds));
}

TEST_F(EmulationFaults, AMissingSyncwarpIsCaught) {
  std::set<std::vector<int>> results;
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<int> right(32), broken(32);
    const cvk::LaunchConfig config{dim3(1), dim3(32), 32 * sizeof(int)};
    ASSERT_EQ(cvk::launch(warp_exchange_kernel, config, nullptr, right.data(), true), cudaSuccess);
    for (int i = 0; i < 32; ++i) EXPECT_EQ(right[i], (i ^ 1) * 10);
    ASSERT_EQ(cvk::launch(warp_exchange_kernel, config, nullptr, broken.data(), false), cudaSuccess);
    EXPECT_EQ(std::count(broken.begin(), broken.end(), -1), 16);
    results.insert(broken);
  }
  EXPECT_EQ(results.size(), static_cast<size_t>(kSeeds));
}

TEST_F(EmulationFaults, AMissingBarrierBetweenDistantStepsIsCaught) {
  int right = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<float> output(32);
    ASSERT_EQ(
        cvk::launch(distant_missing_barrier_kernel, {dim3(1), dim3(64), 64 * sizeof(float)}, nullptr, output.data()),
        cudaSuccess);
    right += std::count(output.begin(), output.end(), 1.0f) == 32;
  }
  // One warp may run far ahead of the other in some orders and keeps pace with it in the rest.
  EXPECT_GE(right, 3);
  EXPECT_LE(right, kSeeds - 3);
}

std::vector<int> order_of_threads() {
  int counter = 0;
  std::vector<int> order(4 * 32, -1);
  EXPECT_EQ(cvk::launch(order_kernel, {dim3(4), dim3(32)}, nullptr, &counter, order.data()), cudaSuccess);
  return order;
}

TEST_F(EmulationFaults, TheSeedDecidesTheOrder) {
  emulation::set_seed(5);
  const std::vector<int> first = order_of_threads(), second = order_of_threads();
  EXPECT_NE(first, second) << "two launches in a row must differ";
  emulation::set_seed(5);
  EXPECT_EQ(order_of_threads(), first);
  EXPECT_EQ(order_of_threads(), second);
  emulation::set_seed(6);
  EXPECT_NE(order_of_threads(), first);

  // The order of blocks is shuffled too, and no block starts before the last one has ended.
  std::set<std::vector<int>> block_orders;
  for (int seed = 0; seed < 5 * kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<int> order = order_of_threads();
    block_orders.insert({order[0] / 32, order[32] / 32, order[64] / 32, order[96] / 32});
    for (int i = 0; i < 128; ++i) EXPECT_EQ(order[i] / 32, order[i / 32 * 32] / 32);
    std::sort(order.begin(), order.end());
    for (int i = 0; i < 128; ++i) EXPECT_EQ(order[i], i);
  }
  EXPECT_EQ(block_orders.size(), 8u) << "four first blocks, two directions";
}

TEST_F(EmulationFaults, TheEnvironmentSetsTheSeed) {
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

// ---- What CUDA forbids --------------------------------------------------------------------------

TEST_F(EmulationFaults, AThreadThatLeavesBeforeABarrierIsAnError) {
  std::vector<int> out(256, 0);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    expect_failure(cvk::launch(leaves_before_barrier_kernel<37>, {dim3(1), dim3(256)}, nullptr, out.data()),
                   {"cvk_test::leaves_before_barrier_kernel<37>, block (0,0,0)", "divergent barrier",
                    "of 256 threads 1 have exited",
                    "255 wait for ever at __syncthreads [emulation_kernels.cuh:", "seed " + std::to_string(seed)});
  }
  EXPECT_EQ(std::count(out.begin(), out.end(), 0), 256) << "nobody passed the barrier";
}

TEST_F(EmulationFaults, TwoBarriersAtOnceAreAnError) {
  std::vector<int> out(64);
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    expect_failure(cvk::launch(two_barriers_kernel, {dim3(1), dim3(64)}, nullptr, out.data()),
                   {"two_barriers_kernel", "divergent barrier", "arrives at __syncthreads", "waits at __syncthreads"});
  }
}

TEST_F(EmulationFaults, ABarrierAgainstACollectiveIsAnError) {
  std::vector<int> out(64);
  expect_failure(cvk::launch(barrier_against_shuffle_kernel, {dim3(1), dim3(64)}, nullptr, out.data()),
                 {"barrier_against_shuffle_kernel", "62 wait for ever at __shfl_xor_sync of mask 0xffffffff",
                  "2 wait for ever at __syncthreads"});
}

TEST_F(EmulationFaults, DifferentCollectivesAreAnError) {
  std::vector<int> out(32);
  expect_failure(cvk::launch(mixed_collectives_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
                 {"mixed_collectives_kernel", "16 wait for ever at __shfl_sync", "16 wait for ever at __any_sync"});
}

TEST_F(EmulationFaults, UnequalMasksAreAnError) {
  std::vector<int> out(32);
  expect_failure(cvk::launch(unequal_masks_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
                 {"unequal_masks_kernel", "1 wait for ever at __shfl_sync of mask 0x0000ffff"});
}

TEST_F(EmulationFaults, ALaneOutsideItsMaskIsAnError) {
  std::vector<int> out(32);
  expect_failure(cvk::launch(outside_mask_kernel, {dim3(1), dim3(32)}, nullptr, out.data()),
                 {"outside_mask_kernel", "__shfl_sync", "mask 0x0000ffff lacks the calling lane"});
}

TEST_F(EmulationFaults, AShortNamedBarrierIsAnError) {
  std::vector<int> out(64);
  expect_failure(cvk::launch(named_barrier_short_kernel, {dim3(1), dim3(64)}, nullptr, out.data()),
                 {"named_barrier_short_kernel", "32 wait for ever at named barrier 3"});
}

TEST_F(EmulationFaults, AFlagThatNobodySetsIsAnError) {
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

TEST_F(EmulationFaults, AFailedLaunchUnwindsItsThreads) {
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
__global__ void launches_kernel(Indices* out) { cvk::launch(indices_kernel, {dim3(1), dim3(1)}, nullptr, out); }

TEST_F(EmulationFaults, OtherFailures) {
  expect_failure(cvk::launch(throws_kernel, {dim3(1), dim3(4)}, nullptr),
                 {"throws_kernel, block (0,0,0): an exception left the kernel in thread (2,0,0)"});
  expect_failure(cvk::launch(traps_kernel, {dim3(1), dim3(4)}, nullptr),
                 {"traps_kernel, block (0,0,0): __trap() in thread (2,0,0)"});
  Indices out = {};
  expect_failure(cvk::launch(launches_kernel, {dim3(1), dim3(1)}, nullptr, &out),
                 {"launches_kernel", "a kernel launched a kernel"});
}

TEST_F(EmulationFaults, TheLaunchAfterAFailureIsSound) {
  std::vector<int> out(1024);
  for (int repeat = 0; repeat < 5; ++repeat) {
    EXPECT_EQ(cvk::launch(leaves_before_barrier_kernel<3>, {dim3(1), dim3(1024)}, nullptr, out.data()),
              cudaErrorLaunchFailure);
    const std::vector<int> input(1024, 3);
    int total = 0;
    EXPECT_EQ(cvk::launch(block_sum_kernel<int>, {dim3(1), dim3(1024)}, nullptr, input.data(), &total, 1024),
              cudaSuccess);
    EXPECT_EQ(total, 3072);
  }
  cudaGetLastError();
}

#if defined(CVK_TEST_ASAN)
TEST(EmulationFaultsDeathTest, AsanSeesAccessBeyondSharedMemory) {
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
