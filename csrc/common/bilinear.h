// The bilinear rule of the RoI family, one axis at a time: the two-dimensional weight is the product of two of these.
//
// Edges: a coordinate outside [-1, extent] (NaN included) reads nothing; in [-1, 0] it reads pixel 0; from the last pixel's
// centre on it reads the last pixel. This is the rule of Detectron, torchvision and mmcv.
#pragma once

#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

template <class A>
struct BilinearAxis {
  int low, high;  // the two pixels read
  A low_weight, high_weight;
  bool inside;  // false: reads nothing
};

template <class A>
CVK_HD BilinearAxis<A> bilinear_axis(A coordinate, int extent) {
  BilinearAxis<A> axis;
  axis.inside = coordinate >= A(-1) && coordinate <= static_cast<A>(extent) && extent > 0;
  if (!axis.inside) {
    axis.low = axis.high = 0;
    axis.low_weight = axis.high_weight = A(0);
    return axis;
  }
  A clamped = coordinate > A(0) ? coordinate : A(0);
  axis.low = static_cast<int>(clamped);
  if (axis.low >= extent - 1) {
    axis.low = axis.high = extent - 1;
    clamped = static_cast<A>(axis.low);
  } else {
    axis.high = axis.low + 1;
  }
  axis.high_weight = clamped - static_cast<A>(axis.low);
  axis.low_weight = A(1) - axis.high_weight;
  return axis;
}

// Derivative of a sample's value with respect to its coordinate, in units of the difference of its two pixels: 1, or 0 where
// the coordinate is clamped. At a pixel's centre it is the derivative to the right.
template <class A>
CVK_HD A bilinear_slope(A coordinate, const BilinearAxis<A>& axis) {
  return axis.low < axis.high && coordinate >= A(0) ? A(1) : A(0);
}

}  // namespace cvk
