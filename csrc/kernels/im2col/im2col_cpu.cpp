// im2col and its adjoint on the CPU. Contract and method: im2col.h.
#include "kernels/im2col/im2col.h"

#include "common/scratch.h"
#include "common/simd.h"

namespace cvk {
namespace {

// Output pixels [begin, end) of an axis read inside the map at kernel element k.
struct Inside {
  int64_t begin, end;
};
CVK_HD Inside pixels_inside(int k, int stride, int pad, int dilation, int extent, int pixels) {
  const int64_t at = int64_t{k} * dilation - pad;
  const int64_t begin = at >= 0 ? 0 : ceil_div<int64_t>(-at, stride);
  const int64_t end = at >= extent ? 0 : ceil_div<int64_t>(extent - at, stride);
  Inside inside;
  inside.begin = min_of<int64_t>(begin, pixels);
  inside.end = max_of(inside.begin, min_of<int64_t>(end, pixels));
  return inside;
}
CVK_HD Inside columns_inside(const ConvShape& s, int j) {
  return pixels_inside(j, s.stride_x, s.pad_left, s.dilation_x, s.width, s.out_width);
}

template <class T>
CVK_HD void clear(T* to, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) to[i] = from_acc<T>(Acc<T>(0));
}

template <class T>
CVK_HD void plane_row(const Im2colParams<T>& params, int64_t item) {
  const ConvShape& s = params.shape;
  const int64_t y = item % s.out_height, row = item / s.out_height;  // row of the columns
  const int tap = static_cast<int>(row % s.kernel_size());
  const int i = tap / s.kernel_width, j = tap % s.kernel_width;
  T* to = params.to + item * s.out_width;
  const int64_t v = correlation_source(y, i, s.stride_y, s.pad_top, s.dilation_y, s.height);
  if (v < 0) {
    clear(to, 0, s.out_width);
    return;
  }
  const Inside inside = columns_inside(s, j);
  const T* from =
      params.from + (row / s.kernel_size() * s.height + v) * s.width + int64_t{j} * s.dilation_x - s.pad_left;
  clear(to, 0, inside.begin);
  if (s.stride_x == 1) {
    for (int64_t x = inside.begin; x < inside.end; ++x) to[x] = from[x];
  } else {
    for (int64_t x = inside.begin; x < inside.end; ++x) to[x] = from[x * s.stride_x];
  }
  clear(to, inside.end, s.out_width);
}

template <Isa isa, class T>
CVK_HD void channels_last_row(const Im2colParams<T>& params, int64_t item) {
  const ConvShape& s = params.shape;
  const int64_t image = item / s.out_height, y = item % s.out_height;
  const int64_t channel = int64_t{s.kernel_size()} * s.out_pixels();  // from a channel's columns to the next
  for (int i = 0; i < s.kernel_height; ++i) {
    const int64_t v = correlation_source(y, i, s.stride_y, s.pad_top, s.dilation_y, s.height);
    for (int j = 0; j < s.kernel_width; ++j) {
      Inside inside = columns_inside(s, j);
      if (v < 0) inside.begin = inside.end = 0;
      T* to = params.to + im2col_offset(s, image, 0, i, j, y, 0);
      for (int64_t c = 0; c < s.channels; ++c) {
        clear(to + c * channel, 0, inside.begin);
        clear(to + c * channel, inside.end, s.out_width);
      }
      if (inside.begin == inside.end) continue;
      const int64_t x = inside.begin * s.stride_x - s.pad_left + int64_t{j} * s.dilation_x;
      transpose_matrix<isa>(params.from + ((image * s.height + v) * s.width + x) * s.channels, s.stride_x * s.channels,
                            to + inside.begin, channel, inside.end - inside.begin, s.channels);
    }
  }
}

}  // namespace

template <Isa isa, class T>
void im2col_cpu(const Im2colParams<T>& params, int64_t first, int64_t last) {
  for (int64_t item = first; item < last; ++item) {
    if (params.shape.channels_last) {
      channels_last_row<isa>(params, item);
    } else {
      plane_row(params, item);
    }
  }
}

template <Isa isa, class T>
void im2col_backward_cpu(const Im2colParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const ConvShape& s = params.shape;
  const Scratch memory(int64_t{s.width} * sizeof(A));
  A* sums = memory.template as<A>();
  for (int64_t item = first; item < last; ++item) {
    const int64_t v = item % s.height, image = item / s.height / s.channels, c = item / s.height % s.channels;
    for (int64_t u = 0; u < s.width; ++u) sums[u] = A(0);
    for (int i = 0; i < s.kernel_height; ++i) {
      const int64_t y = transposed_source(v, i, s.stride_y, s.pad_top, s.dilation_y, s.out_height);
      if (y < 0) continue;
      for (int j = 0; j < s.kernel_width; ++j) {
        const Inside inside = columns_inside(s, j);
        const T* from = params.from + im2col_offset(s, image, c, i, j, y, 0);
        A* to = sums + (int64_t{j} * s.dilation_x - s.pad_left);
        if (s.stride_x == 1) {
          for (int64_t x = inside.begin; x < inside.end; ++x) to[x] += to_acc(from[x]);
        } else {
          for (int64_t x = inside.begin; x < inside.end; ++x) to[x * s.stride_x] += to_acc(from[x]);
        }
      }
    }
    T* to = params.to + item * s.width;
    for (int64_t u = 0; u < s.width; ++u) to[u] = from_acc<T>(sums[u]);
  }
}

#define CVK_INSTANTIATE(T)                                                             \
  template void im2col_cpu<Isa::CVK_ISA, T>(const Im2colParams<T>&, int64_t, int64_t); \
  template void im2col_backward_cpu<Isa::CVK_ISA, T>(const Im2colParams<T>&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
