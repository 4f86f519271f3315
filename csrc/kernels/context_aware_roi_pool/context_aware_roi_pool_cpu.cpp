// Context-aware RoI Pool on the CPU: what a box does with its pixels. Contract and method: context_aware_roi_pool.h.
#include "kernels/context_aware_roi_pool/context_aware_roi_pool.h"

#include "common/roi_max.h"
#include "common/roi_passes.h"
#include "kernels/context_aware_roi_pool/context_aware_roi_pool_math.h"
#include "kernels/context_aware_roi_pool/context_aware_roi_pool_tuning.h"

namespace cvk {
namespace {

// A record: the header, with the stretch of each axis as its grid, then the cells of the PH rows of bins and of the PW columns,
// counted from the first pixel that is read.
CVK_HD CellRange* cells_of(char* record) { return reinterpret_cast<CellRange*>(record + sizeof(RecordHeader)); }

template <class A>
CVK_HD void plan_box(const RoiShape& shape, const A* box, char* record) {
  EnlargedAxis<A> y, x;
  roi_make_axis(shape, box, true, y);
  roi_make_axis(shape, box, false, x);
  *reinterpret_cast<RecordHeader*>(record) = {y.first, y.last - 1, x.first, x.last - 1, y.stretch, x.stretch};
  CellRange* cells = cells_of(record);
  for (int i = 0; i < shape.pooled_height; ++i) *cells++ = roi_bin_cells(y, i);
  for (int j = 0; j < shape.pooled_width; ++j) *cells++ = roi_bin_cells(x, j);
}

// Where cells are pixels.
CVK_HD PixelRange pixels_from(const CellRange& cells, int first) {
  return {first + static_cast<int>(cells.first), first + static_cast<int>(cells.last)};
}

// The taps of the cells of one axis of a box.
template <class A>
struct AxisTaps {
  int first, pixels, stretch;

  CVK_HD CellTaps<A> operator()(int64_t cell) const { return cell_taps<A>(first, pixels, stretch, cell); }
};

template <class A>
CVK_HD AxisTaps<A> y_taps(const RecordHeader& header) {
  return {header.y_first, header.y_last - header.y_first + 1, header.grid_y};
}
template <class A>
CVK_HD AxisTaps<A> x_taps(const RecordHeader& header) {
  return {header.x_first, header.x_last - header.x_first + 1, header.grid_x};
}

// One bin of an enlarged box, one vector of channels; `count`: 0, or the channels of a vector that is not full.
template <Isa isa, bool kIndices, class A, class E>
CVK_HD void max_of_cells(const View<E>& view, const AxisTaps<A>& ys, const AxisTaps<A>& xs, const CellRange& y,
                         const CellRange& x, int c, int count, MaxSoFar<isa, A, 1, kIndices>& found) {
  using S = Simd<isa, A>;
  int cell = 0;
  for (int64_t row = y.first; row < y.last; ++row) {
    const CellTaps<A> y_tap = ys(row);
    for (int64_t column = x.first; column < x.last; ++column, ++cell) {
      const CellTaps<A> x_tap = xs(column);
      typename S::Vec value{};
      for (int i = 0; i < y_tap.count; ++i) {
        for (int j = 0; j < x_tap.count; ++j) {
          const E* pixel = view.pixel(y_tap.pixel[i], x_tap.pixel[j]) + c;
          value = S::mul_add(S::broadcast(y_tap.weight[i] * x_tap.weight[j]),
                             count == 0 ? S::load(pixel) : S::load_partial(pixel, count), value);
        }
      }
      const typename S::IntVec at = typename S::IntVec{} + cell;
      if (cell == 0) {
        found.best[0] = value;
        if (kIndices) found.index[0] = at;
      } else {
        found.template offer<true>(0, value, at);
      }
    }
  }
}

template <Isa isa, bool kIndices, class A, class E, class Out, class Index>
CVK_HD void pool_cells(const View<E>& view, const RecordHeader& header, const CellRange& y, const CellRange& x,
                       int channels, Out* out, Index* index) {
  const AxisTaps<A> ys = y_taps<A>(header), xs = x_taps<A>(header);
  over_max_vectors<isa, kIndices, A, 1>(
      y.empty() || x.empty(), channels, out, index,
      [&](int c, int count, auto& found) { max_of_cells<isa, kIndices>(view, ys, xs, y, x, c, count, found); });
}

template <class A, class I>
struct Boxes {
  using Index = I;
  static constexpr bool kIndices = !std::is_void_v<Index>;

  template <Isa isa, class E, class Out, class Written>
  static CVK_HD void pool(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out,
                          Written* argmax, int64_t stride) {
    const RecordHeader& header = *reinterpret_cast<const RecordHeader*>(record);
    const CellRange *y = cells_of(record), *x = y + shape.pooled_height;
    const bool enlarged = header.grid_y > 1 || header.grid_x > 1;
    for (int i = 0; i < shape.pooled_height; ++i) {
      for (int j = 0; j < shape.pooled_width; ++j, out += stride) {
        if (enlarged) {
          pool_cells<isa, kIndices, A>(view, header, y[i], x[j], channels, out, argmax);
        } else {
          pool_max<isa, kIndices, A>(view, pixels_from(y[i], header.y_first), pixels_from(x[j], header.x_first),
                                     shape.width, channels, out, argmax);
        }
        if (kIndices) argmax += stride;
      }
    }
  }

