// A gathering backward pass (common/roi_gather.cuh) over single bins, for RoI operators whose bins are no grid: each bin that
// reaches the tile weighs the tile's pixels, and its gradient is added to them.
//
// Boxes is what the operator knows of its boxes; the block meets them one at a time:
//   box_reaches(k)       whether box k can touch the tile; false for a bad image index. May be generous.
//   load_box(k)          all threads call it, between barriers: puts what they need into shared memory
//   bin_reaches(bin)     whether bin `bin` of the loaded box can touch the tile. May be generous.
//   kSeparable           whether the derivative of a bin with respect to a pixel is a product of one weight along each axis
//   weight_along(bin, along_y, pixel)  that factor; where it is not,
//   weight(bin, y, x)    the derivative itself
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_tuning.h"

namespace cvk {

template <class A>
struct GatherShared {
  A grad[kRoiGatherBins][kRoiTileChannels + 1];
  A weight[kRoiGatherBins][kRoiTileHeight * kRoiTileWidth];  // of each pixel, or of the rows and then the columns
  RoiTileRows<A> rows;
  RoiStretch<> boxes, bins;
};

// The whole block calls it. A thread owns one row of the tile and one channel.
template <class T, class Boxes>
CVK_DEVICE void gather_bins(const RoiShape& shape, const RoiTile& tile, Boxes& boxes, GatherShared<Acc<T>>& shared,
                            const T* grad_output,  // [K, C, PH, PW] or channels-last
                            T* grad_input) {       // [N, C, H, W] or channels-last
  using A = Acc<T>;
  constexpr int kRows = kRoiTileHeight, kColumns = kRoiTileWidth, kPixels = kRows * kColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  A sum[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) sum[i] = A(0);

  for (int64_t begin = 0; begin < shape.boxes; begin += kRoiTileThreads) {
    const int found = collect_boxes(begin, shape.boxes, shared.boxes, [&](int64_t k) { return boxes.box_reaches(k); });
    for (int b = 0; b < found; ++b) {
      const int64_t k = shared.boxes.boxes[b];
      __syncthreads();  // the box before is done with
      boxes.load_box(k);
      __syncthreads();
      for (int64_t first_bin = 0; first_bin < shape.bins(); first_bin += kRoiTileThreads) {
        const int bins =
            collect_boxes(first_bin, shape.bins(), shared.bins, [&](int64_t bin) { return boxes.bin_reaches(bin); });
        for (int first = 0; first < bins; first += kRoiGatherBins) {
          const int staged = min_of(kRoiGatherBins, bins - first);
          for (int i = static_cast<int>(threadIdx.x); i < staged * kRoiTileChannels; i += kRoiTileThreads) {
            const int s = i / kRoiTileChannels, c = i % kRoiTileChannels;
            const int64_t bin = shared.bins.boxes[first + s], channel = tile.first_channel + c;
            const int64_t at = shape.channels_last ? (k * shape.bins() + bin) * shape.channels + channel
                                                   : (k * shape.channels + channel) * shape.bins() + bin;
            shared.grad[s][c] = c < tile.channels ? to_acc(grad_output[at]) : A(0);
          }
          if constexpr (Boxes::kSeparable) {
            for (int i = static_cast<int>(threadIdx.x); i < staged * (kRows + kColumns); i += kRoiTileThreads) {
              const int s = i / (kRows + kColumns), line = i % (kRows + kColumns);
              const bool along_y = line < kRows;
              const int pixel = along_y ? tile.y + line : tile.x + line - kRows;
              shared.weight[s][line] = pixel < (along_y ? shape.height : shape.width)
                                           ? boxes.weight_along(shared.bins.boxes[first + s], along_y, pixel)
                                           : A(0);
            }
          } else {
            for (int i = static_cast<int>(threadIdx.x); i < staged * kPixels; i += kRoiTileThreads) {
              const int pixel = i % kPixels, y = tile.y + pixel / kColumns, x = tile.x + pixel % kColumns;
              shared.weight[i / kPixels][pixel] = y < shape.height && x < shape.width
                                                      ? boxes.weight(shared.bins.boxes[first + i / kPixels], y, x)
                                                      : A(0);
            }
          }
          __syncthreads();
          for (int s = 0; s < staged; ++s) {
            const A grad = shared.grad[s][lane];
#pragma unroll
            for (int column = 0; column < kColumns; ++column) {
              // Edge: a weight of zero passes nothing on, not even an infinite gradient.
              const A weight = Boxes::kSeparable ? shared.weight[s][warp] * shared.weight[s][kRows + column]
                                                 : shared.weight[s][warp * kColumns + column];
              if (weight != A(0)) sum[column] = mul_add(weight, grad, sum[column]);
            }
          }
          __syncthreads();
        }
      }
    }
  }
  store_tile(shape, tile, sum, shared.rows, grad_input);
}

}  // namespace cvk
