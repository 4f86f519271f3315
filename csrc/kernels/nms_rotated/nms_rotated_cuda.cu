// Rotated IoU and NMS on CUDA. Contract: nms_rotated.h; method of the NMS: nms_engine.cuh. Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "kernels/nms/nms_engine.cuh"
#include "kernels/nms_rotated/nms_rotated.h"
#include "kernels/nms_rotated/nms_rotated_math.h"

namespace cvk {
namespace {

// IoU above one threshold. Sines and cosines are taken once, when a box is loaded.
template <class A>
struct RotatedRule {
  static constexpr bool kHeavy = sizeof(A) == 8;
  using Item = RotatedBox<A>;
  const A* boxes;  // [N, 5]
  A threshold;
  bool clockwise;

  CVK_HD Item load(int64_t box) const { return rotated_box(boxes + 5 * box, clockwise); }
  CVK_HD bool suppresses(const Item& kept, const Item& other) const {
    return rotated_overlap(kept, other, false) > threshold;
  }
};

template <class A>
NmsProblem problem_of(const NmsRotatedOrderedParams<A>& params) {
  return {
      1,           params.count, params.max_output, params.order, params.ordered_scores, params.classes, params.keep,
      params.kept, nullptr};
}

// Sines and cosines of both lists of boxes, one thread per box.
template <class A>
__global__ void __launch_bounds__(kNmsRotatedThreads)
    nms_rotated_iou_prepare_kernel(const A* boxes1,        // [N, 5]
                                   const A* boxes2,        // [M, 5]
                                   RotatedBox<A>* result,  // [N + M]
                                   int64_t rows, int64_t columns, bool clockwise) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kNmsRotatedThreads + threadIdx.x;
  if (i >= rows + columns) return;
  result[i] = rotated_box(i < rows ? boxes1 + 5 * i : boxes2 + 5 * (i - rows), clockwise);
}

// One thread per pair.
template <class A, class T>
__global__ void __launch_bounds__(kNmsRotatedThreads) nms_rotated_iou_aligned_kernel(NmsRotatedIouParams<A, T> params) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kNmsRotatedThreads + threadIdx.x;
  if (i >= params.rows) return;
  params.overlaps[i] =
      from_acc<T>(rotated_overlap(rotated_box(params.boxes1 + 5 * i, params.clockwise),
                                  rotated_box(params.boxes2 + 5 * i, params.clockwise), params.over_first));
}

// One thread per column, through kNmsRotatedRows rows: a warp writes neighbours and reads the same box of the row.
template <class A, class T>
__global__ void __launch_bounds__(kNmsRotatedThreads)
    nms_rotated_iou_matrix_kernel(NmsRotatedIouParams<A, T> params,
                                  const RotatedBox<A>* boxes,  // [N + M]
                                  int64_t blocks) {            // of a row
  const int64_t column = blockIdx.x % blocks * kNmsRotatedThreads + threadIdx.x;
  if (column >= params.columns) return;
  const RotatedBox<A> other = boxes[params.rows + column];
  const int64_t begin = blockIdx.x / blocks * kNmsRotatedRows;
  const int64_t end = min_of(begin + kNmsRotatedRows, params.rows);
  for (int64_t row = begin; row < end; ++row) {
    params.overlaps[row * params.columns + column] = from_acc<T>(rotated_overlap(boxes[row], other, params.over_first));
  }
}

}  // namespace

template <class A>
int64_t nms_rotated_scratch_cuda(const NmsRotatedOrderedParams<A>& params) {
  return nms_engine::scratch_bytes<RotatedRule<A>>(problem_of(params));
}

template <class A>
CudaStatus nms_rotated_cuda(const NmsRotatedOrderedParams<A>& params, void* scratch, CudaStream stream) {
  const RotatedRule<A> rule{params.boxes, params.threshold, params.clockwise};
  return static_cast<CudaStatus>(nms_engine::run(problem_of(params), rule, scratch, stream));
}

template <class A, class T>
int64_t nms_rotated_iou_scratch_cuda(const NmsRotatedIouParams<A, T>& params) {
  return params.aligned ? 0 : (params.rows + params.columns) * static_cast<int64_t>(sizeof(RotatedBox<A>));
}

template <class A, class T>
CudaStatus nms_rotated_iou_cuda(const NmsRotatedIouParams<A, T>& params, void* scratch, CudaStream stream) {
  if (params.rows == 0 || params.columns == 0) return static_cast<CudaStatus>(cudaSuccess);
  const dim3 threads(kNmsRotatedThreads);
  const auto blocks_for = [](int64_t items) { return ceil_div<int64_t>(items, kNmsRotatedThreads); };
  const auto grid = [](int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); };
  if (params.aligned) {
    return static_cast<CudaStatus>(
        launch(nms_rotated_iou_aligned_kernel<A, T>, {grid(blocks_for(params.rows)), threads}, stream, params));
  }
  const int64_t blocks = blocks_for(params.columns), bands = ceil_div<int64_t>(params.rows, kNmsRotatedRows);
  if (bands > 0x7fffffffLL / blocks) return static_cast<CudaStatus>(cudaErrorInvalidConfiguration);
  auto* const boxes = static_cast<RotatedBox<A>*>(scratch);
  cudaError_t status =
      launch(nms_rotated_iou_prepare_kernel<A>, {grid(blocks_for(params.rows + params.columns)), threads}, stream,
             params.boxes1, params.boxes2, boxes, params.rows, params.columns, params.clockwise);
  if (status == cudaSuccess) {
    status = launch(nms_rotated_iou_matrix_kernel<A, T>, {grid(blocks * bands), threads}, stream, params,
                    static_cast<const RotatedBox<A>*>(boxes), blocks);
  }
  return static_cast<CudaStatus>(status);
}

#define CVK_INSTANTIATE(A)                                                         \
  template int64_t nms_rotated_scratch_cuda<A>(const NmsRotatedOrderedParams<A>&); \
  template CudaStatus nms_rotated_cuda<A>(const NmsRotatedOrderedParams<A>&, void*, CudaStream);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
#undef CVK_INSTANTIATE
#define CVK_INSTANTIATE(A, T)                                                            \
  template int64_t nms_rotated_iou_scratch_cuda<A, T>(const NmsRotatedIouParams<A, T>&); \
  template CudaStatus nms_rotated_iou_cuda<A, T>(const NmsRotatedIouParams<A, T>&, void*, CudaStream);
CVK_INSTANTIATE(float, float)
CVK_INSTANTIATE(float, half_t)
CVK_INSTANTIATE(float, bfloat16_t)
CVK_INSTANTIATE(double, double)
#undef CVK_INSTANTIATE

}  // namespace cvk
