// Arithmetic of the merge rules that CPU and CUDA share. V is a number or a vector of numbers.
#pragma once

#include "common/box_overlap.h"

namespace cvk {

// exp(-(1 - IoU)^2 / sigma_t), to be divided by a variance.
template <class V, class A>
CVK_HD V weighted_nms_vote_weight(V iou, A sigma_t) {
  const V apart = elementary_constant<V>(1) - iou;
  return exp_of_negative((V{} - apart * apart) / (V{} + sigma_t));
}

// The weight of one coordinate of a voter; 0 for a variance that is not positive and finite.
template <class V>
CVK_HD V weighted_nms_vote_of(V weight, V variance) {
  const V vote = weight / variance;
  return variance > V{} && vote - vote == V{} && variance - variance == V{} ? vote : V{};
}

// A coordinate moved by the mean of the weighted differences from it.
template <class A>
CVK_HD A weighted_nms_moved(A coordinate, A weighted_differences, A weights) {
  return weights > A(0) ? coordinate + weighted_differences / weights : coordinate;
}

// Whether box j is ranked after box k: a lower score, or the same and a higher index.
template <class A>
CVK_HD bool weighted_nms_ranked_after(A score_j, int64_t j, A score_k, int64_t k) {
  return score_j < score_k || (score_j == score_k && j > k);
}

template <class A>
CVK_HD A weighted_nms_penalised(A score, A squared_overlaps, A sigma) {
  return score * exp_of_negative(-squared_overlaps / sigma);
}

}  // namespace cvk
