// RoI Align on the CPU: loops over a slice of boxes or work items. Contract and method: roi_align.h.
#include "kernels/roi_align/roi_align.h"

#include "common/roi_plan.h"
#include "common/roi_pooling.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/roi_align/roi_align_math.h"

namespace cvk {
namespace {

// ---- the maximum

// First sample of a bin, in index order, that lies outside; -1 when all are inside.
template <class A>
CVK_HD int first_outside(const Sample<A>* y, int y_count, int grid_y, const Sample<A>* x, int x_count, int grid_x) {
  int y_gap = 0, x_gap = 0;
  while (y_gap < y_count && y[y_gap].index == y_gap) ++y_gap;
  while (x_gap < x_count && x[x_gap].index == x_gap) ++x_gap;
  const int by_y = y_gap < grid_y ? y_gap * grid_x : -1;
  const int by_x = x_gap < grid_x && grid_y > 0 ? x_gap : -1;
  if (by_y < 0) return by_x;
  if (by_x < 0) return by_y;
  return min_of(by_y, by_x);
}

template <Isa isa, class E, class A, class Out>
CVK_HD void pool_bin(const View<E>& view, const Sample<A>* y, int y_count, const Sample<A>* x, int x_count, int grid_y,
                     int grid_x, int channels, Out* out, int32_t* argmax) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  if (grid_y == 0 || grid_x == 0) {
    for (int c = 0; c < channels; ++c) {
      out[c] = from_acc<Out>(A(0));
      argmax[c] = -1;
    }
    return;
  }
  const int outside = first_outside(y, y_count, grid_y, x, x_count, grid_x);
  for (int c = 0; c < channels; c += kLanes) {
    const int count = min_of(kLanes, channels - c);
    typename S::Vec best{};
    typename S::IntVec best_index = typename S::IntVec{} - 1;
    bool started = false;
    for (int i = 0; i < y_count; ++i) {
      const BilinearAxis<A>& ya = y[i].axis;
      for (int j = 0; j < x_count; ++j) {
        const BilinearAxis<A>& xa = x[j].axis;
        const E* corners[4] = {view.pixel(ya.low, xa.low) + c, view.pixel(ya.low, xa.high) + c,
                               view.pixel(ya.high, xa.low) + c, view.pixel(ya.high, xa.high) + c};
        const A weights[4] = {ya.low_weight * xa.low_weight, ya.low_weight * xa.high_weight,
                              ya.high_weight * xa.low_weight, ya.high_weight * xa.high_weight};
        typename S::Vec value{};
        for (int k = 0; k < 4; ++k) {
          const typename S::Vec f = count == kLanes ? S::load(corners[k]) : S::load_partial(corners[k], count);
          value = S::mul_add(S::broadcast(weights[k]), f, value);
        }
        const typename S::IntVec index = typename S::IntVec{} + (y[i].index * grid_x + x[j].index);
        if (!started) {
          best = value;
          best_index = index;
          started = true;
        } else {
          const typename S::IntVec better = (value > best) | ((value != value) & (best == best));
          best = better ? value : best;
          best_index = better ? index : best_index;
        }
      }
    }
    if (outside >= 0) {  // an outside sample competes with the value 0 and passes no gradient on
      const typename S::Vec zero{};
      typename S::IntVec none = typename S::IntVec{} - 1;
      typename S::IntVec wins = (zero > best) | ((zero == best) & (best_index > outside));
      if (!started) wins = none;
      best = wins ? zero : best;
      best_index = wins ? none : best_index;
    }
    typename S::IntElement indices[kLanes];
    memcpy(indices, &best_index, sizeof(indices));
    for (int v = 0; v < count; ++v) argmax[c + v] = static_cast<int32_t>(indices[v]);
    if (count == kLanes) {
      S::store(out + c, best);
    } else {
      S::store_partial(out + c, best, count);
    }
  }
}

template <Isa isa, class E, class A, class Out>
CVK_HD void pool_box_max(const View<E>& view, const RoiShape& shape, char* arena, int channels, Out* out,
                         int32_t* argmax, int64_t out_stride) {
  const auto record = finished_record_at<A, Sample<A>>(arena, shape.pooled_height, shape.pooled_width);
  for (int i = 0; i < shape.pooled_height; ++i) {
    const int y0 = record.y_begin[i], y1 = record.y_begin[i + 1];
    for (int j = 0; j < shape.pooled_width; ++j, out += out_stride, argmax += out_stride) {
      const int x0 = record.x_begin[j], x1 = record.x_begin[j + 1];
      pool_bin<isa>(view, record.y + y0, y1 - y0, record.x + x0, x1 - x0, record.header->grid_y, record.header->grid_x,
                    channels, out, argmax);
    }
  }
}

template <class G, class A>
CVK_HD void spread_box_max(const G* grad, const int32_t* argmax, int64_t bin_stride, int64_t channel_stride,
                           const RoiShape& shape, char* arena, int channels, int y_begin, int y_end, A* scratch,
                           int pitch) {
  const auto record = finished_record_at<A, Sample<A>>(arena, shape.pooled_height, shape.pooled_width);
  const int grid_x = record.header->grid_x;
  for (int i = 0; i < shape.pooled_height; ++i) {
    for (int j = 0; j < shape.pooled_width; ++j, grad += bin_stride, argmax += bin_stride) {
      for (int c = 0; c < channels; ++c) {
        const int index = argmax[c * channel_stride];
        if (index < 0 || grid_x <= 0) continue;
        // Entries are in index order but the outside ones are missing: look the sample up. A foreign argmax finds none.
        const Sample<A>* y = record.y + record.y_begin[i];
        const Sample<A>* y_end_entry = record.y + record.y_begin[i + 1];
        while (y != y_end_entry && y->index != index / grid_x) ++y;
        const Sample<A>* x = record.x + record.x_begin[j];
        const Sample<A>* x_end_entry = record.x + record.x_begin[j + 1];
        while (x != x_end_entry && x->index != index % grid_x) ++x;
        if (y == y_end_entry || x == x_end_entry) continue;
        const A g = to_acc(grad[c * channel_stride]);
        const int rows[2] = {y->axis.low, y->axis.high};
        const A row_weights[2] = {y->axis.low_weight, y->axis.high_weight};
        for (int r = 0; r < 2; ++r) {
          if (rows[r] < y_begin || rows[r] >= y_end) continue;
          A* row = scratch + static_cast<int64_t>(rows[r] - y_begin) * shape.width * pitch + c;
          row[static_cast<int64_t>(x->axis.low) * pitch] += row_weights[r] * x->axis.low_weight * g;
          row[static_cast<int64_t>(x->axis.high) * pitch] += row_weights[r] * x->axis.high_weight * g;
        }
      }
    }
  }
}

// ---- how a pass is cut into work items

// Scratch elements per pixel or bin.
CVK_HD int pitch_of(const RoiShape& shape) {
  return static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels));
}

