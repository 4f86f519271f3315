// Launch and blocking policy of the merge rules. Each number with its reason.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Boxes of one class from which on the grid pays.
constexpr int64_t kWeightedNmsGridSegment = 256;

// Kept boxes (vote) or boxes (penalty) that a thread should get at least: 200 us and more of work, because every join of the
// threads can cost milliseconds where other work holds a core.
constexpr int64_t kWeightedNmsGrain = 512;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Eight warps: a result each, or all on the penalties of 32 boxes.
constexpr int kWeightedNmsThreads = 256;

// Blocks that must fit on one SM: it lets ptxas 13.0 take 128 registers for the criteria in float64.
constexpr int kWeightedNmsBlocksPerSm = 2;

}  // namespace cvk
