// Small CUDA kernels for emulation_test.cpp. They are ordinary CUDA: nvcc compiles this header as
// well.
#pragma once

#include <cstdint>

#include "common/launch.cuh"

namespace cvk_test {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Indices {
  unsigned thread, block, visits;
};

// Every thread writes its own place in a 3-D grid of 3-D blocks.
__global__ void indices_kernel(Indices* out) {  // [grid size, block size]
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  Indices& mine = out[block * (blockDim.x * blockDim.y * blockDim.z) + thread];
  mine.thread = thread;
  mine.block = block;
  mine.visits += 1;
}

// Sum of the block by shuffles within warps, then through static shared memory.
template <class T>
__global__ void __launch_bounds__(1024) block_sum_kernel(const T* input,  // [n]
                                                         T* total,        // scalar, from 0
                                                         int n) {
  struct Shared {
    T partial[32];
  };
  auto& shared = cvk::static_shared<Shared>();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  T value = i < n ? __ldg(input + i) : T(0);
  for (int delta = warpSize / 2; delta > 0; delta /= 2) {
    value += __shfl_down_sync(kAllLanes, value, delta);
  }
  if (threadIdx.x % warpSize == 0) shared.partial[threadIdx.x / warpSize] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    T sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / warpSize; ++warp) sum += shared.partial[warp];
    atomicAdd(total, sum);
  }
}

// Reverses the block through dynamic shared memory; without the barrier when told so, which is the
// bug to catch.
__global__ void reverse_kernel(const float* input, float* output, bool with_barrier) {
  float* tile = cvk::dynamic_shared<float>();
  const unsigned i = threadIdx.x;
  tile[i] = input[i];
  if (with_barrier) __syncthreads();
  output[i] = tile[blockDim.x - 1 - i];
}

// Rotates values round the block, one place a round. The second barrier keeps the next round from
// writing too early.
__global__ void rotate_kernel(const float* input, float* output, int rounds, bool second_barrier) {
  float* tile = cvk::dynamic_shared<float>();
  const unsigned i = threadIdx.x;
  float value = input[i];
  for (int round = 0; round < rounds; ++round) {
    tile[i] = value;
    __syncthreads();
    value = tile[(i + 1) % blockDim.x];
    if (second_barrier) __syncthreads();
  }
  output[i] = value;
}

// Neighbours exchange within a warp through shared memory.
__global__ void warp_exchange_kernel(int* output, bool with_syncwarp) {
  int* tile = cvk::dynamic_shared<int>();
  const unsigned lane = threadIdx.x;
  tile[lane] = static_cast<int>(lane) * 10;
  if (with_syncwarp) __syncwarp();
  output[lane] = tile[lane ^ 1];
}

// What every thread finds in its shared memory before anybody writes; then everybody writes.
__global__ void uninitialised_kernel(float* from_static, float* from_dynamic) {
  struct Shared {
    float values[64];
  };
  auto& shared = cvk::static_shared<Shared>();
  float* tile = cvk::dynamic_shared<float>();
  const unsigned i = threadIdx.x, place = blockIdx.x * blockDim.x + i;
  from_static[place] = shared.values[i];
  from_dynamic[place] = tile[i];
  shared.values[i] = 1.0f;
  tile[i] = 1.0f;
}

// Warp 0 reads what warp 1 wrote at its very start, after many steps of its own but with no barrier.
// A GPU nearly always gives the right answer here.
__global__ void distant_missing_barrier_kernel(float* output) {  // [32]
  float* tile = cvk::dynamic_shared<float>();
  const unsigned i = threadIdx.x;
  tile[i] = 1.0f;
  for (int step = 0; step < 20; ++step) __syncwarp();
  if (i < 32) output[i] = tile[i + 32];
}

struct WarpResults {
  int indexed, up, down, exchanged, up_of_8, down_of_8, indexed_of_8;
  double down_double;
  long long exchanged_wide;
  unsigned ballot, match;
  int any_none, any_one, all_most, all_all;
  int sum, smallest, largest;
  unsigned bits_and, bits_or, bits_xor;
};

