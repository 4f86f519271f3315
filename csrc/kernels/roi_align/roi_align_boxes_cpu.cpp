// RoI Align on the CPU: the gradient with respect to the boxes. Contract: roi_align.h; method: common/roi_boxes.h.
#include "common/roi_passes.h"
#include "kernels/roi_align/roi_align.h"
#include "kernels/roi_align/roi_align_math.h"

namespace cvk {
namespace {

// Of the maximum: each value follows its own sample.
template <class T>
CVK_HD void boxes_of_maxima(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const int64_t bin_stride = shape.channels_last ? shape.channels : 1;
  const int64_t channel_stride = shape.channels_last ? 1 : shape.bins();
  const int64_t pixel_stride = shape.channels_last ? shape.channels : 1;
  const int64_t plane_stride = shape.channels_last ? 1 : shape.pixels();
  for (int64_t k = first; k < last; ++k) {
    const BoxAxes<A> axes = box_axes(shape, params.boxes + k * 5);
    const T* image = params.input + params.plan.image_of[k] * shape.channels * shape.pixels();
    A sums[kRoiSums] = {};
    int64_t at_bin = k * shape.channels * shape.bins();
    for (int i = 0; i < shape.pooled_height; ++i) {
      for (int j = 0; j < shape.pooled_width; ++j, at_bin += bin_stride) {
        for (int64_t c = 0; c < shape.channels; ++c) {
          const int64_t at = at_bin + c * channel_stride;
          const T* plane = image + c * plane_stride;
          add_maximum(
              axes.y, axes.x, i, j, params.saved_argmax[at], to_acc(params.grad_output[at]),
              [&](int y, int x) { return to_acc(plane[(int64_t{y} * shape.width + x) * pixel_stride]); }, sums);
        }
      }
    }
    for (int i = 0; i < kRoiSums; ++i) params.sums[k * kRoiSums + i] = sums[i];
  }
}

}  // namespace

template <Isa isa, class T>
int64_t roi_align_boxes_layout_cpu(RoiBoxesParams<T>& params) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  params.parts = params.saved_argmax != nullptr ? min_of<int64_t>(shape.channels, 1) : roi_gradient_parts(shape);
  return roi_layout(shape, params.boxes, 5, params.plan, [&](int64_t k) -> int64_t {
    if (params.saved_argmax != nullptr) return 0;
    return plan_box_bytes<A, SlopedTap<A>>(shape, params.boxes + k * 5);
  });
}

template <Isa isa, class T>
void roi_align_boxes_plan_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  if (params.saved_argmax != nullptr) return;
  for (int64_t k = first; k < last; ++k) {
    plan_box<A, SlopedTap<A>>(params.shape, params.boxes + k * 5, params.plan.record(k));
  }
}

template <Isa isa, class T>
int64_t roi_align_boxes_items_cpu(RoiBoxesParams<T>& params) {
  if (params.saved_argmax != nullptr) return params.shape.boxes;
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void roi_align_boxes_backward_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  if (params.saved_argmax != nullptr) {
    boxes_of_maxima(params, first, last);
  } else {
    roi_boxes_backward<isa>(params, first, last);
  }
}

template <Isa isa, class T>
void roi_align_boxes_finish_cpu(const RoiBoxesParams<T>& params, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) roi_finish_box<RoiAxis<Acc<T>>>(params, k);
}

#define CVK_INSTANTIATE(T)                                                                                 \
  template int64_t roi_align_boxes_layout_cpu<Isa::CVK_ISA, T>(RoiBoxesParams<T>&);                        \
  template void roi_align_boxes_plan_cpu<Isa::CVK_ISA, T>(const RoiBoxesParams<T>&, int64_t, int64_t);     \
  template int64_t roi_align_boxes_items_cpu<Isa::CVK_ISA, T>(RoiBoxesParams<T>&);                         \
  template void roi_align_boxes_backward_cpu<Isa::CVK_ISA, T>(const RoiBoxesParams<T>&, int64_t, int64_t); \
  template void roi_align_boxes_finish_cpu<Isa::CVK_ISA, T>(const RoiBoxesParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
