// Separable RoI pooling of channels-last pixels on the CPU: the weighted mean of a bin, its adjoint, and the rectangles that they
// work on. SIMD runs along channels.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/roi_boxes.h"
#include "common/roi_plan.h"
#include "common/roi_tuning.h"
#include "common/simd.h"

namespace cvk {

// ---- a rectangle of one image in channels-last order, either the tensor itself or a scratch copy

template <class E>
struct View {
  const E* data;         // the first channel of pixel (y_first, x_first)
  int64_t pixel_stride;  // elements from one pixel to the next
  int64_t row_stride;
  int y_first, x_first;

  CVK_HD const E* pixel(int y, int x) const { return data + (y - y_first) * row_stride + (x - x_first) * pixel_stride; }
};

template <class E>
CVK_HD View<E> whole_image(const E* data, int64_t pixel_stride, int width) {
  return {data, pixel_stride, width * pixel_stride, 0, 0};
}

// Copies channels [c, c + channels) of a rectangle of a contiguous image into a scratch, channels last.
template <Isa isa, class T>
CVK_HD View<Acc<T>> load_rectangle(const T* image, const RoiShape& shape, int64_t c, int channels, int pitch,
                                   const RecordHeader& rect, Acc<T>* scratch) {
  const int width = rect.x_last - rect.x_first + 1;
  const T* plane = image + c * shape.pixels();
  if (width == shape.width) {  // whole rows: one transposition
    transpose_matrix<isa>(plane + static_cast<int64_t>(rect.y_first) * shape.width, shape.pixels(), scratch, pitch,
                          channels, static_cast<int64_t>(rect.y_last - rect.y_first + 1) * width);
  } else {
    for (int y = rect.y_first; y <= rect.y_last; ++y) {
      transpose_matrix<isa>(plane + static_cast<int64_t>(y) * shape.width + rect.x_first, shape.pixels(),
                            scratch + static_cast<int64_t>(y - rect.y_first) * width * pitch, pitch, channels, width);
    }
  }
  return View<Acc<T>>{scratch, pitch, static_cast<int64_t>(width) * pitch, rect.y_first, rect.x_first};
}

// ---- one bin

// The x taps of a bin: kTaps of them, at least one, in registers; 0 stands for any number, left in memory.
template <Isa isa, int kTaps, class A>
struct XTaps {
  typename Simd<isa, A>::Vec weight[kTaps];
  int64_t offset[kTaps];  // from the first pixel of a row

  template <class E>
  CVK_HD XTaps(const View<E>& view, const Tap<A>* x, int) {
    for (int t = 0; t < kTaps; ++t) {
      weight[t] = Simd<isa, A>::broadcast(x[t].weight);
      offset[t] = (x[t].pixel - view.x_first) * view.pixel_stride;
    }
  }

  // kVecs vectors of channels of a row, summed over the taps.
  template <int kVecs, class E>
  CVK_HD void sum(const E* row, typename Simd<isa, A>::Vec (&result)[kVecs]) const {
    using S = Simd<isa, A>;
    for (int v = 0; v < kVecs; ++v) result[v] = weight[0] * S::load(row + offset[0] + v * S::kLanes);
#pragma GCC unroll 4
    for (int t = 1; t < kTaps; ++t) {
      for (int v = 0; v < kVecs; ++v) {
        result[v] = S::mul_add(weight[t], S::load(row + offset[t] + v * S::kLanes), result[v]);
      }
    }
  }
};

template <Isa isa, class A>
struct XTaps<isa, 0, A> {
  const Tap<A>* x;
  int count, x_first;
  int64_t pixel_stride;

  template <class E>
  CVK_HD XTaps(const View<E>& view, const Tap<A>* taps, int count)
      : x(taps), count(count), x_first(view.x_first), pixel_stride(view.pixel_stride) {}

  template <int kVecs, class E>
  CVK_HD void sum(const E* row, typename Simd<isa, A>::Vec (&result)[kVecs]) const {
    using S = Simd<isa, A>;
    typename S::Vec odd[kVecs];  // two chains of sums, because each waits for itself
    for (int v = 0; v < kVecs; ++v) result[v] = odd[v] = typename S::Vec{};
    int j = 0;
    for (; j + 2 <= count; j += 2) {
      add<kVecs>(row, j, result);
      add<kVecs>(row, j + 1, odd);
    }
    if (j < count) add<kVecs>(row, j, result);
    for (int v = 0; v < kVecs; ++v) result[v] += odd[v];
  }

