// How much two boxes overlap, and whether that is above a threshold. V is a number or a vector of numbers (simd.h), A its
// element. Every expression is symmetric in the two boxes, bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/box.h"
#include "common/elementary.h"
#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

// All are at most the IoU, in floating point too: each subtracts something that is not negative.
enum class OverlapCriterion : int {
  kIou,   // intersection / union
  kGiou,  // IoU - (enclosing box - union) / enclosing box        (Rezatofighi 2019, arXiv 1902.09630)
  kDiou,  // IoU - (centre distance^2 / enclosing diagonal^2)^beta  (Zheng 2020, arXiv 1911.08287)
  kCiou,  // DIoU - alpha * v, v the difference in aspect           (Zheng 2020)
};

template <class A>
struct OverlapRule {
  OverlapCriterion criterion = OverlapCriterion::kIou;
  A beta = A(1);
};

// From the intersection and the union, of which callers know more cheaply whether they matter. NaN where nothing is enclosed.
template <class V, class A>
CVK_HD V box_overlap(const Box<V>& a, const Box<V>& b, V intersection, V united, const OverlapRule<A>& rule) {
  const V iou = intersection / united;
  if (rule.criterion == OverlapCriterion::kIou) return iou;
  const V width = max_of(a.x2, b.x2) - min_of(a.x1, b.x1), height = max_of(a.y2, b.y2) - min_of(a.y1, b.y1);
  if (rule.criterion == OverlapCriterion::kGiou) {
    const V enclosing = width * height;
    return iou - max_of(V{}, (enclosing - united) / enclosing);  // Edge: NaN where the enclosing box overflows
  }
  const V dx = ((a.x1 + a.x2) - (b.x1 + b.x2)) * A(0.5), dy = ((a.y1 + a.y2) - (b.y1 + b.y2)) * A(0.5);
  const V apart = (dx * dx + dy * dy) / (width * width + height * height);
  const V diou = iou - (rule.beta == A(1) ? apart : pow_of_fraction(apart, rule.beta));
  if (rule.criterion == OverlapCriterion::kDiou) return diou;
  const V angle = atan_of_positive((a.x2 - a.x1) / (a.y2 - a.y1)) - atan_of_positive((b.x2 - b.x1) / (b.y2 - b.y1));
  const V v = angle * angle * A(0.4052847345693511);  // 4 / pi^2
  const V penalty = v * v / ((V{} + A(1)) - iou + v);
  return diou - (v > V{} ? penalty : V{});
}

// The threshold in arithmetic type A such that `overlap > threshold` over A decides as the comparison with the double does:
// the largest value of A that is not above it. Equal to torchvision's CPU kernel, which compares in double.
template <class A>
inline A overlap_threshold(double threshold) {
  A rounded = static_cast<A>(threshold);
  if (static_cast<double>(rounded) > threshold) rounded = std::nextafter(rounded, -std::numeric_limits<A>::infinity());
  return rounded;
}

// The limit in arithmetic type A such that `score >= limit` over A decides as the comparison with the double does.
template <class A>
inline A score_limit(double limit) {
  const A rounded = static_cast<A>(limit);
  return static_cast<double>(rounded) < limit ? std::nextafter(rounded, std::numeric_limits<A>::infinity()) : rounded;
}

// A positive parameter by which something is divided or raised, finite and positive in A too.
template <class A>
inline A positive_parameter(double value) {
  constexpr double kLeast = static_cast<double>(std::numeric_limits<A>::min());
  constexpr double kMost = static_cast<double>(std::numeric_limits<A>::max());
  return static_cast<A>(min_of(max_of(value, kLeast), kMost));
}

// A pair whose intersection is not above loose * union has IoU, and so every criterion, <= threshold, for a threshold >= 0.
// Perf: this product settles nearly every pair without a division; the margin of 2^-20 covers its rounding, and what passes
// is divided. A union below small_union is always divided: near the subnormal range the margin would not hold.
template <class A>
CVK_HD A loose_threshold(A threshold) {
  return threshold - threshold * A(0x1p-20);
}
template <class A>
CVK_HD bool has_shortcut(A threshold) {
  return threshold == A(0) || threshold >= A(1e-6);  // smaller ones meet small unions in subnormal products
}
template <class A>
CVK_HD A small_union() {
  return sizeof(A) == 4 ? A(1e-30) : A(1e-290);
}

// Overlap of two boxes > threshold. NaN (0/0 of two empty boxes included) compares false.
template <class A>
CVK_HD bool overlaps_above(const Box<A>& a, A area_a, const Box<A>& b, A area_b, A threshold,
                           const OverlapRule<A>& rule) {
  const A intersection = box_intersection(a, b);
  const A united = box_union(area_a, area_b, intersection);
  if (has_shortcut(threshold) && !(intersection > loose_threshold(threshold) * united) &&
      !(united < small_union<A>())) {
    return false;
  }
  return box_overlap(a, b, intersection, united, rule) > threshold;
}

// An overlap as a weight: not negative, 0 for NaN.
template <class V>
CVK_HD V weight_of_overlap(V overlap) {
  return overlap > V{} ? overlap : V{};
}

// True where a box overlaps nothing at any threshold >= 0: NaN or infinite coordinates, no extent, or an area that
// overflows. Such a box is kept and suppresses nothing.
template <class A>
CVK_HD bool box_is_inert(const Box<A>& box, A area) {
  return !(box.x2 > box.x1 && box.y2 > box.y1 && area > A(0) && is_finite(area));
}

}  // namespace cvk
