// Launch and blocking policy of RoI Align. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU: common/roi_tuning.h

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Blocks that must fit on one SM: with 2 ptxas 13.0 spills nothing; without the bound it aims at 64 registers and spills.
constexpr int kRoiAlignBlocksPerSm = 2;

// Forward: samples per axis that the block keeps in shared memory; a longer axis is computed at each use.
constexpr int kRoiAlignSharedSamples = 256;

}  // namespace cvk
