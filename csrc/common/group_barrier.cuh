// A barrier across blocks of one cooperative launch: all of them, or groups that know nothing of each other.
#pragma once

#include "common/host_device.h"
#include "common/launch.cuh"

namespace cvk {

class GroupBarrier {
 public:
  // `counter` in global memory, one for each group, is 0 when the kernel starts; `blocks` is the size of the group.
  CVK_DEVICE GroupBarrier(unsigned* counter, unsigned blocks) : counter_(counter), blocks_(blocks) {}

  // For all threads of all blocks of the group. What any of them wrote before, all of them read after, if not through the
  // read-only cache (__ldg). Invariant: the counter never goes back, so a block that is ahead disturbs no one; it may wrap,
  // because it is never further from `expected_` than there are blocks.
  CVK_DEVICE void wait() {
    expected_ += blocks_;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();  // after the barrier of the block: its threads' writes are part of what the fence orders
      atomicAdd(counter_, 1u);
      while (static_cast<int>(*static_cast<volatile unsigned*>(counter_) - expected_) < 0) __nanosleep(kPause);
      __threadfence();
    }
    __syncthreads();
  }

 private:
  static constexpr unsigned kPause = 20;  // ns between two looks at the counter
  unsigned* counter_;
  unsigned blocks_;
  unsigned expected_ = 0;
};

}  // namespace cvk