 private:
  template <int kVecs, class E>
  CVK_HD void add(const E* row, int j, typename Simd<isa, A>::Vec (&to)[kVecs]) const {
    using S = Simd<isa, A>;
    const E* pixel = row + (x[j].pixel - x_first) * pixel_stride;
    const typename S::Vec weight = S::broadcast(x[j].weight);
    for (int v = 0; v < kVecs; ++v) to[v] = S::mul_add(weight, S::load(pixel + v * S::kLanes), to[v]);
  }
};

// The mean of one bin, kVecs vectors of channels at a time in registers: over x first.
template <Isa isa, int kVecs, int kTaps, class E, class A, class Out>
CVK_HD void pool_bin(const View<E>& view, const Tap<A>* y, int y_count, const Tap<A>* x, int x_count, int channels,
                     Out* out) {
  using S = Simd<isa, A>;
  const XTaps<isa, kTaps, A> taps(view, x, x_count);
  for (int c = 0; c < channels; c += kVecs * S::kLanes) {
    typename S::Vec sum[kVecs], along_x[kVecs];
    for (int v = 0; v < kVecs; ++v) sum[v] = typename S::Vec{};
    for (int i = 0; i < y_count; ++i) {
      taps.template sum<kVecs>(view.pixel(y[i].pixel, view.x_first) + c, along_x);
      const typename S::Vec weight = S::broadcast(y[i].weight);
      for (int v = 0; v < kVecs; ++v) sum[v] = S::mul_add(weight, along_x[v], sum[v]);
    }
    for (int v = 0; v < kVecs; ++v) S::store(out + c + v * S::kLanes, sum[v]);
  }
}

// The same of a single channel.
template <class E, class A, class Out>
CVK_HD void pool_bin_of_channel(const View<E>& view, const Tap<A>* y, int y_count, const Tap<A>* x, int x_count,
                                Out* out) {
  A sum = A(0);
  for (int i = 0; i < y_count; ++i) {
    A along_x = A(0);
    for (int j = 0; j < x_count; ++j) {
      along_x = mul_add(x[j].weight, to_acc(*view.pixel(y[i].pixel, x[j].pixel)), along_x);
    }
    sum = mul_add(y[i].weight, along_x, sum);
  }
  *out = from_acc<Out>(sum);
}

// The rectangle with its columns widened to whole vectors where the image has them: the transposition then runs in
// registers. An empty rectangle stays empty.
template <Isa isa, class A>
CVK_HD RecordHeader widened(const RoiShape& shape, RecordHeader rect) {
  if (rectangle_pixels(rect) == 0) return rect;
  const int width = round_up(rect.x_last - rect.x_first + 1, Simd<isa, A>::kLanes);
  if (width >= shape.width) {
    rect.x_first = 0;
    rect.x_last = shape.width - 1;
  } else {
    rect.x_first = min_of(rect.x_first, shape.width - width);
    rect.x_last = rect.x_first + width - 1;
  }
  return rect;
}

// ---- one box, channels [0, channels) of the view; out[bin * out_stride + channel]

// `channels` is a multiple of kVecs vectors, or with kVecs 0 it is 1. Perf: a function of its own, because within its callers the
// addresses do not fit into registers.
template <Isa isa, int kVecs, class Lists, class E, class A, class Out>
__attribute__((noinline)) void pool_bins(const View<E>& view, const RoiShape& shape, const Record<A, Tap<A>>& record,
                                         int channels, Out* out, int64_t out_stride) {
  for (int i = 0; i < shape.pooled_height; ++i) {
    for (int j = 0; j < shape.pooled_width; ++j, out += out_stride) {
      const int64_t y_list = Lists::y(shape, i, j), x_list = Lists::x(shape, i, j);
      const int y0 = record.y_begin[y_list], y_count = record.y_begin[y_list + 1] - y0;
      const int x0 = record.x_begin[x_list], x_count = record.x_begin[x_list + 1] - x0;
      const Tap<A>*y = record.y + y0, *x = record.x + x0;
      if constexpr (kVecs == 0) {
        pool_bin_of_channel(view, y, y_count, x, x_count, out);
      } else if (x_count == 2) {  // at sampling_ratio 2 a bin has two to four taps
        pool_bin<isa, kVecs, 2>(view, y, y_count, x, x_count, channels, out);
      } else if (x_count == 3) {
        pool_bin<isa, kVecs, 3>(view, y, y_count, x, x_count, channels, out);
      } else if (x_count == 4) {
        pool_bin<isa, kVecs, 4>(view, y, y_count, x, x_count, channels, out);
      } else {
        pool_bin<isa, kVecs, 0>(view, y, y_count, x, x_count, channels, out);
      }
    }
  }
}

template <Isa isa, class A, class Lists = SharedLists, class E, class Out>
CVK_HD void pool_box(View<E> view, const RoiShape& shape, char* arena, int channels, Out* out, int64_t out_stride) {
  constexpr int kLanes = Simd<isa, A>::kLanes;
  const auto record = finished_record_at<A, Tap<A>>(arena, Lists::y_lists(shape), Lists::x_lists(shape));
  for (int done; channels > 0; channels -= done, view.data += done, out += done) {
    if (channels >= 4 * kLanes) {
      done = channels / (4 * kLanes) * (4 * kLanes);
      pool_bins<isa, 4, Lists>(view, shape, record, done, out, out_stride);
    } else if (channels >= 2 * kLanes) {
      done = 2 * kLanes;
      pool_bins<isa, 2, Lists>(view, shape, record, done, out, out_stride);
    } else if (channels >= kLanes) {
      done = kLanes;
      pool_bins<isa, 1, Lists>(view, shape, record, done, out, out_stride);
    } else {
      done = 1;
      pool_bins<isa, 0, Lists>(view, shape, record, done, out, out_stride);
    }
  }
}

// One bin's gradient, kVecs vectors of channels, onto the pixels of its taps.
template <Isa isa, int kVecs, class G, class A>
CVK_HD void spread_bin(const G* grad, const Tap<A>* y, int y_count, const Tap<A>* x, int x_count, int y_begin,
                       int y_end, int width, A* scratch, int pitch) {
  using S = Simd<isa, A>;
  typename S::Vec g[kVecs];
  for (int v = 0; v < kVecs; ++v) g[v] = S::load(grad + v * S::kLanes);
  for (int m = 0; m < y_count; ++m) {
    if (y[m].pixel < y_begin || y[m].pixel >= y_end) continue;
    A* row = scratch + static_cast<int64_t>(y[m].pixel - y_begin) * width * pitch;
    for (int n = 0; n < x_count; ++n) {
      A* pixel = row + static_cast<int64_t>(x[n].pixel) * pitch;
      const typename S::Vec weight = S::broadcast(y[m].weight * x[n].weight);
      for (int v = 0; v < kVecs; ++v) {
        S::store(pixel + v * S::kLanes, S::mul_add(weight, g[v], S::load(pixel + v * S::kLanes)));
      }
    }
  }
}

// grad[bin * grad_stride + channel] spread over the pixels of rows [y_begin, y_end) of a zeroed channels-last scratch
// with `pitch` elements per pixel, pixel (y_begin, 0) first.
template <Isa isa, class Lists = SharedLists, class G, class A>
CVK_HD void spread_box(const G* grad, int64_t grad_stride, const RoiShape& shape, char* arena, int channels,
                       int y_begin, int y_end, A* scratch, int pitch) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  constexpr int kMost = kRoiChannelTile / kLanes > 0 ? kRoiChannelTile / kLanes : 1;
  const auto record = finished_record_at<A, Tap<A>>(arena, Lists::y_lists(shape), Lists::x_lists(shape));
  for (int i = 0; i < shape.pooled_height; ++i) {
    for (int j = 0; j < shape.pooled_width; ++j, grad += grad_stride) {
      const int64_t y_list = Lists::y(shape, i, j), x_list = Lists::x(shape, i, j);
      const Tap<A>* y = record.y + record.y_begin[y_list];
      const Tap<A>* x = record.x + record.x_begin[x_list];
      const int y_count = record.y_begin[y_list + 1] - record.y_begin[y_list];
      const int x_count = record.x_begin[x_list + 1] - record.x_begin[x_list];
      int c = 0;
      for (; c + kMost * kLanes <= channels; c += kMost * kLanes) {
        spread_bin<isa, kMost>(grad + c, y, y_count, x, x_count, y_begin, y_end, shape.width, scratch + c, pitch);
      }
      for (; c + kLanes <= channels; c += kLanes) {
        spread_bin<isa, 1>(grad + c, y, y_count, x, x_count, y_begin, y_end, shape.width, scratch + c, pitch);
      }
      for (; c < channels; ++c) {
        const A g = to_acc(grad[c]);
        for (int m = 0; m < y_count; ++m) {
          if (y[m].pixel < y_begin || y[m].pixel >= y_end) continue;
          A* row = scratch + static_cast<int64_t>(y[m].pixel - y_begin) * shape.width * pitch + c;
          for (int n = 0; n < x_count; ++n) {
            A& pixel = row[static_cast<int64_t>(x[n].pixel) * pitch];
            pixel = mul_add(y[m].weight * x[n].weight, g, pixel);
          }
        }
      }
    }
  }
}

