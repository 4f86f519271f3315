// The frame of a gathering backward pass of the RoI family on CUDA: a block owns a tile of pixels and channels, finds the boxes that
// reach it, and stores its sums once; lane l of each warp has channel l. No atomics, so bitwise repeatable. Of bins that are grids
// (roi_gather_grid.cuh), each warp has a row of the tile and meets all boxes. Else the warps share out the boxes, without barriers
// but for finding these; each has sums of the whole tile, which are added in the order of warps at the end.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.cuh"
#include "common/roi_geometry.h"
#include "common/roi_indices.h"
#include "common/roi_tuning.h"

namespace cvk {

// The tile of a block.
struct RoiTile {
  int64_t image, first_channel;
  int y, x;      // first pixel
  int channels;  // at most kRoiTileChannels
};

CVK_HD int64_t roi_tiles(const RoiShape& shape) {
  return shape.batch * ceil_div<int64_t>(shape.channels, kRoiTileChannels) *
         ceil_div<int64_t>(shape.height, kRoiTileHeight) * ceil_div<int64_t>(shape.width, kRoiTileWidth);
}

CVK_DEVICE RoiTile roi_tile(const RoiShape& shape, int64_t block) {
  const int64_t tiles_x = ceil_div<int64_t>(shape.width, kRoiTileWidth);
  const int64_t tiles_y = ceil_div<int64_t>(shape.height, kRoiTileHeight);
  const int64_t channel_blocks = ceil_div<int64_t>(shape.channels, kRoiTileChannels);
  RoiTile tile;
  tile.x = static_cast<int>(block % tiles_x) * kRoiTileWidth;
  tile.y = static_cast<int>(block / tiles_x % tiles_y) * kRoiTileHeight;
  tile.first_channel = block / (tiles_x * tiles_y) % channel_blocks * kRoiTileChannels;
  tile.image = block / (tiles_x * tiles_y * channel_blocks);
  tile.channels = static_cast<int>(min_of<int64_t>(kRoiTileChannels, shape.channels - tile.first_channel));
  return tile;
}

// Whether bilinear samples of the span can touch pixels [first, last). Generous by a pixel for the rounding of the span's
// end; NaN does not reach.
template <class A>
CVK_DEVICE bool span_reaches(const RoiSpan<A>& span, int first, int last) {
  const A end = span.start + span.length;
  return max_of(span.start, end) >= static_cast<A>(first - 2) && min_of(span.start, end) <= static_cast<A>(last + 1);
}

// A block that gathers, by the type of its sums.
template <class A>
inline constexpr int kRoiGatherThreads = kRoiGatherWarps<A> * 32;

// The boxes of one stretch that reach a block's tile, in shared memory. Each thread looks at kEach of them.
template <int kThreads, int kEach>
struct RoiStretch {
  static constexpr int kSize = kThreads * kEach;
  int64_t boxes[kSize];
  int found[kEach][kThreads / 32];
};
template <class A>
using RoiSharedOut = RoiStretch<kRoiGatherThreads<A>, kRoiGatherBoxes>;

// Collects, in order, the boxes k in [begin, begin + kSize) and below `count` for which reaches(k); returns how many. All threads
// of the block call it; the list may be read at once, and until the next call.
template <int kThreads, int kEach, class Reaches>
CVK_DEVICE int collect_boxes(int64_t begin, int64_t count, RoiStretch<kThreads, kEach>& stretch, Reaches&& reaches) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  unsigned ballot[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t candidate = begin + i * kThreads + static_cast<int64_t>(threadIdx.x);
    ballot[i] = __ballot_sync(0xffffffffu, candidate < count && reaches(candidate));
  }
  __syncthreads();  // the previous stretch's list has been read
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (lane == 0) stretch.found[i][warp] = __popc(ballot[i]);
  }
  __syncthreads();
  int total = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    int before = total;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) before += stretch.found[i][w];
      total += stretch.found[i][w];
    }
    if ((ballot[i] >> lane & 1u) != 0) {
      stretch.boxes[before + __popc(ballot[i] & ((1u << lane) - 1u))] =
          begin + i * kThreads + static_cast<int64_t>(threadIdx.x);
    }
  }
  __syncthreads();
  return total;
}

// What a row of a tile passes through on its way to planes.
template <class A>
using RoiTileRow = A[kRoiTileWidth][kRoiTileChannels + 1];

