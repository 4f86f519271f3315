// im2col and its adjoint on CUDA. Contract and method: im2col.h.
#include "kernels/im2col/im2col.h"

#include "common/launch.cuh"

namespace cvk {
namespace {

// A thread: an element of the columns, in the order of memory.
template <class T>
__global__ void __launch_bounds__(kIm2colThreads) im2col_kernel(Im2colParams<T> params, int64_t elements) {
  const ConvShape& s = params.shape;
  const int64_t index = int64_t{blockIdx.x} * kIm2colThreads + threadIdx.x;
  if (index >= elements) return;
  const int64_t pixel = index % s.out_pixels(), row = index / s.out_pixels();
  const int tap = static_cast<int>(row % s.kernel_size());
  const int64_t image = row / s.kernel_size() / s.channels, c = row / s.kernel_size() % s.channels;
  const int64_t v =
      correlation_source(pixel / s.out_width, tap / s.kernel_width, s.stride_y, s.pad_top, s.dilation_y, s.height);
  const int64_t u =
      correlation_source(pixel % s.out_width, tap % s.kernel_width, s.stride_x, s.pad_left, s.dilation_x, s.width);
  T value = from_acc<T>(Acc<T>(0));
  if (v >= 0 && u >= 0) {
    value = params.from[s.channels_last ? ((image * s.height + v) * s.width + u) * s.channels + c
                                        : ((image * s.channels + c) * s.height + v) * s.width + u];
  }
  params.to[index] = value;
}

// A thread: a pixel of a plane.
template <class T>
__global__ void __launch_bounds__(kIm2colThreads) im2col_backward_kernel(Im2colParams<T> params, int64_t elements) {
  const ConvShape& s = params.shape;
  const int64_t index = int64_t{blockIdx.x} * kIm2colThreads + threadIdx.x;
  if (index >= elements) return;
  const int64_t u = index % s.width, v = index / s.width % s.height;
  const int64_t image = index / s.pixels() / s.channels, c = index / s.pixels() % s.channels;
  Acc<T> sum = Acc<T>(0);
  for (int i = 0; i < s.kernel_height; ++i) {
    const int64_t y = transposed_source(v, i, s.stride_y, s.pad_top, s.dilation_y, s.out_height);
    if (y < 0) continue;
    for (int j = 0; j < s.kernel_width; ++j) {
      const int64_t x = transposed_source(u, j, s.stride_x, s.pad_left, s.dilation_x, s.out_width);
      if (x >= 0) sum += to_acc(params.from[im2col_offset(s, image, c, i, j, y, x)]);
    }
  }
  params.to[index] = from_acc<T>(sum);
}

}  // namespace

template <class T>
CudaStatus im2col_cuda(const Im2colParams<T>& params, CudaStream stream) {
  const ConvShape& s = params.shape;
  const int64_t elements = s.batch * s.channels * s.kernel_size() * s.out_pixels();
  const int64_t blocks = ceil_div<int64_t>(elements, kIm2colThreads);
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(im2col_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kIm2colThreads)}, stream, params,
                elements);
}

template <class T>
CudaStatus im2col_backward_cuda(const Im2colParams<T>& params, CudaStream stream) {
  const ConvShape& s = params.shape;
  const int64_t elements = s.batch * s.channels * s.pixels();
  const int64_t blocks = ceil_div<int64_t>(elements, kIm2colThreads);
  if (const cudaError_t status = grid_fits(blocks); status != cudaSuccess) return status;
  return launch(im2col_backward_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kIm2colThreads)}, stream, params,
                elements);
}

#define CVK_INSTANTIATE(T)                                                \
  template CudaStatus im2col_cuda<T>(const Im2colParams<T>&, CudaStream); \
  template CudaStatus im2col_backward_cuda<T>(const Im2colParams<T>&, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
