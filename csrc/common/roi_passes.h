// The passes of RoI operators on the CPU: how forward and backward are cut into work items, and the loops over them. What a
// box does with the pixels that it is given is the operator's own.
//
// Params has shape, plan, input and output (forward), grad_output and grad_input (backward), and where it takes maxima argmax
// and saved_argmax. With `levels` (roi_levels.h) in place of input and grad_input the boxes are pooled from maps of several
// sizes; shape is then that of level 0. Boxes is a class of static functions, all of them CVK_HD:
//
//   Index
//       What the index that goes with each value is in memory: int16_t or int32_t; void where none does.
//   pool<isa>(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out, I* argmax, int64_t stride)
//       out[bin * stride + c] for the channels [0, channels) of the view, and argmax alike (null where Index is void); I is
//       Index, or int32_t on the way to planes.
//   spread<isa>(const G* grad, int64_t stride, const RoiShape& shape, char* record, int channels, int y_begin, int y_end,
//               A* pixels, int pitch)
//       Adds the gradient grad[bin * stride + c] to the pixels of rows [y_begin, y_end), channels-last with `pitch`
//       elements a pixel, pixel (y_begin, 0) first.
//   spread_maxima(const G* grad, const Index* argmax, const RoiShape& shape, char* record, int channels, int y_begin, int y_end,
//                 const RoiBand<A>& band)
//       The same of maxima: grad and argmax lie in planes of bins.
//
// A record begins with a RecordHeader.
#pragma once

#include <cstdint>

#include "common/roi_indices.h"
#include "common/roi_levels.h"
#include "common/roi_maxima.h"
#include "common/roi_plan.h"
#include "common/roi_pooling.h"
#include "common/roi_tuning.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/stream.h"

namespace cvk {

// The Boxes of a mean with separable taps.
template <class A>
struct RoiMeans {
  using Index = void;

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

// Whether Boxes has indices, and their type; where it has none any that compiles.
template <class Boxes>
inline constexpr bool kRoiMaximum = !std::is_void_v<typename Boxes::Index>;
template <class Boxes>
using RoiIndex = std::conditional_t<kRoiMaximum<Boxes>, typename Boxes::Index, int32_t>;

// Scratch elements per pixel or bin.
CVK_HD int roi_pitch(const RoiShape& shape) {
  return static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels));
}

// The rectangle of pixels that box k reads; may be empty.
CVK_HD const RecordHeader& roi_rectangle(const RoiPlan& plan, int64_t k) {
  return *reinterpret_cast<const RecordHeader*>(plan.record(k));
}

// ---- levels: Params of one map look like those of a single level

template <class Params, class = void>
inline constexpr bool kRoiHasLevels = false;
template <class Params>
inline constexpr bool kRoiHasLevels<Params, std::void_t<decltype(Params::levels)>> = true;

template <class Params>
CVK_HD int roi_level_count(const Params& params) {
  if constexpr (kRoiHasLevels<Params>) {
    return params.levels.count;
  } else {
    return 1;
  }
}

template <class Params>
CVK_HD RoiShape roi_level_shape(const Params& params, int level) {
  if constexpr (kRoiHasLevels<Params>) {
    return roi_shape_of(params.shape, params.levels.maps[level]);
  } else {
    return params.shape;
  }
}

// One image of one level.
template <class T>
struct RoiSource {
  RoiShape shape;
  const T* image;  // [C, H, W] or channels-last
};

template <class T, class Params>
CVK_HD RoiSource<T> roi_source(const Params& params, int64_t image) {
  const int level = static_cast<int>(image / params.shape.batch);
  RoiSource<T> source{roi_level_shape(params, level), nullptr};
  if constexpr (kRoiHasLevels<Params>) {
    source.image = params.levels.maps[level].input;
  } else {
    source.image = params.input;
  }
  source.image += image % params.shape.batch * source.shape.channels * source.shape.pixels();
  return source;
}

// ---- forward

// Forward of a contiguous input. `per_image`: an item is (channel tile, chunk of boxes in the order of work) over scratch
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

// Pixels of the largest map.
template <class Params>
CVK_HD int64_t roi_most_pixels(const Params& params) {
  int64_t most = 0;
  for (int level = 0; level < roi_level_count(params); ++level) {
    most = max_of(most, roi_level_shape(params, level).pixels());
  }
  return most;
}

