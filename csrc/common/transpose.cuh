// Planes to channels-last on CUDA: the layout in which lanes that run along channels read whole sectors.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/launch.cuh"
#include "common/numeric.h"
#include "common/roi_tuning.h"

namespace cvk {

// Maps that one launch turns.
template <class T>
struct PlaneMaps {
  static constexpr int kMost = 8;
  int count;
  const T* from[kMost];           // [N, C, pixels]
  T* to[kMost];                   // [N, pixels, C]
  int64_t pixels[kMost];          // of an image
  int64_t first_tile[kMost + 1];  // filled in by planes_to_channels_last
};

// A tile per block through shared memory. Static: every .cu file launches its own copy.
template <class T>
static __global__ void __launch_bounds__(kTransposeThreads)
    planes_to_channels_last_kernel(PlaneMaps<T> maps, int64_t channels, int64_t channel_tiles) {
  constexpr int kTile = kTransposeTile;
  struct Shared {
    T tile[kTile][kTile + 1];
  };
  auto& shared = static_shared<Shared>();
  int map = 0;
  while (map + 1 < maps.count && blockIdx.x >= maps.first_tile[map + 1]) ++map;
  const int64_t block = blockIdx.x - maps.first_tile[map];
  const int64_t pixels = maps.pixels[map], pixel_tiles = ceil_div<int64_t>(pixels, kTile);
  const int64_t image = block / (channel_tiles * pixel_tiles);
  const int64_t c0 = block / pixel_tiles % channel_tiles * kTile;
  const int64_t p0 = block % pixel_tiles * kTile;
  const T* from = maps.from[map] + image * channels * pixels;
  T* to = maps.to[map] + image * channels * pixels;
  const int lane = static_cast<int>(threadIdx.x) % kTile, row = static_cast<int>(threadIdx.x) / kTile;
  for (int i = row; i < kTile; i += kTransposeThreads / kTile) {
    if (c0 + i < channels && p0 + lane < pixels) shared.tile[i][lane] = from[(c0 + i) * pixels + p0 + lane];
  }
  __syncthreads();
  for (int i = row; i < kTile; i += kTransposeThreads / kTile) {
    if (p0 + i < pixels && c0 + lane < channels) to[(p0 + i) * channels + c0 + lane] = shared.tile[lane][i];
  }
}

// [N, C, HW] -> [N, HW, C] of every map, in one launch.
template <class T>
cudaError_t planes_to_channels_last(PlaneMaps<T> maps, int64_t images, int64_t channels, CudaStream stream) {
  const int64_t channel_tiles = ceil_div<int64_t>(channels, kTransposeTile);
  int64_t tiles = 0;
  for (int i = 0; i < maps.count; ++i) {
    maps.first_tile[i] = tiles;
    tiles += images * channel_tiles * ceil_div<int64_t>(maps.pixels[i], kTransposeTile);
  }
  const cudaError_t status = grid_fits(tiles);
  if (status != cudaSuccess) return status;
  return launch(planes_to_channels_last_kernel<T>, {dim3(static_cast<unsigned>(tiles)), dim3(kTransposeThreads)},
                stream, maps, channels, channel_tiles);
}

// The same of one map.
template <class T>
cudaError_t planes_to_channels_last(const T* from, T* to, int64_t images, int64_t channels, int64_t pixels,
                                    CudaStream stream) {
  PlaneMaps<T> maps{};
  maps.count = 1;
  maps.from[0] = from;
  maps.to[0] = to;
  maps.pixels[0] = pixels;
  return planes_to_channels_last(maps, images, channels, stream);
}

}  // namespace cvk
