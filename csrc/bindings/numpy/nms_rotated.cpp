#include "kernels/nms_rotated/nms_rotated.h"

#include "bindings/numpy/arrays.h"
#include "bindings/numpy/entries.h"

namespace cvk::bindings {
namespace {

// -> keep
py::object nms_rotated(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold,
                       py::handle max_output, py::handle clockwise) {
  Reader read;
  const Candidates candidates = read_candidates(read, 2, 5, boxes, scores, idxs);
  const double threshold = read.finite(iou_threshold);
  const int64_t most = read.limit(max_output, candidates.count);
  const bool turned = read.flag(clockwise);
  if (!read.good()) return py::none();
  Buffer<int64_t> keep(most);
  int64_t kept = 0;
  with_width(candidates.boxes.wide, [&](auto box_type) {
    with_width(candidates.scores.wide, [&](auto score_type) {
      using A = typename decltype(box_type)::T;
      using S = typename decltype(score_type)::T;
      const NmsRotatedParams<A, S> params{candidates.count,
                                          candidates.boxes.as<A>(),
                                          candidates.scores.as<S>(),
                                          candidates.classes,
                                          overlap_threshold<A>(threshold),
                                          most,
                                          turned,
                                          keep.get()};
      without_gil([&](auto isa) { kept = nms_rotated_cpu<isa.value>(params, Parallel{}); });
    });
  });
  return copied(keep.get(), kept);
}

// -> overlaps
py::object box_iou_rotated(py::handle boxes1, py::handle boxes2, py::handle mode, py::handle aligned,
                           py::handle clockwise) {
  constexpr std::array<std::string_view, 2> kModes{"iou", "iof"};
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  Reader read;
  const int64_t rows = read.size(boxes1, 2, 0), columns = read.size(boxes2, 2, 0);
  const Values given1 = read.floats(boxes1, Shape{}.columns(rows).columns(5));
  const Values given2 = read.floats(boxes2, Shape{}.columns(columns).columns(5));
  const bool wide = given1.wide || given2.wide;
  const Values first = read.with_type(wide, given1, boxes1), second = read.with_type(wide, given2, boxes2);
  const bool over_first = read.choice<int>(mode, kModes) == 1, paired = read.flag(aligned),
             turned = read.flag(clockwise);
  read.want(std::max(rows, columns) <= kMost && (!paired || rows == columns));
  if (!read.good()) return py::none();
  return with_width(wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    auto overlaps = paired ? empty<A>({rows}) : empty<A>({rows, columns});
    const NmsRotatedIouParams<A, A> params{rows,       columns, first.as<A>(), second.as<A>(),
                                           over_first, paired,  turned,        overlaps.mutable_data()};
    if (overlaps.size() > 0) {
      without_gil([&](auto isa) { nms_rotated_iou_cpu<isa.value>(params, Parallel{}); });
    }
    return std::move(overlaps);
  });
}

}  // namespace

void define_nms_rotated(py::module_& module) {
  module.def("nms_rotated", &nms_rotated);
  module.def("box_iou_rotated", &box_iou_rotated);
}

}  // namespace cvk::bindings
