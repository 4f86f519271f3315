// Indices of maxima in memory, 16 bits wide where every index fits, else 32; -1 stands for none in both.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/host_device.h"

namespace cvk {

// The largest index of 16 bits.
constexpr int64_t kRoiMostNarrow = INT16_MAX;

// Data is void, or const void where indices are only read.
template <class Data>
struct RoiIndices {
  Data* data;
  bool narrow;

  template <class Index>
  CVK_HD auto as() const {
    return static_cast<std::conditional_t<std::is_const_v<Data>, const Index, Index>*>(data);
  }
  // The width asked for at each index: two widths of a kernel would double the number of kernels.
  CVK_HD int load(int64_t at) const { return narrow ? as<int16_t>()[at] : as<int32_t>()[at]; }
  CVK_HD void store(int64_t at, int index) const {
    if (narrow) {
      as<int16_t>()[at] = static_cast<int16_t>(index);
    } else {
      as<int32_t>()[at] = index;
    }
  }
};

// The pointer of Params that have indices of one width, or of both.
template <class Index, class Indices>
CVK_HD auto roi_indices(const Indices& indices) {
  if constexpr (std::is_pointer_v<Indices>) {
    static_assert(std::is_same_v<std::remove_cv_t<std::remove_pointer_t<Indices>>, Index>);
    return indices;
  } else {
    return indices.template as<Index>();
  }
}

}  // namespace cvk
