#include "emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define CVK_EMULATION_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CVK_EMULATION_ASAN
#endif
#endif
#if defined(CVK_EMULATION_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cvk::emulation {
namespace {

// Room for a kernel's locals and for unwinding. Only touched pages take memory; sanitizers make
// frames several times larger.
#if defined(CVK_EMULATION_ASAN)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// The fiber that made the last switch.
Fiber* switched_from = nullptr;

#if defined(CVK_EMULATION_ASAN)
void before_switch(Fiber& from, const Fiber& to) {
  switched_from = &from;
  __sanitizer_start_switch_fiber(&from.sanitizer_stack, to.stack_bottom, to.stack_bytes);
}
// ASan tells the bounds of the stack just left, which for the host thread's own stack nobody else
// knows.
void after_switch(void* sanitizer_stack) {
  __sanitizer_finish_switch_fiber(sanitizer_stack, &switched_from->stack_bottom, &switched_from->stack_bytes);
}
#else
void before_switch(Fiber& from, const Fiber&) { switched_from = &from; }
void after_switch(void*) {}
#endif

// A stack with an inaccessible page below it, so that an overflow is a fault and not a corruption.
char* allocate_stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    std::perror("cvkernels emulation: cannot allocate a thread's stack");
    std::abort();
  }
  return static_cast<char*>(memory) + page;
}

}  // namespace

#if defined(CVK_EMULATION_UCONTEXT)

Fiber* create_fiber(void (*entry)()) {
  Fiber* fiber = new Fiber;
  char* stack = allocate_stack();
  fiber->stack_bottom = stack;
  fiber->stack_bytes = kStackBytes;
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = stack;
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, entry, 0);
  return fiber;
}

void switch_fiber(Fiber& from, Fiber& to) {
  before_switch(from, to);
  swapcontext(&from.context, &to.context);
  after_switch(from.sanitizer_stack);
}

#else

// void cvk_emulation_switch(void** save, void* load): pushes the callee-saved registers, stores the
// stack pointer in *save, takes load for the stack pointer, pops and continues there. create_fiber
// lays out a new stack to match.
extern "C" void cvk_emulation_switch(void** save, void* load) __attribute__((visibility("hidden")));

#if defined(__x86_64__)
// Perf: resuming by an indirect jump, not by ret, which the return predictor would always get
// wrong.
asm(R"(
.text
.p2align 4
.globl cvk_emulation_switch
.hidden cvk_emulation_switch
.type cvk_emulation_switch, @function
cvk_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size cvk_emulation_switch, .-cvk_emulation_switch
)");
constexpr size_t kSavedWords = 8;  // six registers, the entry address, and a null return address for backtraces
constexpr size_t kEntryWord = 6;   // popping it leaves the stack pointer at 8 modulo 16, as after a call
#else
asm(R"(
.text
.p2align 4
.globl cvk_emulation_switch
.hidden cvk_emulation_switch
.type cvk_emulation_switch, %function
cvk_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cvk_emulation_switch, .-cvk_emulation_switch
)");
constexpr size_t kSavedWords = 20;
constexpr size_t kEntryWord = 11;  // x30
#endif

Fiber* create_fiber(void (*entry)()) {
  static size_t created = 0;
  Fiber* fiber = new Fiber;
  char* stack = allocate_stack();
  fiber->stack_bottom = stack;
  fiber->stack_bytes = kStackBytes;
  // Perf: stacks that all end at the same page offset would fight for the same few cache sets, so
  // the ends are staggered.
  const size_t stagger = (created++ % 61) * 64;
  char* top = stack + kStackBytes - stagger;
  void** words = reinterpret_cast<void**>(top) - kSavedWords;
  for (size_t i = 0; i < kSavedWords; ++i) words[i] = nullptr;
  words[kEntryWord] = reinterpret_cast<void*>(entry);
  fiber->stack_pointer = words;
  return fiber;
}

void switch_fiber(Fiber& from, Fiber& to) {
  before_switch(from, to);
  cvk_emulation_switch(&from.stack_pointer, to.stack_pointer);
  after_switch(from.sanitizer_stack);
}

#endif

void enter_fiber() { after_switch(nullptr); }

}  // namespace cvk::emulation
