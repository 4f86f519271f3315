// RoI Pool on the CPU: what a box does with its pixels. Contract and method: roi_pool.h.
#include "kernels/roi_pool/roi_pool.h"

#include "common/roi_max.h"
#include "common/roi_passes.h"
#include "common/roi_ranges.h"
#include "kernels/roi_pool/roi_pool_math.h"

namespace cvk {
namespace {

// A record holds the pixels of rows and columns of bins (common/roi_ranges.h).
template <class A, class I>
struct Boxes {
  using Index = I;
  static constexpr bool kIndices = !std::is_void_v<Index>;

  template <Isa isa, class E, class Out, class Written>
  static CVK_HD void pool(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out,
                          Written* argmax, int64_t stride) {
    const PixelRange *y = y_ranges(record), *x = x_ranges(record, shape);
    for (int i = 0; i < shape.pooled_height; ++i) {
      for (int j = 0; j < shape.pooled_width; ++j, out += stride) {
        pool_max<isa, kIndices, A>(view, y[i], x[j], shape.width, channels, out, argmax);
        if (kIndices) argmax += stride;
      }
    }
  }

  template <class G>
  static CVK_HD void spread_maxima(const G* grad, const I* argmax, const RoiShape& shape, char*, int channels,
                                   int y_begin, int y_end, const RoiBand<A>& band) {
    spread_pixels(grad, argmax, shape, channels, y_begin, y_end, band);
  }
};

}  // namespace

template <Isa isa, class T>
int64_t roi_pool_layout_cpu(RoiPoolParams<T>& params) {
  return roi_layout(params.shape, params.boxes, 5, params.plan, [&](int64_t) { return range_bytes(params.shape); });
}

template <Isa isa, class T>
void roi_pool_plan_cpu(const RoiPoolParams<T>& params, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) {
    plan_ranges<CellAxis<Acc<T>>>(params.shape, params.boxes + k * 5, params.plan.record(k));
  }
}

template <Isa isa, class T>
int64_t roi_pool_forward_items_cpu(RoiPoolParams<T>& params) {
  return roi_forward_items<isa, T>(params);
}

template <Isa isa, class T>
void roi_pool_forward_cpu(const RoiPoolParams<T>& params, int64_t first, int64_t last) {
  if (params.argmax.data == nullptr) {
    roi_forward<isa, Boxes<Acc<T>, void>, T>(params, first, last);
  } else if (params.argmax.narrow) {
    roi_forward<isa, Boxes<Acc<T>, int16_t>, T>(params, first, last);
  } else {
    roi_forward<isa, Boxes<Acc<T>, int32_t>, T>(params, first, last);
  }
}

template <Isa isa, class T>
int64_t roi_pool_backward_items_cpu(const RoiPoolParams<T>& params) {
  return roi_backward_items<T>(params);
}

template <Isa isa, class T>
void roi_pool_backward_cpu(const RoiPoolParams<T>& params, int64_t first, int64_t last) {
  if (params.saved_argmax.narrow) {
    roi_backward<isa, Boxes<Acc<T>, int16_t>, T>(params, first, last);
  } else {
    roi_backward<isa, Boxes<Acc<T>, int32_t>, T>(params, first, last);
  }
}

#define CVK_INSTANTIATE(T)                                                                        \
  template int64_t roi_pool_layout_cpu<Isa::CVK_ISA, T>(RoiPoolParams<T>&);                       \
  template void roi_pool_plan_cpu<Isa::CVK_ISA, T>(const RoiPoolParams<T>&, int64_t, int64_t);    \
  template int64_t roi_pool_forward_items_cpu<Isa::CVK_ISA, T>(RoiPoolParams<T>&);                \
  template void roi_pool_forward_cpu<Isa::CVK_ISA, T>(const RoiPoolParams<T>&, int64_t, int64_t); \
  template int64_t roi_pool_backward_items_cpu<Isa::CVK_ISA, T>(const RoiPoolParams<T>&);         \
  template void roi_pool_backward_cpu<Isa::CVK_ISA, T>(const RoiPoolParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
