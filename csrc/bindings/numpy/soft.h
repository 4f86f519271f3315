// Soft-NMS on arrays: what soft_nms and softer_nms call.
#pragma once

#include "bindings/numpy/arrays.h"
#include "kernels/soft_nms/soft_nms.h"

namespace cvk::bindings {

struct SoftRule {
  SoftNmsMethod method = SoftNmsMethod::kLinear;
  double threshold = 0, sigma = 1, min_score = 0;
  Overlap overlap;
};

inline SoftRule read_soft_rule(Reader& read, py::handle method, py::handle iou_threshold, py::handle sigma,
                               py::handle min_score, py::handle criterion, py::handle beta) {
  constexpr std::array<std::string_view, 3> kMethods{"linear", "gaussian", "hard"};
  SoftRule rule;
  rule.method = read.choice<SoftNmsMethod>(method, kMethods);
  rule.threshold = read.finite(iou_threshold);
  rule.sigma = read.positive(sigma);
  rule.min_score = read.not_negative(min_score);
  rule.overlap = read_overlap(read, criterion, beta);
  return rule;
}

// Boxes and scores are of type A. keep and new_scores [B, width] are padded, kept [B].
template <class A>
void soft_nms_into(const Candidates& candidates, const SoftRule& rule, int64_t width, int64_t* keep, A* new_scores,
                   int64_t* kept) {
  SoftNmsParams<A> params{};
  params.batch = candidates.batch;
  params.count = candidates.count;
  params.max_output = width;
  params.boxes = candidates.boxes.as<A>();
  params.scores = candidates.scores.as<A>();
  params.classes = candidates.classes;
  params.method = rule.method;
  params.threshold = overlap_threshold<A>(rule.threshold);
  params.sigma = positive_parameter<A>(rule.sigma);
  params.min_score = score_limit<A>(rule.min_score);
  params.overlap = rule.overlap.rule<A>();
  params.keep = keep;
  params.new_scores = new_scores;
  params.kept = kept;
  without_gil([&](auto isa) {
    for (int64_t image = 0; image < params.batch; ++image) soft_nms_cpu<isa.value>(params, image, Parallel{});
  });
}

}  // namespace cvk::bindings
