#include "kernels/weighted_nms/weighted_nms.h"

#include "bindings/numpy/entries.h"
#include "bindings/numpy/greedy.h"
#include "bindings/numpy/soft.h"

// Selection and merging may differ in their type: the greedy engine works in that of the boxes (GreedyProblem), the rest in
// double where boxes or scores are (Candidates of one type).
namespace cvk::bindings {
namespace {

// Into merged [B, slots, 4].
template <class A>
void merge_into(const Candidates& candidates, const Overlap& overlap, int64_t slots, const int64_t* keep,
                const int64_t* owner, A* merged) {
  WeightedNmsMergeParams<A> params{};
  params.batch = candidates.batch;
  params.count = candidates.count;
  params.slots = slots;
  params.boxes = candidates.boxes.as<A>();
  params.scores = candidates.scores.as<A>();
  params.keep = keep;
  params.owner = owner;
  params.overlap = overlap.rule<A>();
  params.merged = merged;
  without_gil([&](auto isa) {
    for (int64_t image = 0; image < params.batch; ++image) weighted_nms_merge_cpu<isa.value>(params, image);
  });
}

// -> boxes, scores, keep
py::object weighted_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold,
                        py::handle max_output, py::handle criterion, py::handle beta) {
  Reader read;
  const GreedyProblem problem = read_greedy(read, 2, boxes, scores, idxs, iou_threshold, criterion, beta);
  const Candidates candidates = of_one_type(read, problem, boxes, scores);
  const int64_t most = read.limit(max_output, problem.count);
  if (!read.good()) return py::none();
  Buffer<int64_t> keep(most), owner(problem.count);
  int64_t kept = 0;
  without_gil([&](auto isa) { kept = greedy<isa.value>(problem, 0, most, keep.get(), owner.get()); });
  return with_width(candidates.boxes.wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    auto merged = empty<A>({kept, 4});
    merge_into(candidates, problem.overlap, kept, keep.get(), owner.get(), merged.mutable_data());
    return py::make_tuple(merged, taken(problem.scores, keep.get(), kept), copied(keep.get(), kept));
  });
}

// The scores at keep [B, slots], 0 where that is -1.
py::array kept_scores(const Candidates& candidates, const int64_t* keep, int64_t slots) {
  return with_width(candidates.scores.wide, [&](auto type) -> py::array {
    using S = typename decltype(type)::T;
    auto result = empty<S>({candidates.batch, slots});
    S* to = result.mutable_data();
    for (int64_t image = 0; image < candidates.batch; ++image) {
      const S* const scores = candidates.scores.as<S>() + image * candidates.count;
      to = std::transform(keep + image * slots, keep + (image + 1) * slots, to,
                          [&](int64_t index) { return index < 0 ? S{} : scores[index]; });
    }
    return std::move(result);
  });
}

// -> boxes, scores, keep, count
py::object weighted_nms_padded(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold,
                               py::handle max_output, py::handle criterion, py::handle beta) {
  Reader read;
  const GreedyProblem problem = read_greedy(read, 3, boxes, scores, idxs, iou_threshold, criterion, beta);
  const Candidates candidates = of_one_type(read, problem, boxes, scores);
  const int64_t width = read.width(max_output);
  if (!read.good()) return py::none();
  auto keep = empty<int64_t>({problem.batch, width}), count = empty<int64_t>({problem.batch});
  Buffer<int64_t> owner(problem.batch * problem.count);
  int64_t* const rows = keep.mutable_data();
  int64_t* const kept = count.mutable_data();
  without_gil([&](auto isa) { greedy_padded<isa.value>(problem, width, rows, kept, owner.get()); });
  return with_width(candidates.boxes.wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    auto merged = empty<A>({problem.batch, width, 4});
    merge_into(candidates, problem.overlap, width, rows, owner.get(), merged.mutable_data());
    return py::make_tuple(merged, kept_scores(problem, rows, width), keep, count);
  });
}

// The vote for the boxes in keep, of type A: by variances and sigma_t where there are variances, else by scores.
template <class A>
py::array_t<A> voted(const Candidates& candidates, const int64_t* keep, int64_t kept, const Values& variances,
                     double sigma_t, double threshold, const Overlap& overlap) {
  auto result = empty<A>({kept, 4});
  WeightedNmsVoteParams<A> params{};
  params.count = candidates.count;
  params.slots = kept;
  params.boxes = candidates.boxes.as<A>();
  params.scores = candidates.scores.as<A>();
  params.classes = candidates.classes;
  params.keep = keep;
  params.variances = variances.as<A>();
  params.sigma_t = positive_parameter<A>(sigma_t);
  params.threshold = overlap_threshold<A>(threshold);
  params.overlap = overlap.rule<A>();
  params.voted = result.mutable_data();
  if (kept > 0) {
    without_gil([&](auto isa) { weighted_nms_vote_cpu<isa.value>(params, Parallel{}); });
  }
  return result;
}