// ---- the gradient with respect to a box (method: roi_boxes.h)

// Partial sums of the scalar product of a pixel and a gradient over their channels.
template <Isa isa, class E, class A>
CVK_HD typename Simd<isa, A>::Vec products(const E* pixel, const A* grad, int channels) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  typename S::Vec even{}, odd{};
  int c = 0;
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) {
    even = S::mul_add(S::load(grad + c), S::load(pixel + c), even);
    odd = S::mul_add(S::load(grad + c + kLanes), S::load(pixel + c + kLanes), odd);
  }
  if (c + kLanes <= channels) {
    even = S::mul_add(S::load(grad + c), S::load(pixel + c), even);
    c += kLanes;
  }
  even += odd;
  if (c < channels) {
    A rest = A(0);
    for (; c < channels; ++c) rest = mul_add(grad[c], to_acc(pixel[c]), rest);
    even[0] += rest;
  }
  return even;
}

// A bin's gradient in the arithmetic type: as it is, or in `widened` where G is narrower, so that a tap widens its pixel alone.
template <Isa isa, class A, class G>
CVK_HD const A* widen(const G* grad, int channels, A* widened) {
  using S = Simd<isa, A>;
  if constexpr (std::is_same_v<G, A>) {
    return grad;
  } else {
    int c = 0;
    for (; c + S::kLanes <= channels; c += S::kLanes) S::store(widened + c, S::load(grad + c));
    for (; c < channels; ++c) widened[c] = to_acc(grad[c]);
    return widened;
  }
}

