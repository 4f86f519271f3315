#include "kernels/conv2d/conv2d.h"

#include "bindings/torch/conv_family.h"

namespace cvk::bindings {
namespace {

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups, const std::string& activation_name,
              bool tf32) {
  constexpr char op[] = "conv2d";
  check_map(op, "input", input);
  check_weight(op, weight, "input", input, groups, 1);
  check_bias(op, bias, weight.size(0), input);
  ConvShape shape = conv_geometry(op, input.size(2), input.size(3), weight.size(2), weight.size(3), stride, padding,
                                  dilation, groups);
  const Activation activation = activation_of(op, activation_name);
  shape.batch = input.size(0);
  shape.channels = input.size(1);
  shape.filters = weight.size(0);
  shape.channels_last = is_channels_last(input) || is_channels_last(weight);
  const Tensor map = in_format(input, shape.channels_last), weights = dense_weight(weight, shape);
  const Tensor output = allocate({shape.batch, shape.filters, shape.out_height, shape.out_width}, input.scalar_type(),
                                 input, shape.channels_last);
  if (output.numel() == 0) return output;
  with_float(op, "input", input, [&](auto type) {
    using T = typename decltype(type)::T;
    const OptionalTensor addend = bias ? OptionalTensor(converted(*bias, bias->scalar_type())) : std::nullopt;
    Conv2dParams<T> params{};
    params.shape = shape;
    params.input = data<T>(map);
    params.weight = data<T>(weights);
    params.bias = addend ? data<T>(*addend) : nullptr;
    params.activation = activation;
    params.output = mutable_data<T>(output);
    params.tf32 = tf32;
    Work work{};
    if constexpr (kOnCpu) {
      const int threads = torch_parallel().threads;
      work = work_of(once([&](auto isa) { return conv2d_forward_items_cpu<isa.value>(params, threads); }),
                     shape.products());
    }
    run(
        op, input, work,
        [&](auto isa, int64_t first, int64_t last) { conv2d_forward_cpu<isa.value>(params, first, last); },
        [&](CudaStream stream) {  // on the tensors' device, whose kind decides how much scratch it takes
          const Tensor scratch = allocate({conv2d_forward_scratch_cuda(params)}, ScalarType::Byte, input);
          return conv2d_forward_cuda(params, mutable_data<void>(scratch), stream);
        });
  });
  return output;
}

Tensor conv2d_backward_input(const Tensor& grad, const Tensor& weight, int64_t height, int64_t width,
                             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                             bool channels_last, bool tf32) {
  constexpr char op[] = "conv2d_backward_input";
  check_map(op, "grad", grad);
  check_weight(op, weight, "grad", grad, groups, 0);
  ConvShape shape = conv_geometry(op, height, width, weight.size(2), weight.size(3), stride, padding, dilation, groups);
  shape.batch = grad.size(0);
  shape.channels = weight.size(1) * groups;
  shape.filters = weight.size(0);
  shape.channels_last = channels_last;
  check_grad(op, grad, shape.batch, shape.filters, shape);
  return transposed_product(op, grad, weight, std::nullopt, shape, tf32);
}

Tensor conv2d_backward_weight(const Tensor& grad, const Tensor& input, int64_t kernel_height, int64_t kernel_width,
                              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                              bool channels_last, bool weight_channels_last, bool tf32) {
  constexpr char op[] = "conv2d_backward_weight";
  check_map(op, "grad", grad);
  check_map(op, "input", input);
  check_like(op, "input", input, "grad", grad);
  if (groups < 1 || input.size(1) % groups != 0 || grad.size(1) % groups != 0) {
    reject(op, "groups that divide the channels (", input.size(1), ", ", grad.size(1), "), got ", groups);
  }
  check_ints(op, "kernel_size", {kernel_height, kernel_width}, 2, 1);
  ConvShape shape =
      conv_geometry(op, input.size(2), input.size(3), kernel_height, kernel_width, stride, padding, dilation, groups);
  shape.batch = input.size(0);
  shape.channels = input.size(1);
  shape.filters = grad.size(1);
  shape.channels_last = channels_last;
  shape.weight_channels_last = weight_channels_last;
  check_grad(op, grad, shape.batch, shape.filters, shape);
  const Tensor grads = in_format(grad, channels_last), map = in_format(input, channels_last);
  const Tensor result = allocate({shape.filters, shape.group_channels(), kernel_height, kernel_width},
                                 grad.scalar_type(), grad, weight_channels_last);
  if (result.numel() == 0) return result;
  with_float(op, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    Conv2dParams<T> params{};
    params.shape = shape;
    params.grad_output = data<T>(grads);
    params.input = data<T>(map);
    params.grad_weight = mutable_data<T>(result);
    params.tf32 = tf32;
    if constexpr (kOnCpu) {
      const int64_t items = once([&](auto isa) { return conv2d_weight_items_cpu<isa.value>(params); });
      const int64_t parts = params.cut.parts;
      const HostScratch<Acc<T>> partials(parts > 1 ? parts * shape.weights() : 0);
      if (parts > 1) params.partials = partials.get();
      run(
          op, grad, work_of(items, shape.products()),
          [&](auto isa, int64_t first, int64_t last) { conv2d_weight_cpu<isa.value>(params, first, last); },
          [](CudaStream) { return CudaStatus{0}; });
      if (parts == 1) return;
      run(
          op, grad, work_of(shape.weights(), parts * shape.weights()),
          [&](auto isa, int64_t first, int64_t last) { conv2d_weight_sum_cpu<isa.value>(params, first, last); },
          [](CudaStream) { return CudaStatus{0}; });
    } else {
      run(
          op, grad, {}, [](auto, int64_t, int64_t) {},
          [&](CudaStream stream) {
            const Tensor scratch = allocate({conv2d_weight_scratch_cuda(params)}, ScalarType::Byte, grad);
            return conv2d_weight_cuda(params, mutable_data<void>(scratch), stream);
          });
    }
  });
  return result;
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "SymInt groups, str activation, bool tf32) -> Tensor");
  m.def(
      "conv2d_backward_input(Tensor grad, Tensor weight, SymInt height, SymInt width, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, SymInt groups, bool channels_last, bool tf32) -> Tensor");
  m.def(
      "conv2d_backward_weight(Tensor grad, Tensor input, SymInt kernel_height, SymInt kernel_width, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, SymInt groups, bool channels_last, bool weight_channels_last, "
      "bool tf32) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_backward_input", TORCH_BOX(&conv2d_backward_input));
  m.impl("conv2d_backward_weight", TORCH_BOX(&conv2d_backward_weight));
}

}  // namespace cvk::bindings
