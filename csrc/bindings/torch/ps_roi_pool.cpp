#include "kernels/ps_roi_pool/ps_roi_pool.h"

#include "bindings/torch/position_sensitive.h"

namespace cvk::bindings {
namespace {

struct Op {
  static constexpr char kName[] = "ps_roi_pool";

  template <Isa isa, class P>
  static int64_t layout(P& params) {
    return ps_roi_pool_layout_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void plan(const P& params, int64_t first, int64_t last) {
    ps_roi_pool_plan_cpu<isa>(params, first, last);
  }
  template <Isa isa, class P>
  static int64_t forward_items(const P& params) {
    return ps_roi_pool_forward_items_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void forward(const P& params, int64_t first, int64_t last) {
    ps_roi_pool_forward_cpu<isa>(params, first, last);
  }
  template <Isa isa, class P>
  static int64_t backward_items(const P& params) {
    return ps_roi_pool_backward_items_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void backward(const P& params, int64_t first, int64_t last) {
    ps_roi_pool_backward_cpu<isa>(params, first, last);
  }
  template <class P>
  static CudaStatus forward_cuda(const P& params, CudaStream stream) {
    return ps_roi_pool_forward_cuda(params, stream);
  }
  template <class P>
  static CudaStatus backward_cuda(const P& params, CudaStream stream) {
    return ps_roi_pool_backward_cuda(params, stream);
  }
};

Tensor ps_roi_pool(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                   int64_t pooled_width) {
  return ps_forward<Op>(input, boxes, spatial_scale, pooled_height, pooled_width, 1);
}

Tensor ps_roi_pool_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                            int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width) {
  return ps_backward<Op>(grad, boxes, spatial_scale, pooled_height, pooled_width, batch_size, channels, height, width,
                         1);
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "ps_roi_pool(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> "
      "Tensor");
  m.def(
      "ps_roi_pool_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("ps_roi_pool", TORCH_BOX(&ps_roi_pool));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&ps_roi_pool_backward));
}

}  // namespace cvk::bindings
