// Arithmetic of NMS that CPU and CUDA share: how a threshold is rounded, what a box can suppress.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/box.h"
#include "common/dtype.h"
#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

// The threshold in arithmetic type A such that `iou > threshold` over A decides as the comparison with the double does:
// the largest value of A that is not above it. Equal to torchvision's CPU kernel, which compares in double.
template <class A>
inline A nms_threshold(double threshold) {
  A rounded = static_cast<A>(threshold);
  if (static_cast<double>(rounded) > threshold) rounded = std::nextafter(rounded, -std::numeric_limits<A>::infinity());
  return rounded;
}

// A pair whose intersection is not above loose * union has IoU <= threshold, for a threshold >= 0. Perf: this product settles
// nearly every pair without a division; the margin of 2^-20 covers its rounding, and what passes is divided. A union below
// nms_small_union is always divided: near the subnormal range the margin would not hold.
template <class A>
CVK_HD A nms_loose_threshold(A threshold) {
  return threshold - threshold * A(0x1p-20);
}

template <class A>
CVK_HD bool nms_has_shortcut(A threshold) {
  return threshold == A(0) || threshold >= A(1e-6);  // smaller ones meet small unions in subnormal products
}
template <class A>
CVK_HD A nms_small_union() {
  return sizeof(A) == 4 ? A(1e-30) : A(1e-290);
}

// IoU of two boxes > threshold. The quotient is formed and compared as torchvision does; NaN (0/0 of two empty boxes
// included) compares false.
template <class A>
CVK_HD bool nms_suppresses(const Box<A>& a, A area_a, const Box<A>& b, A area_b, A threshold) {
  const A intersection = box_intersection(a, b);
  const A united = box_union(area_a, area_b, intersection);
  if (nms_has_shortcut(threshold) && !(intersection > nms_loose_threshold(threshold) * united) &&
      !(united < nms_small_union<A>())) {
    return false;
  }
  return intersection / united > threshold;
}

// True where a box overlaps nothing at any threshold >= 0: NaN or infinite coordinates, no extent, or an area that
// overflows. Such a box is kept and suppresses nothing.
template <class A>
CVK_HD bool nms_is_inert(const Box<A>& box, A area) {
  return !(box.x2 > box.x1 && box.y2 > box.y1 && area > A(0) && is_finite(area));
}

// Score bits as an unsigned key whose ascending order is the descending order of scores; both zeros are one value.
CVK_HD uint32_t nms_descending_key(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
}
CVK_HD uint64_t nms_descending_key(double score) {
  const uint64_t bits = bit_cast<uint64_t>(score + 0.0);
  return (bits >> 63) != 0 ? bits : ~(bits | (uint64_t{1} << 63));
}

}  // namespace cvk
