// Launch and blocking policy of NMS. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Segments (boxes of one class) up to this size are scanned against their kept boxes on the stack.
constexpr int kNmsSmallSegment = 64;

// Segments from this size on look up neighbours in cells; below it every pair is tested.
constexpr int64_t kNmsGridSegment = 512;

// Segments from this size on are decided in blocks: boxes that an earlier block suppresses are filtered out in parallel and
// in the order of their places, the rest of a block claims each other. Smaller segments fit in cache and are claimed at once,
// by one thread. At 100,000 boxes of the acceptance density 21 ms against 36 in blocks of 32,768 on two threads, 100,000
// crowded 7.5 against 9.1, but 100,000 in one small area 31 against 20; at 1,000,000 on one thread, by size of the block:
// 32,768: 1100 ms, 65,536: 890, 131,072: 720, a single one: 1240; on two threads 646 / 590 / 614 (EPYC 9004, 2026-11-24).
constexpr int64_t kNmsBlockedSegment = 131072;
constexpr int64_t kNmsBlock = 131072;

// Candidates that a thread should get at least; about 100 us of work.
constexpr int64_t kNmsGrain = 512;

// Boxes of small segments that a thread should get at least: 100 us, too.
constexpr int64_t kNmsSegmentGrain = 4096;

// ---- CUDA (chosen from the H200's description, not yet measured)

// Boxes decided by one block between two launches; one thread each.
constexpr int kNmsChunk = 1024;
constexpr int kNmsHeavyChunk = 512;  // where a pair test needs more registers than 64

// Threads of the kernel that applies a chunk's kept boxes to all later boxes, one thread per box.
constexpr int kNmsSuppressThreads = 256;

// Blocks of it that must fit on one SM: with 4 ptxas 13.0 spills nothing; without the bound it aims at 48 registers.
constexpr int kNmsSuppressBlocksPerSm = 4;
constexpr int kNmsHeavySuppressBlocksPerSm = 2;

// Output slots that get a thread each when the padding is written; the rest is strided over.
constexpr int64_t kNmsMostPadding = 1 << 16;

}  // namespace cvk