// Forward of a contiguous input. `per_image`: an item is (channel tile, chunk of boxes in image order) over scratch
// copies of whole image tiles; otherwise an item is a box over a scratch copy of the rectangle that it reads.
struct ForwardCut {
  bool per_image;
  int64_t tiles, chunks;
};

template <class T>
CVK_HD ForwardCut forward_cut(const RoiAlignParams<T>& params) {
  ForwardCut cut;
  cut.per_image = params.plan.copy_images;
  cut.tiles = ceil_div<int64_t>(params.shape.channels, kRoiChannelTile);
  cut.chunks = ceil_div<int64_t>(params.shape.boxes, kRoiAlignBoxChunk);
  return cut;
}

// The rectangle of pixels that box k reads; may be empty.
template <class T>
CVK_HD const RecordHeader& rectangle_of(const RoiAlignParams<T>& params, int64_t k) {
  return *reinterpret_cast<const RecordHeader*>(params.plan.arena + params.plan.record_begin[k]);
}

struct BackwardCut {
  int64_t tiles, bands;
  int rows;  // of a band
};

template <class T>
CVK_HD BackwardCut backward_cut(const RoiShape& shape) {
  BackwardCut cut;
  cut.tiles = ceil_div<int64_t>(shape.channels, kRoiChannelTile);
  const int64_t row_bytes = static_cast<int64_t>(shape.width) * pitch_of(shape) * sizeof(Acc<T>);
  const int64_t rows = max_of<int64_t>(1, kRoiAlignBandBytes / max_of<int64_t>(1, row_bytes));
  cut.rows = static_cast<int>(min_of<int64_t>(rows, shape.height));
  cut.bands = ceil_div<int64_t>(shape.height, cut.rows);
  return cut;
}

