// The geometry of convolution, for all its forms: which pixel of the source a tap reads for which pixel of the target.
//
// Everything that a convolution does to maps is one pattern. A target pixel i of an axis (counted within a phase) reads the
// source pixels i * source_step + first_offset + t * offset_step, one for each tap t:
//   conv2d             source = input, target = output, one phase, source_step = stride
//   its gradient with  source = grad_output, target = input: pixels y = p mod stride form phase p, which the kernel elements
//   respect to input   k with y + pad = k * dilation (mod stride) reach, and within a phase the step is 1
//   conv_transpose2d   the same as that gradient
// A target phase is a grid of pixels; nothing is ever stuffed with zeros.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

// A convolution from `channels` [N, C, H, W] to `filters` [N, O, OH, OW] with weights [O, C / groups, KH, KW]. The bottom and
// right padding are in OH and OW.
struct ConvShape {
  int64_t batch = 0, channels = 0, filters = 0;
  int groups = 1;
  int height = 0, width = 0;          // H, W
  int out_height = 0, out_width = 0;  // OH, OW
  int kernel_height = 1, kernel_width = 1;
  int stride_y = 1, stride_x = 1;
  int pad_top = 0, pad_left = 0;
  int dilation_y = 1, dilation_x = 1;
  bool channels_last = false;         // of both maps
  bool weight_channels_last = false;  // [O, KH, KW, C / groups]

  CVK_HD int64_t pixels() const { return int64_t{height} * width; }
  CVK_HD int64_t out_pixels() const { return int64_t{out_height} * out_width; }
  CVK_HD int64_t group_channels() const { return channels / groups; }
  CVK_HD int64_t group_filters() const { return filters / groups; }
  CVK_HD int kernel_size() const { return kernel_height * kernel_width; }
  CVK_HD int64_t weights() const { return filters * group_channels() * kernel_size(); }
  CVK_HD int64_t products() const { return batch * out_pixels() * weights(); }
};

// A filter for each channel: nothing to multiply in tiles.
CVK_HD bool is_depthwise(const ConvShape& shape) {
  return shape.groups == shape.channels && shape.groups == shape.filters && shape.groups > 1;
}

// One axis of a phase.
struct TapAxis {
  int grid;                       // target pixels of the phase
  int target_first, target_step;  // pixel i of the phase is target pixel target_first + i * target_step
  int extent;                     // source pixels
  int source_step;                // tap t of pixel i reads i * source_step + first_offset + t * offset_step
  int first_offset, offset_step;  // offset_step > 0
  int taps;                       // may be 0
  int kernel_first, kernel_step;  // tap t is kernel element kernel_first + t * kernel_step

  CVK_HD int kernel(int tap) const { return kernel_first + tap * kernel_step; }
  // The source pixel that tap `tap` of pixel `i` reads; may be outside.
  CVK_HD int64_t source(int64_t i, int64_t tap) const { return i * source_step + first_offset + tap * offset_step; }
};

struct TapGrid {
  TapAxis y, x;
  CVK_HD int64_t pixels() const { return int64_t{y.grid} * x.grid; }
  CVK_HD int taps() const { return y.taps * x.taps; }
};

// From `extent` source pixels to `target` ones.
CVK_HD TapAxis correlation_axis(int extent, int target, int kernel, int stride, int pad, int dilation) {
  return {target, 0, 1, extent, stride, -pad, dilation, kernel, 0, 1};
}

// How many phases the transposed form has along an axis of `target` pixels.
CVK_HD int phase_count(int target, int stride) { return min_of(target, stride); }

