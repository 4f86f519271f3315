#include "kernels/im2col/im2col.h"

#include "bindings/torch/conv_family.h"

namespace cvk::bindings {
namespace {

ConvShape column_geometry(const char* op, int64_t height, int64_t width, const Ints& kernel_size, const Ints& dilation,
                          const Ints& padding, const Ints& stride) {
  check_ints(op, "kernel_size", kernel_size, 2, 1);
  check_ints(op, "padding", padding, 2, 0);
  return conv_geometry(op, height, width, kernel_size[0], kernel_size[1], stride,
                       {padding[0], padding[0], padding[1], padding[1]}, dilation, 1);
}

Tensor im2col(const Tensor& input, const Ints& kernel_size, const Ints& dilation, const Ints& padding,
              const Ints& stride) {
  constexpr char op[] = "im2col";
  check_map(op, "input", input);
  ConvShape shape = column_geometry(op, input.size(2), input.size(3), kernel_size, dilation, padding, stride);
  shape.batch = input.size(0);
  shape.channels = input.size(1);
  shape.channels_last = is_channels_last(input);
  const Tensor map = in_format(input, shape.channels_last);
  const Tensor columns =
      allocate({shape.batch, shape.channels * shape.kernel_size(), shape.out_pixels()}, input.scalar_type(), input);
  if (columns.numel() == 0) return columns;
  with_float(op, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const Im2colParams<T> params{shape, data<T>(map), mutable_data<T>(columns)};
    run(
        op, input, work_of(im2col_items(params), columns.numel()),
        [&](auto isa, int64_t first, int64_t last) { im2col_cpu<isa.value>(params, first, last); },
        [&](CudaStream stream) { return im2col_cuda(params, stream); });
  });
  return columns;
}

Tensor im2col_backward(const Tensor& columns, int64_t height, int64_t width, const Ints& kernel_size,
                       const Ints& dilation, const Ints& padding, const Ints& stride) {
  constexpr char op[] = "col2im";
  if (columns.dim() != 3) reject(op, "columns of shape (N, C * KH * KW, L), got ", shape_text(columns));
  check_float(op, "columns", columns);
  check_ints(op, "output_size", {height, width}, 2, 1);
  ConvShape shape = column_geometry(op, height, width, kernel_size, dilation, padding, stride);
  if (columns.size(1) % shape.kernel_size() != 0 || columns.size(2) != shape.out_pixels()) {
    reject(op, "columns of a multiple of ", shape.kernel_size(), " rows and ", shape.out_pixels(), " positions, got ",
           shape_text(columns));
  }
  shape.batch = columns.size(0);
  shape.channels = columns.size(1) / shape.kernel_size();
  const Tensor from = converted(columns, columns.scalar_type());
  const Tensor map = allocate({shape.batch, shape.channels, height, width}, columns.scalar_type(), columns);
  if (map.numel() == 0) return map;
  with_float(op, "columns", columns, [&](auto type) {
    using T = typename decltype(type)::T;
    const Im2colParams<T> params{shape, data<T>(from), mutable_data<T>(map)};
    run(
        op, columns, work_of(im2col_backward_items(params), columns.numel()),
        [&](auto isa, int64_t first, int64_t last) { im2col_backward_cpu<isa.value>(params, first, last); },
        [&](CudaStream stream) { return im2col_backward_cuda(params, stream); });
  });
  return map;
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def("im2col(Tensor input, SymInt[] kernel_size, SymInt[] dilation, SymInt[] padding, SymInt[] stride) -> Tensor");
  m.def(
      "im2col_backward(Tensor columns, SymInt height, SymInt width, SymInt[] kernel_size, SymInt[] dilation, "
      "SymInt[] padding, SymInt[] stride) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("im2col", TORCH_BOX(&im2col));
  m.impl("im2col_backward", TORCH_BOX(&im2col_backward));
}

}  // namespace cvk::bindings
