// What a convolution multiplies, whatever does it: the tapped product and its gradient with respect to the weights.
//
//   target[pixel, j] = activation(bias[j] + sum over taps t and channels c of source[pixel's tap t, c] * weight[j, c, t])
//   grad_weight[o, c, t] = sum over pixels of grad_output[pixel, o] * input[pixel's tap t, c]
//
// group by group. conv2d is a tapped product, and so are its gradient with respect to the input and conv_transpose2d;
// common/conv_shape.h has the geometry.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/conv_shape.h"
#include "common/dtype.h"

namespace cvk {

template <class T>
struct TappedProduct {
  ConvShape shape;
  bool transposed;   // from the convolution's output to its input; else a correlation
  const T* source;   // [N, channels, ., .], in either layout
  const T* weights;  // [O, C / groups, KH, KW]; in either layout, over planes contiguous
  const T* bias;     // [columns] or null
  Activation activation;
  T* target;  // [N, columns, target_height, target_width], in the layout of source

  CVK_HD int64_t channels() const { return transposed ? shape.filters : shape.channels; }
  CVK_HD int64_t columns() const { return transposed ? shape.channels : shape.filters; }
  CVK_HD int64_t group_channels() const { return channels() / shape.groups; }
  CVK_HD int64_t group_columns() const { return columns() / shape.groups; }
  CVK_HD int target_height() const { return transposed ? shape.height : shape.out_height; }
  CVK_HD int target_width() const { return transposed ? shape.width : shape.out_width; }
  CVK_HD int64_t source_plane() const { return transposed ? shape.out_pixels() : shape.pixels(); }
  CVK_HD int64_t target_plane() const { return transposed ? shape.pixels() : shape.out_pixels(); }

  CVK_HD int64_t phases() const { return transposed ? transposed_phases(shape) : 1; }
  CVK_HD TapGrid grid(int64_t phase) const {
    return transposed ? transposed_grid(shape, phase) : correlation_grid(shape);
  }

  // Element (column j, channel c, kernel element k) of a group's weights is at j * column + c * channel + k * tap.
  struct Strides {
    int64_t group, column, channel, tap;
  };
  CVK_HD Strides strides() const {
    const int64_t inner = shape.group_channels() * shape.kernel_size();
    const int64_t outer = shape.weight_channels_last ? 1 : shape.kernel_size();
    Strides strides;
    strides.group = shape.group_filters() * inner;
    strides.column = transposed ? outer : inner;
    strides.channel = transposed ? inner : outer;
    strides.tap = shape.weight_channels_last ? shape.group_channels() : 1;
    return strides;
  }
};

// Tap of the grid at a kernel element, or -1.
CVK_HD int tap_of(const TapAxis& axis, int kernel) {
  const int distance = kernel - axis.kernel_first;
  if (axis.taps == 0 || distance % axis.kernel_step != 0) return -1;
  const int tap = distance / axis.kernel_step;
  return tap < axis.taps ? tap : -1;
}
CVK_HD int tap_of(const TapGrid& grid, int kernel_width, int kernel) {
  const int y = tap_of(grid.y, kernel / kernel_width), x = tap_of(grid.x, kernel % kernel_width);
  return y < 0 || x < 0 ? -1 : y * grid.x.taps + x;
}
CVK_HD int kernel_of(const TapGrid& grid, int kernel_width, int tap_y, int tap_x) {
  return grid.y.kernel(tap_y) * kernel_width + grid.x.kernel(tap_x);
}
CVK_HD int kernel_of(const TapGrid& grid, int kernel_width, int tap) {
  return kernel_of(grid, kernel_width, tap / grid.x.taps, tap % grid.x.taps);
}

// Offset of a pixel of the phase in a target plane or row of pixels.
CVK_HD int64_t target_pixel(const TapGrid& grid, int target_width, int y, int x) {
  return (grid.y.target_first + int64_t{y} * grid.y.target_step) * target_width + grid.x.target_first +
         int64_t{x} * grid.x.target_step;
}

template <class T>
struct TappedWeightGradient {
  ConvShape shape;
  const T* grad_output;  // [N, O, OH, OW]
  const T* input;        // [N, C, H, W]
  T* grad_weight;        // [O, C / groups, KH, KW]
  Acc<T>* partials;      // [parts, weights], in the layout of grad_weight; null for one part

  CVK_HD int64_t pixels() const { return shape.batch * shape.out_pixels(); }
  // Offset of (o, c, t), o counted over all groups.
  CVK_HD int64_t weight_at(int64_t o, int64_t c, int t) const {
    const int64_t channels = shape.group_channels();
    return shape.weight_channels_last ? (o * shape.kernel_size() + t) * channels + c
                                      : (o * channels + c) * shape.kernel_size() + t;
  }
  // The sum of a part of the pixels for one weight.
  CVK_HD void put(int64_t part, int64_t weight, Acc<T> value) const {
    if (partials != nullptr) {
      partials[part * shape.weights() + weight] = value;
    } else {
      grad_weight[weight] = from_acc<T>(value);
    }
  }
};

// CPU: a slice of the work items of a form that is a class.
template <class Form, class Problem>
CVK_HD void form_slice(const Problem& p, const ConvCut& cut, int64_t first, int64_t last) {
  Form form(p, cut);
  for (int64_t index = first; index < last; ++index) form.item(index);
}

}  // namespace cvk
