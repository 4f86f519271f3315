// Boxes of a tensor on the device, read in pieces of 16 bytes where the tensor lies so; a slice of another may not.
#pragma once

#include <cstdint>

#include "common/box.h"
#include "common/host_device.h"

namespace cvk {

template <class A>
class BoxReader {
 public:
  CVK_HD explicit BoxReader(const A* boxes)  // [N, 4]
      : boxes_(boxes), aligned_(reinterpret_cast<uintptr_t>(boxes) % 16 == 0) {}

  CVK_HD Box<A> operator()(int64_t i) const {
    const A* const at = boxes_ + 4 * i;
    if (aligned_) {
      const Corners corners = *reinterpret_cast<const Corners*>(at);
      return {corners.x1, corners.y1, corners.x2, corners.y2};
    }
    return {at[0], at[1], at[2], at[3]};
  }

 private:
  struct alignas(16) Corners {
    A x1, y1, x2, y2;
  };
  const A* boxes_;
  bool aligned_;
};

}  // namespace cvk