// Stores a row of the tile: `sum` holds the columns of this lane's channel. A warp calls it with a `turned` of its own.
template <class T>
CVK_DEVICE void store_row(const RoiShape& shape, const RoiTile& tile, int row, const Acc<T> (&sum)[kRoiTileWidth],
                          RoiTileRow<Acc<T>>& turned,
                          T* grad_input) {  // [N, C, H, W] or channels-last
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int y = tile.y + row;
  if (shape.channels_last) {
    for (int column = 0; column < kRoiTileWidth; ++column) {
      const int x = tile.x + column;
      if (y < shape.height && x < shape.width && lane < tile.channels) {
        const int64_t pixel = (tile.image * shape.height + y) * shape.width + x;
        grad_input[pixel * shape.channels + tile.first_channel + lane] = from_acc<T>(sum[column]);
      }
    }
    return;
  }
  // Planes: lanes take 8 pixels of 4 channels, so that each 8-pixel run leaves as one sector.
#pragma unroll
  for (int column = 0; column < kRoiTileWidth; ++column) turned[column][lane] = sum[column];
  __syncwarp();
  for (int i = lane; i < kRoiTileWidth * kRoiTileChannels; i += 32) {
    const int c = i / kRoiTileWidth, column = i % kRoiTileWidth;
    const int x = tile.x + column;
    if (y < shape.height && x < shape.width && c < tile.channels) {
      const int64_t plane = tile.image * shape.channels + tile.first_channel + c;
      grad_input[(plane * shape.height + y) * shape.width + x] = from_acc<T>(turned[column][c]);
    }
  }
  __syncwarp();
}

// Stores the tile of a block that has a warp for each row.
template <class A>
struct RoiTileRows {
  RoiTileRow<A> values[kRoiTileHeight];
};
template <class T>
CVK_DEVICE void store_tile(const RoiShape& shape, const RoiTile& tile, const Acc<T> (&sum)[kRoiTileWidth],
                           RoiTileRows<Acc<T>>& rows,
                           T* grad_input) {  // [N, C, H, W] or channels-last
  const int warp = static_cast<int>(threadIdx.x) / 32;
  store_row(shape, tile, warp, sum, rows.values[warp], grad_input);
}

// ---- tiles whose sums each warp keeps for itself

// A spare pixel, for what goes nowhere.
constexpr int kRoiTileSpare = kRoiTileHeight * kRoiTileWidth;

// The sums of a tile in shared memory, of the boxes that a warp meets: which pixel a gradient goes to is looked up, and a lane has
// a channel, so that no two threads meet. Warps share out the boxes, and their sums are added in the order of warps at the end.
template <class A>
struct RoiTileSums {
  A values[kRoiTileSpare + 1][kRoiTileChannels];
};

// Zeroes the sums of this warp, each lane those of its channel.
template <class A>
CVK_DEVICE void clear_sums(RoiTileSums<A>& sums) {
  for (int pixel = 0; pixel <= kRoiTileSpare; ++pixel) sums.values[pixel][static_cast<int>(threadIdx.x) % 32] = A(0);
}

// Turns the gradients of a row of bins in planes, and their indices, in the warp's own.grad[bin][channel] and own.argmax: lanes run
// along the bins [first, last), and along channels beyond; four loads are on their way together. Bin 0 of the row lies at `at`, in
// the tile's first channel.
template <class T, class Warp>
CVK_DEVICE void turn_bins(const RoiShape& shape, const RoiTile& tile,
                          const T* grad,                         // [K, C, PH, PW]
                          const RoiIndices<const void>& argmax,  // [K, C, PH, PW]
                          int64_t at, int first, int last, Warp& own) {
  constexpr int kBins = kRoiStagedBins, kStep = 32 / kBins, kLoads = 4;
  const int lane = static_cast<int>(threadIdx.x) % 32, bin = lane % kBins;
  const bool exists = bin >= first && bin < last;
  int c = lane / kBins;
  at += c * shape.bins() + bin;
  __syncwarp();  // the row before has been read
  for (; c < kRoiTileChannels; c += kStep * kLoads) {
    T value[kLoads] = {};
    int index[kLoads] = {};
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      if (exists && c + n * kStep < tile.channels) {
        value[n] = grad[at];
        index[n] = argmax.load(at);
      }
      at += kStep * shape.bins();
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      own.grad[bin][c + n * kStep] = to_acc(value[n]);
      own.argmax[bin][c + n * kStep] = index[n];
    }
  }
  __syncwarp();
}

// Puts the sums of this warp there, which it had in registers.
template <class A>
CVK_DEVICE void keep_sums(const A (&sum)[kRoiTileHeight][kRoiTileWidth], RoiTileSums<A>& sums) {
#pragma unroll
  for (int pixel = 0; pixel < kRoiTileSpare; ++pixel) {
    sums.values[pixel][static_cast<int>(threadIdx.x) % 32] = sum[pixel / kRoiTileWidth][pixel % kRoiTileWidth];
  }
}

// Adds up the warps' sums and stores the tile. sums_of(w) and turned_of(w) are those of warp w. The whole block calls it.
template <class T, class SumsOf, class TurnedOf>
CVK_DEVICE void store_sums_of_tile(const RoiShape& shape, const RoiTile& tile, SumsOf&& sums_of, TurnedOf&& turned_of,
                                   T* grad_input) {  // [N, C, H, W] or channels-last
  using A = Acc<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  __syncthreads();
  for (int row = warp; row < kRoiTileHeight; row += kRoiGatherWarps<A>) {
    A sum[kRoiTileWidth] = {};
    for (int w = 0; w < kRoiGatherWarps<A>; ++w) {
#pragma unroll
      for (int column = 0; column < kRoiTileWidth; ++column) {
        sum[column] += sums_of(w).values[row * kRoiTileWidth + column][lane];
      }
    }
    store_row(shape, tile, row, sum, turned_of(warp), grad_input);
  }
}

}  // namespace cvk
