// Launch and blocking policy of the merge rules. Each number with its reason.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Boxes of one class from which on the grid pays.
constexpr int64_t kWeightedNmsGridSegment = 256;

// Kept boxes (vote) or boxes (penalty) that a thread should get at least.
constexpr int64_t kWeightedNmsGrain = 128;

}  // namespace cvk
