// Launch and blocking policy of Matrix NMS. Each number with its reason.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Boxes of one class from which on the grid pays.
constexpr int64_t kMatrixNmsGridSegment = 256;

// Boxes that a thread should get at least: 200 us and more of work, because every join of the threads can cost milliseconds
// where other work holds a core.
constexpr int64_t kMatrixNmsGrain = 1024;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Warps that share the rows of 32 columns. 2,000 boxes are 63 such blocks: fewer warps would leave the device idle.
constexpr int kMatrixNmsWarps = 16;

// Blocks of them that must fit on one SM: it lets ptxas 13.0 take 64 registers, and nothing spills.
constexpr int kMatrixNmsBlocksPerSm = 2;

constexpr int kMatrixNmsPrepareThreads = 256;

}  // namespace cvk
