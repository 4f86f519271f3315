#include "kernels/conv_transpose2d/conv_transpose2d.h"

#include "bindings/torch/conv_family.h"

namespace cvk::bindings {
namespace {

Tensor conv_transpose2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Ints& stride,
                        const Ints& padding, const Ints& output_padding, const Ints& dilation, int64_t groups,
                        bool tf32) {
  constexpr char op[] = "conv_transpose2d";
  check_map(op, "input", input);
  check_weight(op, weight, "input", input, groups, 0);
  const int64_t channels = weight.size(1) * groups;
  check_bias(op, bias, channels, input);
  check_ints(op, "stride", stride, 2, 1);
  check_ints(op, "padding", padding, 2, 0);
  check_ints(op, "output_padding", output_padding, 2, 0);
  check_ints(op, "dilation", dilation, 2, 1);
  for (size_t i = 0; i < 2; ++i) {
    if (output_padding[i] >= stride[i] && output_padding[i] >= dilation[i]) {
      reject(op, "output_padding below stride or dilation, got ", ints_text(output_padding));
    }
  }
  int64_t extents[2];
  for (size_t i = 0; i < 2; ++i) {
    const int dim = static_cast<int>(i) + 2;
    extents[i] = conv_transpose2d_extent(input.size(dim), padding[i], output_padding[i], weight.size(dim), stride[i],
                                         dilation[i]);
  }
  if (input.size(2) < 1 || input.size(3) < 1 || extents[0] < 1 || extents[1] < 1) {
    reject(op, "an output of at least 1 x 1, got (", extents[0], ", ", extents[1], ") for an input of ",
           shape_text(input));
  }
  ConvShape shape = conv_geometry(op, extents[0], extents[1], weight.size(2), weight.size(3), stride,
                                  {padding[0], padding[0], padding[1], padding[1]}, dilation, groups);
  shape.out_height = static_cast<int>(input.size(2));  // output_padding may have made room for more
  shape.out_width = static_cast<int>(input.size(3));
  shape.batch = input.size(0);
  shape.channels = channels;
  shape.filters = weight.size(0);
  shape.channels_last = is_channels_last(input) || is_channels_last(weight);
  return transposed_product(op, input, weight, bias, shape, tf32);
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "conv_transpose2d(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
      "SymInt[] output_padding, SymInt[] dilation, SymInt groups, bool tf32) -> Tensor");
}

CVK_KERNELS(m) { m.impl("conv_transpose2d", TORCH_BOX(&conv_transpose2d)); }

}  // namespace cvk::bindings
