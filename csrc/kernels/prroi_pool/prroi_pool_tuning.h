// Launch policy of Precise RoI Pooling beyond the family's (common/roi_tuning.h). Chosen from the H200's description, not
// tuned.
#pragma once

namespace cvk {

// Blocks that must fit on one SM: with 2 ptxas 13.0 spills nothing.
constexpr int kPrRoIPoolBlocksPerSm = 2;

}  // namespace cvk
