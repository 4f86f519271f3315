// Launch and blocking policy that the RoI family shares. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Channels that a work item carries through its scratch. 32 float32 channels of a 50x84 map are 0.5 MiB, half of a 1 MiB L2.
constexpr int kRoiChannelTile = 32;

// Boxes per work item: enough work to amortise a transposed image tile's reuse, few enough to balance many threads.
constexpr int kRoiBoxChunk = 64;

// Cells of the map in which the order of work sees boxes, in pixels: a few lines of cache wide.
constexpr int kRoiPlaceCell = 8;

// Results of this many bytes bypass the caches: by then they push out what is still needed, and the time saved is more than what a
// reader of the result waits for memory (25 MB: 2.3 instead of 3.2 ms, with the reading 3.2 instead of 4.0; 8 MB: equal; EPYC 9005).
constexpr int64_t kRoiStreamBytes = int64_t{16} << 20;

// Scratch of one thread at most, in bytes: the stride-4 map of an 800 x 1333 image (8.6 MB) fits. Larger maps are copied
// box by box.
constexpr int64_t kRoiScratchBytes = int64_t{12} << 20;

// Rows of the gradient that one work item owns: the band's scratch should stay in L2.
constexpr int64_t kRoiBandBytes = int64_t{640} << 10;

// Position-sensitive pooling of planes, forward: planes of a work item, which should stay in L2; 16 float32 planes of 38 x 63 pixels
// are 150 KiB.
constexpr int kPsForwardPlanes = 16;

// Backward: planes of a work item, whose sums should stay in L1; 4 such planes are 37 KiB.
constexpr int kPsBackwardPlanes = 4;

// Backward, channels-last: channels of a work item, a cache line of float32.
constexpr int kPsChannelTile = 16;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Transposition of planes to channels-last: a tile of 32 x 32 values, so that both sides move whole 128-byte lines of float32.
constexpr int kTransposeTile = 32;
constexpr int kTransposeThreads = 256;

// Gathering backward pass: a block owns 8 x 8 pixels and 32 channels, one for each lane.
constexpr int kRoiTileHeight = 8;
constexpr int kRoiTileWidth = 8;
constexpr int kRoiTileChannels = 32;

// Over grids of bins, a warp of the block has a row of the tile. Blocks that must fit on one SM: most of the time they wait for
// gradients and weights.
constexpr int kRoiTileThreads = kRoiTileHeight * 32;
template <class T>
inline constexpr int kRoiGridBlocksPerSm = sizeof(T) == 8 ? 2 : 4;

// Else its warps have sums of their own: 8 KiB of shared memory in float32, of 48 in all.
template <class A>
inline constexpr int kRoiGatherWarps = sizeof(A) == 8 ? 2 : 4;

// Boxes that each of its threads looks at before the warps go through those found: the more, the fuller are their rounds.
constexpr int kRoiGatherBoxes = 2;

// Bins along each axis that a warp weighs together.
constexpr int kRoiStagedBins = 8;

// Bins of a row whose gradients a warp waits for together.
constexpr int kRoiGatherTogether = 4;

// Single bins whose gradients a warp has at hand: of 2 x 2 samples each it has one for each lane.
constexpr int kRoiGatherBins = 8;

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

// Gradient with respect to boxes: blocks that must fit on one SM.
constexpr int kRoiBoxesBlocksPerSm = 2;

// Taps of an axis that a block keeps in shared memory, over all bins; of a longer axis they are worked out at each use. Two
// axes of sloped taps are 10 KiB in float32.
constexpr int kRoiSharedTaps = 256;

// Maxima over whole pixels: blocks that must fit on one SM, and bins per axis whose cells a block keeps in shared memory; beyond them
// they are computed at each use.
constexpr int kRoiMaxBlocksPerSm = 2;
constexpr int kRoiSharedBins = 128;

// Position-sensitive pooling: values of a box that a block computes, two for each thread, so that a light-head R-CNN's 490 are one
// block that works out the taps once.
constexpr int kPsBlockOutputs = 512;

// Blocks that must fit on one SM: with 2 ptxas 13.0 spills nothing; without the bound it aims at 64 registers and spills.
constexpr int kPsBlocksPerSm = 2;

// NCHW is copied to channels-last first when boxes * bins * this reaches the map's pixels; below it the copy (two passes over
// the map) costs more than reading the planes with strided lanes.
constexpr int64_t kRoiCopyGain = 4;

}  // namespace cvk
