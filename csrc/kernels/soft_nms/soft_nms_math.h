// Arithmetic of Soft-NMS that CPU and CUDA share.
#pragma once

#include "common/box_overlap.h"
#include "kernels/soft_nms/soft_nms.h"

namespace cvk {

// The factor that a box's score takes from a selected box. V is a number or a vector of numbers; below 0 stands for removal,
// which no weight does.
template <class V, class A>
CVK_HD V soft_nms_weight(V overlap, SoftNmsMethod method, A threshold, A sigma) {
  const V one = elementary_constant<V>(1);
  const V weight = weight_of_overlap(overlap);
  switch (method) {
    case SoftNmsMethod::kGaussian:
      return exp_of_negative((V{} - weight * weight) / (V{} + sigma));
    case SoftNmsMethod::kLinear:
      return overlap > threshold ? one - weight : one;
    default:
      return overlap > threshold ? V{} - one : one;
  }
}

// The score after a weight; below 0 once the box is out.
template <class V, class A>
CVK_HD V soft_nms_decayed(V score, V weight, A min_score) {
  const V decayed = score * weight;
  return decayed >= min_score && weight >= V{} ? decayed : elementary_constant<V>(-1);
}

}  // namespace cvk
