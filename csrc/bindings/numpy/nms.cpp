#include "kernels/nms/nms.h"

#include "bindings/numpy/entries.h"
#include "bindings/numpy/greedy.h"
#include "common/radix_sort.h"

namespace cvk::bindings {
namespace {

py::object keep_of(Reader& read, const GreedyProblem& problem, py::handle max_output) {
  const int64_t most = read.limit(max_output, problem.count);
  if (!read.good()) return py::none();
  Buffer<int64_t> keep(most);
  int64_t count = 0;
  without_gil([&](auto isa) { count = greedy<isa.value>(problem, 0, most, keep.get(), nullptr); });
  return copied(keep.get(), count);
}

// -> keep
py::object nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold, py::handle max_output,
               py::handle criterion, py::handle beta) {
  Reader read;
  const GreedyProblem problem = read_greedy(read, 2, boxes, scores, idxs, iou_threshold, criterion, beta);
  return keep_of(read, problem, max_output);
}

// -> keep
py::object batched_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold,
                       py::handle max_output, py::handle criterion, py::handle beta) {
  return idxs.is_none() ? py::none() : nms(boxes, scores, idxs, iou_threshold, max_output, criterion, beta);
}

// -> keep
py::object adaptive_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle densities,
                        py::handle iou_threshold, py::handle max_output, py::handle criterion, py::handle beta) {
  Reader read;
  GreedyProblem problem = read_greedy(read, 2, boxes, scores, idxs, iou_threshold, criterion, beta);
  const Values values = read.floats(densities, problem.rows);
  problem.densities = read.with_type(problem.boxes.wide, values, densities).data;
  return keep_of(read, problem, max_output);
}

// -> keep, count
py::object nms_padded(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold,
                      py::handle max_output, py::handle criterion, py::handle beta) {
  Reader read;
  const GreedyProblem problem = read_greedy(read, 3, boxes, scores, idxs, iou_threshold, criterion, beta);
  const int64_t width = read.width(max_output);
  if (!read.good()) return py::none();
  auto keep = empty<int64_t>({problem.batch, width}), count = empty<int64_t>({problem.batch});
  int64_t* const rows = keep.mutable_data();
  int64_t* const kept = count.mutable_data();
  without_gil([&](auto isa) { greedy_padded<isa.value>(problem, width, rows, kept, nullptr); });
  return py::make_tuple(keep, count);
}

// The owned boxes by owner, those of one owner by descending score; an array for each owner.
template <class S>
py::list groups_of(const S* scores, const int64_t* owner, int64_t count, int64_t owners) {
  using ByScore = Keyed<decltype(descending_key(S{}))>;
  using ByOwner = Keyed<uint32_t>;
  Buffer<ByScore> ranking(count), spare_ranking(count);
  Buffer<ByOwner> grouping(count), spare_grouping(count);
  int64_t owned = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (owner[i] >= 0) ranking.get()[owned++] = {descending_key(scores[i]), static_cast<uint32_t>(i)};
  }
  const ByScore* const ranked = radix_sort(ranking.get(), spare_ranking.get(), owned);
  for (int64_t i = 0; i < owned; ++i) {
    grouping.get()[i] = {static_cast<uint32_t>(owner[ranked[i].value]), ranked[i].value};
  }
  const ByOwner* member = radix_sort(grouping.get(), spare_grouping.get(), owned);
  const ByOwner* const end = member + owned;
  py::list groups(owners);
  for (int64_t row = 0; row < owners; ++row) {
    const ByOwner* const first = member;
    while (member < end && member->key == first->key) ++member;
    auto group = empty<int64_t>({member - first});
    std::transform(first, member, group.mutable_data(), [](const ByOwner& entry) { return int64_t{entry.value}; });
    PyList_SET_ITEM(groups.ptr(), row, group.release().ptr());
  }
  return groups;
}

// -> a list of arrays. Suppresses above the threshold, like the others.
py::object nms_match(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold,
                     py::handle criterion, py::handle beta) {
  Reader read;
  const GreedyProblem problem = read_greedy(read, 2, boxes, scores, idxs, iou_threshold, criterion, beta);
  if (!read.good()) return py::none();
  const int64_t count = problem.count;
  Buffer<int64_t> keep(count), owner(count);
  int64_t kept = 0;
  without_gil([&](auto isa) { kept = greedy<isa.value>(problem, 0, count, keep.get(), owner.get()); });
  return with_width(problem.scores.wide, [&](auto type) -> py::object {
    return groups_of(problem.scores.as<typename decltype(type)::T>(), owner.get(), count, kept);
  });
}

// -> keep, scores
py::object iou_guided_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle localization,
                          py::handle iou_threshold, py::handle max_output, py::handle criterion, py::handle beta) {
  Reader read;
  GreedyProblem problem = read_greedy(read, 2, boxes, scores, idxs, iou_threshold, criterion, beta);
  const Values places = read.floats(localization, problem.rows);
  const bool wide = places.wide || problem.scores.wide;  // as doubles their order is the same
  const Values all_ranks = read.with_type(wide, places, localization);
  const Values all_scores = read.with_type(wide, problem.scores, scores);
  const int64_t most = read.limit(max_output, problem.count);
  if (!read.good()) return py::none();
  const int64_t count = problem.count;
  return with_width(wide, [&](auto type) -> py::object {
    using S = typename decltype(type)::T;
    const S* const values = all_scores.as<S>();
    const S* const ranks = all_ranks.as<S>();
    Buffer<S> ranking(count), best(most);
    Buffer<int64_t> keep(most), owner(count);
    int64_t kept = 0;
    problem.scores = {ranking.get(), wide};
    without_gil([&](auto isa) {
      // NaN in either takes no part.
      std::transform(values, values + count, ranks, ranking.get(), [](S s, S rank) { return s == s ? rank : s; });
      kept = greedy<isa.value>(problem, 0, most, keep.get(), owner.get());
      std::fill_n(best.get(), kept, -std::numeric_limits<S>::infinity());
      for (int64_t i = 0; i < count; ++i) {
        if (owner.get()[i] < 0) continue;
        S& of_cluster = best.get()[owner.get()[i]];
        of_cluster = std::max(of_cluster, values[i]);
      }
    });
    return py::make_tuple(copied(keep.get(), kept), copied(best.get(), kept));
  });
}

}  // namespace

void define_nms(py::module_& module) {
  module.def("nms", &nms);
  module.def("batched_nms", &batched_nms);
  module.def("adaptive_nms", &adaptive_nms);
  module.def("nms_padded", &nms_padded);
  module.def("nms_match", &nms_match);
  module.def("iou_guided_nms", &iou_guided_nms);
}

}  // namespace cvk::bindings
