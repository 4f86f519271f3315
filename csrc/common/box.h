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

template <class A>
CVK_HD A box_intersection(const Box<A>& a, const Box<A>& b) {
  const A width = min_of(a.x2, b.x2) - max_of(a.x1, b.x1);
  const A height = min_of(a.y2, b.y2) - max_of(a.y1, b.y1);
  return max_of(width, A(0)) * max_of(height, A(0));
}

// Intersection over union > threshold. Numerics: the quotient is formed and compared as torchvision does, with one
// rounding per operation (builds disable contraction), so that every device decides every pair alike. A NaN anywhere,
// 0/0 of two empty boxes included, compares false.
template <class A>
CVK_HD bool iou_exceeds(A intersection, A area_a, A area_b, A threshold) {
  return intersection / (area_a + area_b - intersection) > threshold;
}

}  // namespace cvk
