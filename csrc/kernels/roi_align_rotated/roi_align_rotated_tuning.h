// Launch and blocking policy of rotated RoI Align. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU (more in common/roi_tuning.h)

// A bin's samples are merged in a grid of the pixels around it, unless that has more cells than this many per sample (and a
// few, for the rim of a small bin): clearing and reading a cell costs an eighth of placing a sample.
constexpr int64_t kRotatedCellsPerSample = 8;
constexpr int64_t kRotatedFewCells = 64;

// Weights of a box up to which the plan takes the bound that costs no look at its bins.
constexpr int64_t kRotatedCheapWeights = int64_t{1} << 14;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Blocks that must fit on one SM: two, as in RoI Align.
constexpr int kRotatedBlocksPerSm = 2;

// Forward: samples of the block's bins that it keeps in shared memory; of more they are computed at each use.
constexpr int kRotatedSharedSamples = 256;

}  // namespace cvk