// One box of a contiguous input: channels [c, c + channels) from `view` into output[k], through the bins' scratch.
template <Isa isa, class T, class E>
CVK_HD void pool_box_contiguous(const RoiAlignParams<T>& params, int64_t k, int64_t c, int channels,
                                const View<E>& view, Acc<T>* bins, int32_t* bin_indices) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const int pitch = pitch_of(shape);
  char* arena = params.plan.arena + params.plan.record_begin[k];
  const int64_t at = (k * shape.channels + c) * shape.bins();
  if (params.argmax != nullptr) {
    pool_box_max<isa, E, A>(view, shape, arena, channels, bins, bin_indices, pitch);
    for (int64_t bin = 0; bin < shape.bins(); ++bin) {
      for (int v = 0; v < channels; ++v) {
        params.argmax[at + v * shape.bins() + bin] = bin_indices[bin * pitch + v];
      }
    }
  } else {
    pool_box<isa, E, A>(view, shape, arena, channels, bins, pitch);
  }
  // Perf: the planes are put together in cache and leave as one run. Stored directly, the rows of a 16 x 16 transposition
  // open 16 cold cache lines at a time.
  T* planes = reinterpret_cast<T*>(bins + shape.bins() * pitch);
  transpose_matrix<isa>(bins, pitch, planes, shape.bins(), shape.bins(), channels);
  memcpy(params.output + at, planes, static_cast<size_t>(channels * shape.bins()) * sizeof(T));
}

template <Isa isa, class T>
CVK_HD void forward_channels_last(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const int channels = static_cast<int>(shape.channels);
  for (int64_t k = first; k < last; ++k) {
    const View<T> view{params.input + params.plan.image_of[k] * shape.pixels() * shape.channels, shape.channels,
                       shape.width * shape.channels, 0, 0};
    char* arena = params.plan.arena + params.plan.record_begin[k];
    const int64_t at = k * shape.bins() * shape.channels;
    if (params.argmax != nullptr) {
      pool_box_max<isa, T, A>(view, shape, arena, channels, params.output + at, params.argmax + at, shape.channels);
    } else {
      pool_box<isa, T, A>(view, shape, arena, channels, params.output + at, shape.channels);
    }
  }
}

template <Isa isa, class T>
CVK_HD void forward_per_image(const RoiAlignParams<T>& params, const ForwardCut& cut, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const RoiAlignPlan& plan = params.plan;
  const int pitch = pitch_of(shape);
  const Scratch tile(shape.pixels() * pitch * sizeof(A));
  const Scratch bins(2 * shape.bins() * pitch * sizeof(A));  // channels-last, then as planes
  const Scratch indices(params.argmax != nullptr ? shape.bins() * pitch * sizeof(int32_t) : 0);
  const RecordHeader whole{0, shape.height - 1, 0, shape.width - 1, 0, 0};
  View<A> view{};
  int64_t loaded_image = -1, loaded_channel = -1;
  for (int64_t item = first; item < last; ++item) {
    const int64_t c = item / cut.chunks * kRoiChannelTile;
    const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels - c));
    const int64_t begin = item % cut.chunks * kRoiAlignBoxChunk;
    const int64_t end = min_of(begin + kRoiAlignBoxChunk, shape.boxes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = plan.order[i], n = plan.image_of[k];
      if (n != loaded_image || c != loaded_channel) {
        view = load_rectangle<isa>(params.input + n * shape.channels * shape.pixels(), shape, c, channels, pitch, whole,
                                   tile.template as<A>());
        loaded_image = n;
        loaded_channel = c;
      }
      pool_box_contiguous<isa>(params, k, c, channels, view, bins.template as<A>(), indices.template as<int32_t>());
    }
  }
}