// A bin's gradient over kVecs vectors of channels, in registers; 0 stands for any number of channels, left in memory.
template <Isa isa, int kVecs, class A>
struct BinGradient {
  using S = Simd<isa, A>;
  typename S::Vec grad[kVecs];

  CVK_HD BinGradient(const A* from, int /*channels*/) {
    for (int v = 0; v < kVecs; ++v) grad[v] = S::load(from + v * S::kLanes);
  }
  template <class E>
  CVK_HD typename S::Vec times(const E* pixel) const {
    typename S::Vec sum = grad[0] * S::load(pixel);
    for (int v = 1; v < kVecs; ++v) sum = S::mul_add(grad[v], S::load(pixel + v * S::kLanes), sum);
    return sum;
  }
};

template <Isa isa, class A>
struct BinGradient<isa, 0, A> {
  const A* grad;
  int channels;

  CVK_HD BinGradient(const A* from, int channels) : grad(from), channels(channels) {}
  template <class E>
  CVK_HD typename Simd<isa, A>::Vec times(const E* pixel) const {
    return products<isa>(pixel, grad, channels);
  }
};

// Partial sums of a box, a vector each.
template <Isa isa, class A>
using BoxSums = typename Simd<isa, A>::Vec[kRoiSums];

// Adds one bin. The x taps are kTaps, or with kTaps 0 any number. Perf: what a column of taps gives is added up over y first, so
// that its slopes count once per bin.
template <Isa isa, int kTaps, class E, class A, class Gradient>
CVK_HD void differentiate_bin(const View<E>& view, const SlopedTap<A>* y, int y_count, const SlopedTap<A>* x,
                              int x_count, const Gradient& gradient, BoxSums<isa, A>& sums) {
  using S = Simd<isa, A>;
  using Vec = typename S::Vec;
  if constexpr (kTaps == 0) {
    int n = 0;
    for (; n + 4 <= x_count; n += 4) differentiate_bin<isa, 4>(view, y, y_count, x + n, 4, gradient, sums);
    switch (x_count - n) {
      case 3:
        differentiate_bin<isa, 3>(view, y, y_count, x + n, 3, gradient, sums);
        break;
      case 2:
        differentiate_bin<isa, 2>(view, y, y_count, x + n, 2, gradient, sums);
        break;
      case 1:
        differentiate_bin<isa, 1>(view, y, y_count, x + n, 1, gradient, sums);
        break;
      default:
        break;
    }
  } else {
    Vec columns[kTaps];
    int64_t offset[kTaps];
    for (int n = 0; n < kTaps; ++n) {
      columns[n] = Vec{};
      offset[n] = (x[n].pixel - view.x_first) * view.pixel_stride;
    }
    for (int m = 0; m < y_count; ++m) {
      const E* row = view.pixel(y[m].pixel, view.x_first);
      const Vec weight = S::broadcast(y[m].weight);
      Vec along_x{};
#pragma GCC unroll 4
      for (int n = 0; n < kTaps; ++n) {
        const Vec product = gradient.times(row + offset[n]);
        along_x = S::mul_add(S::broadcast(x[n].weight), product, along_x);
        columns[n] = S::mul_add(weight, product, columns[n]);
      }
      sums[kYStart] = S::mul_add(S::broadcast(y[m].start_slope), along_x, sums[kYStart]);
      sums[kYBin] = S::mul_add(S::broadcast(y[m].bin_slope), along_x, sums[kYBin]);
    }
    for (int n = 0; n < kTaps; ++n) {
      sums[kXStart] = S::mul_add(S::broadcast(x[n].start_slope), columns[n], sums[kXStart]);
      sums[kXBin] = S::mul_add(S::broadcast(x[n].bin_slope), columns[n], sums[kXBin]);
    }
  }
}

