// A gathering backward pass (common/roi_gather.cuh) over the grids of boxes: bins whose weights are separable, so that a tile's
// rows and columns each weigh a bin once. Of the mean by roi_pixel_weights of the kind of axis; of the maximum by the bilinear
// samples of a RoiAxis.
//
// Each warp goes through boxes of its own. Its lanes first weigh the bins, for each pixel along each axis; then they are channels,
// with the sums of the whole tile in registers (of the maximum: in shared memory, for an index leads anywhere). A row of bins is
// brought to the tile's columns, and these to the rows of the tile in which the bins have weight. Gradients that lie channels-last
// are read where they lie, one line of cache for a bin; those in planes are turned in shared memory first, a row of bins at a time.
//
// What was tried. Instructions are warp instructions for one box, tile and 32 channels, read off the SASS for sm_90a of RoI Align's
// mean in float32 at sampling_ratio 2, for a box whose 7 x 7 bins are 1.5 pixels wide; times are of 512 such boxes on two maps of
// 256 x 50 x 84.
//   A block meets a box together: two threads make the axes, 64 weigh rows, 64 weigh columns, all stage 64 bins, each behind a
//   barrier (seven a box), and every row goes through 7 x 7 bins with a comparison for each weight: some 7,000 instructions, 590 us
//   on an H100.
//   Each warp weighs a box, then all warps go through these eight boxes, each warp for its row of the tile, columns of bins first:
//   some 1,800 (planes 2,500), 64 registers.
//   Each warp for itself, as above: some 1,400 (planes 1,850), of which the axes are 110 and the weights 330; no barriers but for
//   finding boxes; 128 registers.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.cuh"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_geometry.h"
#include "common/roi_taps.h"
#include "common/roi_tuning.h"
#include "common/vec.cuh"

namespace cvk {

// What each warp keeps in shared memory.
template <class Axis, class A, bool kPlanar, bool kMaximum>
struct GridWarp {
  RoiTileSums<A> sums;  // of the maximum; of the mean in the end
  // Up to kRoiStagedBins x kRoiStagedBins bins of the box at hand: their weights in each row and column of the tile.
  alignas(16) A y[kRoiStagedBins][kRoiTileHeight];
  alignas(16) A x[kRoiStagedBins][kRoiTileWidth];
  unsigned rows[kRoiStagedBins];  // of a bin along y: the rows of the tile in which it has weight, one bit for each
  SharedAxes<Axis> axes;
  RoiTileRow<A> grad;  // of a row of bins, where they lie in planes; in the end a row of pixels
  int argmax[kPlanar && kMaximum ? kRoiStagedBins : 1][kRoiTileChannels + 1];
};

template <class Axis, class A, bool kPlanar, bool kMaximum>
struct GridShared {
  GridWarp<Axis, A, kPlanar, kMaximum> warps[kRoiGatherWarps<A>];
  RoiStretch<A> stretch;
};

// Weighs the bins from (bin_y, bin_x) on, where a lane has one bin along one axis and half of the tile's pixels. Returns the bins
// that have weight in the tile, one bit for each: along y, and above these along x.
template <class Axis, class A, bool kPlanar, bool kMaximum>
CVK_DEVICE unsigned weigh_bins(const RoiShape& shape, const RoiTile& tile, bool along_y, int bin_y, int bin_x,
                               GridWarp<Axis, A, kPlanar, kMaximum>& own) {
  constexpr int kBins = kRoiStagedBins, kPixels = kRoiTileWidth / 2;
  static_assert(kBins == 8 && kRoiTileHeight == 2 * kPixels && kRoiTileWidth == 2 * kPixels && kPixels == 4,
                "32 lanes");
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int local = lane % kBins, first_pixel = lane / (2 * kBins) * kPixels;
  const int bin = (along_y ? bin_y : bin_x) + local;
  A weight[kPixels] = {};
  if (bin < (along_y ? shape.pooled_height : shape.pooled_width)) {
    roi_pixel_weights(along_y ? own.axes.y : own.axes.x, bin, (along_y ? tile.y : tile.x) + first_pixel, weight);
  }
  A* const to = (along_y ? own.y[local] : own.x[local]) + first_pixel;
  unsigned pixels = 0;
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    to[p] = weight[p];
    if (weight[p] != A(0)) pixels |= 1u << (first_pixel + p);
  }
  pixels |= __shfl_xor_sync(0xffffffffu, pixels, 2 * kBins);
  if (lane < kBins) own.rows[local] = pixels;
  return __ballot_sync(0xffffffffu, pixels != 0) & ((1u << 2 * kBins) - 1u);
}

