// A gathering backward pass (common/roi_gather.cuh) over the grids of boxes: bins whose weights are separable, so that a tile's
// rows and columns each weigh a bin once. Of the mean by roi_pixel_weight of the kind of axis; of the maximum by the bilinear
// samples of a RoiAxis.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.cuh"
#include "common/roi_frame.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_geometry.h"
#include "common/roi_tuning.h"

namespace cvk {

template <class Axis, class A, bool kMaximum>
struct GridShared {
  A grad[kRoiStagedBins * kRoiStagedBins][kRoiTileChannels + 1];
  int argmax[kMaximum ? kRoiStagedBins * kRoiStagedBins : 1][kRoiTileChannels + 1];
  A y_weight[kRoiTileHeight][kRoiStagedBins];
  A x_weight[kRoiStagedBins][kRoiTileWidth];
  SharedAxes<Axis> axes;
  RoiStretch stretch;
};

// Adds to `sum`, this thread's row and channel of the tile, what the boxes give for which reaches(k), in their order. The whole
// block calls it.
template <class T, class Axis, class A, bool kMaximum, class Reaches>
CVK_DEVICE void gather_grid(const RoiShape& shape, const RoiTile& tile,
                            const A* boxes,               // [K, 5]
                            const T* grad_output,         // [K, C, PH, PW] or channels-last
                            const int32_t* saved_argmax,  // the same, if kMaximum
                            GridShared<Axis, A, kMaximum>& shared, Reaches&& reaches, A (&sum)[kRoiTileWidth]) {
  constexpr int kRows = kRoiTileHeight, kColumns = kRoiTileWidth, kLanes = kRoiTileChannels;
  constexpr int kBins = kRoiStagedBins;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  for (int64_t begin = 0; begin < shape.boxes; begin += kRoiTileThreads) {
    const int total = collect_boxes(begin, shape.boxes, shared.stretch, reaches);
    for (int b = 0; b < total; ++b) {
      const int64_t k = shared.stretch.boxes[b];
      __syncthreads();  // the axes of the box before have been read
      compute_axes(shape, boxes + k * 5, shared.axes);
      __syncthreads();
      const SharedAxes<Axis>& axes = shared.axes;
      for (int bin_y = 0; bin_y < shape.pooled_height; bin_y += kBins) {
        for (int bin_x = 0; bin_x < shape.pooled_width; bin_x += kBins) {
          // Weights of the tile's rows and columns in these bins: one thread each.
          bool matters = false;
          if (threadIdx.x < kRows * kBins) {
            const int row = static_cast<int>(threadIdx.x) / kBins, bin = static_cast<int>(threadIdx.x) % kBins;
            A weight = A(0);
            if (tile.y + row < shape.height && bin_y + bin < shape.pooled_height) {
              weight = roi_pixel_weight(axes.y, bin_y + bin, tile.y + row);
            }
            shared.y_weight[row][bin] = weight;
            matters = weight != A(0);
          }
          const bool rows_matter = __syncthreads_or(matters) != 0;
          if (!rows_matter) continue;
          matters = false;
          if (threadIdx.x < kColumns * kBins) {
            const int bin = static_cast<int>(threadIdx.x) / kColumns, column = static_cast<int>(threadIdx.x) % kColumns;
            A weight = A(0);
            if (tile.x + column < shape.width && bin_x + bin < shape.pooled_width) {
              weight = roi_pixel_weight(axes.x, bin_x + bin, tile.x + column);
            }
            shared.x_weight[bin][column] = weight;
            matters = weight != A(0);
          }
          const bool columns_matter = __syncthreads_or(matters) != 0;
          if (!columns_matter) continue;

          // Stage the bins' gradients.
          for (int i = static_cast<int>(threadIdx.x); i < kBins * kBins * kLanes; i += kRoiTileThreads) {
            const int c = shape.channels_last ? i % kLanes : i / (kBins * kBins);
            const int local = shape.channels_last ? i / kLanes : i % (kBins * kBins);
            const int y = bin_y + local / kBins, x = bin_x + local % kBins;
            A value = A(0);
            int index = -1;
            if (c < tile.channels && y < shape.pooled_height && x < shape.pooled_width) {
              const int64_t bin = static_cast<int64_t>(y) * shape.pooled_width + x;
              const int64_t at = shape.channels_last
                                     ? (k * shape.bins() + bin) * shape.channels + tile.first_channel + c
                                     : (k * shape.channels + tile.first_channel + c) * shape.bins() + bin;
              value = to_acc(grad_output[at]);
              if (kMaximum) index = saved_argmax[at];
            }
            shared.grad[local][c] = value;
            if (kMaximum) shared.argmax[local][c] = index;
          }
          __syncthreads();

          const int y_bins = min_of(kBins, shape.pooled_height - bin_y);
          const int x_bins = min_of(kBins, shape.pooled_width - bin_x);
          if constexpr (kMaximum) {
            const int row = tile.y + warp;
            for (int i = 0; i < y_bins; ++i) {
              if (shared.y_weight[warp][i] == A(0)) continue;
              for (int j = 0; j < x_bins; ++j) {
                const int index = shared.argmax[i * kBins + j][lane];
                if (index < 0 || index / axes.x.samples >= axes.y.samples) continue;
                const BilinearAxis<A> y =
                    bilinear_axis(roi_sample_coordinate(axes.y, bin_y + i, index / axes.x.samples), shape.height);
                const BilinearAxis<A> x =
                    bilinear_axis(roi_sample_coordinate(axes.x, bin_x + j, index % axes.x.samples), shape.width);
                if (!y.inside || !x.inside) continue;
                const A y_weight = (y.low == row ? y.low_weight : A(0)) + (y.high == row ? y.high_weight : A(0));
                if (y_weight == A(0)) continue;
                const A grad = shared.grad[i * kBins + j][lane] * y_weight;
#pragma unroll
                for (int column = 0; column < kColumns; ++column) {
                  const int pixel = tile.x + column;
                  const A x_weight = (x.low == pixel ? x.low_weight : A(0)) + (x.high == pixel ? x.high_weight : A(0));
                  if (x_weight != A(0)) sum[column] = mul_add(x_weight, grad, sum[column]);
                }
              }
            }
          } else {
            for (int j = 0; j < x_bins; ++j) {
              A along_y = A(0);
              // Edge: a weight of zero passes nothing on, not even an infinite gradient.
              for (int i = 0; i < y_bins; ++i) {
                const A weight = shared.y_weight[warp][i];
                if (weight != A(0)) along_y = mul_add(weight, shared.grad[i * kBins + j][lane], along_y);
              }
#pragma unroll
              for (int column = 0; column < kColumns; ++column) {
                const A weight = shared.x_weight[j][column];
                if (weight != A(0)) sum[column] = mul_add(weight, along_y, sum[column]);
              }
            }
          }
          __syncthreads();
        }
      }
    }
  }
}

}  // namespace cvk
