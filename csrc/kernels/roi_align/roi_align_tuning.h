// Launch and blocking policy of RoI Align. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Channels that a work item carries through its scratch. 32 float32 channels of a 50x84 map are 0.5 MiB, half of a 1 MiB L2.
constexpr int kRoiAlignChannelTile = 32;

// Boxes per work item: enough work to amortise a transposed image tile's reuse, few enough to balance many threads.
constexpr int kRoiAlignBoxChunk = 64;

// Scratch of one thread at most, in bytes. Larger image tiles are replaced by one tile per box.
constexpr int64_t kRoiAlignScratchBytes = int64_t{8} << 20;

// Rows of the gradient that one work item owns: the band's scratch should stay in L2.
constexpr int64_t kRoiAlignBandBytes = int64_t{640} << 10;

// ---- CUDA (chosen from the H200's description, not yet measured)

constexpr int kRoiAlignThreads = 256;

// Backward: pixels of a tile, one row per warp, one lane per channel.
constexpr int kRoiAlignTileHeight = 8;
constexpr int kRoiAlignTileWidth = 8;
constexpr int kRoiAlignLanes = 32;

// Backward: grad_output bins staged in shared memory at a time (32 channels x 4 bytes each; 8 KiB).
constexpr int kRoiAlignStagedBins = 64;

}  // namespace cvk
