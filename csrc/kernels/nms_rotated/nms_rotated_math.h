// Arithmetic of rotated boxes that CPU and CUDA share: bounds, whether two boxes meet, their overlap. V is float, double or a
// vector of them (simd.h).
#pragma once

#include <cstdint>
#include <limits>

#include "common/box.h"
#include "common/elementary.h"
#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

// A rectangle turned about its centre.
template <class V>
struct RotatedBox {
  V x, y, cosine, sine, half_w, half_h;

  CVK_HD V area() const { return (half_w + half_w) * (half_h + half_h); }
};

// From [5]: centre, size, angle. A box that overlaps nothing gets NaN for its size, which fails every comparison below.
template <class A>
CVK_HD RotatedBox<A> rotated_box(const A* box, bool clockwise) {
  const double angle = clockwise ? static_cast<double>(box[4]) : -static_cast<double>(box[4]);
  RotatedBox<A> result{box[0], box[1], A(1), A(0), box[2] * A(0.5), box[3] * A(0.5)};
  const A area = result.area();
  if (result.half_w > A(0) && result.half_h > A(0) && area > A(0) && is_finite(area) && is_finite(box[0]) &&
      is_finite(box[1]) && angle >= -kMostAngle && angle <= kMostAngle) {
    double sine, cosine;
    sine_cosine(angle, &sine, &cosine);
    result.sine = static_cast<A>(sine);
    result.cosine = static_cast<A>(cosine);
  } else {
    result.x = result.y = A(0);
    result.half_w = result.half_h = std::numeric_limits<A>::quiet_NaN();
  }
  return result;
}

// Axis-aligned bounds such that boxes whose bounds do not overlap do not meet, as computed below. Numerics: that test is wrong
// by at most 6 roundings of the coordinates and sides; boxes apart by d along an axis are apart by d / sqrt(2) along one of
// the four axes that it tries. The margin is 16 roundings from each box.
template <class A>
CVK_HD Box<A> rotated_bounds(const RotatedBox<A>& box) {
  const A c = magnitude(box.cosine), s = magnitude(box.sine);
  const A slack =
      A(16) * std::numeric_limits<A>::epsilon() * (magnitude(box.x) + magnitude(box.y) + box.half_w + box.half_h);
  const A reach_x = box.half_w * c + box.half_h * s + slack, reach_y = box.half_w * s + box.half_h * c + slack;
  return {box.x - reach_x, box.y - reach_y, box.x + reach_x, box.y + reach_y};
}

// Box b in the frame of box a. Turned by half a turn, or both mirrored, the rectangles overlap as before, so that b's angle is
// between 0 and 90 degrees.
template <class V>
struct RotatedPair {
  V a_w, a_h, b_w, b_h;  // halves
  V x, y, cosine, sine;  // of b
};

// Numerics: boxes of one angle have sine 0 exactly, and are then exactly parallel.
template <class V>
CVK_HD RotatedPair<V> rotated_pair(const RotatedBox<V>& a, const RotatedBox<V>& b) {
  const V zero{}, one = elementary_constant<V>(1);
  const V dx = b.x - a.x, dy = b.y - a.y;
  const V cosine = a.cosine * b.cosine + a.sine * b.sine, sine = a.cosine * b.sine - a.sine * b.cosine;
  const V y = a.cosine * dy - a.sine * dx;
  RotatedPair<V> pair{a.half_w, a.half_h, b.half_w, b.half_h, a.cosine * dx + a.sine * dy, y, one, one};
  pair.y = cosine * sine < zero ? -y : y;
  pair.cosine = sine == zero ? one : magnitude(cosine);
  pair.sine = cosine == zero ? one : magnitude(sine);
  return pair;
}

