#include "bindings/numpy/soft.h"

#include "bindings/numpy/entries.h"

namespace cvk::bindings {
namespace {

// -> keep, new_scores; with dims 3 and count
py::object soft_nms_of(int dims, py::handle boxes, py::handle scores, py::handle idxs, py::handle method,
                       py::handle iou_threshold, py::handle sigma, py::handle min_score, py::handle max_output,
                       py::handle criterion, py::handle beta) {
  Reader read;
  const Candidates candidates = of_one_type(read, read_candidates(read, dims, 4, boxes, scores, idxs), boxes, scores);
  const SoftRule rule = read_soft_rule(read, method, iou_threshold, sigma, min_score, criterion, beta);
  const int64_t batch = candidates.batch;
  const int64_t width = dims == 3 ? read.width(max_output) : read.limit(max_output, candidates.count);
  if (!read.good()) return py::none();
  return with_width(candidates.boxes.wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    if (dims == 3) {
      auto keep = empty<int64_t>({batch, width}), count = empty<int64_t>({batch});
      auto new_scores = empty<A>({batch, width});
      soft_nms_into(candidates, rule, width, keep.mutable_data(), new_scores.mutable_data(), count.mutable_data());
      return py::make_tuple(keep, new_scores, count);
    }
    Buffer<int64_t> keep(width);
    Buffer<A> new_scores(width);
    int64_t kept = 0;
    soft_nms_into(candidates, rule, width, keep.get(), new_scores.get(), &kept);
    return py::make_tuple(copied(keep.get(), kept), copied(new_scores.get(), kept));
  });
}

py::object soft_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle method, py::handle iou_threshold,
                    py::handle sigma, py::handle min_score, py::handle max_output, py::handle criterion,
                    py::handle beta) {
  return soft_nms_of(2, boxes, scores, idxs, method, iou_threshold, sigma, min_score, max_output, criterion, beta);
}

py::object soft_nms_padded(py::handle boxes, py::handle scores, py::handle idxs, py::handle method,
                           py::handle iou_threshold, py::handle sigma, py::handle min_score, py::handle max_output,
                           py::handle criterion, py::handle beta) {
  return soft_nms_of(3, boxes, scores, idxs, method, iou_threshold, sigma, min_score, max_output, criterion, beta);
}

}  // namespace

void define_soft_nms(py::module_& module) {
  module.def("soft_nms", &soft_nms);
  module.def("soft_nms_padded", &soft_nms_padded);
}

}  // namespace cvk::bindings
