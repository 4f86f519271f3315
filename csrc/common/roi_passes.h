// The passes of RoI operators on the CPU: how forward and backward are cut into work items, and the loops over them. What a
// box does with the pixels that it is given is the operator's own.
//
// Params has shape, plan, input and output (forward), grad_output and grad_input (backward), and where it takes maxima argmax
// and saved_argmax. Boxes is a class of static functions, all of them CVK_HD:
//
//   kMaximum
//       Whether an int32 index goes with each value.
//   pool<isa>(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out, int32_t* argmax,
//             int64_t stride)
//       out[bin * stride + c] for the channels [0, channels) of the view, and argmax alike (null unless kMaximum).
//   spread<isa>(const G* grad, int64_t stride, const RoiShape& shape, char* record, int channels, int y_begin, int y_end,
//               A* pixels, int pitch)
//       Adds the gradient grad[bin * stride + c] to the pixels of rows [y_begin, y_end), channels-last with `pitch`
//       elements a pixel, pixel (y_begin, 0) first.
//   spread_maxima(const G* grad, const int32_t* argmax, int64_t bin_stride, int64_t channel_stride, ...)
//       The same where kMaximum; grad and argmax lie in planes of bins.
//
// A record begins with a RecordHeader.
#pragma once

#include <cstdint>

#include "common/roi_plan.h"
#include "common/roi_pooling.h"
#include "common/roi_tuning.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace cvk {

// The Boxes of a mean with separable taps.
template <class A>
struct RoiMeans {
  static constexpr bool kMaximum = false;

  template <Isa isa, class E, class Out>
  static CVK_HD void pool(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out, int32_t*,
                          int64_t stride) {
    pool_box<isa, A>(view, shape, record, channels, out, stride);
  }
  template <Isa isa, class G>
  static CVK_HD void spread(const G* grad, int64_t stride, const RoiShape& shape, char* record, int channels,
                            int y_begin, int y_end, A* pixels, int pitch) {
    spread_box<isa>(grad, stride, shape, record, channels, y_begin, y_end, pixels, pitch);
  }
};

// Scratch elements per pixel or bin.
CVK_HD int roi_pitch(const RoiShape& shape) {
  return static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels));
}

// The rectangle of pixels that box k reads; may be empty.
CVK_HD const RecordHeader& roi_rectangle(const RoiPlan& plan, int64_t k) {
  return *reinterpret_cast<const RecordHeader*>(plan.record(k));
}

// ---- forward

// Forward of a contiguous input. `per_image`: an item is (channel tile, chunk of boxes in image order) over scratch
// copies of whole image tiles; otherwise an item is a box over a scratch copy of the rectangle that it reads.
struct RoiForwardCut {
  bool per_image;
  int64_t tiles, chunks;
};

CVK_HD RoiForwardCut roi_forward_cut(const RoiShape& shape, const RoiPlan& plan) {
  RoiForwardCut cut;
  cut.per_image = plan.copy_images;
  cut.tiles = ceil_div<int64_t>(shape.channels, kRoiChannelTile);
  cut.chunks = ceil_div<int64_t>(shape.boxes, kRoiBoxChunk);
  return cut;
}

// Whether copying whole images to channels-last moves fewer pixels than copying each box's rectangle.
template <Isa isa, class A>
CVK_HD bool roi_copies_images(const RoiShape& shape, const RoiPlan& plan) {
  if (shape.pixels() * roi_pitch(shape) * static_cast<int64_t>(sizeof(A)) > kRoiScratchBytes) return false;
  int64_t by_box = 0, by_image = 0;
  for (int64_t k = 0; k < shape.boxes; ++k) by_box += rectangle_pixels(widened<isa, A>(shape, roi_rectangle(plan, k)));
  for (int64_t n = 0; n < shape.batch; ++n) {
    if (plan.image_begin[n + 1] > plan.image_begin[n]) by_image += shape.pixels();
  }
  return by_box >= by_image;
}

// Chooses how to cut the forward pass; returns the number of work items.
template <Isa isa, class A>
CVK_HD int64_t roi_forward_items(const RoiShape& shape, RoiPlan& plan) {
  plan.copy_images = !shape.channels_last && roi_copies_images<isa, A>(shape, plan);
  if (shape.channels_last) return shape.boxes;
  const RoiForwardCut cut = roi_forward_cut(shape, plan);
  return cut.per_image ? cut.tiles * cut.chunks : shape.boxes;
}