__global__ void warp_kernel(WarpResults* out) {  // [32]
  const int lane = static_cast<int>(threadIdx.x);
  WarpResults r;
  r.indexed = __shfl_sync(kAllLanes, lane * 10, (lane + 3) % 32);
  r.up = __shfl_up_sync(kAllLanes, lane, 5);
  r.down = __shfl_down_sync(kAllLanes, lane, 5);
  r.exchanged = __shfl_xor_sync(kAllLanes, lane, 9);
  r.up_of_8 = __shfl_up_sync(kAllLanes, lane, 3, 8);
  r.down_of_8 = __shfl_down_sync(kAllLanes, lane, 3, 8);
  r.indexed_of_8 = __shfl_sync(kAllLanes, lane, 10, 8);
  r.down_double = __shfl_down_sync(kAllLanes, lane + 0.25, 1);
  r.exchanged_wide = __shfl_xor_sync(kAllLanes, (1LL << 40) + lane, 1);
  r.ballot = __ballot_sync(kAllLanes, lane % 3 == 0);
  r.match = __match_any_sync(kAllLanes, lane / 5);
  r.any_none = __any_sync(kAllLanes, lane == 32);
  r.any_one = __any_sync(kAllLanes, lane == 17);
  r.all_most = __all_sync(kAllLanes, lane != 17);
  r.all_all = __all_sync(kAllLanes, lane < 32);
  r.sum = __reduce_add_sync(kAllLanes, lane - 20);
  r.smallest = __reduce_min_sync(kAllLanes, lane - 20);
  r.largest = __reduce_max_sync(kAllLanes, lane - 20);
  r.bits_and = __reduce_and_sync(kAllLanes, 0xf0u | static_cast<unsigned>(lane));
  r.bits_or = __reduce_or_sync(kAllLanes, 1u << lane);
  r.bits_xor = __reduce_xor_sync(kAllLanes, lane == 3 ? 5u : 0u);
  out[lane] = r;
}

// Two halves of a warp do different collectives at the same time, in different branches.
__global__ void split_warp_kernel(int* out) {  // [32]
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 12) {
    out[lane] = __shfl_sync(0x00000fffu, lane, 11 - lane);
  } else {
    const unsigned vote = __ballot_sync(0xfffff000u, lane % 2);
    __syncwarp(0xfffff000u);
    out[lane] = static_cast<int>(vote);
  }
}

// Lanes from `alive` on leave; the others go on with the full mask, which CUDA allows.
__global__ void exited_lanes_kernel(int alive, unsigned* ballots, float* from_last) {
  if (static_cast<int>(threadIdx.x) >= alive) return;
  ballots[threadIdx.x] = __ballot_sync(kAllLanes, 1);
  from_last[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 31);  // lane 31 has no value to give
}

__global__ void active_mask_kernel(unsigned* out) {  // [32]
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __activemask();
  } else if (threadIdx.x < 8) {
    out[threadIdx.x] = __activemask();
  } else {
    out[threadIdx.x] = 0;
  }
}

__global__ void votes_of_block_kernel(int* count, int* all, int* any) {
  const int i = static_cast<int>(threadIdx.x);
  count[i] = __syncthreads_count(i % 3 == 0);
  all[i] = __syncthreads_and(i != 70) * 2 + __syncthreads_and(i >= 0);
  any[i] = __syncthreads_or(i == 70) * 2 + __syncthreads_or(i < 0);
}

