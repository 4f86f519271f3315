// The frame of a pass over boxes in the RoI family on CUDA: a block is one box, up to kRoiBlockChannels channels and some of the
// bins. Lanes run along channels, kGroup of which are one load; over planes that were not turned they run along bins.
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "common/dtype.h"
#include "common/launch.cuh"
#include "common/roi_geometry.h"
#include "common/roi_tuning.h"
#include "common/transpose.cuh"
#include "common/vec.cuh"

namespace cvk {

// How boxes are dealt to blocks.
struct RoiBlocks {
  int bins_per_block;
  int64_t channel_blocks, bin_blocks;

  CVK_HD int64_t per_box() const { return channel_blocks * bin_blocks; }
};

template <class T>
RoiBlocks roi_blocks(const RoiShape& shape) {
  RoiBlocks blocks;
  blocks.channel_blocks = ceil_div<int64_t>(shape.channels, kRoiBlockChannels);
  blocks.bins_per_block = shape.boxes * blocks.channel_blocks < kRoiFewBlocks ? kRoiFewBins : kRoiBlockBins<T>;
  blocks.bin_blocks = ceil_div<int64_t>(shape.bins(), blocks.bins_per_block);
  return blocks;
}

// What block `index` works on.
struct RoiBlock {
  int64_t k, first_channel, first_bin;
  int channels, bins;
};

CVK_DEVICE RoiBlock roi_block(const RoiShape& shape, const RoiBlocks& blocks, int64_t index) {
  RoiBlock block;
  block.k = index / (blocks.channel_blocks * blocks.bin_blocks);
  block.first_channel = index / blocks.bin_blocks % blocks.channel_blocks * kRoiBlockChannels;
  block.first_bin = index % blocks.bin_blocks * blocks.bins_per_block;
  block.channels = static_cast<int>(min_of<int64_t>(kRoiBlockChannels, shape.channels - block.first_channel));
  block.bins = static_cast<int>(min_of<int64_t>(blocks.bins_per_block, shape.bins() - block.first_bin));
  return block;
}

// The axes of the box that a block works on, in shared memory: two threads compute them, so that no other thread spends
// registers on divisions.
template <class Axis>
struct SharedAxes {
  Axis y, x;
};

// Threads 0 and 32 write; the caller synchronises before and after. roi_make_axis is chosen by the kind of axis.
template <class Axis, class A>
CVK_DEVICE void compute_axes(const RoiShape& shape, const A* box, SharedAxes<Axis>& axes) {
  if (threadIdx.x != 0 && threadIdx.x != 32) return;
  const bool along_y = threadIdx.x == 0;
  Axis axis;
  roi_make_axis(shape, box, along_y, axis);
  if (along_y) {
    axes.y = axis;
  } else {
    axes.x = axis;
  }
}

// Where channel groups of pixel (y, x) of the block's image lie.
template <class T>
struct Pixels {
  const T* image;        // channel 0 of the group at pixel (0, 0)
  int64_t pixel_stride;  // 1 in a plane, C channels-last
  int width;

  CVK_DEVICE const T* at(int y, int x) const { return image + (static_cast<int64_t>(y) * width + x) * pixel_stride; }
};

// The pixels of channel group `channel`, ... of an image.
template <bool kPlanar, class T>
CVK_DEVICE Pixels<T> roi_pixels(const RoiShape& shape,
                                const T* input,  // [N, C, H, W] if kPlanar, else [N, H, W, C]
                                int64_t image, int64_t channel) {
  const int64_t at = image * shape.channels * shape.pixels();
  return kPlanar ? Pixels<T>{input + at + channel * shape.pixels(), 1, shape.width}
                 : Pixels<T>{input + at + channel, shape.channels, shape.width};
}

// Adds the value of one sample to `sum`.
template <int count, class T>
CVK_DEVICE void bilinear_group(const Pixels<T>& pixels, const BilinearAxis<Acc<T>>& y, const BilinearAxis<Acc<T>>& x,
                               Acc<T> (&sum)[count]) {
  using A = Acc<T>;
  A corner[4][count];
  load_group(pixels.at(y.low, x.low), corner[0]);
  load_group(pixels.at(y.low, x.high), corner[1]);
  load_group(pixels.at(y.high, x.low), corner[2]);
  load_group(pixels.at(y.high, x.high), corner[3]);
  const A weight[4] = {y.low_weight * x.low_weight, y.low_weight * x.high_weight, y.high_weight * x.low_weight,
                       y.high_weight * x.high_weight};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < count; ++i) sum[i] = mul_add(weight[k], corner[k][i], sum[i]);
  }
}