// Whether no axis separates the two. NaN does not meet.
template <class V>
CVK_HD auto rotated_meet(const RotatedPair<V>& p) {
  const V c = p.cosine, s = p.sine;
  return (magnitude(p.x) < p.a_w + (p.b_w * c + p.b_h * s)) & (magnitude(p.y) < p.a_h + (p.b_w * s + p.b_h * c)) &
         (magnitude(p.x * c + p.y * s) < p.b_w + (p.a_w * c + p.a_h * s)) &
         (magnitude(p.y * c - p.x * s) < p.b_h + (p.a_w * s + p.a_h * c));
}

// As max_of and min_of are: where value is NaN, low.
template <class V>
CVK_HD V clamp_of(V value, V low, V high) {
  return min_of(max_of(value, low), high);
}

// Twice the integral of clamp(x, -half_w, half_w) dy along an edge, within |y| <= half_h. The edge rises from (x0, y0) to
// y1 >= y0 and leans to the right, so it is left of the strip |x| <= half_w first, then inside, then right of it.
// Numerics: a slope may be infinite, and then zero times it NaN. That happens where an edge is upright and lies on a side of
// the strip, or level; the clamps make it a place on the edge, and any place gives the right sum.
template <class V>
CVK_HD V rotated_edge(V x0, V y0, V y1, V dx_dy, V dy_dx, V half_w, V half_h) {
  const V bottom = clamp_of(y0, -half_h, half_h), top = clamp_of(y1, -half_h, half_h);
  const V enters = clamp_of(y0 + (-half_w - x0) * dy_dx, bottom, top);
  const V leaves = clamp_of(y0 + (half_w - x0) * dy_dx, bottom, top);
  const V x_enters = clamp_of(x0 + (enters - y0) * dx_dy, -half_w, half_w);
  const V x_leaves = clamp_of(x0 + (leaves - y0) * dx_dy, -half_w, half_w);
  const V inside = (leaves - enters) * (x_enters + x_leaves);
  return inside + (half_w + half_w) * ((top - leaves) - (enters - bottom));
}

// Area of the intersection of two boxes that meet: x dy around b. Edges along b's width lean right, those along its height
// left, and are mirrored.
template <class V>
CVK_HD V rotated_intersection(const RotatedPair<V>& p, V area_a, V area_b) {
  const V wc = p.b_w * p.cosine, ws = p.b_w * p.sine, hc = p.b_h * p.cosine, hs = p.b_h * p.sine;
  const V reach_x = wc + hs, reach_y = ws + hc;
  const V cot = p.cosine / p.sine, tan = p.sine / p.cosine;
  const V low_x = p.x - (wc - hs), low_y = p.y - reach_y;
  const V left_x = p.x - reach_x, left_y = p.y + (hc - ws);
  const V right_x = p.x + reach_x, right_y = p.y + (ws - hc);
  const V high_y = p.y + reach_y;
  V twice = rotated_edge(low_x, low_y, right_y, cot, tan, p.a_w, p.a_h);
  twice = twice - rotated_edge(left_x, left_y, high_y, cot, tan, p.a_w, p.a_h);
  twice = twice + rotated_edge(-low_x, low_y, left_y, tan, cot, p.a_w, p.a_h);
  twice = twice - rotated_edge(-right_x, right_y, high_y, tan, cot, p.a_w, p.a_h);
  return clamp_of(twice * elementary_constant<V>(0.5), V{}, min_of(area_a, area_b));
}

// Overlap of two boxes that meet: over their union, or over the area of the first.
template <class V>
CVK_HD V rotated_ratio(const RotatedPair<V>& pair, bool over_first, V area_a, V area_b) {
  const V area = rotated_intersection(pair, area_a, area_b);
  return area / (over_first ? area_a : box_union(area_a, area_b, area));
}

// The same, 0 where they do not meet.
template <class A>
CVK_HD A rotated_overlap(const RotatedBox<A>& a, const RotatedBox<A>& b, bool over_first) {
  const RotatedPair<A> pair = rotated_pair(a, b);
  return rotated_meet(pair) ? rotated_ratio(pair, over_first, a.area(), b.area()) : A(0);
}

}  // namespace cvk
