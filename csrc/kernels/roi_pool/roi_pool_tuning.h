// Launch policy of RoI Pool. Each number with its reason; figures say on what they were measured.
#pragma once

namespace cvk {

// ---- CUDA (chosen from the H200's description, not yet measured)

// Blocks that must fit on one SM.
constexpr int kRoiPoolBlocksPerSm = 2;

// Forward: bins per axis whose ranges the block keeps in shared memory; beyond them a range is computed at each use.
constexpr int kRoiPoolSharedBins = 128;

// Backward: bins of one axis staged in shared memory at a time; 8 x 8 bins of 32 channels are 16 KiB of values and indices.
constexpr int kRoiPoolStagedBins = 8;

}  // namespace cvk
