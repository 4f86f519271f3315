// Launch and blocking policy of Matrix NMS. Each number with its reason.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Boxes of one class from which on the grid pays.
constexpr int64_t kMatrixNmsGridSegment = 256;

// Boxes that a thread should get at least.
constexpr int64_t kMatrixNmsGrain = 256;

}  // namespace cvk
