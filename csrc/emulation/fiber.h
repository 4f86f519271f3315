// Fibers: stacks that one host thread switches between. Private to the emulation.
//
// A switch saves the registers that a function call must preserve, changes the stack pointer and
// loads the other side's registers: a few nanoseconds in assembly on x86-64 and aarch64. Other CPUs
// use swapcontext, which makes system calls and costs a hundred times more;
// -DCVK_EMULATION_UCONTEXT chooses it anywhere.
#pragma once

#include <cstddef>

#if !defined(CVK_EMULATION_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define CVK_EMULATION_UCONTEXT
#endif
#if defined(CVK_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace cvk::emulation {

struct Fiber {
#if defined(CVK_EMULATION_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;  // while suspended
#endif
  // The stack [stack_bottom, stack_bottom + stack_bytes), and what ASan keeps of it while
  // suspended.
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer_stack = nullptr;
  Fiber* next_free = nullptr;
};

// A fiber that will run entry() on its first switch; entry must not return. Fibers live as long as
// the process: the scheduler hands them from thread to thread.
Fiber* create_fiber(void (*entry)());

// Suspends from, which is the running fiber (or the host thread's own stack), and resumes to.
void switch_fiber(Fiber& from, Fiber& to);

// The first thing that an entry function calls.
void enter_fiber();

}  // namespace cvk::emulation