template <Isa isa, class T>
CVK_HD void forward_per_box(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const int pitch = pitch_of(shape);
  const int64_t most_in_scratch = kRoiAlignScratchBytes / (pitch * static_cast<int64_t>(sizeof(A)));
  int64_t most_pixels = 0;
  for (int64_t k = first; k < last; ++k) {
    const int64_t pixels = rectangle_pixels(widened<isa, A>(shape, rectangle_of(params, k)));
    if (pixels <= most_in_scratch) most_pixels = max_of(most_pixels, pixels);
  }
  const Scratch tile(most_pixels * pitch * sizeof(A));
  const Scratch bins(2 * shape.bins() * pitch * sizeof(A));  // channels-last, then as planes
  const Scratch indices(params.argmax != nullptr ? shape.bins() * pitch * sizeof(int32_t) : 0);
  for (int64_t k = first; k < last; ++k) {
    const RecordHeader rect = widened<isa, A>(shape, rectangle_of(params, k));
    const T* image = params.input + params.plan.image_of[k] * shape.channels * shape.pixels();
    if (rectangle_pixels(rect) > most_in_scratch) {  // read the planes in place, one channel at a time
      for (int64_t c = 0; c < shape.channels; ++c) {
        const View<T> plane{image + c * shape.pixels(), 1, shape.width, 0, 0};
        char* arena = params.plan.arena + params.plan.record_begin[k];
        const int64_t at = (k * shape.channels + c) * shape.bins();
        if (params.argmax != nullptr) {
          pool_box_max<isa, T, A>(plane, shape, arena, 1, params.output + at, params.argmax + at, 1);
        } else {
          pool_box<isa, T, A>(plane, shape, arena, 1, params.output + at, 1);
        }
      }
      continue;
    }
    for (int64_t c = 0; c < shape.channels; c += kRoiChannelTile) {
      const int channels = static_cast<int>(min_of<int64_t>(kRoiChannelTile, shape.channels - c));
      if (rectangle_pixels(rect) == 0) {  // reads nothing
        const int64_t at = (k * shape.channels + c) * shape.bins();
        for (int64_t i = 0; i < channels * shape.bins(); ++i) {
          params.output[at + i] = from_acc<T>(A(0));
          if (params.argmax != nullptr) params.argmax[at + i] = -1;
        }
        continue;
      }
      const View<A> view = load_rectangle<isa>(image, shape, c, channels, pitch, rect, tile.template as<A>());
      pool_box_contiguous<isa>(params, k, c, channels, view, bins.template as<A>(), indices.template as<int32_t>());
    }
  }
}

}  // namespace

template <Isa isa, class T>
int64_t roi_align_layout_cpu(RoiAlignParams<T>& params) {
  const RoiShape& shape = params.shape;
  RoiAlignPlan& plan = params.plan;
  for (int64_t n = 0; n <= shape.batch; ++n) plan.image_begin[n] = 0;
  int64_t bytes = 0;
  for (int64_t k = 0; k < shape.boxes; ++k) {
    const Acc<T>* box = params.boxes + k * 5;
    const int64_t n = roi_batch_index(box[0], shape.batch);
    if (n < 0) return -1 - k;
    plan.image_of[k] = n;
    ++plan.image_begin[n + 1];
    const BoxAxes<Acc<T>> axes = box_axes(shape, box);
    const int64_t y_samples = count_samples(axes.y, shape.pooled_height);
    const int64_t x_samples = count_samples(axes.x, shape.pooled_width);
    // Records index their entries, two per sample, by int.
    if (max_of(y_samples, x_samples) >= int64_t{1} << 30) return kRoiAlignTooManySamples;
    const int64_t samples = y_samples + x_samples;
    plan.record_begin[k] = bytes;
    bytes += params.maximum() ? record_bytes<Sample<Acc<T>>>(shape.pooled_height, shape.pooled_width, samples)
                              : record_bytes<Tap<Acc<T>>>(shape.pooled_height, shape.pooled_width, 2 * samples);
  }
  plan.record_begin[shape.boxes] = bytes;
  for (int64_t n = 0; n < shape.batch; ++n) plan.image_begin[n + 1] += plan.image_begin[n];
  // A stable counting sort; image_begin[n] runs ahead while it places and is set back afterwards.
  for (int64_t k = 0; k < shape.boxes; ++k) plan.order[plan.image_begin[plan.image_of[k]]++] = k;
  for (int64_t n = shape.batch; n > 0; --n) plan.image_begin[n] = plan.image_begin[n - 1];
  plan.image_begin[0] = 0;
  return bytes;
}

template <Isa isa, class T>
void roi_align_plan_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  for (int64_t k = first; k < last; ++k) {
    char* arena = params.plan.arena + params.plan.record_begin[k];
    if (params.maximum()) {
      plan_box<A, Sample<A>>(params.shape, params.boxes + k * 5, arena);
    } else {
      plan_box<A, Tap<A>>(params.shape, params.boxes + k * 5, arena);
    }
  }
}

