// Launch policy of the CUDA parts that the RoI family shares. Chosen from the H200's description, not yet measured.
#pragma once

namespace cvk {

// Transposition of planes to channels-last: a tile of 32 x 32 values, so that both sides move whole 128-byte lines of float32.
constexpr int kTransposeTile = 32;
constexpr int kTransposeThreads = 256;

// Gathering backward pass: a block owns 8 x 8 pixels, one row per warp, and 32 channels, one per lane.
constexpr int kRoiTileHeight = 8;
constexpr int kRoiTileWidth = 8;
constexpr int kRoiTileChannels = 32;
constexpr int kRoiTileThreads = kRoiTileHeight * kRoiTileChannels;

}  // namespace cvk