// The scratch of a box's bins: channels-last, and again as planes; with indices where there are some.
template <class Boxes, class A>
class RoiBinScratch {
 public:
  CVK_HD explicit RoiBinScratch(const RoiShape& shape)
      : values_(2 * shape.bins() * roi_pitch(shape) * sizeof(A)),
        indices_(Boxes::kMaximum ? shape.bins() * roi_pitch(shape) * sizeof(int32_t) : 0) {}
  CVK_HD ~RoiBinScratch() {}  // inline: see the note on symbols in csrc/README.md
  CVK_HD A* values() const { return values_.template as<A>(); }
  CVK_HD int32_t* indices() const { return indices_.template as<int32_t>(); }

 private:
  Scratch values_, indices_;
};

// One box of a contiguous input: channels [c, c + channels) from `view` into output[k], through the bins' scratch.
template <Isa isa, class Boxes, class Params, class E, class A>
CVK_HD void roi_pool_contiguous(const Params& params, int64_t k, int64_t c, int channels, const View<E>& view,
                                const RoiBinScratch<Boxes, A>& scratch) {
  const RoiShape& shape = params.shape;
  const int pitch = roi_pitch(shape);
  A* const bins = scratch.values();
  const int64_t at = (k * shape.channels + c) * shape.bins();
  Boxes::template pool<isa>(view, shape, params.plan.record(k), channels, bins, scratch.indices(), pitch);
  // Perf: the planes are put together in cache and leave as one run. Stored directly, the rows of a 16 x 16 transposition
  // open 16 cold cache lines at a time.
  const int64_t count = channels * shape.bins();
  auto* const output = params.output + at;
  auto* const planes = reinterpret_cast<decltype(params.output)>(bins + shape.bins() * pitch);
  transpose_matrix<isa>(bins, pitch, planes, shape.bins(), shape.bins(), channels);
  memcpy(output, planes, static_cast<size_t>(count) * sizeof(*output));
  if constexpr (Boxes::kMaximum) {
    auto* const words = reinterpret_cast<word_t*>(planes);
    transpose_matrix<isa>(reinterpret_cast<const word_t*>(scratch.indices()), pitch, words, shape.bins(), shape.bins(),
                          channels);
    memcpy(params.argmax + at, words, static_cast<size_t>(count) * sizeof(int32_t));
  }
}

template <Isa isa, class Boxes, class Params>
CVK_HD void roi_forward_channels_last(const Params& params, int64_t first, int64_t last) {
  const RoiShape& shape = params.shape;
  const int channels = static_cast<int>(shape.channels);
  for (int64_t k = first; k < last; ++k) {
    const auto view = whole_image(params.input + params.plan.image_of[k] * shape.pixels() * shape.channels,
                                  shape.channels, shape.width);
    const int64_t at = k * shape.bins() * shape.channels;
    int32_t* argmax = nullptr;
    if constexpr (Boxes::kMaximum) argmax = params.argmax + at;
    Boxes::template pool<isa>(view, shape, params.plan.record(k), channels, params.output + at, argmax, shape.channels);
  }
}

// f(k, c, channels, view) for the boxes k and tiles of channels [c, c + channels) of the work items [first, last) over a
// contiguous input; the view has those channels of the pixels that the box reads.
template <Isa isa, class T, class F>
CVK_HD void roi_visit_per_image(const RoiShape& shape, const RoiPlan& plan, const T* input, int64_t first, int64_t last,
                                F&& f) {
  using A = Acc<T>;
  const RoiForwardCut cut = roi_forward_cut(shape, plan);
  const int pitch = roi_pitch(shape);
  const Scratch tile(shape.pixels() * pitch * sizeof(A));
  const RecordHeader whole{0, shape.height - 1, 0, shape.width - 1, 0, 0};
  View<A> view{};
  int64_t loaded_image = -1, loaded_channel = -1;
  for (int64_t item = first; item < last; ++item) {
    const int64_t c = item / cut.chunks * kRoiChannelTile;
    const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels - c));
    const int64_t begin = item % cut.chunks * kRoiBoxChunk;
    const int64_t end = min_of(begin + kRoiBoxChunk, shape.boxes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = plan.order[i], n = plan.image_of[k];
      if (n != loaded_image || c != loaded_channel) {
        view = load_rectangle<isa>(input + n * shape.channels * shape.pixels(), shape, c, channels, pitch, whole,
                                   tile.template as<A>());
        loaded_image = n;
        loaded_channel = c;
      }
      f(k, c, channels, view);
    }
  }
}

