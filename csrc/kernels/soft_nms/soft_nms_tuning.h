// Launch and blocking policy of Soft-NMS. Each number with its reason.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Boxes of one class from which on the grid pays; below, every selected box meets all others.
constexpr int64_t kSoftNmsGridSegment = 256;

// Scores under one maximum of the tree: four 64-byte vectors of floats.
constexpr int kSoftNmsBlock = 64;

// Boxes of small classes that a thread should get at least.
constexpr int64_t kSoftNmsSegmentGrain = 512;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Threads of a block. A step is a reduction with a barrier and a pass over the block's boxes: as many as there may be. In
// float64 it takes more than the 64 registers that each of 1,024 threads can have.
template <class A>
constexpr int kSoftNmsMostThreads = sizeof(A) == 8 ? 512 : 1024;

// Current scores that a block keeps in shared memory; more stay in global memory. What is left of an SM's 192 KiB (sm_80)
// caches the boxes, four times as large.
constexpr int64_t kSoftNmsSharedBytes = 48 * 1024;

// Images from this size on are shared by several blocks, each of so many boxes at least: a barrier between blocks costs
// about 3 us a step, and so does one block's pass over 16,384 boxes that its L1 does not hold.
constexpr int64_t kSoftNmsGroupFrom = 16384;
constexpr int64_t kSoftNmsBoxesOfBlock = 4096;

// Blocks of an image at most: one lane each where their offers are read.
constexpr int kSoftNmsMostBlocks = 32;

// How a launch is cut up: threads of a block, blocks of an image. More than one block need a cooperative launch.
struct SoftNmsPlan {
  int threads, blocks;
};

// `resident`: blocks of kSoftNmsMostThreads that the device holds at once.
template <class A>
SoftNmsPlan soft_nms_plan(int64_t batch, int64_t count, int64_t resident) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  if (count < kSoftNmsGroupFrom) {
    const int64_t warps = count > 0 ? (count + 31) / 32 : 1;
    return {static_cast<int>(least(32 * warps, kSoftNmsMostThreads<A>)), 1};
  }
  const int64_t share = resident / (batch > 0 ? batch : 1);
  const int64_t blocks = least(least(share, count / kSoftNmsBoxesOfBlock), kSoftNmsMostBlocks);
  return {kSoftNmsMostThreads<A>, static_cast<int>(blocks > 1 ? blocks : 1)};
}

}  // namespace cvk
