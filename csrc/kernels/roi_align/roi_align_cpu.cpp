// RoI Align on the CPU: loops over a slice of boxes or work items. Contract and method: roi_align.h.
#include "kernels/roi_align/roi_align.h"

#include "common/roi_passes.h"
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

// The entry of a sample in [first, last), or last. Entries are in index order, but the outside ones are missing.
template <class A>
CVK_HD const Sample<A>* find_sample(const Sample<A>* first, const Sample<A>* last, int index) {
  if (index < last - first && first[index].index == index) return first + index;  // Perf: mostly none is
  while (first != last && first->index != index) ++first;
  return first;
}

template <class G, class A>
CVK_HD void spread_box_max(const G* grad, const int32_t* argmax, const RoiShape& shape, char* arena, int channels,
                           int y_begin, int y_end, const RoiBand<A>& band) {
  const auto record = finished_record_at<A, Sample<A>>(arena, shape.pooled_height, shape.pooled_width);
  const int grid_x = record.header->grid_x;
  for (int i = 0; i < shape.pooled_height; ++i) {
    for (int j = 0; j < shape.pooled_width; ++j, ++grad, ++argmax) {
      for (int c = 0; c < channels; ++c) {
        const int index = argmax[c * shape.bins()];
        if (index < 0 || grid_x <= 0) continue;
        const Sample<A>* const y_last = record.y + record.y_begin[i + 1];
        const Sample<A>* const x_last = record.x + record.x_begin[j + 1];
        const Sample<A>* const y = find_sample(record.y + record.y_begin[i], y_last, index / grid_x);
        const Sample<A>* const x = find_sample(record.x + record.x_begin[j], x_last, index % grid_x);
        if (y == y_last || x == x_last) continue;  // not the operator's own
        const A g = to_acc(grad[c * shape.bins()]);
        const int rows[2] = {y->axis.low, y->axis.high};
        const A row_weights[2] = {y->axis.low_weight, y->axis.high_weight};
        for (int r = 0; r < 2; ++r) {
          if (rows[r] < y_begin || rows[r] >= y_end) continue;
          A* row = band.channel(c) + static_cast<int64_t>(rows[r] - y_begin) * shape.width * band.pixel_stride;
          row[x->axis.low * band.pixel_stride] += row_weights[r] * x->axis.low_weight * g;
          row[x->axis.high * band.pixel_stride] += row_weights[r] * x->axis.high_weight * g;
        }
      }
    }
  }
}

// ---- what a box does with its pixels (common/roi_passes.h)

template <class A>
struct Maxima {
  using Index = int32_t;

  template <Isa isa, class E, class Out>
  static CVK_HD void pool(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out,
                          int32_t* argmax, int64_t stride) {
    pool_box_max<isa, E, A>(view, shape, record, channels, out, argmax, stride);
  }
  template <class G>
  static CVK_HD void spread_maxima(const G* grad, const int32_t* argmax, const RoiShape& shape, char* record,
                                   int channels, int y_begin, int y_end, const RoiBand<A>& band) {
    spread_box_max(grad, argmax, shape, record, channels, y_begin, y_end, band);
  }
};

}  // namespace

template <Isa isa, class T>
int64_t roi_align_layout_cpu(RoiAlignParams<T>& params) {
  using A = Acc<T>;
  const RoiNoBox<A> none;
  return roi_layout(params.shape, params.levels, params.boxes, 5, params.plan, [&](int64_t k, int level) -> int64_t {
    const A* box = level < 0 ? none.row : params.boxes + k * 5;
    const RoiShape shape = params.shape_of(max_of(level, 0));
    return params.maximum() ? plan_box_bytes<A, Sample<A>>(shape, box) : plan_box_bytes<A, Tap<A>>(shape, box);
  });
}

template <Isa isa, class T>
void roi_align_plan_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiNoBox<A> none;
  for (int64_t k = first; k < last; ++k) {
    const A* box = params.boxes + k * 5;
    const int level = roi_level(params.levels, box, k);
    const RoiShape shape = params.shape_of(max_of(level, 0));
    if (level < 0) box = none.row;
    if (params.maximum()) {
      plan_box<A, Sample<A>>(shape, box, params.plan.record(k));
    } else {
      plan_box<A, Tap<A>>(shape, box, params.plan.record(k));
    }
  }
}

template <Isa isa, class T>
int64_t roi_align_forward_items_cpu(RoiAlignParams<T>& params) {
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void roi_align_forward_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  if (params.maximum()) {
    roi_forward<isa, Maxima<Acc<T>>, T>(params, first, last);
  } else {
    roi_forward<isa, RoiMeans<Acc<T>>, T>(params, first, last);
  }
}

template <Isa isa, class T>
int64_t roi_align_backward_items_cpu(const RoiAlignParams<T>& params) {
  return roi_backward_items<T>(params);
}

template <Isa isa, class T>
void roi_align_backward_cpu(const RoiAlignParams<T>& params, int64_t first, int64_t last) {
  if (params.maximum()) {
    roi_backward<isa, Maxima<Acc<T>>, T>(params, first, last);
  } else {
    roi_backward<isa, RoiMeans<Acc<T>>, T>(params, first, last);
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