template <Isa isa, class T, class F>
CVK_HD void roi_visit_per_box(const RoiShape& shape, const RoiPlan& plan, const T* input, int64_t first, int64_t last,
                              F&& f) {
  using A = Acc<T>;
  const int pitch = roi_pitch(shape);
  const int64_t most_in_scratch = kRoiScratchBytes / (pitch * static_cast<int64_t>(sizeof(A)));
  int64_t most_pixels = 1;  // some memory also for views of nothing
  for (int64_t k = first; k < last; ++k) {
    const int64_t pixels = rectangle_pixels(widened<isa, A>(shape, roi_rectangle(plan, k)));
    if (pixels <= most_in_scratch) most_pixels = max_of(most_pixels, pixels);
  }
  const Scratch tile(most_pixels * pitch * sizeof(A));
  for (int64_t k = first; k < last; ++k) {
    const RecordHeader rect = widened<isa, A>(shape, roi_rectangle(plan, k));
    const T* image = input + plan.image_of[k] * shape.channels * shape.pixels();
    if (rectangle_pixels(rect) > most_in_scratch) {  // read the planes in place, one channel at a time
      for (int64_t c = 0; c < shape.channels; ++c) {
        f(k, c, 1, whole_image(image + c * shape.pixels(), 1, shape.width));
      }
      continue;
    }
    for (int64_t c = 0; c < shape.channels; c += kRoiChannelTile) {
      const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels - c));
      const View<A> view = rectangle_pixels(rect) == 0
                               ? View<A>{tile.template as<A>(), pitch, 0, 0, 0}  // reads nothing
                               : load_rectangle<isa>(image, shape, c, channels, pitch, rect, tile.template as<A>());
      f(k, c, channels, view);
    }
  }
}

template <Isa isa, class T, class F>
CVK_HD void roi_visit(const RoiShape& shape, const RoiPlan& plan, const T* input, int64_t first, int64_t last, F&& f) {
  if (plan.copy_images) {
    roi_visit_per_image<isa>(shape, plan, input, first, last, f);
  } else {
    roi_visit_per_box<isa>(shape, plan, input, first, last, f);
  }
}

// The work items [first, last) of the forward pass as roi_forward_items cut it.
template <Isa isa, class Boxes, class T, class Params>
CVK_HD void roi_forward(const Params& params, int64_t first, int64_t last) {
  const RoiShape& shape = params.shape;
  if (shape.channels_last) {
    roi_forward_channels_last<isa, Boxes>(params, first, last);
    return;
  }
  const RoiBinScratch<Boxes, Acc<T>> bins(shape);
  roi_visit<isa>(shape, params.plan, params.input, first, last,
                 [&](int64_t k, int64_t c, int channels, const auto& view) {
                   roi_pool_contiguous<isa>(params, k, c, channels, view, bins);
                 });
}

// ---- backward: an item owns one image, one tile of channels and a band of rows

struct RoiBackwardCut {
  int64_t tiles, bands;
  int rows;  // of a band
};

template <class A>
CVK_HD RoiBackwardCut roi_backward_cut(const RoiShape& shape) {
  RoiBackwardCut cut;
  cut.tiles = ceil_div<int64_t>(shape.channels, kRoiChannelTile);
  const int64_t row_bytes = static_cast<int64_t>(shape.width) * roi_pitch(shape) * sizeof(A);
  const int64_t rows = max_of<int64_t>(1, kRoiBandBytes / max_of<int64_t>(1, row_bytes));
  cut.rows = static_cast<int>(min_of<int64_t>(rows, shape.height));
  cut.bands = ceil_div<int64_t>(shape.height, cut.rows);
  return cut;
}

template <class A>
CVK_HD int64_t roi_backward_items(const RoiShape& shape) {
  if (shape.pixels() == 0) return 0;
  const RoiBackwardCut cut = roi_backward_cut<A>(shape);
  return shape.batch * cut.tiles * cut.bands;
}

// Asks for memory that will be read soon.
CVK_HD void prefetch(const void* from, int64_t bytes) {
  constexpr int64_t kLine = 64;
  const char* const p = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p + i);
}

