// Launch policy of RoI Pool: that of the family, common/roi_tuning.h, and what it has beside.
#pragma once

#include "common/roi_tuning.h"

namespace cvk {

// CPU, gradient of contiguous maps: the planes of a work item, so many that they stay in the second cache, and enough that what
// is read of a box is a long run. Larger planes are cut into bands, as elsewhere.
constexpr int64_t kRoiPoolPlaneBytes = 256 << 10;
constexpr int64_t kRoiPoolMostPlanes = 16;

}  // namespace cvk
