// Per-element arithmetic of deformable RoI pooling beyond RoI Align's: how a bin is shifted, and the derivative of that.
#pragma once

#include "common/host_device.h"
#include "common/numeric.h"
#include "common/roi_geometry.h"
#include "kernels/roi_align/roi_align_math.h"

namespace cvk {

// One axis of a box, and how far an offset of 1 shifts a bin along it.
template <class A>
struct DeformAxis {
  RoiAxis<A> axis;
  A reach;  // pixels
};

template <class A>
CVK_HD DeformAxis<A> deform_axis(const RoiShape& shape, double gamma, const A* box, bool along_y) {
  const RoiSpan<A> span = roi_span(along_y ? box[2] : box[1], along_y ? box[4] : box[3],
                                   static_cast<A>(shape.spatial_scale), shape.aligned);
  return {roi_axis(span, along_y ? shape.pooled_height : shape.pooled_width, shape.sampling_ratio,
                   along_y ? shape.height : shape.width),
          static_cast<A>(gamma) * span.length};
}

// Where box k's offsets for bin `bin` along an axis lie in [K, 2, PH, PW].
CVK_HD int64_t deform_offset_index(const RoiShape& shape, int64_t k, bool along_y, int64_t bin) {
  return (2 * k + (along_y ? 1 : 0)) * shape.bins() + bin;
}

// The axis as a bin with this offset sees it.
template <class A>
CVK_HD RoiAxis<A> deform_shifted(const DeformAxis<A>& box, A offset) {
  RoiAxis<A> axis = box.axis;
  axis.start += box.reach * offset;
  return axis;
}

// The gradient of an offset from that of its bin's shift. Edge: no gradient stays none where the box is infinite.
template <class A>
CVK_HD A deform_offset_gradient(A grad_shift, A reach) {
  return grad_shift != A(0) ? grad_shift * reach : A(0);
}

}  // namespace cvk
