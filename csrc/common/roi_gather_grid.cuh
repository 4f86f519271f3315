// A gathering backward pass (common/roi_gather.cuh) over the grids of boxes: bins whose weights are separable, so that a tile's
// rows and columns each weigh a bin once. Of the mean by roi_pixel_weights of the kind of axis; of the maximum by the bilinear
// samples of a RoiAxis.
//
// Each warp weighs the bins of one box, for the whole tile; past a barrier all warps go through these boxes, each for its row of
// the tile. It looks only at bins that have weight in its row, one bit for each in a mask, and of these at the columns of bins that
// the tile meets. Gradients that lie channels-last are read where they lie, one line of cache for a bin; those in planes are turned
// in shared memory first.
//
// What was tried. Instructions are warp instructions for one box and block, read off the SASS for sm_90a of RoI Align's mean in
// float32 at sampling_ratio 2, for a box whose 7 x 7 bins are 1.5 pixels wide; times are of 512 such boxes on two maps of
// 256 x 50 x 84.
//   Two threads make the axes, 64 weigh rows, 64 weigh columns, all stage 64 bins, each behind a barrier (seven a box), and every
//   row goes through 7 x 7 bins with a comparison for each weight: some 7,000 instructions, 590 us on an H100.
//   A warp weighs the bins of its own box, each sample once for all pixels; two barriers for eight boxes; masks in place of
//   comparisons; gradients read in place: some 1,800, of which the weights are 330 (channels-last; planes 2,500).
//   In that version, offsets in int64_t: 62 in place of 37 for four gradients; all eight columns of bins at once: 131.
//   It took 89 us (planes 124 us) on the H100.
//   Each warp for itself, with a box of its own and the sums of the tile in 128 registers: some 1,400, but 138 us, and 160.
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

// Up to kRoiStagedBins x kRoiStagedBins bins of one box as a tile sees them.
template <class A>
struct alignas(16) GridWeights {
  A y[kRoiStagedBins][kRoiTileHeight];  // of each bin along y in each row of the tile
  A x[kRoiStagedBins][kRoiTileWidth];
  unsigned in_row[kRoiTileHeight];  // bins along y that have weight in a row of the tile, one bit for each
  unsigned in_rows;                 // in any row; 0 if no bin has weight in a column
  PixelRange columns;               // bins along x, from the first that has weight in a column to the last
  int64_t grad;                     // where the gradient of the first bin in the tile's first channel lies
};

template <class Axis, class A, bool kPlanar, bool kMaximum>
struct GridShared {
  static constexpr int kStaged = kPlanar ? kRoiStagedBins * kRoiStagedBins : 1;
  GridWeights<A> weights[kRoiTileHeight];  // of one box for each warp
  A grad[kStaged][kRoiTileChannels + 1];
  int argmax[kMaximum ? kStaged : 1][kRoiTileChannels + 1];
  SharedAxes<Axis> axes[kMaximum ? kRoiTileHeight : 1];
  RoiStretch<kRoiTileThreads, 1> stretch;
};

// Weighs the bins from (bin_y, bin_x) on of box k. One warp: a lane has one bin along one axis and half of the tile's pixels.
template <class Axis, class A>
CVK_DEVICE void weigh_bins(const RoiShape& shape, const RoiTile& tile, const A* boxes, int64_t k, int bin_y, int bin_x,
                           GridWeights<A>& weights, SharedAxes<Axis>* axes) {
  constexpr int kBins = kRoiStagedBins, kPixels = 4;
  static_assert(kBins == 8 && kRoiTileHeight == 2 * kPixels && kRoiTileWidth == 2 * kPixels, "32 lanes");
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int local = lane % kBins, half = lane / (2 * kBins);
  const bool along_y = lane / kBins % 2 == 0;
  const int bin = (along_y ? bin_y : bin_x) + local;
  Axis axis;
  roi_make_axis(shape, boxes + k * 5, along_y, axis);
  A weight[kPixels] = {};
  if (bin < (along_y ? shape.pooled_height : shape.pooled_width)) {
    roi_pixel_weights(axis, bin, (along_y ? tile.y : tile.x) + half * kPixels, weight);
  }
  A* const to = (along_y ? weights.y[local] : weights.x[local]) + half * kPixels;
  unsigned any = 0, own = 0;  // own: of pixel lane % kPixels
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    to[p] = weight[p];
    const unsigned found = __ballot_sync(0xffffffffu, weight[p] != A(0));
    any |= found;
    if (lane % kPixels == p) own = found;
  }
  constexpr unsigned kMask = (1u << kBins) - 1u;
  any |= any >> (2 * kBins);  // both halves
  const unsigned y_bins = any & kMask, x_bins = any >> kBins & kMask;
  if (lane < kRoiTileHeight) weights.in_row[lane] = own >> (lane / kPixels * 2 * kBins) & kMask;
  if (lane == 0) {
    const int64_t bin = static_cast<int64_t>(bin_y) * shape.pooled_width + bin_x;
    weights.grad = shape.channels_last ? (k * shape.bins() + bin) * shape.channels + tile.first_channel
                                       : (k * shape.channels + tile.first_channel) * shape.bins() + bin;
    weights.in_rows = x_bins != 0 ? y_bins : 0u;
    weights.columns = {__ffs(static_cast<int>(x_bins)) - 1, 32 - __clz(static_cast<int>(x_bins))};
  }
  if (axes != nullptr && local == 0 && half == 0) {
    if (along_y) {
      axes->y = axis;
    } else {
      axes->x = axis;
    }
  }
}

