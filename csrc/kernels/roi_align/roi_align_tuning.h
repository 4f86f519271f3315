// Launch and blocking policy of RoI Align. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Boxes per work item: enough work to amortise a transposed image tile's reuse, few enough to balance many threads.
constexpr int kRoiAlignBoxChunk = 64;

// Scratch of one thread at most, in bytes: the stride-4 map of an 800 x 1333 image (8.6 MB) fits. Larger maps are copied
// box by box.
constexpr int64_t kRoiAlignScratchBytes = int64_t{12} << 20;

// Rows of the gradient that one work item owns: the band's scratch should stay in L2.
constexpr int64_t kRoiAlignBandBytes = int64_t{640} << 10;

// ---- CUDA (chosen from the H200's description, not yet measured)

// Blocks that must fit on one SM: with 2 ptxas 13.0 spills nothing; without the bound it aims at 64 registers and spills.
constexpr int kRoiAlignBlocksPerSm = 2;

// Forward: samples per axis that the block keeps in shared memory; a longer axis is computed at each use.
constexpr int kRoiAlignSharedSamples = 256;

// Backward: bins of one axis staged in shared memory at a time; 8 x 8 bins of 32 channels are 8 KiB in float32.
constexpr int kRoiAlignStagedBins = 8;

}  // namespace cvk
