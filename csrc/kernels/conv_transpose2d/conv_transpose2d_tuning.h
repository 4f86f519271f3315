// Launch and blocking policy of conv_transpose2d: that of the engine (gemm/gemm_tuning.h); nothing is its own yet.
#pragma once

#include "gemm/gemm_tuning.h"
