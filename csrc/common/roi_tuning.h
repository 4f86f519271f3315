// Launch policy of the CUDA parts that the RoI family shares. Chosen from the H200's description, not yet measured.
#pragma once

#include <cstdint>

namespace cvk {

// Transposition of planes to channels-last: a tile of 32 x 32 values, so that both sides move whole 128-byte lines of float32.
constexpr int kTransposeTile = 32;
constexpr int kTransposeThreads = 256;

// Gathering backward pass: a block owns 8 x 8 pixels, one row per warp, and 32 channels, one per lane.
constexpr int kRoiTileHeight = 8;
constexpr int kRoiTileWidth = 8;
constexpr int kRoiTileChannels = 32;
constexpr int kRoiTileThreads = kRoiTileHeight * kRoiTileChannels;

// Passes over boxes: threads of a block.
constexpr int kRoiBlockThreads = 256;

// Channels of a block. 64 float32 channels are 16 lanes of 16 bytes, so 256 threads work on 16 bins at once.
constexpr int kRoiBlockChannels = 64;

// Bins of a block at most; the shared tile that turns them to NCHW is 64 x 65 values (16.6 KiB in float32). Half as many in
// float64, where tile, indices and samples would pass 48 KiB.
template <class T>
inline constexpr int kRoiBlockBins = sizeof(T) == 8 ? 32 : 64;

// Bins of a block when boxes and channels alone would not fill the device (4 blocks on each of 132 SMs).
constexpr int kRoiFewBins = 8;
constexpr int64_t kRoiFewBlocks = 528;

// NCHW is copied to channels-last first when boxes * bins * this reaches the map's pixels; below it the copy (two passes over
// the map) costs more than reading the planes with strided lanes.
constexpr int64_t kRoiCopyGain = 4;

}  // namespace cvk