// Whether copying whole images to channels-last moves fewer pixels than copying each box's rectangle.
template <Isa isa, class T, class Params>
CVK_HD bool roi_copies_images(const Params& params) {
  using A = Acc<T>;
  const RoiPlan& plan = params.plan;
  const int64_t images = roi_level_count(params) * params.shape.batch;
  if (roi_most_pixels(params) * roi_pitch(params.shape) * static_cast<int64_t>(sizeof(A)) > kRoiScratchBytes) {
    return false;
  }
  int64_t by_box = 0, by_image = 0;
  for (int64_t n = 0; n < images; ++n) {
    if (plan.image_begin[n + 1] == plan.image_begin[n]) continue;
    const RoiShape shape = roi_source<T>(params, n).shape;
    by_image += shape.pixels();
    for (int64_t i = plan.image_begin[n]; i < plan.image_begin[n + 1]; ++i) {
      by_box += rectangle_pixels(widened<isa, A>(shape, roi_rectangle(plan, plan.order[i])));
    }
  }
  return by_box >= by_image;
}

// Chooses how to cut the forward pass; returns the number of work items.
template <Isa isa, class T, class Params>
CVK_HD int64_t roi_forward_items(Params& params) {
  RoiPlan& plan = params.plan;
  plan.copy_images = !params.shape.channels_last && roi_copies_images<isa, T>(params);
  const RoiForwardCut cut = roi_forward_cut(params.shape, plan);
  return cut.per_image ? cut.tiles * cut.chunks : params.shape.boxes;
}

// The scratch of a box's bins: channels-last, and again as planes; with indices where there are some.
template <class Boxes, class A>
class RoiBinScratch {
 public:
  CVK_HD explicit RoiBinScratch(const RoiShape& shape)
      : values_(2 * shape.bins() * roi_pitch(shape) * sizeof(A)),
        indices_(kRoiMaximum<Boxes> ? shape.bins() * roi_pitch(shape) * sizeof(int32_t) : 0) {}
  CVK_HD ~RoiBinScratch() {}  // inline: see the note on symbols in csrc/README.md
  CVK_HD A* values() const { return values_.template as<A>(); }
  CVK_HD int32_t* indices() const { return indices_.template as<int32_t>(); }

 private:
  Scratch values_, indices_;
};

// A run of results, past the caches if `stream`.
template <Isa isa>
CVK_HD void roi_store_run(void* to, const void* from, int64_t bytes, bool stream) {
  if (stream) {
    stream_copy<isa>(to, from, bytes);
  } else {
    memcpy(to, from, static_cast<size_t>(bytes));
  }
}

// One box of a contiguous input: channels [c, c + channels) from `view` into output[k], through the bins' scratch.
template <Isa isa, class Boxes, class Params, class E, class A>
CVK_HD void roi_pool_contiguous(const Params& params, const RoiShape& shape, int64_t k, int64_t c, int channels,
                                const View<E>& view, const RoiBinScratch<Boxes, A>& scratch, bool stream) {
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
  roi_store_run<isa>(output, planes, count * static_cast<int64_t>(sizeof(*output)), stream);
  if constexpr (kRoiMaximum<Boxes>) {
    using Index = RoiIndex<Boxes>;
    auto* const words = reinterpret_cast<WordOf<Index>*>(planes);
    transpose_matrix<isa>(reinterpret_cast<const word_t*>(scratch.indices()), pitch, words, shape.bins(), shape.bins(),
                          channels);
    roi_store_run<isa>(roi_indices<Index>(params.argmax) + at, words, count * static_cast<int64_t>(sizeof(Index)),
                       stream);
  }
}

template <Isa isa, class Boxes, class T, class Params>
CVK_HD void roi_forward_channels_last(const Params& params, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const int64_t k = params.plan.order[i];
    const RoiSource<T> source = roi_source<T>(params, params.plan.image_of[k]);
    const RoiShape& shape = source.shape;
    const auto view = whole_image(source.image, shape.channels, shape.width);
    const int64_t at = k * shape.bins() * shape.channels;
    RoiIndex<Boxes>* argmax = nullptr;
    if constexpr (kRoiMaximum<Boxes>) argmax = roi_indices<RoiIndex<Boxes>>(params.argmax) + at;
    Boxes::template pool<isa>(view, shape, params.plan.record(k), static_cast<int>(shape.channels), params.output + at,
                              argmax, shape.channels);
  }
}

