// Arithmetic of NMS that CPU and CUDA share: the threshold of a kept box. The overlap itself is in common/box_overlap.h.
#pragma once

#include "common/box_overlap.h"

namespace cvk {

// The overlap above which a kept box suppresses. NaN stands for no density.
template <class A>
CVK_HD A nms_threshold_of(A threshold, A density) {
  return density > threshold ? density : threshold;
}

}  // namespace cvk
