// Rotated RoI Align on the CPU: loops over a slice of boxes or work items. Contract and method: roi_align_rotated.h.
#include "common/roi_passes.h"
#include "kernels/roi_align_rotated/roi_align_rotated.h"
#include "kernels/roi_align_rotated/roi_align_rotated_runs.h"

namespace cvk {
namespace {

// What a box does with its pixels (common/roi_passes.h).
template <class A>
struct RotatedBoxes {
  using Index = void;

  template <Isa isa, class E, class Out>
  static CVK_HD void pool(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out, int32_t*,
                          int64_t stride) {
    pool_runs<isa, A>(view, shape, record, channels, out, stride);
  }
  template <Isa isa, class G>
  static CVK_HD void spread(const G* grad, int64_t stride, const RoiShape& shape, char* record, int channels,
                            int y_begin, int y_end, A* pixels, int pitch) {
    spread_runs<isa>(grad, stride, shape, record, channels, y_begin, y_end, pixels, pitch);
  }
};

}  // namespace

template <Isa isa, class T>
int64_t roi_align_rotated_layout_cpu(RoiAlignRotatedParams<T>& params) {
  return roi_layout(params.shape, params.boxes, 6, params.plan, [&](int64_t k) -> int64_t {
    return run_record_bytes(params.shape, rotated_axes(params.shape, params.clockwise, params.boxes + k * 6));
  });
}

template <Isa isa, class T>
void roi_align_rotated_plan_cpu(const RoiAlignRotatedParams<T>& params, int64_t first, int64_t last) {
  Scratch grid;
  int64_t cells = 0;
  for (int64_t k = first; k < last; ++k) {
    const RotatedAxes<Acc<T>> axes = rotated_axes(params.shape, params.clockwise, params.boxes + k * 6);
    plan_runs<isa>(params.shape, axes, params.plan.record(k), grid, cells);
  }
}

template <Isa isa, class T>
int64_t roi_align_rotated_forward_items_cpu(RoiAlignRotatedParams<T>& params) {
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void roi_align_rotated_forward_cpu(const RoiAlignRotatedParams<T>& params, int64_t first, int64_t last) {
  roi_forward<isa, RotatedBoxes<Acc<T>>, T>(params, first, last);
}

template <Isa isa, class T>
int64_t roi_align_rotated_backward_items_cpu(const RoiAlignRotatedParams<T>& params) {
  return roi_backward_items<T>(params);
}

template <Isa isa, class T>
void roi_align_rotated_backward_cpu(const RoiAlignRotatedParams<T>& params, int64_t first, int64_t last) {
  roi_backward<isa, RotatedBoxes<Acc<T>>, T>(params, first, last);
}

#define CVK_INSTANTIATE(T)                                                                                         \
  template int64_t roi_align_rotated_layout_cpu<Isa::CVK_ISA, T>(RoiAlignRotatedParams<T>&);                       \
  template void roi_align_rotated_plan_cpu<Isa::CVK_ISA, T>(const RoiAlignRotatedParams<T>&, int64_t, int64_t);    \
  template int64_t roi_align_rotated_forward_items_cpu<Isa::CVK_ISA, T>(RoiAlignRotatedParams<T>&);                \
  template void roi_align_rotated_forward_cpu<Isa::CVK_ISA, T>(const RoiAlignRotatedParams<T>&, int64_t, int64_t); \
  template int64_t roi_align_rotated_backward_items_cpu<Isa::CVK_ISA, T>(const RoiAlignRotatedParams<T>&);         \
  template void roi_align_rotated_backward_cpu<Isa::CVK_ISA, T>(const RoiAlignRotatedParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
