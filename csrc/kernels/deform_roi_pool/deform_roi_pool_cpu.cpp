// Deformable RoI pooling on the CPU: loops over a slice of boxes or work items. Contract and method: deform_roi_pool.h.
#include "common/roi_passes.h"
#include "kernels/deform_roi_pool/deform_roi_pool.h"
#include "kernels/deform_roi_pool/deform_roi_pool_math.h"

namespace cvk {
namespace {

// What a box does with its pixels (common/roi_passes.h).
template <class A>
struct DeformBoxes {
  using Index = void;

  template <Isa isa, class E, class Out>
  static CVK_HD void pool(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out, int32_t*,
                          int64_t stride) {
    pool_box<isa, A, OwnLists>(view, shape, record, channels, out, stride);
  }
  template <Isa isa, class G>
  static CVK_HD void spread(const G* grad, int64_t stride, const RoiShape& shape, char* record, int channels,
                            int y_begin, int y_end, A* pixels, int pitch) {
    spread_box<isa, OwnLists>(grad, stride, shape, record, channels, y_begin, y_end, pixels, pitch);
  }
};

template <class T>
struct DeformBox {
  DeformAxis<Acc<T>> y, x;
};

template <class T>
CVK_HD DeformBox<T> deform_box(const DeformRoiPoolParams<T>& params, int64_t k) {
  const Acc<T>* box = params.boxes + k * 5;
  return {deform_axis(params.shape, params.gamma, box, true), deform_axis(params.shape, params.gamma, box, false)};
}

// The axis of one bin.
template <class T>
CVK_HD RoiAxis<Acc<T>> axis_of_bin(const DeformRoiPoolParams<T>& params, const DeformAxis<Acc<T>>& axis, int64_t k,
                                   bool along_y, int64_t bin) {
  return deform_shifted(axis, params.offset[deform_offset_index(params.shape, k, along_y, bin)]);
}

// Samples of box k along an axis at most, over all bins.
template <class T>
CVK_HD int64_t count_deformed(const DeformRoiPoolParams<T>& params, const DeformAxis<Acc<T>>& axis, int64_t k,
                              bool along_y) {
  const RoiShape& shape = params.shape;
  if (axis.axis.samples <= 4) return shape.bins() * axis.axis.samples;
  int64_t total = 0;
  for (int64_t bin = 0; bin < shape.bins(); ++bin) {
    const int along = static_cast<int>(along_y ? bin / shape.pooled_width : bin % shape.pooled_width);
    const SampleRange range = inside_range(axis_of_bin(params, axis, k, along_y, bin), along);
    total += range.last - range.first;
  }
  return total;
}

template <class Entry, class T>
CVK_HD int64_t deformed_bytes(const DeformRoiPoolParams<T>& params, int64_t k) {
  const RoiShape& shape = params.shape;
  const DeformBox<T> box = deform_box(params, k);
  const int64_t y_samples = count_deformed(params, box.y, k, true);
  const int64_t x_samples = count_deformed(params, box.x, k, false);
  if (max_of(y_samples, x_samples) >= int64_t{1} << 30) return -1;
  return record_bytes<Entry>(OwnLists::y_lists(shape), OwnLists::x_lists(shape), 2 * (y_samples + x_samples));
}

template <class Entry, class T>
CVK_HD int plan_deformed(const DeformRoiPoolParams<T>& params, const DeformAxis<Acc<T>>& axis, int64_t k, bool along_y,
                         int* begin, Entry* taps, int& first, int& last) {
  const RoiShape& shape = params.shape;
  int used = 0;
  first = axis.axis.extent;
  last = -1;
  for (int64_t bin = 0; bin < shape.bins(); ++bin) {
    const int along = static_cast<int>(along_y ? bin / shape.pooled_width : bin % shape.pooled_width);
    begin[bin] = used;
    used += plan_bin(axis_of_bin(params, axis, k, along_y, bin), along, taps + used, first, last);
  }
  begin[shape.bins()] = used;
  return used;
}

template <class Entry, class T>
CVK_HD void plan_deformed_box(const DeformRoiPoolParams<T>& params, int64_t k) {
  const RoiShape& shape = params.shape;
  const DeformBox<T> box = deform_box(params, k);
  const auto record =
      record_at<Acc<T>, Entry>(params.plan.record(k), OwnLists::y_lists(shape), OwnLists::x_lists(shape));
  RecordHeader& header = *record.header;
  const int used = plan_deformed(params, box.y, k, true, record.y_begin, record.y, header.y_first, header.y_last);
  plan_deformed(params, box.x, k, false, record.x_begin, record.y + used, header.x_first, header.x_last);
}

// Of each bin, the derivative of sum_c grad[bin * stride + c] * mean[bin, c] with respect to its shift: sums[0][bin] along x,
// sums[1][bin] along y, over the channels [0, channels) of the view. `widened` is what `widen` takes.
template <Isa isa, class E, class G, class A>
CVK_HD void differentiate_shifts(const View<E>& view, const RoiShape& shape, char* arena, const G* grads,
                                 int64_t stride, int channels, A* widened, A* sums, bool begins) {
  using S = Simd<isa, A>;
  const auto record = finished_record_at<A, SlopedTap<A>>(arena, OwnLists::y_lists(shape), OwnLists::x_lists(shape));
  for (int64_t bin = 0; bin < shape.bins(); ++bin, grads += stride) {
    const BinGradient<isa, 0, A> gradient(widen<isa>(grads, channels, widened), channels);
    const int y0 = record.y_begin[bin], y_count = record.y_begin[bin + 1] - y0;
    const int x0 = record.x_begin[bin], x_count = record.x_begin[bin + 1] - x0;
    BoxSums<isa, A> bin_sums = {};
    differentiate_bin<isa, 0>(view, record.y + y0, y_count, record.x + x0, x_count, gradient, bin_sums);
    const A x_sum = S::reduce_add(bin_sums[kXStart]), y_sum = S::reduce_add(bin_sums[kYStart]);
    A& x_total = sums[bin];
    A& y_total = sums[shape.bins() + bin];
    x_total = begins ? x_sum : x_total + x_sum;
    y_total = begins ? y_sum : y_total + y_sum;
  }
}

}  // namespace

template <Isa isa, class T>
int64_t deform_roi_pool_layout_cpu(DeformRoiPoolParams<T>& params, bool slopes) {
  using A = Acc<T>;
  return roi_layout(params.shape, params.boxes, 5, params.plan, [&](int64_t k) -> int64_t {
    return slopes ? deformed_bytes<SlopedTap<A>>(params, k) : deformed_bytes<Tap<A>>(params, k);
  });
}

template <Isa isa, class T>
void deform_roi_pool_plan_cpu(const DeformRoiPoolParams<T>& params, bool slopes, int64_t first, int64_t last) {
  using A = Acc<T>;
  for (int64_t k = first; k < last; ++k) {
    if (slopes) {
      plan_deformed_box<SlopedTap<A>>(params, k);
    } else {
      plan_deformed_box<Tap<A>>(params, k);
    }
  }
}

template <Isa isa, class T>
int64_t deform_roi_pool_forward_items_cpu(DeformRoiPoolParams<T>& params) {
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void deform_roi_pool_forward_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last) {
  roi_forward<isa, DeformBoxes<Acc<T>>, T>(params, first, last);
}

template <Isa isa, class T>
int64_t deform_roi_pool_backward_items_cpu(const DeformRoiPoolParams<T>& params) {
  return roi_backward_items<T>(params);
}

template <Isa isa, class T>
void deform_roi_pool_backward_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last) {
  roi_backward<isa, DeformBoxes<Acc<T>>, T>(params, first, last);
}

