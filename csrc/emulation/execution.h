// What a kernel sees of the machine that runs it: its indices, its shared memory and the rendezvous
// with other threads.
//
// Device functions (device_functions.h) are thin templates over the handful of functions here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "emulation/vector_types.h"

// Set for the running thread at every switch. They are plain globals because one host thread at a
// time runs kernels.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

namespace cvk::emulation {

// Blocks of a cooperative launch, which are all alive at once; few, so that tests meet the limit.
constexpr unsigned kMaxResidentBlocks = 4;

// Source position of a rendezvous, filled in by the compiler through a default argument.
struct CallSite {
  const char* file;
  int line;
  const char* function;
  static constexpr CallSite here(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                                 const char* function = __builtin_FUNCTION()) {
    return {file, line, function};
  }
};

enum class Operation : uint8_t {
  kSyncthreads,
  kSyncthreadsCount,
  kSyncthreadsAnd,
  kSyncthreadsOr,
  kNamedBarrier,
  kSyncwarp,
  kShfl,
  kShflUp,
  kShflDown,
  kShflXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
  kActivemask,
  kMatrix,
};

// Each call below suspends the thread until its rendezvous is complete, and unwinds it when the
// launch has failed.

// All threads of the block; returns the count / conjunction / disjunction of predicate where the
// operation has one.
int block_barrier(Operation operation, bool predicate, const CallSite& site);
// The first `threads` threads of the block that arrive at barrier `id`.
void named_barrier(unsigned id, unsigned threads, const CallSite& site);
// The lanes of mask that have not exited. value is this lane's operand and source_lane, for
// shuffles, the lane to read.
uint64_t warp_collective(Operation operation, unsigned mask, uint64_t value, int source_lane, const CallSite& site);
// The lanes of the warp that reach the same call, as far as they can run without this thread.
unsigned active_mask(const CallSite& site);
// An instruction that a whole warp executes at once: run(lanes) is called with what each lane passed as `mine`, by the lane
// that arrives last. All 32 lanes must be there, at the same instruction.
void warp_execute(void (*run)(void* const* lanes), void* mine, const CallSite& site);
// A copy to shared memory that is under way until this thread waits for it: it happens now or at the wait, as the seed has it.
// The first `valid` bytes come from `from`, the rest is 0.
void copy_async(void* to, const void* from, size_t bytes, size_t valid, const CallSite& site);
void copy_async_commit();
// Until at most `groups` of the committed groups are under way.
void copy_async_wait(unsigned groups);
// The same for work that a matrix instruction does on this thread's behalf.
void product(std::function<void()> work);
void product_commit();
void product_wait(unsigned groups);
// Lets every other thread that can run go first.
void yield(const CallSite& site);
// Ends the launch with an error.
[[noreturn]] void trap(const char* message);

unsigned linear_thread();  // threadIdx as one number; lane = linear_thread() % warpSize

// One static shared variable in one of the places that resident blocks take. Invariant: data belongs
// to the running block if serial == block_serial.
struct SharedSlot {
  void* data;
  uint64_t serial;
};
extern uint64_t block_serial;    // of the running block, unique in the process
extern unsigned resident_block;  // its place, below kMaxResidentBlocks
void begin_shared(SharedSlot& slot, size_t bytes, size_t alignment);
void* dynamic_shared_memory();

}  // namespace cvk::emulation