  template <class G>
  static CVK_HD void spread_maxima(const G* grad, const I* argmax, const RoiShape& shape, char* record, int channels,
                                   int y_begin, int y_end, const RoiBand<A>& band) {
    const RecordHeader& header = *reinterpret_cast<const RecordHeader*>(record);
    if (header.grid_y == 1 && header.grid_x == 1) {
      spread_pixels(grad, argmax, shape, channels, y_begin, y_end, band);
      return;
    }
    const CellRange *y = cells_of(record), *x = y + shape.pooled_height;
    const AxisTaps<A> ys = y_taps<A>(header), xs = x_taps<A>(header);
    for (int i = 0; i < shape.pooled_height; ++i) {
      for (int j = 0; j < shape.pooled_width; ++j, ++grad, ++argmax) {
        if (y[i].empty() || x[j].empty()) continue;
        const int64_t width = x[j].last - x[j].first, cells = width * (y[i].last - y[i].first);
        for (int c = 0; c < channels; ++c) {
          const int index = argmax[c * shape.bins()];
          if (index < 0 || index >= cells) continue;  // not the operator's own
          const CellTaps<A> y_tap = ys(y[i].first + index / width), x_tap = xs(x[j].first + index % width);
          const A g = to_acc(grad[c * shape.bins()]);
          for (int m = 0; m < y_tap.count; ++m) {
            if (y_tap.pixel[m] < y_begin || y_tap.pixel[m] >= y_end) continue;
            A* row = band.channel(c) + static_cast<int64_t>(y_tap.pixel[m] - y_begin) * shape.width * band.pixel_stride;
            for (int n = 0; n < x_tap.count; ++n) {
              A& pixel = row[x_tap.pixel[n] * band.pixel_stride];
              pixel = mul_add(y_tap.weight[m] * x_tap.weight[n], g, pixel);
            }
          }
        }
      }
    }
  }
};

}  // namespace

template <Isa isa, class T>
int64_t context_aware_roi_pool_layout_cpu(ContextAwareRoiPoolParams<T>& params) {
  const RoiShape& shape = params.shape;
  const int64_t ranges = int64_t{shape.pooled_height} + shape.pooled_width;
  const int64_t bytes = round_up<int64_t>(sizeof(RecordHeader) + ranges * sizeof(CellRange), kRecordAlign);
  return roi_layout(shape, params.boxes, 5, params.plan, [&](int64_t) { return bytes; });
}

template <Isa isa, class T>
void context_aware_roi_pool_plan_cpu(const ContextAwareRoiPoolParams<T>& params, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) plan_box(params.shape, params.boxes + k * 5, params.plan.record(k));
}

template <Isa isa, class T>
int64_t context_aware_roi_pool_forward_items_cpu(ContextAwareRoiPoolParams<T>& params) {
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void context_aware_roi_pool_forward_cpu(const ContextAwareRoiPoolParams<T>& params, int64_t first, int64_t last) {
  if (params.argmax.data == nullptr) {
    roi_forward<isa, Boxes<Acc<T>, void>, T>(params, first, last);
  } else if (params.argmax.narrow) {
    roi_forward<isa, Boxes<Acc<T>, int16_t>, T>(params, first, last);
  } else {
    roi_forward<isa, Boxes<Acc<T>, int32_t>, T>(params, first, last);
  }
}

template <Isa isa, class T>
int64_t context_aware_roi_pool_backward_items_cpu(const ContextAwareRoiPoolParams<T>& params) {
  return roi_backward_items<T>(params);
}

template <Isa isa, class T>
void context_aware_roi_pool_backward_cpu(const ContextAwareRoiPoolParams<T>& params, int64_t first, int64_t last) {
  if (params.saved_argmax.narrow) {
    roi_backward<isa, Boxes<Acc<T>, int16_t>, T>(params, first, last);
  } else {
    roi_backward<isa, Boxes<Acc<T>, int32_t>, T>(params, first, last);
  }
}

#define CVK_INSTANTIATE(T)                                                                                          \
  template int64_t context_aware_roi_pool_layout_cpu<Isa::CVK_ISA, T>(ContextAwareRoiPoolParams<T>&);               \
  template void context_aware_roi_pool_plan_cpu<Isa::CVK_ISA, T>(const ContextAwareRoiPoolParams<T>&, int64_t,      \
                                                                 int64_t);                                          \
  template int64_t context_aware_roi_pool_forward_items_cpu<Isa::CVK_ISA, T>(ContextAwareRoiPoolParams<T>&);        \
  template void context_aware_roi_pool_forward_cpu<Isa::CVK_ISA, T>(const ContextAwareRoiPoolParams<T>&, int64_t,   \
                                                                    int64_t);                                       \
  template int64_t context_aware_roi_pool_backward_items_cpu<Isa::CVK_ISA, T>(const ContextAwareRoiPoolParams<T>&); \
  template void context_aware_roi_pool_backward_cpu<Isa::CVK_ISA, T>(const ContextAwareRoiPoolParams<T>&, int64_t,  \
                                                                     int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
