// Sizes of a transposed convolution. Its geometry is in common/conv_shape.h, its arithmetic in the engine (gemm).
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace cvk {

// Output pixels along an axis of `extent` input pixels, with `padding` on both sides; may be below 1.
CVK_HD int64_t conv_transpose2d_extent(int64_t extent, int64_t padding, int64_t output_padding, int64_t kernel,
                                       int64_t stride, int64_t dilation) {
  return (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1;
}

}  // namespace cvk
