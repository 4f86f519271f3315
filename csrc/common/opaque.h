// Values that the compiler may not see through: no instruction, only the end of what it knows of one. For loops over registers,
// where knowing more makes it choose worse.
#pragma once

#include "common/host_device.h"

namespace cvk {

// A loaded vector stays one load. Seen through, it becomes a memory operand of every instruction that uses it.
template <class Vec>
CVK_HD void opaque_vector(Vec& value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
}

// A pointer of its own in each iteration. Seen through, values that a later one loads again are kept, beyond what registers hold.
template <class T>
CVK_HD void opaque_pointer(T*& pointer) {
  asm("" : "+r"(pointer));
}

}  // namespace cvk
