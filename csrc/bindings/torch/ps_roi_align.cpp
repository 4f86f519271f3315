#include "kernels/ps_roi_align/ps_roi_align.h"

#include "bindings/torch/position_sensitive.h"

namespace cvk::bindings {
namespace {

struct Op {
  static constexpr char kName[] = "ps_roi_align";

  template <Isa isa, class P>
  static int64_t layout(P& params) {
    return ps_roi_align_layout_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void plan(const P& params, int64_t first, int64_t last) {
    ps_roi_align_plan_cpu<isa>(params, first, last);
  }
  template <Isa isa, class P>
  static int64_t forward_items(const P& params) {
    return ps_roi_align_forward_items_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void forward(const P& params, int64_t first, int64_t last) {
    ps_roi_align_forward_cpu<isa>(params, first, last);
  }
  template <Isa isa, class P>
  static int64_t backward_items(const P& params) {
    return ps_roi_align_backward_items_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void backward(const P& params, int64_t first, int64_t last) {
    ps_roi_align_backward_cpu<isa>(params, first, last);
  }
  template <class P>
  static CudaStatus forward_cuda(const P& params, CudaStream stream) {
    return ps_roi_align_forward_cuda(params, stream);
  }
  template <class P>
  static CudaStatus backward_cuda(const P& params, CudaStream stream) {
    return ps_roi_align_backward_cuda(params, stream);
  }
};

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "ps_roi_align(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio) -> Tensor");
  m.def(
      "ps_roi_align_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio) -> "
      "Tensor");
}

CVK_KERNELS(m) {
  m.impl("ps_roi_align", TORCH_BOX(&ps_forward<Op>));
  m.impl("ps_roi_align_backward", TORCH_BOX(&ps_backward<Op>));
}

}  // namespace cvk::bindings
