// Cooperative launches under emulation: all blocks alive at once, barriers across them, and what goes wrong there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "common/group_barrier.cuh"

namespace cvk_test {

// Rotates values round all threads of a group of blocks, one place a round, through global memory. Without the second
// barrier a fast block overwrites what a slow one has not read yet; without the first it reads what is not there.
__global__ void rotate_group_kernel(const int* input,    // [threads of the grid]
                                    int* exchange,       // [threads of the grid]
                                    int* output,         // [threads of the grid]
                                    unsigned* counters,  // [groups]
                                    unsigned group_blocks, int rounds, bool first_barrier, bool second_barrier) {
  const unsigned group = blockIdx.x / group_blocks, threads = group_blocks * blockDim.x;
  const unsigned i = blockIdx.x % group_blocks * blockDim.x + threadIdx.x;
  cvk::GroupBarrier barrier(counters + group, group_blocks);
  int* const mine = exchange + group * threads;
  int value = input[group * threads + i];
  for (int round = 0; round < rounds; ++round) {
    mine[i] = value;
    if (first_barrier) barrier.wait();
    value = mine[(i + 1) % threads];
    if (second_barrier) barrier.wait();
  }
  output[group * threads + i] = value;
}

// Shared memory, barriers and collectives of blocks that take turns.
__global__ void separate_blocks_kernel(int* from_static, int* from_dynamic, int* sums, unsigned* counter) {
  struct Shared {
    int values[64];
  };
  auto& shared = cvk::static_shared<Shared>();
  int* const tile = cvk::dynamic_shared<int>();
  cvk::GroupBarrier barrier(counter, gridDim.x);
  const unsigned i = threadIdx.x, place = blockIdx.x * blockDim.x + i;
  const int mine = static_cast<int>(place);
  from_static[place] = shared.values[i] + tile[i];  // poison: -1 + -1
  __syncthreads();
  shared.values[i] = mine;
  tile[i] = 2 * mine;
  barrier.wait();
  int sum = shared.values[63 - i];
  for (int delta = warpSize / 2; delta > 0; delta /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, delta);
  barrier.wait();
  from_dynamic[place] = tile[63 - i];
  sums[place] = sum;
}

__global__ void leaves_before_group_barrier_kernel(unsigned* counter) {
  cvk::GroupBarrier barrier(counter, gridDim.x);
  barrier.wait();
  if (blockIdx.x == 1) return;
  barrier.wait();
}

__global__ void diverges_before_group_barrier_kernel(unsigned* counter) {
  cvk::GroupBarrier barrier(counter, gridDim.x);
  if (blockIdx.x == 1 && threadIdx.x == 5) return;
  barrier.wait();
}

struct CountsItsEnd {
  int* count;
  ~CountsItsEnd() { ++*count; }
};
__global__ void traps_beside_waiting_blocks_kernel(int* ends, unsigned* counter) {
  const CountsItsEnd guard{ends};
  cvk::GroupBarrier barrier(counter, gridDim.x);
  barrier.wait();
  if (blockIdx.x == 2 && threadIdx.x == 7) __trap();
  barrier.wait();
}

__global__ void ticket_kernel(int* counter, int* order) { order[atomicAdd(counter, 1)] = static_cast<int>(blockIdx.x); }

}  // namespace cvk_test

namespace {

using namespace cvk_test;
namespace emulation = cvk::emulation;

constexpr int kSeeds = 20;

class Cooperative : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("CVKERNELS_EMULATION_SEED");
    emulation::set_seed(0);
  }
};

std::vector<int> rotated(uint64_t seed, int blocks, int group_blocks, bool first_barrier, bool second_barrier) {
  emulation::set_seed(seed);
  std::vector<int> input(blocks * 48), exchange(input.size(), -1), output(input.size(), -2);
  std::iota(input.begin(), input.end(), 0);
  std::vector<unsigned> counters(blocks / group_blocks, 0);
  EXPECT_EQ(
      cvk::launch_cooperative(rotate_group_kernel, {dim3(blocks), dim3(48)}, nullptr, input.data(), exchange.data(),
                              output.data(), counters.data(), group_blocks, 3, first_barrier, second_barrier),
      cudaSuccess)
      << emulation::last_error_message();
  return output;
}

TEST_F(Cooperative, GroupsOfBlocksMeet) {
  for (int group_blocks : {1, 2, 4}) {
    for (int seed = 0; seed < kSeeds; ++seed) {
      const std::vector<int> output = rotated(seed, 4, group_blocks, true, true);
      const int threads = group_blocks * 48;
      for (int i = 0; i < 4 * 48; ++i) EXPECT_EQ(output[i], i / threads * threads + (i % threads + 3) % threads);
    }
  }
}

TEST_F(Cooperative, AMissingGroupBarrierIsCaught) {
  const std::vector<int> right = rotated(0, 3, 3, true, true);
  for (bool first : {true, false}) {
    std::set<std::vector<int>> results;
    for (int seed = 0; seed < kSeeds; ++seed) results.insert(rotated(seed, 3, 3, first, !first));
    EXPECT_EQ(results.count(right), 0u);
    EXPECT_EQ(results.size(), static_cast<size_t>(kSeeds)) << "every seed gives another result";
  }
}

