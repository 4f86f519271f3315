// Launch and blocking policy of Soft-NMS. Each number with its reason.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Boxes of one class from which on the grid pays; below, every selected box meets all others.
constexpr int64_t kSoftNmsGridSegment = 256;

// Scores under one maximum of the tree: four 64-byte vectors of floats.
constexpr int kSoftNmsBlock = 64;

// Boxes of small classes that a thread should get at least.
constexpr int64_t kSoftNmsSegmentGrain = 512;

}  // namespace cvk