// The gradients of a box's maxima, with their indices, as planes of bins.
template <Isa isa, class T>
class RoiMaximaPlanes {
 public:
  CVK_HD explicit RoiMaximaPlanes(const RoiShape& shape)
      : shape_(shape),
        grads_(shape.channels_last ? shape.bins() * roi_pitch(shape) * sizeof(T) : 0),
        indices_(shape.channels_last ? shape.bins() * roi_pitch(shape) * sizeof(int32_t) : 0) {}

  // f(grad, argmax, first, count) for a few of the channels at a time: [count, bins] from channel c + first on. Meanwhile the
  // same of the box `next` is asked for. Perf: from memory that the prefetcher did not expect a box takes three times as long.
  template <class F>
  CVK_HD void operator()(const T* grad, const int32_t* argmax, int64_t k, int64_t next, int64_t c, int channels,
                         F&& f) {
    constexpr int kFew = 4;
    const int64_t bins = shape_.bins();
    const int64_t at = offset(k, c), ahead = offset(next, c);
    if (shape_.channels_last) {
      turn(grad + at, grads_.template as<T>(), channels);
      turn(reinterpret_cast<const word_t*>(argmax + at), indices_.template as<word_t>(), channels);
    }
    const T* const grads = shape_.channels_last ? grads_.template as<T>() : grad + at;
    const int32_t* const indices = shape_.channels_last ? indices_.template as<int32_t>() : argmax + at;
    for (int first = 0; first < channels; first += kFew) {
      const int count = min_of(kFew, channels - first);
      if (shape_.channels_last) {
        for (int64_t bin = bins * first / channels; bin < bins * (first + count) / channels; ++bin) {
          prefetch(grad + ahead + bin * shape_.channels, channels * static_cast<int64_t>(sizeof(T)));
          prefetch(argmax + ahead + bin * shape_.channels, channels * static_cast<int64_t>(sizeof(int32_t)));
        }
      } else {
        prefetch(grad + ahead + first * bins, count * bins * static_cast<int64_t>(sizeof(T)));
        prefetch(argmax + ahead + first * bins, count * bins * static_cast<int64_t>(sizeof(int32_t)));
      }
      f(grads + first * bins, indices + first * bins, first, count);
    }
  }

 private:
  CVK_HD int64_t offset(int64_t k, int64_t c) const {
    return k * shape_.channels * shape_.bins() + c * (shape_.channels_last ? 1 : shape_.bins());
  }
  template <class W>
  CVK_HD void turn(const W* from, W* to, int channels) const {
    transpose_matrix<isa>(from, shape_.channels, to, shape_.bins(), shape_.bins(), channels);
  }

  const RoiShape& shape_;
  const Scratch grads_, indices_;
};

