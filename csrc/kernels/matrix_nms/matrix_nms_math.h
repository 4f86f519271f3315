// Arithmetic of Matrix NMS that CPU and CUDA share. V is a number or a vector of numbers.
//
// Both kernels fold pairs (i, j) into one number per box j that starts at matrix_nms_start and becomes its decay at the end:
// linear keeps the least ratio, gaussian the greatest difference of squares, so that it takes one exponential per box.
#pragma once

#include "common/box_overlap.h"
#include "kernels/matrix_nms/matrix_nms.h"

namespace cvk {

template <class V>
CVK_HD V matrix_nms_start(MatrixNmsKernel kernel) {
  return elementary_constant<V>(kernel == MatrixNmsKernel::kLinear ? 1 : 0);
}

// `overlap` of i and j and `compensation` of i, both >= 0.
template <class V>
CVK_HD V matrix_nms_fold(V folded, V overlap, V compensation, MatrixNmsKernel kernel) {
  if (kernel == MatrixNmsKernel::kGaussian) return max_of(overlap * overlap - compensation * compensation, folded);
  const V one = elementary_constant<V>(1);
  const V ratio = (one - overlap) / (one - compensation);
  return compensation < one ? min_of(ratio, folded) : folded;
}

template <class V>
CVK_HD V matrix_nms_combine(V a, V b, MatrixNmsKernel kernel) {
  return kernel == MatrixNmsKernel::kGaussian ? max_of(a, b) : min_of(a, b);
}

template <class A>
CVK_HD A matrix_nms_decay(A folded, MatrixNmsKernel kernel, A sigma) {
  return kernel == MatrixNmsKernel::kGaussian ? exp_of_negative(-folded / sigma) : max_of(folded, A(0));
}

}  // namespace cvk
