// Precise RoI Pooling on the CPU: RoI Align's passes over its own taps. Contract and method: prroi_pool.h.
#include "kernels/prroi_pool/prroi_pool.h"

#include "common/roi_passes.h"
#include "kernels/prroi_pool/prroi_pool_math.h"

namespace cvk {
namespace {

template <class A, class Entry>
CVK_HD int64_t box_bytes(const RoiShape& shape, const A* box) {
  PrRoIAxis<A> y, x;
  roi_make_axis(shape, box, true, y);
  roi_make_axis(shape, box, false, x);
  const int64_t y_pixels = count_pixels(y, shape.pooled_height), x_pixels = count_pixels(x, shape.pooled_width);
  if (max_of(y_pixels, x_pixels) >= int64_t{1} << 30) return -1;  // records index their entries by int
  return record_bytes<Entry>(shape.pooled_height, shape.pooled_width, y_pixels + x_pixels);
}

template <class Entry, class Params>
CVK_HD int64_t layout(Params& params) {
  const auto* boxes = params.boxes;
  return roi_layout(params.shape, boxes, 5, params.plan, [&](int64_t k) {
    return box_bytes<std::decay_t<decltype(*boxes)>, Entry>(params.shape, boxes + k * 5);
  });
}

template <class Entry, class A, class Params>
CVK_HD void plan(const Params& params, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) {
    PrRoIAxis<A> y, x;
    roi_make_axis(params.shape, params.boxes + k * 5, true, y);
    roi_make_axis(params.shape, params.boxes + k * 5, false, x);
    plan_axes<A, Entry>(params.shape, y, x, params.plan.record(k));
  }
}

}  // namespace

template <Isa isa, class T>
int64_t prroi_pool_layout_cpu(PrRoIPoolParams<T>& params) {
  return layout<Tap<Acc<T>>>(params);
}

template <Isa isa, class T>
void prroi_pool_plan_cpu(const PrRoIPoolParams<T>& params, int64_t first, int64_t last) {
  plan<Tap<Acc<T>>, Acc<T>>(params, first, last);
}

template <Isa isa, class T>
int64_t prroi_pool_forward_items_cpu(PrRoIPoolParams<T>& params) {
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void prroi_pool_forward_cpu(const PrRoIPoolParams<T>& params, int64_t first, int64_t last) {
  roi_forward<isa, RoiMeans<Acc<T>>, T>(params, first, last);
}

template <Isa isa, class T>
int64_t prroi_pool_backward_items_cpu(const PrRoIPoolParams<T>& params) {
  return roi_backward_items<T>(params);
}

template <Isa isa, class T>
void prroi_pool_backward_cpu(const PrRoIPoolParams<T>& params, int64_t first, int64_t last) {
  roi_backward<isa, RoiMeans<Acc<T>>, T>(params, first, last);
}

// ---- gradient with respect to the boxes

template <Isa isa, class T>
int64_t prroi_pool_boxes_layout_cpu(RoiBoxesParams<T>& params) {
  params.parts = roi_gradient_parts(params.shape);
  return layout<SlopedTap<Acc<T>>>(params);
}

template <Isa isa, class T>
void prroi_pool_boxes_plan_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  plan<SlopedTap<Acc<T>>, Acc<T>>(params, first, last);
}

template <Isa isa, class T>
int64_t prroi_pool_boxes_items_cpu(RoiBoxesParams<T>& params) {
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void prroi_pool_boxes_backward_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  roi_boxes_backward<isa>(params, first, last);
}

template <Isa isa, class T>
void prroi_pool_boxes_finish_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) roi_finish_box<PrRoIAxis<Acc<T>>>(params, k);
}

#define CVK_INSTANTIATE(T)                                                                                  \
  template int64_t prroi_pool_layout_cpu<Isa::CVK_ISA, T>(PrRoIPoolParams<T>&);                             \
  template void prroi_pool_plan_cpu<Isa::CVK_ISA, T>(const PrRoIPoolParams<T>&, int64_t, int64_t);          \
  template int64_t prroi_pool_forward_items_cpu<Isa::CVK_ISA, T>(PrRoIPoolParams<T>&);                      \
  template void prroi_pool_forward_cpu<Isa::CVK_ISA, T>(const PrRoIPoolParams<T>&, int64_t, int64_t);       \
  template int64_t prroi_pool_backward_items_cpu<Isa::CVK_ISA, T>(const PrRoIPoolParams<T>&);               \
  template void prroi_pool_backward_cpu<Isa::CVK_ISA, T>(const PrRoIPoolParams<T>&, int64_t, int64_t);      \
  template int64_t prroi_pool_boxes_layout_cpu<Isa::CVK_ISA, T>(RoiBoxesParams<T>&);                        \
  template void prroi_pool_boxes_plan_cpu<Isa::CVK_ISA, T>(const RoiBoxesParams<T>&, int64_t, int64_t);     \
  template int64_t prroi_pool_boxes_items_cpu<Isa::CVK_ISA, T>(RoiBoxesParams<T>&);                         \
  template void prroi_pool_boxes_backward_cpu<Isa::CVK_ISA, T>(const RoiBoxesParams<T>&, int64_t, int64_t); \
  template void prroi_pool_boxes_finish_cpu<Isa::CVK_ISA, T>(const RoiBoxesParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
