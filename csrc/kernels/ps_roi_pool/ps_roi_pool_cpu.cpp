// Position-sensitive RoI Pool on the CPU: what a bin reads. Contract and method: ps_roi_pool.h.
#include "kernels/ps_roi_pool/ps_roi_pool.h"

#include "common/position_sensitive_passes.h"
#include "common/roi_ranges.h"
#include "kernels/ps_roi_pool/ps_roi_pool_math.h"
#include "kernels/ps_roi_pool/ps_roi_pool_tuning.h"

namespace cvk {
namespace {

// A record holds the pixels of rows and columns of bins (common/roi_ranges.h).
struct Bins {
  static constexpr bool kDivides = true;

  template <class A, class F>
  static CVK_HD void visit(char* record, const RoiShape& shape, int i, int j, F&& f) {
    const PixelRange ys = y_ranges(record)[i], xs = x_ranges(record, shape)[j];
    for (int y = ys.first; y < ys.last; ++y) {
      for (int x = xs.first; x < xs.last; ++x) f(y, x, A(1));
    }
  }

  template <class A>
  static CVK_HD A divisor(char* record, const RoiShape& shape, int i, int j) {
    const PixelRange y = y_ranges(record)[i], x = x_ranges(record, shape)[j];
    if (y.empty() || x.empty()) return A(1);
    return static_cast<A>(y.last - y.first) * static_cast<A>(x.last - x.first);
  }
};

}  // namespace

template <Isa isa, class T>
int64_t ps_roi_pool_layout_cpu(PsRoiPoolParams<T>& params) {
  return roi_layout(params.shape, params.boxes, 5, params.plan, [&](int64_t) { return range_bytes(params.shape); });
}

template <Isa isa, class T>
void ps_roi_pool_plan_cpu(const PsRoiPoolParams<T>& params, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) {
    plan_ranges<OpenAxis<Acc<T>>>(params.shape, params.boxes + k * 5, params.plan.record(k));
  }
}

template <Isa isa, class T>
int64_t ps_roi_pool_forward_items_cpu(const PsRoiPoolParams<T>& params) {
  return ps_forward_items(params.shape);
}

template <Isa isa, class T>
void ps_roi_pool_forward_cpu(const PsRoiPoolParams<T>& params, int64_t first, int64_t last) {
  ps_forward<isa, Bins>(params, first, last);
}

template <Isa isa, class T>
int64_t ps_roi_pool_backward_items_cpu(const PsRoiPoolParams<T>& params) {
  return ps_backward_cut<Acc<T>>(params.shape).items;
}

template <Isa isa, class T>
void ps_roi_pool_backward_cpu(const PsRoiPoolParams<T>& params, int64_t first, int64_t last) {
  ps_backward<isa, Bins>(params, first, last);
}

#define CVK_INSTANTIATE(T)                                                                             \
  template int64_t ps_roi_pool_layout_cpu<Isa::CVK_ISA, T>(PsRoiPoolParams<T>&);                       \
  template void ps_roi_pool_plan_cpu<Isa::CVK_ISA, T>(const PsRoiPoolParams<T>&, int64_t, int64_t);    \
  template int64_t ps_roi_pool_forward_items_cpu<Isa::CVK_ISA, T>(const PsRoiPoolParams<T>&);          \
  template void ps_roi_pool_forward_cpu<Isa::CVK_ISA, T>(const PsRoiPoolParams<T>&, int64_t, int64_t); \
  template int64_t ps_roi_pool_backward_items_cpu<Isa::CVK_ISA, T>(const PsRoiPoolParams<T>&);         \
  template void ps_roi_pool_backward_cpu<Isa::CVK_ISA, T>(const PsRoiPoolParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
