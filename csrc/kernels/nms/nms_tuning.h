// Launch and blocking policy of NMS. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Segments (boxes of one class) up to this size are scanned against their kept boxes on the stack.
constexpr int kNmsSmallSegment = 64;

// Segments from this size on look up neighbours in cells; below it every pair is tested.
constexpr int64_t kNmsGridSegment = 512;

// Segments from this size on are decided in the order of places, on all threads; smaller ones fit in cache and are claimed at
// once, by one thread. 1,000,000 boxes of the acceptance density, milliseconds of one thread (EPYC family 26, 2026-11-26): a
// single claim of all 1240 (EPYC 9004); blocks of 131,072 claimed after a filter 430; in the order of places 140 to 200, of
// which 140 ns a box look around and the rest sorts. 1,000,000 crowded 126 and 115, 200,000 in one small area 58 and 70.
constexpr int64_t kNmsPlacedSegment = 131072;

// Boxes of neighbouring cells that are decided together, by rank; their neighbourhood should stay in L2.
constexpr int64_t kNmsStretch = 4096;

// Where few boxes are wanted: that many times as many are decided, and more by this factor until there are enough.
constexpr int64_t kNmsPrefix = 8;

// Candidates that a thread should get at least; about 100 us of work.
constexpr int64_t kNmsGrain = 512;

// Boxes of small segments that a thread should get at least: 100 us, too.
constexpr int64_t kNmsSegmentGrain = 4096;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

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
