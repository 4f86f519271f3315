// Launch policy of position-sensitive RoI Pool: that of the family, common/roi_tuning.h.
#pragma once

#include "common/roi_tuning.h"
