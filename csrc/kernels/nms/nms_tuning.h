// Launch and blocking policy of NMS. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Segments (boxes of one class) up to this size are scanned against their kept boxes on the stack.
constexpr int kNmsSmallSegment = 64;

// Segments from this size on use the grid; below it the plain scan is as quick.
constexpr int64_t kNmsGridSegment = 512;

// Segments from this size on are decided in blocks: filtered in parallel and in the order of their places, then committed
// in the order of their scores. A smaller one takes under 4 ms on one thread and fits in cache, and every join of the threads
// can cost several ms where other work holds a core.
constexpr int64_t kNmsBlockedSegment = 16384;

// Candidates of a block: as many as have been decided already, within these limits. Few joins, and little left for the
// commit, which is serial.
constexpr int64_t kNmsLeastBlock = 4096;
constexpr int64_t kNmsMostBlock = 32768;

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