// f(group, local_bin) for the block's groups of kGroup channels and its bins, dealt to the threads.
template <int kGroup, bool kPlanarInput, class F>
CVK_DEVICE void for_each_group(const RoiBlock& block, F&& f) {
  const int groups = ceil_div(block.channels, kGroup);
  for (int i = static_cast<int>(threadIdx.x); i < groups * block.bins; i += kRoiBlockThreads) {
    f(kPlanarInput ? i / block.bins : i % groups, kPlanarInput ? i % block.bins : i / groups);
  }
}

// f(offset, local_bin, c) for the block's part of planar results [K, C, PH * PW], neighbouring threads at neighbouring bins.
template <class F>
CVK_DEVICE void for_each_planar(const RoiShape& shape, const RoiBlock& block, F&& f) {
  for (int i = static_cast<int>(threadIdx.x); i < block.channels * block.bins; i += kRoiBlockThreads) {
    const int c = i / block.bins, local_bin = i % block.bins;
    f((block.k * shape.channels + block.first_channel + c) * shape.bins() + block.first_bin + local_bin, local_bin, c);
  }
}

// ---- on the host: planes are turned to channels-last first where that pays

inline bool roi_copies_input(const RoiShape& shape) {
  return !shape.channels_last && shape.boxes * shape.bins() * kRoiCopyGain >= shape.batch * shape.pixels();
}

// Bytes of the copy, or 0 where there is none.
template <class T>
int64_t roi_copy_bytes(const RoiShape& shape) {
  if (!roi_copies_input(shape)) return 0;
  return shape.batch * shape.channels * shape.pixels() * static_cast<int64_t>(sizeof(T));
}

// Copies the input to `scratch` where that pays, and lets `input` point there.
template <class T>
cudaError_t roi_copy_input(const RoiShape& shape, void* scratch, const T*& input, CudaStream stream) {
  if (roi_copy_bytes<T>(shape) == 0) return cudaSuccess;
  T* const copy = static_cast<T*>(scratch);
  const cudaError_t status = planes_to_channels_last(input, copy, shape.batch, shape.channels, shape.pixels(), stream);
  input = copy;
  return status;
}

// launch_as(count<kGroup>, flag<kPlanarInput>, flag<kPlanarOutput>) for maps that are channels-last or planes, the planes turned
// (`copied`) or not. `wide`: groups of 16 bytes may be used where pixels lie channels-last.
template <class T, class Launch>
cudaError_t roi_with_layout(bool channels_last, bool copied, bool wide, Launch&& launch_as) {
  using Wide = std::integral_constant<int, kWide<T>>;
  using One = std::integral_constant<int, 1>;
  if (channels_last) {
    return wide ? launch_as(Wide{}, std::false_type{}, std::false_type{})
                : launch_as(One{}, std::false_type{}, std::false_type{});
  }
  if (copied) {
    return wide ? launch_as(Wide{}, std::false_type{}, std::true_type{})
                : launch_as(One{}, std::false_type{}, std::true_type{});
  }
  return launch_as(One{}, std::true_type{}, std::true_type{});
}

// The same as the input lies after roi_copy_input.
template <class T, class Launch>
cudaError_t roi_with_layout(const RoiShape& shape, bool wide, Launch&& launch_as) {
  return roi_with_layout<T>(shape.channels_last, roi_copies_input(shape), wide, launch_as);
}

}  // namespace cvk
