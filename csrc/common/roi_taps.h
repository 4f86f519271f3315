// Taps of separable RoI pooling: what a bin takes from one pixel along one axis. A bin's mean is
// sum_y sum_x y.weight * x.weight * input[y.pixel, x.pixel] over its taps of both axes.
//
// A kind of axis has a `bin` (the extent of one), an `extent` (of the map), and `stretched` (roi_boxes.h), and says by
//   roi_make_axis(shape, box, along_y, axis)   what it is of a box row,
//   roi_pixel_range(axis, bin)                 which pixels a bin may read,
//   roi_pixel_tap(axis, bin, pixel, tap)       what the bin takes from one of them, as a Tap or a SlopedTap.
#pragma once

#include "common/bilinear.h"
#include "common/host_device.h"

namespace cvk {

template <class A>
struct Tap {
  int pixel;
  A weight;
};

// A tap, and how its weight changes with the box.
template <class A>
struct SlopedTap {
  int pixel;
  A weight;
  A start_slope;  // derivative of the weight with respect to the start of the box along the axis
  A bin_slope;    // and with respect to the extent of one bin, the start held
};

template <class Entry>
CVK_HD Entry empty_tap(int pixel) {
  Entry tap{};
  tap.pixel = pixel;
  return tap;
}

// Adds a sample's weight of the tap's pixel to the tap: `slope` is its derivative with respect to the sample's coordinate,
// which is start + position * bin.
template <class A>
CVK_HD void add_to_tap(Tap<A>& tap, A weight, A /*slope*/, A /*position*/) {
  tap.weight += weight;
}
template <class A>
CVK_HD void add_to_tap(SlopedTap<A>& tap, A weight, A slope, A position) {
  tap.weight += weight;
  tap.start_slope += slope;
  tap.bin_slope += slope * position;
}

// All of a tap times a factor.
template <class A>
CVK_HD void scale_tap(Tap<A>& tap, A factor) {
  tap.weight *= factor;
}
template <class A>
CVK_HD void scale_tap(SlopedTap<A>& tap, A factor) {
  tap.weight *= factor;
  tap.start_slope *= factor;
  tap.bin_slope *= factor;
}

template <class A>
CVK_HD bool tap_matters(const Tap<A>& tap) {
  return tap.weight != A(0);
}
template <class A>
CVK_HD bool tap_matters(const SlopedTap<A>& tap) {
  return tap.weight != A(0) || tap.start_slope != A(0) || tap.bin_slope != A(0);
}

// Derivative of a bin's mean along one axis with respect to a pixel.
template <class Axis>
CVK_HD auto roi_pixel_weight(const Axis& axis, int bin, int pixel) {
  Tap<decltype(axis.bin)> tap;
  roi_pixel_tap(axis, bin, pixel, tap);
  return tap.weight;
}

// The same of neighbouring pixels, 0 beyond the map. A kind of axis may have a faster one of its own.
template <class Axis, int count, class A>
CVK_HD void roi_pixel_weights(const Axis& axis, int bin, int first_pixel, A (&weights)[count]) {
  for (int p = 0; p < count; ++p) {
    weights[p] = first_pixel + p < axis.extent ? roi_pixel_weight(axis, bin, first_pixel + p) : A(0);
  }
}

}  // namespace cvk