// -> boxes, scores, keep
py::object softer_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle variances,
                      py::handle iou_threshold, py::handle sigma, py::handle min_score, py::handle sigma_t,
                      py::handle max_output, py::handle method, py::handle criterion, py::handle beta) {
  Reader read;
  const GreedyProblem problem = read_greedy(read, 2, boxes, scores, idxs, iou_threshold, criterion, beta);
  const Candidates candidates = of_one_type(read, problem, boxes, scores);
  const Values given = read.floats(variances, problem.rows.columns(4));
  const Values spread = read.with_type(candidates.boxes.wide, given, variances);
  const SoftRule rule = read_soft_rule(read, method, iou_threshold, sigma, min_score, criterion, beta);
  const double width = read.positive(sigma_t);
  const int64_t most = read.limit(max_output, problem.count);
  if (!read.good()) return py::none();
  return with_width(candidates.boxes.wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    const bool hard = rule.method == SoftNmsMethod::kHard;
    Buffer<int64_t> keep(most);
    Buffer<A> new_scores(hard ? 0 : most);
    int64_t kept = 0;
    if (hard) {
      without_gil([&](auto isa) { kept = greedy<isa.value>(problem, 0, most, keep.get(), nullptr); });
    } else {
      soft_nms_into(candidates, rule, most, keep.get(), new_scores.get(), &kept);
    }
    const auto merged = voted<A>(candidates, keep.get(), kept, spread, width, rule.threshold, rule.overlap);
    const py::array selected = hard ? taken(problem.scores, keep.get(), kept) : copied(new_scores.get(), kept);
    return py::make_tuple(merged, selected, copied(keep.get(), kept));
  });
}

enum class ClusterMode : int { kHard, kScorePenalty, kWeighted };

// -> boxes, scores, keep; with mode "score_penalty" the penalised scores [N], for best_first.
py::object cluster_nms(py::handle boxes, py::handle scores, py::handle idxs, py::handle iou_threshold, py::handle sigma,
                       py::handle min_score, py::handle max_output, py::handle mode_name, py::handle criterion,
                       py::handle beta) {
  constexpr std::array<std::string_view, 3> kModes{"hard", "score_penalty", "weighted"};
  Reader read;
  const GreedyProblem problem = read_greedy(read, 2, boxes, scores, idxs, iou_threshold, criterion, beta);
  const Candidates candidates = of_one_type(read, problem, boxes, scores);
  const double width = read.positive(sigma);
  read.not_negative(min_score);
  const auto mode = read.choice<ClusterMode>(mode_name, kModes);
  const int64_t limit = read.limit(max_output, problem.count);
  if (!read.good()) return py::none();
  const int64_t most = mode == ClusterMode::kScorePenalty ? problem.count : limit;
  Buffer<int64_t> keep(most);
  int64_t kept = 0;
  without_gil([&](auto isa) { kept = greedy<isa.value>(problem, 0, most, keep.get(), nullptr); });
  if (mode == ClusterMode::kHard) {
    return py::make_tuple(taken(problem.boxes, keep.get(), kept, 4), taken(problem.scores, keep.get(), kept),
                          copied(keep.get(), kept));
  }
  return with_width(candidates.boxes.wide, [&](auto type) -> py::object {
    using A = typename decltype(type)::T;
    if (mode == ClusterMode::kWeighted) {
      const auto merged = voted<A>(candidates, keep.get(), kept, Values{}, width, problem.threshold, problem.overlap);
      return py::make_tuple(merged, taken(problem.scores, keep.get(), kept), copied(keep.get(), kept));
    }
    auto new_scores = empty<A>({candidates.count});
    WeightedNmsPenaltyParams<A> params{};
    params.count = candidates.count;
    params.slots = kept;
    params.boxes = candidates.boxes.as<A>();
    params.scores = candidates.scores.as<A>();
    params.classes = candidates.classes;
    params.keep = keep.get();
    params.sigma = positive_parameter<A>(width);
    params.overlap = problem.overlap.rule<A>();
    params.new_scores = new_scores.mutable_data();
    if (params.count > 0) {
      without_gil([&](auto isa) { weighted_nms_penalty_cpu<isa.value>(params, Parallel{}); });
    }
    return std::move(new_scores);
  });
}

}  // namespace

void define_weighted_nms(py::module_& module) {
  module.def("weighted_nms", &weighted_nms);
  module.def("weighted_nms_padded", &weighted_nms_padded);
  module.def("softer_nms", &softer_nms);
  module.def("cluster_nms", &cluster_nms);
}

}  // namespace cvk::bindings
