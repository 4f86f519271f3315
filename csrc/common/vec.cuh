// 16-byte groups of a storage type, so that a warp's access along the contiguous axis is one wide transaction per lane.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/host_device.h"

namespace cvk {

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kWide = 16 / static_cast<int>(sizeof(T));

template <class T, int count>
struct alignas(sizeof(T) * count) Group {
  T values[count];
};

// Whether groups of 16 bytes may be loaded from and stored to a pointer.
inline bool is_wide_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// count is kWide<T> (pointer aligned to 16 bytes) or 1.
template <int count, class T>
CVK_DEVICE void load_group(const T* p, Acc<T> (&values)[count]) {
  const Group<T, count> group = *reinterpret_cast<const Group<T, count>*>(p);
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = to_acc(group.values[i]);
}

template <int count, class T>
CVK_DEVICE void store_group(T* p, const Acc<T> (&values)[count]) {
  Group<T, count> group;
#pragma unroll
  for (int i = 0; i < count; ++i) group.values[i] = from_acc<T>(values[i]);
  *reinterpret_cast<Group<T, count>*>(p) = group;
}

}  // namespace cvk