// f(k, shape, c, channels, view) for the boxes k and tiles of channels [c, c + channels) of the work items [first, last) over
// contiguous maps; the view has those channels of the pixels that the box reads, shape is that of the box's level.
template <Isa isa, class T, class Params, class F>
CVK_HD void roi_visit_per_image(const Params& params, int64_t first, int64_t last, F&& f) {
  using A = Acc<T>;
  const RoiPlan& plan = params.plan;
  const RoiForwardCut cut = roi_forward_cut(params.shape, plan);
  const int pitch = roi_pitch(params.shape);
  const Scratch tile(roi_most_pixels(params) * pitch * sizeof(A));
  RoiSource<T> source{};
  View<A> view{};
  int64_t loaded_image = -1, loaded_channel = -1;
  for (int64_t item = first; item < last; ++item) {
    const int64_t c = item / cut.chunks * kRoiChannelTile;
    const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, params.shape.channels - c));
    const int64_t begin = item % cut.chunks * kRoiBoxChunk;
    const int64_t end = min_of(begin + kRoiBoxChunk, params.shape.boxes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = plan.order[i], n = plan.image_of[k];
      if (n != loaded_image || c != loaded_channel) {
        source = roi_source<T>(params, n);
        const RecordHeader whole{0, source.shape.height - 1, 0, source.shape.width - 1, 0, 0};
        view = load_rectangle<isa>(source.image, source.shape, c, channels, pitch, whole, tile.template as<A>());
        loaded_image = n;
        loaded_channel = c;
      }
      f(k, source.shape, c, channels, view);
    }
  }
}

template <Isa isa, class T, class Params, class F>
CVK_HD void roi_visit_per_box(const Params& params, int64_t first, int64_t last, F&& f) {
  using A = Acc<T>;
  const RoiPlan& plan = params.plan;
  const int pitch = roi_pitch(params.shape);
  const int64_t most_in_scratch = kRoiScratchBytes / (pitch * static_cast<int64_t>(sizeof(A)));
  int64_t most_pixels = 1;  // some memory also for views of nothing
  for (int64_t i = first; i < last; ++i) {
    const int64_t k = plan.order[i];
    const RoiShape shape = roi_source<T>(params, plan.image_of[k]).shape;
    const int64_t pixels = rectangle_pixels(widened<isa, A>(shape, roi_rectangle(plan, k)));
    if (pixels <= most_in_scratch) most_pixels = max_of(most_pixels, pixels);
  }
  const Scratch tile(most_pixels * pitch * sizeof(A));
  for (int64_t i = first; i < last; ++i) {
    const int64_t k = plan.order[i];
    const RoiSource<T> source = roi_source<T>(params, plan.image_of[k]);
    const RoiShape& shape = source.shape;
    const RecordHeader rect = widened<isa, A>(shape, roi_rectangle(plan, k));
    if (rectangle_pixels(rect) > most_in_scratch) {  // read the planes in place, one channel at a time
      for (int64_t c = 0; c < shape.channels; ++c) {
        f(k, shape, c, 1, whole_image(source.image + c * shape.pixels(), 1, shape.width));
      }
      continue;
    }
    for (int64_t c = 0; c < shape.channels; c += kRoiChannelTile) {
      const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels - c));
      const View<A> view =
          rectangle_pixels(rect) == 0
              ? View<A>{tile.template as<A>(), pitch, 0, 0, 0}  // reads nothing
              : load_rectangle<isa>(source.image, shape, c, channels, pitch, rect, tile.template as<A>());
      f(k, shape, c, channels, view);
    }
  }
}

template <Isa isa, class T, class Params, class F>
CVK_HD void roi_visit(const Params& params, int64_t first, int64_t last, F&& f) {
  if (params.plan.copy_images) {
    roi_visit_per_image<isa, T>(params, first, last, f);
  } else {
    roi_visit_per_box<isa, T>(params, first, last, f);
  }
}

// The work items [first, last) of the forward pass as roi_forward_items cut it.
template <Isa isa, class Boxes, class T, class Params>
CVK_HD void roi_forward(const Params& params, int64_t first, int64_t last) {
  const RoiShape& base = params.shape;
  if (base.channels_last) {
    roi_forward_channels_last<isa, Boxes, T>(params, first, last);
    return;
  }
  const RoiBinScratch<Boxes, Acc<T>> bins(base);
  const bool stream =
      base.boxes * base.channels * base.bins() * static_cast<int64_t>(sizeof(*params.output)) >= kRoiStreamBytes;
  roi_visit<isa, T>(params, first, last,
                    [&](int64_t k, const RoiShape& shape, int64_t c, int channels, const auto& view) {
                      roi_pool_contiguous<isa>(params, shape, k, c, channels, view, bins, stream);
                    });
  if (stream) stream_fence();
}

// ---- backward: an item owns one image, one tile of channels and a band of rows

struct RoiBackwardCut {
  int64_t tiles, bands;
  int rows;  // of a band

