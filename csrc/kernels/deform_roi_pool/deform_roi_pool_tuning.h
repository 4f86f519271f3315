// Launch policy of deformable RoI pooling. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU: common/roi_tuning.h

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Blocks that must fit on one SM, as in RoI Align: without the bound ptxas 13.0 aims at fewer registers and spills.
constexpr int kDeformBlocksPerSm = 2;

// Forward: samples of the block's bins along one axis that it keeps in shared memory; of more they are computed at each use.
constexpr int kDeformSharedSamples = 256;

// Reach of the boxes, and gradient of the offsets: a warp per box or bin.
constexpr int kDeformWarpThreads = 256;

}  // namespace cvk
