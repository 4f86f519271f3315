#include "kernels/roi_pool/roi_pool.h"

#include "bindings/torch/roi_max.h"

namespace cvk::bindings {
namespace {

struct Op {
  template <class T>
  using Params = RoiPoolParams<T>;
  static constexpr char kName[] = "roi_pool";
  static constexpr int64_t kIndicesPerPixel = 1;

  template <Isa isa, class P>
  static int64_t layout(P& params) {
    return roi_pool_layout_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void plan(const P& params, int64_t first, int64_t last) {
    roi_pool_plan_cpu<isa>(params, first, last);
  }
  template <Isa isa, class P>
  static int64_t forward_items(P& params) {
    return roi_pool_forward_items_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void forward(const P& params, int64_t first, int64_t last) {
    roi_pool_forward_cpu<isa>(params, first, last);
  }
  template <Isa isa, class P>
  static int64_t backward_items(const P& params) {
    return roi_pool_backward_items_cpu<isa>(params);
  }
  template <Isa isa, class P>
  static void backward(const P& params, int64_t first, int64_t last) {
    roi_pool_backward_cpu<isa>(params, first, last);
  }
  template <class P>
  static int64_t scratch(const P& params) {
    return roi_pool_forward_scratch_cuda(params);
  }
  template <class P>
  static CudaStatus forward_cuda(const P& params, void* scratch, CudaStream stream) {
    return roi_pool_forward_cuda(params, scratch, stream);
  }
  template <class P>
  static CudaStatus backward_cuda(const P& params, CudaStream stream) {
    return roi_pool_backward_cuda(params, stream);
  }
};

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "roi_pool(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> "
      "Tensor");
  m.def(
      "roi_pool_argmax(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, bool narrow=False) -> (Tensor output, Tensor argmax)");
  m.def(
      "roi_pool_backward(Tensor grad, Tensor argmax, Tensor boxes, float spatial_scale, "
      "SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> "
      "Tensor");
}

CVK_KERNELS(m) {
  m.impl("roi_pool", TORCH_BOX(&max_values<Op>));
  m.impl("roi_pool_argmax", TORCH_BOX(&max_argmax<Op>));
  m.impl("roi_pool_backward", TORCH_BOX(&max_gradient<Op>));
}

}  // namespace cvk::bindings
