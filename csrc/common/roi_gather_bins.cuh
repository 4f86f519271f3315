// A gathering backward pass (common/roi_gather.cuh) over single bins, for RoI operators whose bins are no grid: each sample of a
// bin that can touch the tile adds the bin's gradient to the pixels that it reads.
//
// Boxes is what the operator knows of its boxes; each warp meets some of them, one at a time:
//   Box                      what it keeps of a box in shared memory
//   box_reaches(k)           whether box k can touch the tile; false for a bad image index. May be generous.
//   load_box(k, box)         all lanes call it, between barriers
//   bin_reaches(box, bin)    whether bin `bin` of a loaded box can touch the tile. May be generous.
//   samples_of(box, bin)     the samples of the bin that can. May be generous.
//   sample(box, bin, i, j)   what one of them reads
//   share(box)               what it counts for in the mean of its bin
//
// Lanes are first bins, of which those that reach the tile are kept, and of these eight at a time, whose gradients are brought in;
// then they are samples of the eight bins, of which those that touch the tile are kept; and then, for each of these, channels.
//
// What was tried. Instructions are warp instructions for one box, tile and 32 channels, read off the SASS for sm_90a of deformable
// pooling in float32 at sampling_ratio 2, for a box whose 7 x 7 bins are 1.5 pixels wide; times are of 512 such boxes on two maps
// of 256 x 50 x 84.
//   A block weighs 8 bins at a time in each row and column, or each pixel, of the tile; behind barriers all rows go through them,
//   with a comparison for each pixel: some 13,000 instructions, 1.05 ms on an H100 (rotated boxes 1.3).
//   Each warp goes through boxes of its own and adds to sums of its own, four pixels for each sample: some 3,300, of which 32 for
//   each of 41 samples. With weights read after the first sum is written: 40.
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "common/dtype.h"
#include "common/launch.cuh"
#include "common/roi_gather.cuh"
#include "common/roi_geometry.h"
#include "common/roi_tuning.h"

namespace cvk {

// Rows times columns of a bin's samples.
struct BinSamples {
  SampleRange y, x;

  CVK_HD int64_t count() const { return static_cast<int64_t>(y.last - y.first) * (x.last - x.first); }
};

// What a sample reads.
template <class A>
struct BinSample {
  BilinearAxis<A> y, x;
};

// A sample as the tile sees it.
template <class A>
struct alignas(16) PlacedSample {
  A weight[4];
  unsigned places;  // of its four pixels in the tile's sums, a byte each
  int bin;          // which of those at hand
};

// Returns whether the sample touches the tile.
template <class A>
CVK_DEVICE bool place_sample(const RoiTile& tile, const BinSample<A>& sample, A share, PlacedSample<A>& placed) {
  bool touches = false;
  placed.places = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = (i < 2 ? sample.y.low : sample.y.high) - tile.y;
    const int column = (i % 2 == 0 ? sample.x.low : sample.x.high) - tile.x;
    placed.weight[i] = (i < 2 ? sample.y.low_weight : sample.y.high_weight) *
                       (i % 2 == 0 ? sample.x.low_weight : sample.x.high_weight) * share;
    // Edge: a weight of zero passes nothing on, not even an infinite gradient.
    const bool within =
        row >= 0 && row < kRoiTileHeight && column >= 0 && column < kRoiTileWidth && placed.weight[i] != A(0);
    touches = touches || within;
    placed.places |= static_cast<unsigned>(within ? row * kRoiTileWidth + column : kRoiTileSpare) << (8 * i);
  }
  return touches;
}

// What each warp keeps in shared memory.
template <class A, class Box>
struct GatherWarp {
  RoiTileSums<A> sums;
  RoiTileRow<A> grad;  // of the bins at hand; in the end a row of pixels
  int bins[32];        // that reach the tile
  BinSamples samples[kRoiGatherBins];
  int64_t end[kRoiGatherBins];  // samples of the bins at hand up to and with this one
  PlacedSample<A> placed[32];   // the samples that touch the tile
  Box box;
};

template <class A, class Box>
struct GatherShared {
  GatherWarp<A, Box> warps[kRoiGatherWarps<A>];
  RoiSharedOut<A> stretch;
};

// The gradients of some bins of box k. A warp calls it; lanes run along channels, or along bins where these are neighbours.
template <class T, class A>
CVK_DEVICE void bring_gradients(const RoiShape& shape, const RoiTile& tile, int64_t k, const int* bins, int count,
                                const T* grad_output, RoiTileRow<A>& grad) {
  constexpr int kBins = kRoiGatherBins, kLanes = kRoiTileChannels, kStep = 32 / kBins;
  static_assert(kLanes == 32 && kBins == kRoiTileWidth, "lanes are channels; gradients fit in a row of the tile");
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T value[kBins] = {};
  if (shape.channels_last) {
    const T* const from = grad_output + k * shape.bins() * shape.channels + tile.first_channel + lane;
#pragma unroll
    for (int n = 0; n < kBins; ++n) {
      if (n < count && lane < tile.channels) value[n] = from[bins[n] * shape.channels];
    }
#pragma unroll
    for (int n = 0; n < kBins; ++n) grad[n][lane] = to_acc(value[n]);
  } else {
    const int bin = lane % kBins, c = lane / kBins;
    const T* from =
        grad_output + (k * shape.channels + tile.first_channel + c) * shape.bins() + (bin < count ? bins[bin] : 0);
#pragma unroll
    for (int n = 0; n < kLanes / kStep; ++n) {
      if (bin < count && c + n * kStep < tile.channels) value[n] = *from;
      from += kStep * shape.bins();
    }
#pragma unroll
    for (int n = 0; n < kLanes / kStep; ++n) grad[bin][c + n * kStep] = to_acc(value[n]);
  }
}

