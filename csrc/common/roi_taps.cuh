// The taps (common/roi_taps.h) of the box that a block works on, in shared memory: worked out once per box and not once per
// channel.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/numeric.h"
#include "common/roi_geometry.h"
#include "common/roi_taps.h"
#include "common/roi_tuning.h"

namespace cvk {

template <class Entry>
struct SharedTaps {
  Entry taps[kRoiSharedTaps];
  int count[kRoiSharedTaps];  // of each bin
};

// The taps of one axis: from shared memory where they fit, else worked out at each use.
template <class Axis, class Entry>
struct AxisTaps {
  const Axis& axis;                 // in shared memory
  const SharedTaps<Entry>& shared;  // bin b has the entries from b * stride on
  int stride;                       // 0: none are tabulated

  CVK_DEVICE int count(int bin) const {
    if (stride > 0) return shared.count[bin];
    const PixelRange range = roi_pixel_range(axis, bin);
    return range.last - range.first;
  }
  CVK_DEVICE Entry operator()(int bin, int i) const {
    if (stride > 0) return shared.taps[bin * stride + i];
    Entry tap;
    roi_pixel_tap(axis, bin, roi_pixel_range(axis, bin).first + i, tap);
    return tap;
  }
};

// The whole block calls it with the axis in shared memory, and synchronises afterwards.
template <class Entry, class Axis>
CVK_DEVICE AxisTaps<Axis, Entry> tabulate_taps(const Axis& axis, int bins, SharedTaps<Entry>& shared) {
  // Pixels of a bin at most: those of its extent, two at its ends, and one for the rounding of its ends.
  const auto bin = axis.bin < 0 ? -axis.bin : axis.bin;
  const int stride = bin < kRoiSharedTaps ? min_of(static_cast<int>(bin) + 4, max_of(axis.extent, 1)) : axis.extent;
  if (int64_t{bins} * stride > kRoiSharedTaps) return {axis, shared, 0};
  for (int i = static_cast<int>(threadIdx.x); i < bins * stride; i += static_cast<int>(blockDim.x)) {
    const PixelRange range = roi_pixel_range(axis, i / stride);
    const int pixel = range.first + i % stride;
    Entry tap = empty_tap<Entry>(0);
    if (pixel < range.last) roi_pixel_tap(axis, i / stride, pixel, tap);
    shared.taps[i] = tap;
  }
  __syncthreads();
  // Sparse samples leave gaps: close them.
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += static_cast<int>(blockDim.x)) {
    int used = 0;
    for (int i = 0; i < stride; ++i) {
      const Entry tap = shared.taps[b * stride + i];
      if (tap_matters(tap)) shared.taps[b * stride + used++] = tap;
    }
    shared.count[b] = used;
  }
  return {axis, shared, stride};
}

}  // namespace cvk
