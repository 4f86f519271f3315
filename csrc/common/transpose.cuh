// Planes to channels-last on CUDA: the layout in which lanes that run along channels read whole sectors.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/launch.cuh"
#include "common/numeric.h"
#include "common/roi_tuning.h"
#include "common/vec.cuh"

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

// Elements that a lane moves at once, and the side of a block's tile: 128 bytes of either layout for a warp.
template <class T>
inline constexpr int kTransposePack = sizeof(T) == 2 ? 2 : 1;
template <class T>
inline constexpr int kTransposeSide = kTransposeTile * kTransposePack<T>;

// Whether lines of `length` elements behind a pointer can be moved a pack at a time.
template <class T>
CVK_DEVICE bool moves_packs(const T* pointer, int64_t length) {
  return length % kTransposePack<T> == 0 && reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * kTransposePack<T>) == 0;
}

// A tile per block through shared memory. Static: every .cu file launches its own copy.
template <class T>
static __global__ void __launch_bounds__(kTransposeThreads)
    planes_to_channels_last_kernel(PlaneMaps<T> maps, int64_t channels, int64_t channel_tiles) {
  constexpr int kSide = kTransposeSide<T>, kPack = kTransposePack<T>, kRows = kTransposeThreads / kTransposeTile;
  using Pack = Group<T, kPack>;
  struct Shared {
    T tile[kSide][kSide + kPack];  // [channels, pixels]
  };
  auto& shared = static_shared<Shared>();
  int map = 0;
  while (map + 1 < maps.count && blockIdx.x >= maps.first_tile[map + 1]) ++map;
  const int64_t block = blockIdx.x - maps.first_tile[map];
  const int64_t pixels = maps.pixels[map], pixel_tiles = ceil_div<int64_t>(pixels, kSide);
  const int64_t image = block / (channel_tiles * pixel_tiles);
  const int64_t c0 = block / pixel_tiles % channel_tiles * kSide;
  const int64_t p0 = block % pixel_tiles * kSide;
  const T* from = maps.from[map] + image * channels * pixels;
  T* to = maps.to[map] + image * channels * pixels;
  const int lane = static_cast<int>(threadIdx.x) % kTransposeTile, row = static_cast<int>(threadIdx.x) / kTransposeTile;
  const int first = lane * kPack;
  const bool packs_in = moves_packs(from, pixels), packs_out = moves_packs(to, channels);
  for (int i = row; i < kSide && c0 + i < channels; i += kRows) {
    const T* line = from + (c0 + i) * pixels + p0;
    if (packs_in && p0 + first < pixels) {
      *reinterpret_cast<Pack*>(&shared.tile[i][first]) = *reinterpret_cast<const Pack*>(line + first);
    } else {
      for (int k = first; k < first + kPack && p0 + k < pixels; ++k) shared.tile[i][k] = line[k];
    }
  }
  __syncthreads();
  for (int i = row; i < kSide && p0 + i < pixels; i += kRows) {
    T* line = to + (p0 + i) * channels + c0;
    if (packs_out && c0 + first < channels) {
      Pack pack;
#pragma unroll
      for (int k = 0; k < kPack; ++k) pack.values[k] = shared.tile[first + k][i];
      *reinterpret_cast<Pack*>(line + first) = pack;
    } else {
      for (int k = first; k < first + kPack && c0 + k < channels; ++k) line[k] = shared.tile[k][i];
    }
  }
}

// [N, C, HW] -> [N, HW, C] of every map, in one launch.
template <class T>
cudaError_t planes_to_channels_last(PlaneMaps<T> maps, int64_t images, int64_t channels, CudaStream stream) {
  const int64_t channel_tiles = ceil_div<int64_t>(channels, kTransposeSide<T>);
  int64_t tiles = 0;
  for (int i = 0; i < maps.count; ++i) {
    maps.first_tile[i] = tiles;
    tiles += images * channel_tiles * ceil_div<int64_t>(maps.pixels[i], kTransposeSide<T>);
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
