// Feature maps of several levels, of which each box is pooled from one; one level is the plain case.
//
// A box finds its level by its area, through the least area of each level (kernels/multiscale_roi_align).
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/host_device.h"
#include "common/roi_geometry.h"

namespace cvk {

constexpr int kRoiMaxLevels = 8;

template <class T>
struct RoiMap {
  const T* input;  // [N, C, height, width]   forward
  T* grad_input;   // [N, C, height, width]   backward; fully overwritten
  int height, width;
  double spatial_scale;
};

template <class T>
struct RoiLevels {
  int count;                             // 1 to kRoiMaxLevels
  const int64_t* given;                  // [K] levels of the boxes; null: by area
  Acc<T> least_area[kRoiMaxLevels + 1];  // ascending, of levels 0 to count; NaN: no box is so large
  RoiMap<T> maps[kRoiMaxLevels];
};

// The level of an area, or -1 for that of a box whose sides have different signs, for NaN, and beyond the last level.
template <class A>
CVK_HD int roi_level_of_area(A area, const A* least_area, int count) {
  int level = -1;
  for (int i = 0; i <= count; ++i) {
    if (area >= least_area[i]) level = i;  // NaN fails
  }
  return level < count ? level : -1;
}

// What a box is assigned by.
template <class A>
CVK_HD A roi_level_area(const A* box) {
  return (box[3] - box[1]) * (box[4] - box[2]);
}

// The level of box row k, or -1 for none: such a box reads nothing.
template <class T>
CVK_HD int roi_level(const RoiLevels<T>& levels, const Acc<T>* box, int64_t k) {
  if (levels.given != nullptr) {
    const int64_t level = levels.given[k];
    return level >= 0 && level < levels.count ? static_cast<int>(level) : -1;
  }
  if (levels.count == 1) return 0;
  return roi_level_of_area(roi_level_area(box), levels.least_area, levels.count);
}

// A call of one map, for roi_layout.
struct RoiOneLevel {
  double spatial_scale;
  static constexpr int count = 1;
};
template <class A>
CVK_HD int roi_level(const RoiOneLevel&, const A*, int64_t) {
  return 0;
}
CVK_HD double roi_level_scale(const RoiOneLevel& level, int) { return level.spatial_scale; }
CVK_HD bool roi_levels_given(const RoiOneLevel&) { return false; }

template <class T>
CVK_HD double roi_level_scale(const RoiLevels<T>& levels, int level) {
  return levels.maps[level].spatial_scale;
}
template <class T>
CVK_HD bool roi_levels_given(const RoiLevels<T>& levels) {
  return levels.given != nullptr;
}

// The sizes of a call as one level sees them.
template <class T>
CVK_HD RoiShape roi_shape_of(RoiShape shape, const RoiMap<T>& map) {
  shape.height = map.height;
  shape.width = map.width;
  shape.spatial_scale = map.spatial_scale;
  return shape;
}

}  // namespace cvk
