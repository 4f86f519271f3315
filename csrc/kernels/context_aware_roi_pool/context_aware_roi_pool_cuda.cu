// Context-aware RoI Pool on CUDA: cells of enlarged boxes in the kernels of common/roi_max.cuh. Contract: context_aware_roi_pool.h.
// Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "common/roi_max.cuh"
#include "kernels/context_aware_roi_pool/context_aware_roi_pool.h"
#include "kernels/context_aware_roi_pool/context_aware_roi_pool_math.h"
#include "kernels/context_aware_roi_pool/context_aware_roi_pool_tuning.h"

namespace cvk {

// The maximum of a bin: of its pixels where the box is not enlarged, else of its cells.
template <int count, class T>
CVK_DEVICE void pool_maximum(const Pixels<T>& pixels, const EnlargedAxis<Acc<T>>& y_axis,
                             const EnlargedAxis<Acc<T>>& x_axis, CellRange y, CellRange x, Acc<T> (&result)[count],
                             int (&argmax)[count]) {
  using A = Acc<T>;
  if (y_axis.stretch == 1 && x_axis.stretch == 1) {
    pool_pixels(pixels, {y_axis.first + static_cast<int>(y.first), y_axis.first + static_cast<int>(y.last)},
                {x_axis.first + static_cast<int>(x.first), x_axis.first + static_cast<int>(x.last)}, result, argmax);
    return;
  }
  int cell = 0;
  for (int64_t row = y.first; row < y.last; ++row) {
    const CellTaps<A> y_tap = cell_taps(y_axis, row);
    for (int64_t column = x.first; column < x.last; ++column, ++cell) {
      const CellTaps<A> x_tap = cell_taps(x_axis, column);
      A value[count];
#pragma unroll
      for (int c = 0; c < count; ++c) value[c] = A(0);
#pragma unroll 1  // unrolled it takes more registers than there are
      for (int i = 0; i < y_tap.count; ++i) {
        const int pixel_y = i == 0 ? y_tap.pixel[0] : y_tap.pixel[1];
        const A weight_y = i == 0 ? y_tap.weight[0] : y_tap.weight[1];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (j >= x_tap.count) continue;
          const A weight = weight_y * x_tap.weight[j];
          A pixel[count];
          load_group(pixels.at(pixel_y, x_tap.pixel[j]), pixel);
#pragma unroll
          for (int c = 0; c < count; ++c) value[c] = mul_add(weight, pixel[c], value[c]);
        }
      }
#pragma unroll
      for (int c = 0; c < count; ++c) {
        if (cell == 0 || is_greater(value[c], result[c])) {
          result[c] = value[c];
          argmax[c] = cell;
        }
      }
    }
  }
}

template <class A>
CVK_DEVICE void spread_maximum(const EnlargedAxis<A>& y_axis, const EnlargedAxis<A>& x_axis, const CellRange& y,
                               const CellRange& x, int index, const TilePixels<A>& pixels, A grad) {
  if (y_axis.stretch == 1 && x_axis.stretch == 1) {
    spread_pixel(index, pixels, grad);
    return;
  }
  if (y.empty() || x.empty()) return;
  const int64_t width = x.last - x.first;
  if (index < 0 || index >= width * (y.last - y.first)) return;  // not the operator's own
  const CellTaps<A> y_tap = cell_taps(y_axis, y.first + index / width);
  const CellTaps<A> x_tap = cell_taps(x_axis, x.first + index % width);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = y_tap.pixel[i] - pixels.y;
    if (i >= y_tap.count || row < 0 || row >= pixels.rows) continue;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = x_tap.pixel[j] - pixels.x;
      if (j >= x_tap.count || column < 0 || column >= pixels.columns) continue;
      pixels.add(row, column, y_tap.weight[i] * x_tap.weight[j] * grad);
    }
  }
}

template <class T>
int64_t context_aware_roi_pool_forward_scratch_cuda(const ContextAwareRoiPoolParams<T>& params) {
  return roi_copy_bytes<T>(params.shape);
}

template <class T>
CudaStatus context_aware_roi_pool_forward_cuda(const ContextAwareRoiPoolParams<T>& params, void* scratch,
                                               CudaStream stream) {
  return roi_max_forward<EnlargedAxis<Acc<T>>, T>(params, scratch, stream);
}

template <class T>
CudaStatus context_aware_roi_pool_backward_cuda(const ContextAwareRoiPoolParams<T>& params, CudaStream stream) {
  return roi_max_backward<EnlargedAxis<Acc<T>>, T>(params, stream);
}

#define CVK_INSTANTIATE(T)                                                                                            \
  template int64_t context_aware_roi_pool_forward_scratch_cuda<T>(const ContextAwareRoiPoolParams<T>&);               \
  template CudaStatus context_aware_roi_pool_forward_cuda<T>(const ContextAwareRoiPoolParams<T>&, void*, CudaStream); \
  template CudaStatus context_aware_roi_pool_backward_cuda<T>(const ContextAwareRoiPoolParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
