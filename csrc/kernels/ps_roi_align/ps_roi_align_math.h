// Per-element arithmetic of position-sensitive RoI Align: the samples of RoI Align, as common/position_sensitive.cuh asks for them.
#pragma once

#include "kernels/roi_align/roi_align_math.h"

namespace cvk {

// The samples' weights are shares already.
template <class A>
CVK_HD A roi_bin_divisor(const RoiAxis<A>&, int) {
  return A(1);
}

}  // namespace cvk
