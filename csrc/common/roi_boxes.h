// The gradient of separable RoI pooling with respect to the boxes.
//
// Along an axis, a sample of a box lies at start + position * bin, so that each tap carries beside its weight the derivatives of
// the weight with respect to start and bin (SlopedTap). With the scalar products p[i, j, y, x] of a bin's gradient and a tap's
// pixel over the channels, the gradient of the y axis's start is
//   sum_ij sum_y sum_x y.start_slope * x.weight * p[i, j, y, x],
// that of bin alike with bin_slope, and those of the x axis with the roles exchanged. A pass leaves these four sums for every
// box and part of its channels or bins; a last step adds the parts in order and turns them into corners.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/roi_geometry.h"
#include "common/roi_plan.h"

namespace cvk {

// Where the four sums of a part lie.
enum RoiSum { kYStart, kYBin, kXStart, kXBin, kRoiSums };

template <class T>
struct RoiBoxesParams {
  RoiShape shape;
  const T* input;               // [N, C, H, W]
  const Acc<T>* boxes;          // [K, 5]
  const T* grad_output;         // [K, C, PH, PW]
  const int32_t* saved_argmax;  // [K, C, PH, PW]  of the maximum; else null
  Acc<T>* sums;                 // [K, parts, kRoiSums]  scratch
  int64_t parts;                // of a box
  Acc<T>* grad_boxes;           // [K, 5]
  RoiPlan plan;                 // CPU only
};

// The last step for box k. An image index has no gradient.
template <class Axis, class T>
CVK_HD void roi_finish_box(const RoiBoxesParams<T>& params, int64_t k) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  A total[kRoiSums] = {};
  for (int64_t part = 0; part < params.parts; ++part) {
    for (int i = 0; i < kRoiSums; ++i) total[i] += params.sums[(k * params.parts + part) * kRoiSums + i];
  }
  A* const grad = params.grad_boxes + k * 5;
  const A scale = static_cast<A>(shape.spatial_scale);
  Axis axis;
  roi_make_axis(shape, params.boxes + k * 5, true, axis);
  const RoiCorners<A> y = roi_corners(total[kYStart], total[kYBin], scale, shape.pooled_height, axis.stretched);
  roi_make_axis(shape, params.boxes + k * 5, false, axis);
  const RoiCorners<A> x = roi_corners(total[kXStart], total[kXBin], scale, shape.pooled_width, axis.stretched);
  grad[0] = A(0);
  grad[1] = x.low;
  grad[2] = y.low;
  grad[3] = x.high;
  grad[4] = y.high;
}

}  // namespace cvk
