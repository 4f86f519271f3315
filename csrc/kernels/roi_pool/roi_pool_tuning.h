// Launch policy of RoI Pool: that of the family, common/roi_tuning.h.
#pragma once

#include "common/roi_tuning.h"
