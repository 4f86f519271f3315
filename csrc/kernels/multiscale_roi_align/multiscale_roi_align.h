// Multi-level RoI Align (Lin et al. 2017, Feature Pyramid Networks): each box from the map of its size.
//
// Computes   output[k] = RoI Align of box k on the map of level l(k), with that level's scale;
//            l(k) = clamp(floor(canonical_level + log2(sqrt(area of the box) / canonical_scale) + 1e-6),
//                         k_min, k_max) - k_min,
//            k_min and k_max the whole parts of -log2 of the first and the last scale.
// Edges      Each step of l(k) rounds to the arithmetic of the features (float32, or float64 for float64), as
//            torchvision's LevelMapper does on the CPU; root and logarithm are the caller's. An area of NaN, or
//            one of sides of different signs, has no level: the box gives zeros. So does a level without a map,
//            which exists where scales skip a power of two. A single map takes every box.
//            Levels that are given: CPU, layout reports one outside [0, L) and the binding raises; CUDA, zeros.
//            The rest is RoI Align's (kernels/roi_align), mean and maximum.
// CPU, CUDA  The passes of RoI Align, which take several maps (common/roi_levels.h); one launch for all levels.
//            A level grows with the area, so it is found by comparing the area with the least of each level,
//            which LevelRule works out on the host, once per call. No kernel takes a root or a logarithm, and
//            all of them decide alike. `levels` alone, as an operator: a box per item.
// Traffic, Bound, Determinism  RoI Align's.
// Limits     RoI Align's for every level; at most kRoiMaxLevels levels.
// Source     arXiv 1612.03144, eq. 1; torchvision.ops.poolers for the edge rules.
#pragma once

#include <cstdint>

#include "common/cuda_types.h"
#include "common/isa.h"
#include "common/roi_levels.h"

namespace cvk {

template <class A>
struct MultiscaleRoiAlignLevelsParams {
  const A* boxes;  // [K, 5]
  int64_t count;   // K
  int levels;
  A least_area[kRoiMaxLevels + 1];
  int64_t* output;  // [K] level, or -1 for none
};

template <Isa isa, class A>
void multiscale_roi_align_levels_cpu(const MultiscaleRoiAlignLevelsParams<A>& params, int64_t first, int64_t last);

template <class A>
CudaStatus multiscale_roi_align_levels_cuda(const MultiscaleRoiAlignLevelsParams<A>& params, CudaStream stream);

}  // namespace cvk