// Warps 0 and 1 pass through their own barrier as often as they like while warps 2 and 3 wait at
// another.
__global__ void named_barriers_kernel(int* out, int rounds) {  // [128]
  int* tile = cvk::dynamic_shared<int>();
  const unsigned i = threadIdx.x, group = i / 64;
  int value = static_cast<int>(i);
  const int group_rounds = group == 0 ? rounds : 1;
  for (int round = 0; round < group_rounds; ++round) {
    tile[i] = value;
    cvk::named_barrier(1 + group, 64);
    value = tile[group * 64 + (i + 1) % 64];
    cvk::named_barrier(1 + group, 64);
  }
  __syncthreads();
  out[i] = value;
}

struct Atomics {
  int add_int, min_int, max_int, and_int, or_int, cas;
  unsigned add_unsigned, max_unsigned;
  unsigned long long add_wide, max_wide, min_wide;
  float add_float, exchanged;
  double add_double;
};

__global__ void atomics_kernel(Atomics* a, int* tickets) {  // one block
  const int i = static_cast<int>(threadIdx.x);
  tickets[i] = atomicAdd(&a->add_int, 1);
  atomicMin(&a->min_int, -i);
  atomicMax(&a->max_int, i);
  atomicAnd(&a->and_int, ~(1 << (i % 8)));
  atomicOr(&a->or_int, 1 << (i % 8));
  atomicCAS(&a->cas, -1, i);  // the first thread to come wins
  atomicAdd(&a->add_unsigned, 3u);
  atomicMax(&a->max_unsigned, 0x80000000u + static_cast<unsigned>(i));
  atomicAdd(&a->add_wide, 1ULL << 33);
  atomicMax(&a->max_wide, static_cast<unsigned long long>(i) << 40);
  atomicMin(&a->min_wide, static_cast<unsigned long long>(i + 1) << 40);
  atomicAdd(&a->add_float, 0.5f);
  atomicAdd(&a->add_double, 0.25);
  atomicExch(&a->exchanged, static_cast<float>(i));
}

// Order in which threads come, block by block.
__global__ void order_kernel(int* counter, int* order) {
  order[atomicAdd(counter, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// A thread waits for a flag that another sets.
__global__ void flag_kernel(int* flag, int* seen) {
  if (threadIdx.x == 0) {
    while (atomicAdd(flag, 0) == 0) __nanosleep(20);
    *seen = 1;
  } else if (threadIdx.x == 40) {
    atomicExch(flag, 1);
  }
}

// ---- Kernels with bugs --------------------------------------------------------------------------

template <int kLeaver>
__global__ void leaves_before_barrier_kernel(int* out) {
  if (threadIdx.x == kLeaver) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers_kernel(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
    out[threadIdx.x] = 1;
  } else {
    __syncthreads();
    out[threadIdx.x] = 2;
  }
}

__global__ void barrier_against_shuffle_kernel(int* out) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x % 32 == 7) {
    __syncthreads();
  } else {
    value = __shfl_xor_sync(kAllLanes, value, 1);
  }
  out[threadIdx.x] = value;
}

__global__ void mixed_collectives_kernel(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
  } else {
    out[threadIdx.x] = __any_sync(kAllLanes, 1);
  }
}

__global__ void unequal_masks_kernel(int* out) {
  const unsigned mask = threadIdx.x == 0 ? 0x0000ffffu : kAllLanes;
  out[threadIdx.x] = __shfl_sync(mask, 1, 0);
}

__global__ void outside_mask_kernel(int* out) { out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0); }

__global__ void named_barrier_short_kernel(int* out) {
  if (threadIdx.x < 32) cvk::named_barrier(3, 64);
  out[threadIdx.x] = 1;
}

__global__ void flag_never_set_kernel(const int* flag) {
  while (*static_cast<const volatile int*>(flag) == 0) __nanosleep(20);
}

__global__ void beyond_shared_kernel(int* out, int index) {
  struct Shared {
    int values[6];
  };
  auto& shared = cvk::static_shared<Shared>();
  int* tile = cvk::dynamic_shared<int>();
  int* memory = index >= 0 ? tile : shared.values;
  memory[index >= 0 ? index : -index] = 1;
  out[0] = memory[0];
}

}  // namespace cvk_test
