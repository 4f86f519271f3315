// How depthwise convolutions are dealt out on CUDA, and the parts of a weight gradient added. Chosen from the description of
// sm_90; ran on an H100, not tuned. kDepthwiseThreads is in gemm_tuning.h.
#pragma once

#include <cstdint>

namespace cvk {

// Depthwise, channels-last: vectors of 16 bytes of a block at most, 256 contiguous bytes of a pixel; neighbours of a row that a
// thread has (3 x 8 weights and 4 x 8 sums of half inputs are 56 registers); bytes of weights in shared memory at most.
constexpr int kDepthwiseTile = 16;
constexpr int kDepthwiseRun = 4;
constexpr int64_t kDepthwiseSharedBytes = 32 << 10;

// Depthwise over planes: pixels below one another that a thread has; maps are multiples of 7 or 8 high more often than not.
constexpr int kDepthwiseRows = 8;

// Blocks that must fit on one SM: two leave a thread 128 registers, which float64 does not fit in.
template <class A>
constexpr int kDepthwiseBlocksPerSm = sizeof(A) == 8 ? 1 : 2;

// Depthwise: blocks that fill a device, four on each of 132 SMs; runs that a thread has at most, so that staging the weights is
// little of the work, while there are so many blocks.
constexpr int kDepthwiseBlocks = 528;
constexpr int kDepthwiseSteps = 8;

// Depthwise weight gradient: chunks of taps that share a block (and in L1 what they read); runs of a thread at least, where
// pixels are cut into parts.
constexpr int kDepthwiseGroup = 4;
constexpr int kDepthwiseLeastSteps = 4;

// Adding up the parts of a weight gradient: threads of a block; from so many parts on, threads of each weight.
constexpr int kWeightSumThreads = 256;
constexpr int kWeightSumManyParts = 64;
constexpr int kWeightSumLanes = 16;

}  // namespace cvk
