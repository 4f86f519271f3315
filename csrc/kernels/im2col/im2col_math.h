// Where an element of the column matrix is.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"

namespace cvk {

// Offset in the columns of channel c, kernel element (i, j) and output pixel (y, x) of an image.
CVK_HD int64_t im2col_offset(const ConvShape& s, int64_t image, int64_t c, int i, int j, int64_t y, int64_t x) {
  const int64_t row = ((image * s.channels + c) * s.kernel_height + i) * s.kernel_width + j;
  return (row * s.out_height + y) * s.out_width + x;
}

}  // namespace cvk