template <Isa isa, class T>
int64_t deform_roi_pool_offset_items_cpu(DeformRoiPoolParams<T>& params) {
  params.parts = roi_gradient_parts(params.shape);
  return params.parts == 0 ? 0 : roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void deform_roi_pool_offset_sums_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last) {
  roi_visit_gradients<isa, T>(params, first, last,
                              [&](int64_t k, int64_t part, bool begins, const auto& view, const auto* grad,
                                  int64_t stride, int channels, auto* widened) {
                                differentiate_shifts<isa>(
                                    view, params.shape, params.plan.record(k), grad, stride, channels, widened,
                                    params.sums + (k * params.parts + part) * 2 * params.shape.bins(), begins);
                              });
}

template <Isa isa, class T>
void deform_roi_pool_offset_cpu(const DeformRoiPoolParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const int64_t bins = params.shape.bins();
  for (int64_t k = first; k < last; ++k) {
    const DeformBox<T> box = deform_box(params, k);
    for (int64_t i = 0; i < 2 * bins; ++i) {
      A total = A(0);
      for (int64_t part = 0; part < params.parts; ++part)
        total += params.sums[(k * params.parts + part) * 2 * bins + i];
      params.grad_offset[k * 2 * bins + i] = deform_offset_gradient(total, i < bins ? box.x.reach : box.y.reach);
    }
  }
}

#define CVK_INSTANTIATE(T)                                                                                         \
  template int64_t deform_roi_pool_layout_cpu<Isa::CVK_ISA, T>(DeformRoiPoolParams<T>&, bool);                     \
  template void deform_roi_pool_plan_cpu<Isa::CVK_ISA, T>(const DeformRoiPoolParams<T>&, bool, int64_t, int64_t);  \
  template int64_t deform_roi_pool_forward_items_cpu<Isa::CVK_ISA, T>(DeformRoiPoolParams<T>&);                    \
  template void deform_roi_pool_forward_cpu<Isa::CVK_ISA, T>(const DeformRoiPoolParams<T>&, int64_t, int64_t);     \
  template int64_t deform_roi_pool_backward_items_cpu<Isa::CVK_ISA, T>(const DeformRoiPoolParams<T>&);             \
  template void deform_roi_pool_backward_cpu<Isa::CVK_ISA, T>(const DeformRoiPoolParams<T>&, int64_t, int64_t);    \
  template int64_t deform_roi_pool_offset_items_cpu<Isa::CVK_ISA, T>(DeformRoiPoolParams<T>&);                     \
  template void deform_roi_pool_offset_sums_cpu<Isa::CVK_ISA, T>(const DeformRoiPoolParams<T>&, int64_t, int64_t); \
  template void deform_roi_pool_offset_cpu<Isa::CVK_ISA, T>(const DeformRoiPoolParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
