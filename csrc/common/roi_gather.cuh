// The frame of a gathering backward pass of the RoI family on CUDA: a block owns a tile of pixels and channels, meets the boxes
// that reach it in their order, and stores its sums once. No atomics, so bitwise repeatable.
//
// Warp w of a block owns row w of the tile, lane l owns channel l; a thread keeps the tile's columns in registers.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.cuh"
#include "common/roi_geometry.h"
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

// The boxes of one stretch of kRoiTileThreads that reach a block's tile, in shared memory.
struct RoiStretch {
  int64_t boxes[kRoiTileThreads];
  int found[kRoiTileHeight];
};

// Collects, in order, the boxes k in [begin, begin + kRoiTileThreads) and below `count` for which reaches(k); returns how
// many. All threads of the block call it; the list may be read at once, and until the next call.
template <class Reaches>
CVK_DEVICE int collect_boxes(int64_t begin, int64_t count, RoiStretch& stretch, Reaches&& reaches) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t candidate = begin + static_cast<int64_t>(threadIdx.x);
  const bool chosen = candidate < count && reaches(candidate);
  const unsigned ballot = __ballot_sync(0xffffffffu, chosen);
  __syncthreads();  // the previous stretch's list has been read
  if (lane == 0) stretch.found[warp] = __popc(ballot);
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < kRoiTileHeight; ++w) {
    if (w < warp) before += stretch.found[w];
    total += stretch.found[w];
  }
  if (chosen) stretch.boxes[before + __popc(ballot & ((1u << lane) - 1u))] = candidate;
  __syncthreads();
  return total;
}

// What a tile's results pass through on their way to planes.
template <class A>
struct RoiTileRows {
  A values[kRoiTileHeight][kRoiTileWidth][kRoiTileChannels + 1];
};

// Stores the tile: `sum` holds the columns of this thread's row and channel.
template <class T>
CVK_DEVICE void store_tile(const RoiShape& shape, const RoiTile& tile, const Acc<T> (&sum)[kRoiTileWidth],
                           RoiTileRows<Acc<T>>& rows,
                           T* grad_input) {  // [N, C, H, W] or channels-last
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int y = tile.y + warp;
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
  for (int column = 0; column < kRoiTileWidth; ++column) rows.values[warp][column][lane] = sum[column];
  __syncwarp();
  for (int i = lane; i < kRoiTileWidth * kRoiTileChannels; i += 32) {
    const int c = i / kRoiTileWidth, column = i % kRoiTileWidth;
    const int x = tile.x + column;
    if (y < shape.height && x < shape.width && c < tile.channels) {
      const int64_t plane = tile.image * shape.channels + tile.first_channel + c;
      grad_input[(plane * shape.height + y) * shape.width + x] = from_acc<T>(rows.values[warp][column][c]);
    }
  }
}

}  // namespace cvk
