// Position-sensitive pooling (Dai et al. 2016, R-FCN): bin (i, j) of output channel o reads input channel (o * PH + i) * PW + j and
// no other, so an output [K, C / bins, PH, PW] has as many values of a box as the input has channels.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/host_device.h"
#include "common/roi_geometry.h"
#include "common/roi_plan.h"

namespace cvk {

// What both operators take.
template <class T>
struct PositionSensitiveParams {
  RoiShape shape;        // channels: of the input, a multiple of the bins
  const T* input;        // [N, C, H, W]              forward
  const Acc<T>* boxes;   // [K, 5]
  T* output;             // [K, C / bins, PH, PW]     forward
  const T* grad_output;  // [K, C / bins, PH, PW]     backward
  T* grad_input;         // [N, C, H, W]              backward; fully overwritten
  RoiPlan plan;          // CPU only
};

CVK_HD int64_t ps_out_channels(const RoiShape& shape) { return shape.channels / shape.bins(); }

// Where the value of output channel `o` and bin `bin` of box k lies.
CVK_HD int64_t ps_offset(const RoiShape& shape, int64_t k, int64_t o, int64_t bin) {
  return k * shape.channels + (shape.channels_last ? bin * ps_out_channels(shape) + o : o * shape.bins() + bin);
}

}  // namespace cvk
