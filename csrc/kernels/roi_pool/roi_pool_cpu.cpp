// RoI Pool on the CPU: what a box does with its pixels. Contract and method: roi_pool.h.
#include "kernels/roi_pool/roi_pool.h"

#include <cstring>
#include <type_traits>

#include "common/roi_max.h"
#include "common/roi_passes.h"
#include "common/roi_ranges.h"
#include "kernels/roi_pool/roi_pool_math.h"

namespace cvk {
namespace {

// A record holds the pixels of rows and columns of bins (common/roi_ranges.h).
template <class A, bool kIndices>
struct Boxes {
  static constexpr bool kMaximum = kIndices;

  template <Isa isa, class E, class Out>
  static CVK_HD void pool(const View<E>& view, const RoiShape& shape, char* record, int channels, Out* out,
                          int32_t* argmax, int64_t stride) {
    const PixelRange *y = y_ranges(record), *x = x_ranges(record, shape);
    for (int i = 0; i < shape.pooled_height; ++i) {
      for (int j = 0; j < shape.pooled_width; ++j, out += stride) {
        pool_max<isa, kIndices, A>(view, y[i], x[j], shape.width, channels, out, argmax);
        if (kIndices) argmax += stride;
      }
    }
  }

  template <class G>
  static CVK_HD void spread_maxima(const G* grad, const int32_t* argmax, int64_t bin_stride, int64_t channel_stride,
                                   const RoiShape& shape, char*, int channels, int y_begin, int y_end, A* pixels,
                                   int pitch) {
    spread_pixels(grad, argmax, bin_stride, channel_stride, shape, channels, y_begin, y_end, pixels, pitch);
  }
};

// Planes of a work item of the backward pass that adds to them in place, or 0 where bands of channels-last pixels do better.
template <class A>
CVK_HD int64_t planes_of_item(const RoiShape& shape) {
  const int64_t bytes = shape.pixels() * static_cast<int64_t>(sizeof(A));
  if (shape.channels_last || bytes == 0 || bytes > kRoiPoolPlaneBytes) return 0;
  return min_of(min_of(kRoiPoolPlaneBytes / bytes, kRoiPoolMostPlanes), shape.channels);
}

// The gradient of contiguous maps, work items of `planes` channels of an image. Perf: an index is where to add, so neither
// gradients nor planes are turned.
template <class T>
CVK_HD void backward_by_planes(const RoiPoolParams<T>& params, int64_t planes, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const RoiPlan& plan = params.plan;
  constexpr bool kInPlace = std::is_same_v<T, A>;
  const Scratch sums(kInPlace ? 0 : planes * shape.pixels() * sizeof(A));
  const auto pixels = static_cast<uint32_t>(shape.pixels());
  for (int64_t item = first; item < last; ++item) {
    const int64_t n = item % shape.batch, c = item / shape.batch * planes;
    const int64_t channels = min_of(planes, shape.channels - c), count = channels * shape.pixels();
    T* const to = params.grad_input + (n * shape.channels + c) * shape.pixels();
    A* map;
    if constexpr (kInPlace) {
      map = to;
    } else {
      map = sums.template as<A>();
    }
    memset(map, 0, static_cast<size_t>(count) * sizeof(A));
    for (int64_t i = plan.image_begin[n]; i < plan.image_begin[n + 1]; ++i) {
      const auto at = [&](int64_t k) { return (k * shape.channels + c) * shape.bins(); };
      const T* grad = params.grad_output + at(plan.order[i]);
      const int32_t* argmax = params.saved_argmax + at(plan.order[i]);
      if (i + 1 < plan.image_begin[n + 1]) {
        const int64_t next = at(plan.order[i + 1]), elements = channels * shape.bins();
        prefetch(params.grad_output + next, elements * static_cast<int64_t>(sizeof(T)));
        prefetch(params.saved_argmax + next, elements * static_cast<int64_t>(sizeof(int32_t)));
      }
      const auto add = [&](auto at_once, int64_t channel) {
        for (int64_t bin = 0; bin < shape.bins(); ++bin) {
#pragma GCC unroll 4
          for (int64_t v = 0; v < at_once; ++v) {
            const int64_t element = (channel + v) * shape.bins() + bin;
            // An index of -1, or one that the operator never gave, is in no map.
            const auto pixel = static_cast<uint32_t>(argmax[element]);
            if (pixel < pixels) map[(channel + v) * shape.pixels() + pixel] += to_acc(grad[element]);
          }
        }
      };
      // Perf: bins that share a pixel wait for each other's sums; those of other channels do not.
      int64_t channel = 0;
      for (; channel + 4 <= channels; channel += 4) add(std::integral_constant<int, 4>{}, channel);
      for (; channel < channels; ++channel) add(std::integral_constant<int, 1>{}, channel);
    }
    if constexpr (!kInPlace) {
      for (int64_t p = 0; p < count; ++p) to[p] = from_acc<T>(map[p]);
    }
  }
}

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
  if (params.argmax != nullptr) {
    roi_forward<isa, Boxes<Acc<T>, true>, T>(params, first, last);
  } else {
    roi_forward<isa, Boxes<Acc<T>, false>, T>(params, first, last);
  }
}

template <Isa isa, class T>
int64_t roi_pool_backward_items_cpu(const RoiPoolParams<T>& params) {
  const int64_t planes = planes_of_item<Acc<T>>(params.shape);
  if (planes > 0) return params.shape.batch * ceil_div(params.shape.channels, planes);
  return roi_backward_items<T>(params);
}

template <Isa isa, class T>
void roi_pool_backward_cpu(const RoiPoolParams<T>& params, int64_t first, int64_t last) {
  if (const int64_t planes = planes_of_item<Acc<T>>(params.shape); planes > 0) {
    backward_by_planes(params, planes, first, last);
  } else {
    roi_backward<isa, Boxes<Acc<T>, true>, T>(params, first, last);
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