// Adds to this thread's row and channel what the weighed bins give; the gradient of bin (i, j) lies at i * y_stride + j * x_stride.
template <class G, class A>
CVK_DEVICE void add_means(const GridWeights<A>& weights, const G* grad, int y_stride, int x_stride,
                          A (&sum)[kRoiTileWidth]) {
  constexpr int kTogether = 4;  // bins along x whose gradients are on their way together
  const int row = static_cast<int>(threadIdx.x) / kRoiTileChannels;
  const unsigned in_row = weights.in_row[row];
  if (in_row == 0) return;
  for (int j = weights.columns.first; j < weights.columns.last; j += kTogether) {
    const int count = weights.columns.last - j;
    A along_y[kTogether] = {};
    for (unsigned left = in_row; left != 0; left &= left - 1) {
      const int i = __ffs(static_cast<int>(left)) - 1;
      const A weight = weights.y[i][row];
      const G* from = grad + (i * y_stride + j * x_stride);
      A value[kTogether];
#pragma unroll
      for (int b = 0; b < kTogether; ++b) {
        value[b] = b < count ? to_acc(*from) : A(0);
        from += x_stride;
      }
#pragma unroll
      for (int b = 0; b < kTogether; ++b) along_y[b] = mul_add(weight, value[b], along_y[b]);
    }
    // Edge: a weight of zero passes nothing on, not even an infinite gradient. Perf: that is rare, so one look at all of them.
    A zero = A(0);
#pragma unroll
    for (int b = 0; b < kTogether; ++b) zero = mul_add(along_y[b], A(0), zero);
    const bool finite = zero == A(0);
#pragma unroll
    for (int b = 0; b < kTogether; ++b) {
      if (b >= count) continue;
      A weight[kRoiTileWidth];
#pragma unroll
      for (int p = 0; p < kRoiTileWidth; ++p) weight[p] = weights.x[j + b][p];
      if (finite) {
#pragma unroll
        for (int p = 0; p < kRoiTileWidth; ++p) sum[p] = mul_add(weight[p], along_y[b], sum[p]);
      } else {
#pragma unroll
        for (int p = 0; p < kRoiTileWidth; ++p) {
          if (weight[p] != A(0)) sum[p] = mul_add(weight[p], along_y[b], sum[p]);
        }
      }
    }
  }
}

// The same of maxima: argmax lies as grad does.
template <class G, class A>
CVK_DEVICE void add_maxima(const RoiShape& shape, const RoiTile& tile, const GridWeights<A>& weights,
                           const SharedAxes<RoiAxis<A>>& axes, int bin_y, int bin_x, const G* grad, const int* argmax,
                           int y_stride, int x_stride, A (&sum)[kRoiTileWidth]) {
  const int warp = static_cast<int>(threadIdx.x) / kRoiTileChannels, row = tile.y + warp;
  for (unsigned y_left = weights.in_row[warp]; y_left != 0; y_left &= y_left - 1) {
    const int i = __ffs(static_cast<int>(y_left)) - 1;
    for (int j = weights.columns.first; j < weights.columns.last; ++j) {
      const int at = i * y_stride + j * x_stride;
      const int index = argmax[at];
      if (index < 0 || index / axes.x.samples >= axes.y.samples) continue;
      const BilinearAxis<A> y =
          bilinear_axis(roi_sample_coordinate(axes.y, bin_y + i, index / axes.x.samples), shape.height);
      const BilinearAxis<A> x =
          bilinear_axis(roi_sample_coordinate(axes.x, bin_x + j, index % axes.x.samples), shape.width);
      if (!y.inside || !x.inside) continue;
      const A y_weight = (y.low == row ? y.low_weight : A(0)) + (y.high == row ? y.high_weight : A(0));
      if (y_weight == A(0)) continue;
      const A weighted = to_acc(grad[at]) * y_weight;
#pragma unroll
      for (int column = 0; column < kRoiTileWidth; ++column) {
        const int pixel = tile.x + column;
        const A x_weight = (x.low == pixel ? x.low_weight : A(0)) + (x.high == pixel ? x.high_weight : A(0));
        if (x_weight != A(0)) sum[column] = mul_add(x_weight, weighted, sum[column]);
      }
    }
  }
}