// Adds to this lane's sums of the tile what bins [first, last) of row bin_y give. The gradient of bin j is grad[j * stride].
template <class G, class A, class Warp>
CVK_DEVICE void add_means(const Warp& own, int bin_y, int first, int last, const G* grad, int stride,
                          A (&sum)[kRoiTileHeight][kRoiTileWidth]) {
  constexpr int kTogether = kRoiGatherTogether;
  A columns[kRoiTileWidth] = {};
  const G* from = grad + static_cast<int64_t>(first) * stride;
  for (int j = first; j < last; j += kTogether) {
    G value[kTogether];
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      if (j + n < last) value[n] = *from;
      from += stride;
    }
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      if (j + n >= last) continue;
      const A grad_here = to_acc(value[n]);
#pragma unroll
      for (int p = 0; p < kRoiTileWidth; ++p) columns[p] = mul_add(own.x[j + n][p], grad_here, columns[p]);
    }
  }
  // Edge: a weight of zero passes nothing on, not even an infinite gradient. Perf: that is rare, so one look at all columns, and if
  // any is not finite once more from the start.
  A zero = A(0);
#pragma unroll
  for (int p = 0; p < kRoiTileWidth; ++p) zero = mul_add(columns[p], A(0), zero);
  if (zero != A(0)) {
#pragma unroll
    for (int p = 0; p < kRoiTileWidth; ++p) columns[p] = A(0);
    for (int j = first; j < last; ++j) {
      const A value = to_acc(grad[static_cast<int64_t>(j) * stride]);
#pragma unroll
      for (int p = 0; p < kRoiTileWidth; ++p) {
        if (own.x[j][p] != A(0)) columns[p] = mul_add(own.x[j][p], value, columns[p]);
      }
    }
  }
  const unsigned rows = own.rows[bin_y];
#pragma unroll
  for (int row = 0; row < kRoiTileHeight; ++row) {
    if ((rows >> row & 1u) == 0) continue;
    const A weight = own.y[bin_y][row];
#pragma unroll
    for (int p = 0; p < kRoiTileWidth; ++p) sum[row][p] = mul_add(weight, columns[p], sum[row][p]);
  }
}

// Adds what the maximum of one bin gives, which is sample `index`, to this lane's sums of the tile. A foreign index adds nothing.
template <class A>
CVK_DEVICE void add_maximum(const SharedAxes<RoiAxis<A>>& axes, const RoiTile& tile, int bin_y, int bin_x, int index,
                            A grad, RoiTileSums<A>& sums) {
  if (index < 0 || index / axes.x.samples >= axes.y.samples) return;
  const BilinearAxis<A> y = bilinear_axis(roi_sample_coordinate(axes.y, bin_y, index / axes.x.samples), axes.y.extent);
  const BilinearAxis<A> x = bilinear_axis(roi_sample_coordinate(axes.x, bin_x, index % axes.x.samples), axes.x.extent);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = (i < 2 ? y.low : y.high) - tile.y, column = (i % 2 == 0 ? x.low : x.high) - tile.x;
    const A y_weight = i < 2 ? y.low_weight : y.high_weight, x_weight = i % 2 == 0 ? x.low_weight : x.high_weight;
    // Edge: a weight of zero passes nothing on. Outside both are zero.
    if (y_weight == A(0) || x_weight == A(0)) continue;
    if (row < 0 || row >= kRoiTileHeight || column < 0 || column >= kRoiTileWidth) continue;
    A& to = sums.values[row * kRoiTileWidth + column][static_cast<int>(threadIdx.x) % 32];
    to = mul_add(x_weight, grad * y_weight, to);
  }
}

