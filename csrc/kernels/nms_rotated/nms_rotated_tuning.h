// Launch and blocking policy of the rotated boxes. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Pairs that a thread should get at least: 100 us where boxes meet.
constexpr int64_t kNmsRotatedPairGrain = 1 << 16;

// Columns of a work item of the IoU matrix: one long row is shared among threads too, and 4096 boxes stay in L2.
constexpr int64_t kNmsRotatedTile = 4096;

// Boxes that a thread should get at least when sines and cosines are taken, 16 ns each.
constexpr int64_t kNmsRotatedPrepareGrain = 4096;

// Boxes of segments that a thread should get at least: 500 us. A segment belongs to one thread: where blocks of a large one
// were filtered in parallel, as in hard NMS, the commit still looked at as many cells, and two threads (of two cores that had
// other work too) took 1.3 to 1.5 times the time of one.
constexpr int64_t kNmsRotatedSegmentGrain = 1024;

// Segments from this size on keep their boxes in a grid. At 2,000 boxes of the acceptance density on one thread both ways
// take 1.1 ms, at 4,000 the grid 2.2 and the list 3.1 ms (EPYC 9004, 2026-11-20).
constexpr int64_t kNmsRotatedGridSegment = 2048;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// Threads of the kernels of the IoU: one per box, per pair, or per column. The NMS has those of nms_tuning.h.
constexpr int kNmsRotatedThreads = 256;

// Rows of the IoU matrix that a thread goes through with the box of its column in registers.
constexpr int kNmsRotatedRows = 8;

}  // namespace cvk