  CVK_HD int64_t items(int64_t batch) const { return batch * tiles * bands; }
};

template <class A>
CVK_HD RoiBackwardCut roi_backward_cut(const RoiShape& shape) {
  RoiBackwardCut cut{0, 0, 0};
  if (shape.pixels() == 0) return cut;
  cut.tiles = ceil_div<int64_t>(shape.channels, kRoiChannelTile);
  const int64_t row_bytes = static_cast<int64_t>(shape.width) * roi_pitch(shape) * sizeof(A);
  const int64_t rows = max_of<int64_t>(1, kRoiBandBytes / max_of<int64_t>(1, row_bytes));
  cut.rows = static_cast<int>(min_of<int64_t>(rows, shape.height));
  cut.bands = ceil_div<int64_t>(shape.height, cut.rows);
  return cut;
}

template <class T, class Params>
CVK_HD int64_t roi_backward_items(const Params& params) {
  int64_t items = 0;
  for (int level = 0; level < roi_level_count(params); ++level) {
    items += roi_backward_cut<Acc<T>>(roi_level_shape(params, level)).items(params.shape.batch);
  }
  return items;
}

// The items [first, last) of one level, whose images are numbered from `first_image` on.
template <Isa isa, class Boxes, class T, class Params>
CVK_HD void roi_backward_of_level(const Params& params, const RoiShape& shape, int64_t first_image, T* grad_input,
                                  int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiPlan& plan = params.plan;
  const RoiBackwardCut cut = roi_backward_cut<A>(shape);
  const int pitch = roi_pitch(shape);
  const Scratch band(static_cast<int64_t>(cut.rows) * shape.width * pitch * sizeof(A));
  const Scratch bins(shape.channels_last || kRoiMaximum<Boxes> ? 0 : shape.bins() * pitch * sizeof(A));
  A* const pixels = band.template as<A>();
  const auto maxima = [&] {
    if constexpr (kRoiMaximum<Boxes>) {
      return RoiMaxima<isa, Boxes, T>(params, shape, pitch);
    } else {
      return 0;
    }
  }();
  for (int64_t item = first; item < last; ++item) {
    // Images innermost: where one image has most boxes, every thread gets its share of them.
    const int64_t n = item % shape.batch, image = first_image + n;
    const int64_t c = item / (shape.batch * cut.bands) * kRoiChannelTile;
    const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels - c));
    const int y_begin = static_cast<int>(item / shape.batch % cut.bands) * cut.rows;
    const int y_end = static_cast<int>(min_of<int64_t>(int64_t{y_begin} + cut.rows, shape.height));
    const int64_t band_pixels = static_cast<int64_t>(y_end - y_begin) * shape.width;
    memset(pixels, 0, static_cast<size_t>(band_pixels * pitch) * sizeof(A));
    const auto over_boxes = [&](auto&& f) {
      const int64_t last_box = plan.image_begin[image + 1] - 1;
      for (int64_t i = plan.image_begin[image]; i <= last_box; ++i) {
        const int64_t k = plan.order[i];
        const RecordHeader& rect = roi_rectangle(plan, k);
        if (rect.y_last < y_begin || rect.y_first >= y_end || rect.x_last < rect.x_first) continue;
        f(k, plan.order[min_of(i + 1, last_box)]);
      }
    };
    if constexpr (kRoiMaximum<Boxes>) {
      maxima.spread(c, channels, y_begin, y_end, pixels, over_boxes);
    } else {
      over_boxes([&](int64_t k, int64_t) {
        const int64_t at = k * shape.channels * shape.bins() + c * (shape.channels_last ? 1 : shape.bins());
        const T* const grad = params.grad_output + at;
        if (shape.channels_last) {
          Boxes::template spread<isa>(grad, shape.channels, shape, plan.record(k), channels, y_begin, y_end, pixels,
                                      pitch);
        } else {
          transpose_matrix<isa>(grad, shape.bins(), bins.template as<A>(), pitch, channels, shape.bins());
          Boxes::template spread<isa>(bins.template as<A>(), pitch, shape, plan.record(k), channels, y_begin, y_end,
                                      pixels, pitch);
        }
      });
    }
    const int64_t from = static_cast<int64_t>(y_begin) * shape.width;
    if (shape.channels_last) {
      T* to = grad_input + (n * shape.pixels() + from) * shape.channels + c;
      using S = Simd<isa, A>;
      for (int64_t p = 0; p < band_pixels; ++p, to += shape.channels) {
        int v = 0;
        for (; v + S::kLanes <= channels; v += S::kLanes) S::store(to + v, S::load(pixels + p * pitch + v));
        for (; v < channels; ++v) to[v] = from_acc<T>(pixels[p * pitch + v]);
      }
    } else {
      T* to = grad_input + (n * shape.channels + c) * shape.pixels() + from;
      if constexpr (kRoiMaximum<Boxes>) {
        for (int v = 0; v < channels; ++v) {
          convert_row<isa>(pixels + v * band_pixels, to + v * shape.pixels(), band_pixels);
        }
      } else {
        transpose_matrix<isa>(pixels, pitch, to, shape.pixels(), band_pixels, channels);
      }
    }
  }
}

