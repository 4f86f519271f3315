// Sizes of a convolution. Its geometry is in common/conv_shape.h, its arithmetic in the engine (gemm).
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace cvk {

// Input pixels that a kernel spans along an axis.
CVK_HD int64_t conv2d_span(int64_t kernel, int64_t dilation) { return dilation * (kernel - 1) + 1; }

// Output pixels along an axis of `extent` input pixels with `padding` in all; the kernel fits.
CVK_HD int64_t conv2d_extent(int64_t extent, int64_t padding, int64_t kernel, int64_t stride, int64_t dilation) {
  return (extent + padding - conv2d_span(kernel, dilation)) / stride + 1;
}

}  // namespace cvk