TEST_F(Cooperative, BlocksHaveTheirOwnSharedMemoryBarriersAndWarps) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    std::vector<int> from_static(4 * 64), from_dynamic(4 * 64), sums(4 * 64);
    unsigned counter = 0;
    ASSERT_EQ(cvk::launch_cooperative(separate_blocks_kernel, {dim3(4), dim3(64), 64 * sizeof(int)}, nullptr,
                                      from_static.data(), from_dynamic.data(), sums.data(), &counter),
              cudaSuccess)
        << emulation::last_error_message();
    for (int i = 0; i < 4 * 64; ++i) {
      EXPECT_EQ(from_static[i], -2) << "shared memory begins as poison in every block";
      EXPECT_EQ(from_dynamic[i], 2 * (i / 64 * 64 + 63 - i % 64));
      // The other warp's numbers: 32 of them from 64 b or 64 b + 32 on.
      EXPECT_EQ(sums[i], 32 * (i / 64 * 64 + (i % 64 < 32 ? 32 : 0)) + 496);
    }
  }
}

TEST_F(Cooperative, BlocksTakeTurns) {
  std::set<std::vector<int>> orders;
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    int counter = 0;
    std::vector<int> order(4 * 32, -1);
    ASSERT_EQ(cvk::launch_cooperative(ticket_kernel, {dim3(4), dim3(32)}, nullptr, &counter, order.data()),
              cudaSuccess);
    std::vector<int> count(4);
    for (int block : order) ++count[block];
    EXPECT_EQ(count, (std::vector<int>{32, 32, 32, 32}));
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), static_cast<size_t>(kSeeds));
}

TEST_F(Cooperative, MoreBlocksThanCanBeResidentAreRefused) {
  int most = 0;
  ASSERT_EQ(cvk::most_resident_blocks(ticket_kernel, {dim3(), dim3(32)}, &most), cudaSuccess);
  EXPECT_EQ(most, 4);
  int counter = 0;
  std::vector<int> order(5 * 32, -1);
  EXPECT_EQ(cvk::launch_cooperative(ticket_kernel, {dim3(5), dim3(32)}, nullptr, &counter, order.data()),
            cudaErrorCooperativeLaunchTooLarge);
  EXPECT_EQ(emulation::last_error_message(),
            "cvk_test::ticket_kernel: 5 blocks launched cooperatively, at most 4 can be resident");
  EXPECT_EQ(cudaGetLastError(), cudaErrorCooperativeLaunchTooLarge);
  EXPECT_EQ(counter, 0);
  EXPECT_EQ(cvk::launch_cooperative(ticket_kernel, {dim3(0), dim3(32)}, nullptr, &counter, order.data()), cudaSuccess);
}

void expect_failure(cudaError_t error, const std::vector<std::string>& words) {
  EXPECT_EQ(error, cudaErrorLaunchFailure);
  for (const std::string& word : words) {
    EXPECT_NE(emulation::last_error_message().find(word), std::string::npos)
        << "'" << word << "' is not in: " << emulation::last_error_message();
  }
  cudaGetLastError();
}

TEST_F(Cooperative, ABlockThatLeavesBeforeAGroupBarrierIsAnError) {
  unsigned counter = 0;
  expect_failure(cvk::launch_cooperative(leaves_before_group_barrier_kernel, {dim3(3), dim3(32)}, nullptr, &counter),
                 {"leaves_before_group_barrier_kernel", "threads spin on a flag that nobody sets",
                  "[group_barrier.cuh:", "in wait]", "of 96 threads 32 have exited",
                  "62 wait for ever at __syncthreads [group_barrier.cuh:"});
}

TEST_F(Cooperative, AThreadThatLeavesBeforeAGroupBarrierIsAnError) {
  unsigned counter = 0;
  expect_failure(
      cvk::launch_cooperative(diverges_before_group_barrier_kernel, {dim3(2), dim3(64)}, nullptr, &counter),
      {"diverges_before_group_barrier_kernel", "of 128 threads 1 have exited", "of block (1,0,0)", "in wait]"});
}

TEST_F(Cooperative, AGroupBarrierInAnOrdinaryLaunchIsAnError) {
  unsigned counter = 0;
  expect_failure(cvk::launch(leaves_before_group_barrier_kernel, {dim3(3), dim3(32)}, nullptr, &counter),
                 {"leaves_before_group_barrier_kernel", "threads spin on a flag that nobody sets"});
}

TEST_F(Cooperative, AFailureUnwindsAllBlocksAndTheNextLaunchIsSound) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    emulation::set_seed(seed);
    int ends = 0;
    unsigned counter = 0;
    expect_failure(
        cvk::launch_cooperative(traps_beside_waiting_blocks_kernel, {dim3(4), dim3(64)}, nullptr, &ends, &counter),
        {"traps_beside_waiting_blocks_kernel, block (2,0,0): __trap() in thread (7,0,0)"});
    EXPECT_EQ(ends, 4 * 64);
    EXPECT_EQ(rotated(seed, 4, 4, true, true)[0], 3);
  }
}

}  // namespace
