// The greedy engine on arrays: what nms and weighted_nms call.
#pragma once

#include "bindings/numpy/arrays.h"
#include "kernels/nms/nms.h"

namespace cvk::bindings {

struct GreedyProblem : Candidates {
  double threshold = 0;
  Overlap overlap;
  const void* densities = nullptr;  // [..., N] of the type of the boxes, or null
};

inline GreedyProblem read_greedy(Reader& read, int dims, py::handle boxes, py::handle scores, py::handle idxs,
                                 py::handle iou_threshold, py::handle criterion, py::handle beta) {
  GreedyProblem problem;
  static_cast<Candidates&>(problem) = read_candidates(read, dims, 4, boxes, scores, idxs);
  problem.threshold = read.finite(iou_threshold);
  problem.overlap = read_overlap(read, criterion, beta);
  return problem;
}

// Returns how many indices it wrote to keep [width]; owner [N] or null.
template <Isa isa>
int64_t greedy(const GreedyProblem& problem, int64_t image, int64_t width, int64_t* keep, int64_t* owner) {
  return with_width(problem.boxes.wide, [&](auto box_type) {
    return with_width(problem.scores.wide, [&](auto score_type) {
      using A = typename decltype(box_type)::T;
      using S = typename decltype(score_type)::T;
      const int64_t count = problem.count;
      const NmsParams<A, S> params{count,
                                   problem.boxes.as<A>() + image * count * 4,
                                   problem.scores.as<S>() + image * count,
                                   problem.classes_of(image),
                                   static_cast<const A*>(problem.densities),
                                   overlap_threshold<A>(problem.threshold),
                                   problem.overlap.rule<A>(),
                                   std::min(count, width),
                                   keep,
                                   owner};
      return nms_cpu<isa>(params, Parallel{});
    });
  });
}

// Every image: keep [B, width] padded with -1, kept [B], owner [B, N] or null.
template <Isa isa>
void greedy_padded(const GreedyProblem& problem, int64_t width, int64_t* keep, int64_t* kept, int64_t* owner) {
  for (int64_t image = 0; image < problem.batch; ++image) {
    int64_t* const row = keep + image * width;
    kept[image] = greedy<isa>(problem, image, width, row, owner == nullptr ? nullptr : owner + image * problem.count);
    std::fill(row + kept[image], row + width, int64_t{-1});
  }
}

}  // namespace cvk::bindings
