#include "kernels/matrix_nms/matrix_nms.h"

#include "bindings/numpy/arrays.h"
#include "bindings/numpy/entries.h"
#include "common/radix_sort.h"

namespace cvk::bindings {
namespace {

// -> new_scores [N]. What comes after, best_first, shall find min_score and max_output checked.
py::object decayed(Reader& read, bool from_overlaps, py::handle source, py::handle scores, py::handle idxs,
                   py::handle sigma, py::handle min_score, py::handle max_output, py::handle kernel_name,
                   const Overlap& overlap) {
  constexpr std::array<std::string_view, 2> kKernels{"linear", "gaussian"};
  const Candidates candidates =
      of_one_type(read, read_candidates(read, 2, from_overlaps ? 0 : 4, source, scores, idxs), source, scores);
  const auto kernel = read.choice<MatrixNmsKernel>(kernel_name, kKernels);
  const double width = read.positive(sigma);
  read.not_negative(min_score);
  read.limit(max_output, candidates.count);
  if (!read.good()) return py::none();
  return with_width(candidates.boxes.wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    auto new_scores = empty<A>({candidates.count});
    MatrixNmsParams<A> params{};
    params.count = candidates.count;
    params.boxes = from_overlaps ? nullptr : candidates.boxes.as<A>();
    params.overlaps = from_overlaps ? candidates.boxes.as<A>() : nullptr;
    params.scores = candidates.scores.as<A>();
    params.classes = candidates.classes;
    params.kernel = kernel;
    params.sigma = positive_parameter<A>(width);
    params.overlap = overlap.rule<A>();
    params.new_scores = new_scores.mutable_data();
    if (params.count > 0) {
      without_gil([&](auto isa) { matrix_nms_cpu<isa.value>(params, Parallel{}); });
    }
    return std::move(new_scores);
  });
}

py::object matrix_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle sigma, py::handle min_score,
                      py::handle max_output, py::handle kernel, py::handle criterion, py::handle beta) {
  Reader read;
  const Overlap overlap = read_overlap(read, criterion, beta);
  return decayed(read, false, boxes, scores, idxs, sigma, min_score, max_output, kernel, overlap);
}

py::object matrix_nms_from_overlaps(py::handle overlaps, py::handle scores, py::handle idxs, py::handle sigma,
                                    py::handle min_score, py::handle max_output, py::handle kernel) {
  Reader read;
  return decayed(read, true, overlaps, scores, idxs, sigma, min_score, max_output, kernel, Overlap{});
}

// Scores of at least min_score by descending score, ties by index -> keep, new_scores
py::object best_first(py::handle scores, py::handle min_score, py::handle max_output) {
  Reader read;
  const int64_t count = read.size(scores, 1, 0);
  const Values all = read.floats(scores, Shape{}.columns(count));
  const double least = read.not_negative(min_score);
  const int64_t most = read.limit(max_output, count);
  if (!read.good()) return py::none();
  return with_width(all.wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    using Entry = Keyed<decltype(descending_key(A{}))>;
    const A limit = score_limit<A>(least);
    const A* const values = all.as<A>();
    Buffer<Entry> entries(count), spare(count);
    int64_t found = 0;
    const Entry* sorted = nullptr;
    without_gil([&](auto) {
      for (int64_t i = 0; i < count; ++i) {
        if (values[i] >= limit) entries.get()[found++] = {descending_key(values[i]), static_cast<uint32_t>(i)};
      }
      sorted = radix_sort(entries.get(), spare.get(), found);
    });
    auto keep = empty<int64_t>({std::min(found, most)});
    std::transform(sorted, sorted + keep.size(), keep.mutable_data(), [](const Entry& e) { return int64_t{e.value}; });
    return py::make_tuple(keep, taken(all, keep.data(), keep.size()));
  });
}

}  // namespace

void define_matrix_nms(py::module_& module) {
  module.def("matrix_nms", &matrix_nms);
  module.def("matrix_nms_from_overlaps", &matrix_nms_from_overlaps);
  module.def("best_first", &best_first);
}

}  // namespace cvk::bindings
