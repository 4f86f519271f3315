#include "kernels/nms_rotated/nms_rotated.h"

#include "bindings/torch/nms_family.h"

namespace cvk::bindings {
namespace {

void check_rotated(const char* op, const char* name, const char* shape, const Tensor& boxes) {
  if (boxes.dim() != 2 || boxes.size(1) != 5) reject(op, name, " of shape ", shape, ", got ", shape_text(boxes));
  check_float(op, name, boxes);
}

// Calls f with tags of the arithmetic type of the boxes and the type of the scores.
template <class F>
void with_types(const Tensor& boxes, const Tensor& scores, F&& f) {
  const auto with_boxes = [&](auto box_type) {
    if (scores.scalar_type() == ScalarType::Double)
      f(box_type, TypeTag<double>{});
    else
      f(box_type, TypeTag<float>{});
  };
  if (boxes.scalar_type() == ScalarType::Double)
    with_boxes(TypeTag<double>{});
  else
    with_boxes(TypeTag<float>{});
}

// The kept indices in keep [most]; returns how many.
int64_t rotated_on_cpu(const Tensor& boxes, const Tensor& scores, const OptionalTensor& classes, double iou_threshold,
                       bool clockwise, const Tensor& keep) {
  int64_t kept = 0;
  with_types(boxes, scores, [&](auto box_type, auto score_type) {
    using A = typename decltype(box_type)::T;
    using S = typename decltype(score_type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<A>), values = converted(scores, kScalarType<S>);
    const NmsRotatedParams<A, S> params{boxes.size(0),
                                        data<A>(coordinates),
                                        data<S>(values),
                                        data_or_null(classes),
                                        overlap_threshold<A>(iou_threshold),
                                        keep.size(0),
                                        clockwise,
                                        mutable_data<int64_t>(keep)};
    once([&](auto isa) { kept = nms_rotated_cpu<isa.value>(params, torch_parallel()); });
  });
  return kept;
}

int64_t rotated_on_cuda(const char* op, const Tensor& boxes, const Tensor& scores, const OptionalTensor& classes,
                        double iou_threshold, bool clockwise, const Tensor& keep) {
  const auto [ordered_scores, order] = sorted(scores, true);
  const Tensor verdict = converted(ordered_scores, ScalarType::Float);
  const Tensor ranks = converted(order, ScalarType::Long);
  const Tensor kept = allocate({1}, ScalarType::Long, boxes);
  with_types(boxes, scores, [&](auto box_type, auto) {
    using A = typename decltype(box_type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<A>);
    const NmsRotatedOrderedParams<A> params{boxes.size(0),
                                            keep.size(0),
                                            data<A>(coordinates),
                                            data<int64_t>(ranks),
                                            data<float>(verdict),
                                            data_or_null(classes),
                                            overlap_threshold<A>(iou_threshold),
                                            clockwise,
                                            mutable_data<int64_t>(keep),
                                            mutable_data<int64_t>(kept)};
    if constexpr (!kOnCpu) {
      const Tensor scratch = allocate({nms_rotated_scratch_cuda(params)}, ScalarType::Byte, boxes);
      on_device(op, boxes,
                [&](CudaStream stream) { return nms_rotated_cuda(params, mutable_data<void>(scratch), stream); });
    }
  });
  return on_host(kept);
}

Tensor nms_rotated(const Tensor& boxes, const Tensor& scores, const OptionalTensor& idxs, double iou_threshold,
                   int64_t max_output, bool clockwise) {
  constexpr char op[] = "nms_rotated";
  check_rotated(op, "boxes", "(N, 5)", boxes);
  check_scores_and_idxs(op, "boxes", boxes, scores, idxs);
  check_threshold(op, iou_threshold);
  const OptionalTensor classes = as_int64(idxs);
  const Tensor keep = allocate({most_rows(boxes.size(0), max_output)}, ScalarType::Long, boxes);
  if (keep.size(0) == 0) return keep;
  if constexpr (kOnCpu) {
    return first_rows(keep, rotated_on_cpu(boxes, scores, classes, iou_threshold, clockwise, keep));
  } else {
    return first_rows(keep, rotated_on_cuda(op, boxes, scores, classes, iou_threshold, clockwise, keep));
  }
}

// Into overlaps, whose dtype is float64 where that is the arithmetic type.
template <class A, class T>
void overlaps_into(const char* op, const Tensor& boxes1, const Tensor& boxes2, bool over_first, bool aligned,
                   bool clockwise, const Tensor& overlaps) {
  const Tensor first = converted(boxes1, kScalarType<A>), second = converted(boxes2, kScalarType<A>);
  const NmsRotatedIouParams<A, T> params{boxes1.size(0), boxes2.size(0), data<A>(first), data<A>(second),
                                         over_first,     aligned,        clockwise,      mutable_data<T>(overlaps)};
  if constexpr (kOnCpu) {
    once([&](auto isa) { nms_rotated_iou_cpu<isa.value>(params, torch_parallel()); });
  } else {
    const Tensor scratch = allocate({nms_rotated_iou_scratch_cuda(params)}, ScalarType::Byte, boxes1);
    on_device(op, boxes1,
              [&](CudaStream stream) { return nms_rotated_iou_cuda(params, mutable_data<void>(scratch), stream); });
  }
}

Tensor nms_rotated_iou(const Tensor& boxes1, const Tensor& boxes2, const std::string& mode, bool aligned,
                       bool clockwise) {
  constexpr char op[] = "box_iou_rotated";
  constexpr int64_t kIntMax = std::numeric_limits<int32_t>::max();
  check_rotated(op, "boxes1", "(N, 5)", boxes1);
  check_rotated(op, "boxes2", "(M, 5)", boxes2);
  check_same_device(op, "boxes2", boxes2, "boxes1", boxes1);
  const int64_t rows = boxes1.size(0), columns = boxes2.size(0);
  if (aligned && rows != columns) {
    reject(op, "boxes2 of shape ", shape_text(boxes1), " where aligned, got ", shape_text(boxes2));
  }
  const bool over_first = chosen<int>(op, "mode", mode, std::array<std::string_view, 2>{"iou", "iof"}) == 1;
  if (std::max(rows, columns) > kIntMax) reject(op, "fewer than 2^31 boxes, got ", std::max(rows, columns));
  const ScalarType type = boxes1.scalar_type();
  const bool wide = type == ScalarType::Double || boxes2.scalar_type() == ScalarType::Double;
  const ScalarType computed = wide ? ScalarType::Double : type;
  const Tensor overlaps = aligned ? allocate({rows}, computed, boxes1) : allocate({rows, columns}, computed, boxes1);
  if (overlaps.numel() > 0) {
    with_float(op, "boxes1", overlaps, [&](auto result_type) {
      using T = typename decltype(result_type)::T;
      overlaps_into<Acc<T>, T>(op, boxes1, boxes2, over_first, aligned, clockwise, overlaps);
    });
  }
  return converted(overlaps, type);
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "nms_rotated(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, SymInt max_output, bool clockwise) "
      "-> Tensor");
  m.def("nms_rotated_iou(Tensor boxes1, Tensor boxes2, str mode, bool aligned, bool clockwise) -> Tensor");
}

CVK_KERNELS(m) {
  m.impl("nms_rotated", TORCH_BOX(&nms_rotated));
  m.impl("nms_rotated_iou", TORCH_BOX(&nms_rotated_iou));
}

}  // namespace cvk::bindings