// The work items [first, last) of the gradient with respect to the input.
template <Isa isa, class Boxes, class T, class Params>
CVK_HD void roi_backward(const Params& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const RoiPlan& plan = params.plan;
  const RoiBackwardCut cut = roi_backward_cut<A>(shape);
  const int pitch = roi_pitch(shape);
  const Scratch band(static_cast<int64_t>(cut.rows) * shape.width * pitch * sizeof(A));
  const Scratch bins(shape.channels_last || Boxes::kMaximum ? 0 : shape.bins() * pitch * sizeof(A));
  A* const pixels = band.template as<A>();
  [[maybe_unused]] RoiMaximaPlanes<isa, T> maxima(shape);
  for (int64_t item = first; item < last; ++item) {
    // Images innermost: where one image has most boxes, every thread gets its share of them.
    const int64_t n = item % shape.batch;
    const int64_t c = item / (shape.batch * cut.bands) * kRoiChannelTile;
    const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels - c));
    const int y_begin = static_cast<int>(item / shape.batch % cut.bands) * cut.rows;
    const int y_end = static_cast<int>(min_of<int64_t>(int64_t{y_begin} + cut.rows, shape.height));
    const int64_t band_pixels = static_cast<int64_t>(y_end - y_begin) * shape.width;
    memset(pixels, 0, static_cast<size_t>(band_pixels * pitch) * sizeof(A));
    for (int64_t i = plan.image_begin[n]; i < plan.image_begin[n + 1]; ++i) {
      const int64_t k = plan.order[i];
      const RecordHeader& rect = roi_rectangle(plan, k);
      if (rect.y_last < y_begin || rect.y_first >= y_end || rect.x_last < rect.x_first) continue;
      const int64_t bin_stride = shape.channels_last ? shape.channels : 1;
      const int64_t channel_stride = shape.channels_last ? 1 : shape.bins();
      const int64_t at = k * shape.channels * shape.bins() + c * channel_stride;
      if constexpr (Boxes::kMaximum) {
        const int64_t next = plan.order[min_of(i + 1, plan.image_begin[n + 1] - 1)];
        maxima(params.grad_output, params.saved_argmax, k, next, c, channels,
               [&](const T* grad, const int32_t* argmax, int few, int count) {
                 Boxes::spread_maxima(grad, argmax, 1, shape.bins(), shape, plan.record(k), count, y_begin, y_end,
                                      pixels + few, pitch);
               });
      } else if (shape.channels_last) {
        Boxes::template spread<isa>(params.grad_output + at, bin_stride, shape, plan.record(k), channels, y_begin,
                                    y_end, pixels, pitch);
      } else {
        transpose_matrix<isa>(params.grad_output + at, shape.bins(), bins.template as<A>(), pitch, channels,
                              shape.bins());
        Boxes::template spread<isa>(bins.template as<A>(), pitch, shape, plan.record(k), channels, y_begin, y_end,
                                    pixels, pitch);
      }
    }
    const int64_t from = static_cast<int64_t>(y_begin) * shape.width;
    if (shape.channels_last) {
      T* to = params.grad_input + (n * shape.pixels() + from) * shape.channels + c;
      using S = Simd<isa, A>;
      for (int64_t p = 0; p < band_pixels; ++p, to += shape.channels) {
        int v = 0;
        for (; v + S::kLanes <= channels; v += S::kLanes) S::store(to + v, S::load(pixels + p * pitch + v));
        for (; v < channels; ++v) to[v] = from_acc<T>(pixels[p * pitch + v]);
      }
    } else {
      T* to = params.grad_input + (n * shape.channels + c) * shape.pixels() + from;
      transpose_matrix<isa>(pixels, pitch, to, shape.pixels(), band_pixels, channels);
    }
  }
}

// ---- gradient with respect to the boxes (roi_boxes.h): cut as the forward pass; a part is a tile of channels, or all of them
// in a channels-last input

CVK_HD int64_t roi_boxes_parts(const RoiShape& shape) {
  const int64_t tiles = ceil_div<int64_t>(shape.channels, kRoiChannelTile);
  return shape.channels_last ? min_of<int64_t>(tiles, 1) : tiles;
}

// The work items [first, last) as roi_forward_items cut them.
template <Isa isa, class T>
CVK_HD void roi_boxes_backward(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const RoiPlan& plan = params.plan;
  A sums[kRoiSums];
  if (shape.channels_last) {
    const int channels = static_cast<int>(shape.channels);
    const Scratch widened(std::is_same_v<T, A> ? 0 : channels * sizeof(A));
    for (int64_t k = first; k < last; ++k) {
      const auto view =
          whole_image(params.input + plan.image_of[k] * shape.pixels() * shape.channels, shape.channels, shape.width);
      differentiate_box<isa, A>(view, shape, plan.record(k), params.grad_output + k * shape.bins() * shape.channels,
                                shape.channels, channels, widened.template as<A>(), sums);
      memcpy(params.sums + k * kRoiSums, sums, sizeof(sums));
    }
    return;
  }
  const int pitch = roi_pitch(shape);
  const Scratch bins(shape.bins() * pitch * sizeof(A));
  A* const grad = bins.template as<A>();
  roi_visit<isa>(shape, plan, params.input, first, last, [&](int64_t k, int64_t c, int channels, const auto& view) {
    transpose_matrix<isa>(params.grad_output + (k * shape.channels + c) * shape.bins(), shape.bins(), grad, pitch,
                          channels, shape.bins());
    differentiate_box<isa, A>(view, shape, plan.record(k), grad, pitch, channels, static_cast<A*>(nullptr), sums);
    A* const to = params.sums + (k * params.parts + c / kRoiChannelTile) * kRoiSums;
    const bool begins = c % kRoiChannelTile == 0;  // planes come one channel at a time
    for (int i = 0; i < kRoiSums; ++i) to[i] = begins ? sums[i] : to[i] + sums[i];
  });
}

}  // namespace cvk