// Stores the tile's gradient: what the boxes give for which reaches(k). The whole block, of kRoiGatherThreads, calls it.
template <class Axis, bool kPlanar, bool kMaximum, class T, class Reaches>
CVK_DEVICE void gather_grid(const RoiShape& shape, const RoiTile& tile,
                            const Acc<T>* boxes,          // [K, 5]
                            const T* grad_output,         // [K, C, PH, PW] if kPlanar, else [K, PH, PW, C]
                            const int32_t* saved_argmax,  // the same, if kMaximum
                            GridShared<Axis, Acc<T>, kPlanar, kMaximum>& shared, Reaches&& reaches,
                            T* grad_input) {  // [N, C, H, W] or channels-last
  using A = Acc<T>;
  constexpr int kBins = kRoiStagedBins;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int channel = min_of(lane, tile.channels - 1);  // lanes beyond the last one do as it does, and store nothing
  const bool along_y = lane % (2 * kBins) < kBins;
  GridWarp<Axis, A, kPlanar, kMaximum>& own = shared.warps[warp];
  A sum[kRoiTileHeight][kRoiTileWidth] = {};
  if (kMaximum) clear_sums(own.sums);
  for (int64_t begin = 0; begin < shape.boxes; begin += shared.stretch.kSize) {
    const int total = collect_boxes(begin, shape.boxes, shared.stretch, reaches);
    for (int b = warp; b < total; b += kRoiGatherWarps<A>) {
      const int64_t k = shared.stretch.boxes[b];
      __syncwarp();  // the box before is done with
      if (lane == 0 || lane == kBins) {
        Axis axis;
        roi_make_axis(shape, boxes + k * 5, along_y, axis);
        (along_y ? own.axes.y : own.axes.x) = axis;
      }
      for (int bin_y = 0; bin_y < shape.pooled_height; bin_y += kBins) {
        for (int bin_x = 0; bin_x < shape.pooled_width; bin_x += kBins) {
          __syncwarp();  // the bins before are done with
          const unsigned found = weigh_bins(shape, tile, along_y, bin_y, bin_x, own);
          __syncwarp();
          const unsigned x_bins = found >> kBins;
          if (x_bins == 0) continue;
          const int first = __ffs(static_cast<int>(x_bins)) - 1, last = 32 - __clz(static_cast<int>(x_bins));
          // Gradients, and indices, of the first bin and from one row of bins to the next.
          const int64_t bin = static_cast<int64_t>(bin_y) * shape.pooled_width + bin_x;
          const int64_t origin = kPlanar ? (k * shape.channels + tile.first_channel) * shape.bins() + bin
                                         : (k * shape.bins() + bin) * shape.channels + tile.first_channel + channel;
          const int64_t y_stride = kPlanar ? shape.pooled_width : shape.pooled_width * shape.channels;
          for (unsigned left = found & ((1u << kBins) - 1u); left != 0; left &= left - 1) {
            const int i = __ffs(static_cast<int>(left)) - 1;
            const T* const grad = grad_output + origin + i * y_stride;
            const int32_t* const argmax = kMaximum ? saved_argmax + origin + i * y_stride : nullptr;
            if constexpr (kPlanar) {
              turn_bins<kMaximum>(shape, tile, grad, argmax, first, last, own);
            }
            const int stride = static_cast<int>(shape.channels);
            if constexpr (kMaximum) {
              for (int j = first; j < last; ++j) {
                const int64_t further = static_cast<int64_t>(j) * stride;
                add_maximum(own.axes, tile, bin_y + i, bin_x + j, kPlanar ? own.argmax[j][channel] : argmax[further],
                            kPlanar ? own.grad[j][channel] : to_acc(grad[further]), own.sums);
              }
            } else if constexpr (kPlanar) {
              add_means(own, i, first, last, &own.grad[0][channel], kRoiTileChannels + 1, sum);
            } else {
              add_means(own, i, first, last, grad, stride, sum);
            }
          }
        }
      }
    }
  }
  if (!kMaximum) keep_sums(sum, own.sums);
  store_sums_of_tile(
      shape, tile, [&](int w) -> const RoiTileSums<A>& { return shared.warps[w].sums; },
      [&](int w) -> RoiTileRow<A>& { return shared.warps[w].grad; }, grad_input);
}

}  // namespace cvk
