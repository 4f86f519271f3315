// The gradients of maxima on the CPU: along their indices to pixels. What an index says is the operator's own.
#pragma once

#include <cstdint>

#include "common/roi_geometry.h"
#include "common/roi_indices.h"
#include "common/roi_plan.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace cvk {

// Sums of the pixels of some rows of a map, the first pixel of the first row first.
template <class A>
struct RoiBand {
  A* pixels;
  int64_t pixel_stride, channel_stride;

  CVK_HD A* channel(int c) const { return pixels + c * channel_stride; }
};

// Asks for memory that will be read soon.
CVK_HD void prefetch(const void* from, int64_t bytes) {
  constexpr int64_t kLine = 64;
  const char* const p = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p + i);
}

// Adds the gradients of maxima to the pixels that their indices name, a few channels at a time: to scratch of a band of rows, in the
// layout of the map. over_boxes(f) calls f(k, next) for each box k of the band; the memory of the box `next` is asked for
// meanwhile. Perf: from memory that the prefetcher did not expect a box takes three times as long.
template <Isa isa, class Boxes, class T>
class RoiMaxima {
  using A = Acc<T>;
  using Index = typename Boxes::Index;
  using Word = WordOf<Index>;

 public:
  template <class Params>
  CVK_HD RoiMaxima(const Params& params, const RoiShape& shape, int pitch)
      : shape_(shape),
        pitch_(pitch),
        plan_(params.plan),
        grad_(params.grad_output),
        argmax_(roi_indices<Index>(params.saved_argmax)),
        grads_(shape.channels_last ? shape.bins() * pitch * sizeof(T) : 0),
        indices_(shape.channels_last ? shape.bins() * pitch * sizeof(Index) : 0) {}

  // Channels [c, c + channels), rows [y_begin, y_end).
  template <class OverBoxes>
  CVK_HD void spread(int64_t c, int channels, int y_begin, int y_end, A* pixels, OverBoxes&& over_boxes) const {
    if (shape_.channels_last) {
      const RoiBand<A> band{pixels, pitch_, 1};
      over_boxes([&](int64_t k, int64_t next) { spread_turned(k, next, c, channels, y_begin, y_end, band); });
      return;
    }
    // Perf: the pixels of few channels stay in L1. 512 boxes of 7 x 7 bins on two maps of 256 x 50 x 84, float32: 2.8 instead of
    // 3.2 ms, 2 channels 3.1, 8 channels 2.9 (EPYC 9005, two threads).
    const int64_t bins = shape_.bins(), band_pixels = static_cast<int64_t>(y_end - y_begin) * shape_.width;
    for (int first = 0; first < channels; first += kFew) {
      const int count = min_of(kFew, channels - first);
      const RoiBand<A> band{pixels + first * band_pixels, 1, band_pixels};
      over_boxes([&](int64_t k, int64_t next) {
        const int64_t at = (k * shape_.channels + c + first) * bins;
        const int64_t ahead = (next * shape_.channels + c + first) * bins;
        prefetch(grad_ + ahead, count * bins * static_cast<int64_t>(sizeof(T)));
        prefetch(argmax_ + ahead, count * bins * static_cast<int64_t>(sizeof(Index)));
        Boxes::spread_maxima(grad_ + at, argmax_ + at, shape_, plan_.record(k), count, y_begin, y_end, band);
      });
    }
  }

 private:
  static constexpr int kFew = 4;

  // A box whose gradients do not lie in planes.
  CVK_HD void spread_turned(int64_t k, int64_t next, int64_t c, int channels, int y_begin, int y_end,
                            const RoiBand<A>& band) const {
    const int64_t bins = shape_.bins();
    const int64_t at = k * shape_.channels * bins + c, ahead = next * shape_.channels * bins + c;
    T* const grads = grads_.template as<T>();
    Index* const indices = indices_.template as<Index>();
    transpose_matrix<isa>(grad_ + at, shape_.channels, grads, bins, bins, channels);
    transpose_matrix<isa>(reinterpret_cast<const Word*>(argmax_ + at), shape_.channels,
                          reinterpret_cast<Word*>(indices), bins, bins, channels);
    for (int first = 0; first < channels; first += kFew) {
      const int count = min_of(kFew, channels - first);
      for (int64_t bin = bins * first / channels; bin < bins * (first + count) / channels; ++bin) {
        prefetch(grad_ + ahead + bin * shape_.channels, channels * static_cast<int64_t>(sizeof(T)));
        prefetch(argmax_ + ahead + bin * shape_.channels, channels * static_cast<int64_t>(sizeof(Index)));
      }
      Boxes::spread_maxima(grads + first * bins, indices + first * bins, shape_, plan_.record(k), count, y_begin, y_end,
                           {band.channel(first), band.pixel_stride, band.channel_stride});
    }
  }

  const RoiShape& shape_;
  const int pitch_;  // of scratch in channels-last order, in elements a pixel or bin
  const RoiPlan& plan_;
  const T* const grad_;
  const Index* const argmax_;
  const Scratch grads_, indices_;
};

}  // namespace cvk
