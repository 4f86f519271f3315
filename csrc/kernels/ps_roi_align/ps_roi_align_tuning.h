// Launch policy of position-sensitive RoI Align: that of the family, common/roi_tuning.h.
#pragma once

#include "common/roi_tuning.h"
