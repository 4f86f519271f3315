// Planes to channels-last on CUDA: the layout in which lanes that run along channels read whole sectors.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/launch.cuh"
#include "common/numeric.h"
#include "common/roi_tuning.h"

namespace cvk {

// A tile per block through shared memory. Static: every .cu file launches its own copy.
template <class T>
static __global__ void __launch_bounds__(kTransposeThreads)
    planes_to_channels_last_kernel(const T* from,  // [N, C, HW]
                                   T* to,          // [N, HW, C]
                                   int64_t channels, int64_t pixels, int64_t channel_tiles, int64_t pixel_tiles) {
  constexpr int kTile = kTransposeTile;
  struct Shared {
    T tile[kTile][kTile + 1];
  };
  auto& shared = static_shared<Shared>();
  const int64_t block = blockIdx.x;
  const int64_t image = block / (channel_tiles * pixel_tiles);
  const int64_t c0 = block / pixel_tiles % channel_tiles * kTile;
  const int64_t p0 = block % pixel_tiles * kTile;
  const int lane = static_cast<int>(threadIdx.x) % kTile, row = static_cast<int>(threadIdx.x) / kTile;
  for (int i = row; i < kTile; i += kTransposeThreads / kTile) {
    if (c0 + i < channels && p0 + lane < pixels) {
      shared.tile[i][lane] = from[(image * channels + c0 + i) * pixels + p0 + lane];
    }
  }
  __syncthreads();
  for (int i = row; i < kTile; i += kTransposeThreads / kTile) {
    if (p0 + i < pixels && c0 + lane < channels) {
      to[(image * pixels + p0 + i) * channels + c0 + lane] = shared.tile[lane][i];
    }
  }
}

// [N, C, HW] -> [N, HW, C].
template <class T>
cudaError_t planes_to_channels_last(const T* from, T* to, int64_t images, int64_t channels, int64_t pixels,
                                    CudaStream stream) {
  const int64_t channel_tiles = ceil_div<int64_t>(channels, kTransposeTile);
  const int64_t pixel_tiles = ceil_div<int64_t>(pixels, kTransposeTile);
  const int64_t tiles = images * channel_tiles * pixel_tiles;
  const cudaError_t status = grid_fits(tiles);
  if (status != cudaSuccess) return status;
  return launch(planes_to_channels_last_kernel<T>, {dim3(static_cast<unsigned>(tiles)), dim3(kTransposeThreads)},
                stream, from, to, channels, pixels, channel_tiles, pixel_tiles);
}

}  // namespace cvk