template <Isa isa, int kVecs, class E, class A, class G>
__attribute__((noinline)) void differentiate_bins(const View<E>& view, const RoiShape& shape,
                                                  const Record<A, SlopedTap<A>>& record, const G* grads,
                                                  int64_t grad_stride, int channels, A* widened,
                                                  BoxSums<isa, A>& total) {
  BoxSums<isa, A> sums = {};
  for (int i = 0; i < shape.pooled_height; ++i) {
    const int y0 = record.y_begin[i], y_count = record.y_begin[i + 1] - y0;
    for (int j = 0; j < shape.pooled_width; ++j, grads += grad_stride) {
      const BinGradient<isa, kVecs, A> gradient(widen<isa>(grads, channels, widened), channels);
      const int x0 = record.x_begin[j], x_count = record.x_begin[j + 1] - x0;
      differentiate_bin<isa, 0>(view, record.y + y0, y_count, record.x + x0, x_count, gradient, sums);
    }
  }
  for (int i = 0; i < kRoiSums; ++i) total[i] = sums[i];
}

// The four sums of one box over the channels [0, channels) of the view and of grads[bin * grad_stride + channel]. `widened`
// is what `widen` takes.
template <Isa isa, class A, class E, class G>
CVK_HD void differentiate_box(const View<E>& view, const RoiShape& shape, char* arena, const G* grads,
                              int64_t grad_stride, int channels, A* widened, A (&sums)[kRoiSums]) {
  using S = Simd<isa, A>;
  constexpr int kTile = kRoiChannelTile / S::kLanes;  // vectors of a tile
  const auto record = finished_record_at<A, SlopedTap<A>>(arena, shape.pooled_height, shape.pooled_width);
  BoxSums<isa, A> vectors;
  if (kTile <= 8 && channels == kRoiChannelTile) {
    differentiate_bins<isa, kTile <= 8 ? kTile : 0>(view, shape, record, grads, grad_stride, channels, widened,
                                                    vectors);
  } else {
    differentiate_bins<isa, 0>(view, shape, record, grads, grad_stride, channels, widened, vectors);
  }
  for (int i = 0; i < kRoiSums; ++i) sums[i] = S::reduce_add(vectors[i]);
}

}  // namespace cvk