template <Isa isa, class T>
int64_t roi_align_forward_items_cpu(RoiAlignParams<T>& params) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  RoiAlignPlan& plan = params.plan;
  plan.copy_images = false;
  if (shape.channels_last) return shape.boxes;
  const int64_t tile_bytes = shape.pixels() * pitch_of(shape) * static_cast<int64_t>(sizeof(A));
  if (tile_bytes <= kRoiAlignScratchBytes) {
    int64_t by_box = 0, by_image = 0;
    for (int64_t k = 0; k < shape.boxes; ++k)
      by_box += rectangle_pixels(widened<isa, A>(shape, rectangle_of(params, k)));
    for (int64_t n = 0; n < shape.batch; ++n) {
      if (plan.image_begin[n + 1] > plan.image_begin[n]) by_image += shape.pixels();
    }
    plan.copy_images = by_box >= by_image;  // whichever transposes fewer pixels
  }
  const ForwardCut cut = forward_cut(params);
  return cut.per_image ? cut.tiles * cut.chunks : shape.boxes;
}

template <Isa isa, class T>
void roi_align_forward_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  if (params.shape.channels_last) {
    forward_channels_last<isa>(params, first, last);
    return;
  }
  const ForwardCut cut = forward_cut(params);
  if (cut.per_image) {
    forward_per_image<isa>(params, cut, first, last);
  } else {
    forward_per_box<isa>(params, first, last);
  }
}

template <Isa isa, class T>
int64_t roi_align_backward_items_cpu(const RoiAlignParams<T>& params) {
  if (params.shape.pixels() == 0) return 0;
  const BackwardCut cut = backward_cut<T>(params.shape);
  return params.shape.batch * cut.tiles * cut.bands;
}

template <Isa isa, class T>
void roi_align_backward_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const RoiAlignPlan& plan = params.plan;
  const BackwardCut cut = backward_cut<T>(shape);
  const int pitch = pitch_of(shape);
  const Scratch band(static_cast<int64_t>(cut.rows) * shape.width * pitch * sizeof(A));
  const Scratch bins(shape.channels_last ? 0 : shape.bins() * pitch * sizeof(A));
  A* const pixels = band.template as<A>();
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
      char* arena = plan.arena + plan.record_begin[k];
      const RecordHeader& rect = rectangle_of(params, k);
      if (rect.y_last < y_begin || rect.y_first >= y_end || rect.x_last < rect.x_first) continue;
      const int64_t bin_stride = shape.channels_last ? shape.channels : 1;
      const int64_t channel_stride = shape.channels_last ? 1 : shape.bins();
      const int64_t at = k * shape.channels * shape.bins() + c * channel_stride;
      if (params.maximum()) {
        spread_box_max(params.grad_output + at, params.saved_argmax + at, bin_stride, channel_stride, shape, arena,
                       channels, y_begin, y_end, pixels, pitch);
      } else if (shape.channels_last) {
        spread_box<isa>(params.grad_output + at, bin_stride, shape, arena, channels, y_begin, y_end, pixels, pitch);
      } else {
        transpose_matrix<isa>(params.grad_output + at, shape.bins(), bins.template as<A>(), pitch, channels,
                              shape.bins());
        spread_box<isa>(bins.template as<A>(), pitch, shape, arena, channels, y_begin, y_end, pixels, pitch);
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

#define CVK_INSTANTIATE(T)                                                                          \
  template int64_t roi_align_layout_cpu<Isa::CVK_ISA, T>(RoiAlignParams<T>&);                       \
  template void roi_align_plan_cpu<Isa::CVK_ISA, T>(const RoiAlignParams<T>&, int64_t, int64_t);    \
  template int64_t roi_align_forward_items_cpu<Isa::CVK_ISA, T>(RoiAlignParams<T>&);                \
  template void roi_align_forward_cpu<Isa::CVK_ISA, T>(const RoiAlignParams<T>&, int64_t, int64_t); \
  template int64_t roi_align_backward_items_cpu<Isa::CVK_ISA, T>(const RoiAlignParams<T>&);         \
  template void roi_align_backward_cpu<Isa::CVK_ISA, T>(const RoiAlignParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
