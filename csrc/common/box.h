// Axis-aligned boxes [x1, y1, x2, y2] and their overlap.
#pragma once

#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

template <class A>
struct Box {
  A x1, y1, x2, y2;
};

template <class A>
CVK_HD A box_area(const Box<A>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// A may also be a vector of numbers (simd.h).
template <class A>
CVK_HD A box_intersection(const Box<A>& a, const Box<A>& b) {
  const A width = min_of(a.x2, b.x2) - max_of(a.x1, b.x1);
  const A height = min_of(a.y2, b.y2) - max_of(a.y1, b.y1);
  return max_of(width, A{}) * max_of(height, A{});
}

// Area of the union. Numerics: one rounding per operation (builds disable contraction), commutative in the two areas.
template <class A>
CVK_HD A box_union(A area_a, A area_b, A intersection) {
  return area_a + area_b - intersection;
}

}  // namespace cvk
