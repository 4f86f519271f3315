// Running the kernels of RoI Align: what its bindings, of one level and of several, share.
#pragma once

#include "bindings/torch/roi_family.h"
#include "kernels/roi_align/roi_align.h"

namespace cvk::bindings {

template <class T>
RoiPlanMemory roi_align_plan(const char* op, RoiAlignParams<T>& params, const Tensor& on) {
  return RoiPlanMemory(
      op, on, params.shape, params.plan, params.boxes, 5,
      [&](auto isa) { return roi_align_layout_cpu<isa.value>(params); },
      [&](auto isa, int64_t first, int64_t last) { roi_align_plan_cpu<isa.value>(params, first, last); }, "boxes",
      params.levels.count, params.levels.given);
}

template <class T>
void run_roi_align_forward(const char* op, RoiAlignParams<T>& params, const Tensor& on) {
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = roi_align_plan(op, params, on);  // checks the indices, also where the output is empty
    if (params.shape.boxes == 0 || params.shape.channels == 0) return;
    const int64_t items = once([&](auto isa) { return roi_align_forward_items_cpu<isa.value>(params); });
    run(
        op, on, work_of(items, kRoiOperations * params.shape.boxes * params.shape.channels * params.shape.bins()),
        [&](auto isa, int64_t first, int64_t last) { roi_align_forward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    if (params.shape.boxes == 0 || params.shape.channels == 0) return;
    const Tensor scratch = allocate({roi_align_forward_scratch_cuda(params)}, ScalarType::Byte, on);
    run(
        op, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_align_forward_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

template <class T>
void run_roi_align_backward(const char* op, RoiAlignParams<T>& params, const Tensor& on) {
  if constexpr (kOnCpu) {
    const RoiPlanMemory memory = roi_align_plan(op, params, on);
    const int64_t items = once([&](auto isa) { return roi_align_backward_items_cpu<isa.value>(params); });
    const RoiShape& shape = params.shape;
    run(
        op, on, work_of(items, shape.channels * (kRoiOperations * shape.boxes * shape.bins() + params.pixels())),
        [&](auto isa, int64_t first, int64_t last) { roi_align_backward_cpu<isa.value>(params, first, last); },
        [](CudaStream) { return CudaStatus{0}; });
  } else {
    run(
        op, on, {}, [](auto, int64_t, int64_t) {},
        [&](CudaStream stream) { return roi_align_backward_cuda(params, stream); });
  }
}

}  // namespace cvk::bindings
