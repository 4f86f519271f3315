// Launch and blocking policy of the rotated boxes. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Pairs that a thread should get at least: 100 us where boxes meet.
constexpr int64_t kNmsRotatedPairGrain = 1 << 16;

// Columns of a work item of the IoU matrix: one long row is shared among threads too, and 4096 boxes stay in L2.
constexpr int64_t kNmsRotatedTile = 4096;

// Boxes that a thread should get at least when sines and cosines are taken, 30 ns each.
constexpr int64_t kNmsRotatedPrepareGrain = 4096;

// Boxes of segments that a thread should get at least.
constexpr int64_t kNmsRotatedSegmentGrain = 1024;

// Segments from this size on keep their boxes in a grid.
constexpr int64_t kNmsRotatedGridSegment = 2048;

// Segments from this size on are decided in blocks: filtered in parallel, then committed in the order of their scores.
constexpr int64_t kNmsRotatedBlockedSegment = 4096;

// Candidates of a block: as many as have been decided already, within these limits. Few joins, and little left for the
// commit, which is serial.
constexpr int64_t kNmsRotatedLeastBlock = 1024;
constexpr int64_t kNmsRotatedMostBlock = 4096;
constexpr int64_t kNmsRotatedFilterGrain = 128;

// ---- CUDA (chosen from the H200's description, not yet measured)

// Threads of the kernels of the IoU: one per box, per pair, or per column. The NMS has those of nms_tuning.h.
constexpr int kNmsRotatedThreads = 256;

// Rows of the IoU matrix that a thread goes through with the box of its column in registers.
constexpr int kNmsRotatedRows = 8;

}  // namespace cvk