// The work items [first, last) of the gradient with respect to the input.
template <Isa isa, class Boxes, class T, class Params>
CVK_HD void roi_backward(const Params& params, int64_t first, int64_t last) {
  const int64_t batch = params.shape.batch;
  int64_t level_begin = 0;
  for (int level = 0; level < roi_level_count(params); ++level) {
    const RoiShape shape = roi_level_shape(params, level);
    const int64_t items = roi_backward_cut<Acc<T>>(shape).items(batch);
    const int64_t begin = max_of<int64_t>(first - level_begin, 0), end = min_of(last - level_begin, items);
    level_begin += items;
    if (begin >= end) continue;
    T* grad_input;
    if constexpr (kRoiHasLevels<Params>) {
      grad_input = params.levels.maps[level].grad_input;
    } else {
      grad_input = params.grad_input;
    }
    roi_backward_of_level<isa, Boxes, T>(params, shape, level * batch, grad_input, begin, end);
  }
}

// ---- sums over channels of gradients times pixels, for gradients of boxes and offsets: cut as the forward pass; a part is a tile
// of channels, or all of them in a channels-last input

CVK_HD int64_t roi_gradient_parts(const RoiShape& shape) {
  const int64_t tiles = ceil_div<int64_t>(shape.channels, kRoiChannelTile);
  return shape.channels_last ? min_of<int64_t>(tiles, 1) : tiles;
}

// f(k, part, begins, view, grad, stride, channels, widened) for the work items [first, last) as roi_forward_items cut them: the
// pixels of box k in a part's channels, and grad[bin * stride + c]. `begins` is false where the call adds to the part that the
// call before began. `widened` is what `widen` takes.
template <Isa isa, class T, class Params, class F>
CVK_HD void roi_visit_gradients(const Params& params, int64_t first, int64_t last, F&& f) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const RoiPlan& plan = params.plan;
  if (shape.channels_last) {
    const int channels = static_cast<int>(shape.channels);
    const Scratch widened(std::is_same_v<T, A> ? 0 : channels * sizeof(A));
    for (int64_t i = first; i < last; ++i) {
      const int64_t k = plan.order[i];
      const auto view =
          whole_image(params.input + plan.image_of[k] * shape.pixels() * shape.channels, shape.channels, shape.width);
      f(k, int64_t{0}, true, view, params.grad_output + k * shape.bins() * shape.channels, shape.channels, channels,
        widened.template as<A>());
    }
    return;
  }
  const int pitch = roi_pitch(shape);
  const Scratch bins(shape.bins() * pitch * sizeof(A));
  const A* const grad = bins.template as<A>();
  roi_visit<isa, T>(params, first, last, [&](int64_t k, const RoiShape&, int64_t c, int channels, const auto& view) {
    transpose_matrix<isa>(params.grad_output + (k * shape.channels + c) * shape.bins(), shape.bins(),
                          bins.template as<A>(), pitch, channels, shape.bins());
    const bool begins = c % kRoiChannelTile == 0;  // planes come one channel at a time
    f(k, c / kRoiChannelTile, begins, view, grad, int64_t{pitch}, channels, static_cast<A*>(nullptr));
  });
}

// The gradient with respect to the boxes (roi_boxes.h).
template <Isa isa, class T>
CVK_HD void roi_boxes_backward(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  roi_visit_gradients<isa, T>(params, first, last,
                              [&](int64_t k, int64_t part, bool begins, const auto& view, const auto* grad,
                                  int64_t stride, int channels, A* widened) {
                                A sums[kRoiSums];
                                differentiate_box<isa, A>(view, params.shape, params.plan.record(k), grad, stride,
                                                          channels, widened, sums);
                                A* const to = params.sums + (k * params.parts + part) * kRoiSums;
                                for (int i = 0; i < kRoiSums; ++i) to[i] = begins ? sums[i] : to[i] + sums[i];
                              });
}

}  // namespace cvk