// Adds to `sum`, this thread's row and channel of the tile, what the boxes give for which reaches(k), in a fixed order. The whole
// block calls it.
template <class T, class Axis, class A, bool kPlanar, bool kMaximum, class Reaches>
CVK_DEVICE void gather_grid(const RoiShape& shape, const RoiTile& tile,
                            const A* boxes,               // [K, 5]
                            const T* grad_output,         // [K, C, PH, PW] if kPlanar, else [K, PH, PW, C]
                            const int32_t* saved_argmax,  // the same, if kMaximum
                            GridShared<Axis, A, kPlanar, kMaximum>& shared, Reaches&& reaches,
                            A (&sum)[kRoiTileWidth]) {
  constexpr int kRows = kRoiTileHeight, kLanes = kRoiTileChannels, kBins = kRoiStagedBins;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const int channel = min_of(lane, tile.channels - 1);  // lanes beyond the last one do as it does, and store nothing
  for (int64_t begin = 0; begin < shape.boxes; begin += kRoiTileThreads) {
    const int total = collect_boxes(begin, shape.boxes, shared.stretch, reaches);
    for (int bin_y = 0; bin_y < shape.pooled_height; bin_y += kBins) {
      for (int bin_x = 0; bin_x < shape.pooled_width; bin_x += kBins) {
        for (int first = 0; first < total; first += kRows) {
          const int count = min_of(kRows, total - first);
          __syncthreads();  // the boxes before are done with
          if (warp < count) {
            weigh_bins(shape, tile, boxes, shared.stretch.boxes[first + warp], bin_y, bin_x, shared.weights[warp],
                       kMaximum ? &shared.axes[warp] : nullptr);
          }
          __syncthreads();
          for (int b = 0; b < count; ++b) {
            const GridWeights<A>& weights = shared.weights[b];
            if (weights.in_rows == 0) continue;  // the same for all threads
            if constexpr (kPlanar) {
              // Turns the gradients: lanes run along bins, and a warp has every kRows-th channel.
              __syncthreads();  // those before have been read
#pragma unroll 1
              for (int local = lane; local < kBins * kBins; local += 32) {
                const int i = local / kBins, j = local % kBins;
                if ((weights.in_rows >> i & 1u) == 0 || j < weights.columns.first || j >= weights.columns.last)
                  continue;
                const int64_t first_at = weights.grad + i * shape.pooled_width + j + warp * shape.bins();
                const T* from = grad_output + first_at;
                const int32_t* from_index = kMaximum ? saved_argmax + first_at : nullptr;
                T value[kLanes / kRows] = {};
                int index[kLanes / kRows] = {};
#pragma unroll
                for (int q = 0; q < kLanes / kRows; ++q) {
                  if (warp + q * kRows < tile.channels) {
                    value[q] = *from;
                    if (kMaximum) index[q] = *from_index;
                  }
                  from += kRows * shape.bins();
                  if (kMaximum) from_index += kRows * shape.bins();
                }
#pragma unroll
                for (int q = 0; q < kLanes / kRows; ++q) {
                  shared.grad[local][warp + q * kRows] = to_acc(value[q]);
                  if (kMaximum) shared.argmax[local][warp + q * kRows] = index[q];
                }
              }
              __syncthreads();
              constexpr int kStride = kLanes + 1;
              if constexpr (kMaximum) {
                add_maxima(shape, tile, weights, shared.axes[b], bin_y, bin_x, &shared.grad[0][channel],
                           &shared.argmax[0][channel], kBins * kStride, kStride, sum);
              } else {
                add_means(weights, &shared.grad[0][channel], kBins * kStride, kStride, sum);
              }
            } else {
              const int64_t at = weights.grad + channel;
              const int x_stride = static_cast<int>(shape.channels), y_stride = shape.pooled_width * x_stride;
              if constexpr (kMaximum) {
                add_maxima(shape, tile, weights, shared.axes[b], bin_y, bin_x, grad_output + at, saved_argmax + at,
                           y_stride, x_stride, sum);
              } else {
                add_means(weights, grad_output + at, y_stride, x_stride, sum);
              }
            }
          }
        }
      }
    }
  }
}

// Whether offsets within the bins of a box that a block looks at together fit into int.
inline cudaError_t grid_bins_fit(const RoiShape& shape) {
  const bool fit = !shape.channels_last || shape.channels * shape.pooled_width <= 0x7fffffffLL / kRoiStagedBins;
  return fit ? cudaSuccess : cudaErrorInvalidConfiguration;
}

}  // namespace cvk
