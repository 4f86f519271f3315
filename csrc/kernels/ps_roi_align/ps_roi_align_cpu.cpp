// Position-sensitive RoI Align on the CPU: what a bin reads. Contract and method: ps_roi_align.h.
#include "kernels/ps_roi_align/ps_roi_align.h"

#include "common/position_sensitive_passes.h"
#include "kernels/ps_roi_align/ps_roi_align_math.h"
#include "kernels/ps_roi_align/ps_roi_align_tuning.h"

namespace cvk {
namespace {

// A record holds merged taps (common/roi_plan.h).
struct Bins {
  static constexpr bool kDivides = false;

  template <class A, class F>
  static CVK_HD void visit(char* record, const RoiShape& shape, int i, int j, F&& f) {
    const auto taps = finished_record_at<A, Tap<A>>(record, shape.pooled_height, shape.pooled_width);
    const int x_begin = taps.x_begin[j], x_end = taps.x_begin[j + 1];
    for (int y = taps.y_begin[i]; y < taps.y_begin[i + 1]; ++y) {
      for (int x = x_begin; x < x_end; ++x) f(taps.y[y].pixel, taps.x[x].pixel, taps.y[y].weight * taps.x[x].weight);
    }
  }
};

}  // namespace

template <Isa isa, class T>
int64_t ps_roi_align_layout_cpu(PsRoiAlignParams<T>& params) {
  using A = Acc<T>;
  return roi_layout(params.shape, params.boxes, 5, params.plan, [&](int64_t k) -> int64_t {
    return plan_box_bytes<A, Tap<A>>(params.shape, params.boxes + k * 5);
  });
}

template <Isa isa, class T>
void ps_roi_align_plan_cpu(const PsRoiAlignParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  for (int64_t k = first; k < last; ++k) {
    plan_box<A, Tap<A>>(params.shape, params.boxes + k * 5, params.plan.record(k));
  }
}

template <Isa isa, class T>
int64_t ps_roi_align_forward_items_cpu(const PsRoiAlignParams<T>& params) {
  return ps_forward_items(params.shape);
}

template <Isa isa, class T>
void ps_roi_align_forward_cpu(const PsRoiAlignParams<T>& params, int64_t first, int64_t last) {
  ps_forward<isa, Bins>(params, first, last);
}

template <Isa isa, class T>
int64_t ps_roi_align_backward_items_cpu(const PsRoiAlignParams<T>& params) {
  return ps_backward_cut<Acc<T>>(params.shape).items;
}

template <Isa isa, class T>
void ps_roi_align_backward_cpu(const PsRoiAlignParams<T>& params, int64_t first, int64_t last) {
  ps_backward<isa, Bins>(params, first, last);
}

#define CVK_INSTANTIATE(T)                                                                               \
  template int64_t ps_roi_align_layout_cpu<Isa::CVK_ISA, T>(PsRoiAlignParams<T>&);                       \
  template void ps_roi_align_plan_cpu<Isa::CVK_ISA, T>(const PsRoiAlignParams<T>&, int64_t, int64_t);    \
  template int64_t ps_roi_align_forward_items_cpu<Isa::CVK_ISA, T>(const PsRoiAlignParams<T>&);          \
  template void ps_roi_align_forward_cpu<Isa::CVK_ISA, T>(const PsRoiAlignParams<T>&, int64_t, int64_t); \
  template int64_t ps_roi_align_backward_items_cpu<Isa::CVK_ISA, T>(const PsRoiAlignParams<T>&);         \
  template void ps_roi_align_backward_cpu<Isa::CVK_ISA, T>(const PsRoiAlignParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