// The whole block calls it.
template <class T, class Boxes>
CVK_DEVICE void gather_bins(const RoiShape& shape, const RoiTile& tile, const Boxes& boxes,
                            GatherShared<Acc<T>, typename Boxes::Box>& shared,
                            const T* grad_output,  // [K, C, PH, PW] or channels-last
                            T* grad_input) {       // [N, C, H, W] or channels-last
  using A = Acc<T>;
  constexpr int kBins = kRoiGatherBins;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const unsigned below = (1u << lane) - 1u;
  GatherWarp<A, typename Boxes::Box>& own = shared.warps[warp];
  clear_sums(own.sums);
  A* const sums = &own.sums.values[0][lane];
  for (int64_t begin = 0; begin < shape.boxes; begin += shared.stretch.kSize) {
    const int total =
        collect_boxes(begin, shape.boxes, shared.stretch, [&](int64_t k) { return boxes.box_reaches(k); });
    for (int b = warp; b < total; b += kRoiGatherWarps<A>) {
      const int64_t k = shared.stretch.boxes[b];
      __syncwarp();  // the box before is done with
      boxes.load_box(k, own.box);
      __syncwarp();
      for (int64_t first_bin = 0; first_bin < shape.bins(); first_bin += 32) {
        const int bin = static_cast<int>(first_bin) + lane;
        const bool reaches = lane < shape.bins() - first_bin && boxes.bin_reaches(own.box, bin);
        const unsigned reaching = __ballot_sync(0xffffffffu, reaches);
        __syncwarp();  // those before have been read
        if (reaches) own.bins[__popc(reaching & below)] = bin;
        __syncwarp();
        const int found = __popc(reaching);
        for (int first = 0; first < found; first += kBins) {
          const int* const at_hand = own.bins + first;
          const int count = min_of(kBins, found - first);
          bring_gradients(shape, tile, k, at_hand, count, grad_output, own.grad);
          int64_t end = 0;
          if (lane < count) {
            own.samples[lane] = boxes.samples_of(own.box, at_hand[lane]);
            end = own.samples[lane].count();
          }
#pragma unroll
          for (int delta = 1; delta < kBins; delta *= 2) {
            const int64_t before = __shfl_up_sync(0xffffffffu, end, delta);
            if (lane >= delta) end += before;
          }
          if (lane < kBins) own.end[lane] = end;
          __syncwarp();
          const int64_t samples = own.end[kBins - 1];
          for (int64_t first_sample = 0; first_sample < samples; first_sample += 32) {
            const int64_t s = first_sample + lane;
            PlacedSample<A> placed;
            placed.bin = 0;
            bool touches = false;
            if (s < samples) {
              while (s >= own.end[placed.bin]) ++placed.bin;
              const BinSamples range = own.samples[placed.bin];
              const int64_t local = s - (own.end[placed.bin] - range.count());
              const int width = range.x.last - range.x.first;
              const BinSample<A> sample =
                  boxes.sample(own.box, at_hand[placed.bin], range.y.first + static_cast<int>(local / width),
                               range.x.first + static_cast<int>(local % width));
              touches = place_sample(tile, sample, boxes.share(own.box), placed);
            }
            const unsigned touching = __ballot_sync(0xffffffffu, touches);
            __syncwarp();  // those before have been read
            if (touches) own.placed[__popc(touching & below)] = placed;
            __syncwarp();
            const int touch = __popc(touching);
            for (int t = 0; t < touch; ++t) {
              const PlacedSample<A> sample = own.placed[t];
              const A grad = own.grad[sample.bin][lane];
              // Invariant: the four pixels differ, but for the spare one, so that all may be read before any is written.
              A value[4];
#pragma unroll
              for (int i = 0; i < 4; ++i) value[i] = sums[(sample.places >> (8 * i) & 0xffu) * kRoiTileChannels];
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                sums[(sample.places >> (8 * i) & 0xffu) * kRoiTileChannels] = mul_add(sample.weight[i], grad, value[i]);
              }
            }
          }
          __syncwarp();  // gradients and samples have been read
        }
      }
    }
  }
  store_sums_of_tile(
      shape, tile, [&](int w) -> const RoiTileSums<A>& { return shared.warps[w].sums; },
      [&](int w) -> RoiTileRow<A>& { return shared.warps[w].grad; }, grad_input);
}

}  // namespace cvk