// From `extent` source pixels (those of the convolution's output) back to `target` ones (its input).
CVK_HD TapAxis transposed_axis(int phase, int extent, int target, int kernel, int stride, int pad, int dilation) {
  TapAxis axis{};
  axis.grid = target > phase ? (target - phase - 1) / stride + 1 : 0;  // no sum that could pass 2^31
  axis.target_first = phase;
  axis.target_step = stride;
  axis.extent = extent;
  axis.source_step = 1;
  // The kernel elements k with (phase + pad - k * dilation) divisible by stride: every `period`-th, if any.
  int divisor = stride, rest = dilation;  // greatest common divisor
  while (rest != 0) {
    const int next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  const int period = stride / divisor;
  int first = 0;
  const int64_t distance = int64_t{phase} + pad;  // of kernel element 0
  while (first < period && first < kernel && (distance - int64_t{first} * dilation) % stride != 0) ++first;
  axis.offset_step = dilation / divisor;
  if (first >= period || first >= kernel) return axis;
  axis.taps = (kernel - first - 1) / period + 1;
  // From the last kernel element to the first, so that the source pixels ascend.
  const int last = first + (axis.taps - 1) * period;
  axis.kernel_first = last;
  axis.kernel_step = -period;
  axis.first_offset = static_cast<int>((distance - int64_t{last} * dilation) / stride);
  return axis;
}

// One tap, and pixel i of the phase reads source pixel i, of which there are as many.
CVK_HD bool reads_alike(const TapAxis& axis) {
  return axis.taps == 1 && axis.source_step == 1 && axis.first_offset == 0 && axis.grid == axis.extent;
}
CVK_HD bool reads_alike(const TapGrid& grid) { return reads_alike(grid.y) && reads_alike(grid.x); }

// One tap, which reads the pixel itself.
CVK_HD bool reads_itself(const TapGrid& grid) {
  return reads_alike(grid) && grid.y.target_step == 1 && grid.x.target_step == 1;
}

// Then rows of pixels follow one another, so all of them are one row. Long rows gain nothing.
CVK_HD TapGrid simplified(TapGrid grid) {
  if (reads_itself(grid) && grid.pixels() <= (1 << 15)) {
    grid.x.grid = grid.x.extent = static_cast<int>(grid.pixels());
    grid.y.grid = grid.y.extent = 1;
  }
  return grid;
}

CVK_HD TapGrid correlation_grid(const ConvShape& s) {
  return simplified({correlation_axis(s.height, s.out_height, s.kernel_height, s.stride_y, s.pad_top, s.dilation_y),
                     correlation_axis(s.width, s.out_width, s.kernel_width, s.stride_x, s.pad_left, s.dilation_x)});
}

CVK_HD int64_t transposed_phases(const ConvShape& s) {
  return int64_t{phase_count(s.height, s.stride_y)} * phase_count(s.width, s.stride_x);
}

CVK_HD TapGrid transposed_grid(const ConvShape& s, int64_t phase) {
  const int columns = phase_count(s.width, s.stride_x);
  const int y = static_cast<int>(phase / columns), x = static_cast<int>(phase % columns);
  return simplified({transposed_axis(y, s.out_height, s.height, s.kernel_height, s.stride_y, s.pad_top, s.dilation_y),
                     transposed_axis(x, s.out_width, s.width, s.kernel_width, s.stride_x, s.pad_left, s.dilation_x)});
}

// For one pixel and kernel element at a time: the source pixel along an axis, or -1 where it is outside or there is none.
// Correlation: from the convolution's input (`extent` pixels) to pixel `i` of its output.
CVK_HD int64_t correlation_source(int64_t i, int k, int stride, int pad, int dilation, int extent) {
  const int64_t at = i * stride - pad + int64_t{k} * dilation;
  return at >= 0 && at < extent ? at : -1;
}
// Transposed: from its output back to pixel `i` of its input.
CVK_HD int64_t transposed_source(int64_t i, int k, int stride, int pad, int dilation, int extent) {
  const int64_t distance = i + pad - int64_t{k} * dilation;
  if (distance < 0 || distance % stride != 0) return -1;
  return distance / stride < extent ? distance / stride : -1;
}

// As what the CPU multiplies: numbers of the type of the sums, or words of two bfloat16 (gemm/pairs_cpu.h), one vector of these by
// another or in tiles (gemm/tiles_cpu.h).
enum class ConvOperands { kNumbers, kPairs, kTiles, kEmulatedTiles };

// What computes a pass on the CPU (gemm/product_cpu.cpp, gemm/weight_gradient_cpu.cpp). For kWinograd, pixels of the cut are tiles
// of 2 x 2.
enum class ConvForm { kTapped, kDepthwise, kFewPixels, kThinMap, kPlaneMap, kSmallMap, kGrouped, kWinograd };

// How the CPU cuts a pass into work items.
struct ConvCut {
  int64_t pixel_blocks, column_blocks;  // of every group (and phase)
  int64_t shares = 1;                   // of the pixel blocks, each with work of every phase
  int phases = 1;                       // of a work item: two are those of even and of odd columns of the target
  int block_pixels, block_columns;
  int64_t depth_blocks, parts, part_pixels;  // weight gradient
  ConvForm form;
  ConvOperands operands;
};

}  // namespace cvk
