// State of the emulated multiprocessor. Private to the emulation's .cpp files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "emulation/execution.h"
#include "emulation/fiber.h"

namespace cvk::emulation {

constexpr unsigned kMaxThreads = 1024;  // per block
constexpr unsigned kWarpSize = 32;
constexpr unsigned kNamedBarriers = 16;  // __syncthreads is number 0

// Small fast generator (xorshift64*, Vigna 2016); only orders depend on it.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_((seed + 1) * 0x9e3779b97f4a7c15u | 1) {
    for (int i = 0; i < 4; ++i) next();
  }
  uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((static_cast<uint64_t>(next()) * bound) >> 32); }
  template <class T>
  void shuffle(T* items, uint32_t count) {
    for (uint32_t i = count; i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  uint64_t state_;
};

struct Block;

// What instructions of a thread have started and not done yet, by groups: it is done as late as the wait for it, in order.
template <class Work>
class Deferred {
 public:
  bool empty() const { return pending_.empty(); }
  void clear() {
    pending_.clear();
    group_ = 0;
  }
  void add(Work work) { pending_.emplace_back(group_, std::move(work)); }
  void commit() { ++group_; }
  // Does what is of all committed groups but the last `groups`.
  template <class Do>
  void wait(unsigned groups, Do&& perform) {
    size_t done = 0;
    while (done < pending_.size() && pending_[done].first + groups < group_) perform(pending_[done++].second);
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(done));
  }

 private:
  uint64_t group_ = 0;  // that is being put together
  std::vector<std::pair<uint64_t, Work>> pending_;
};

// A copy by copy_async.
struct AsyncCopy {
  void* to;
  const void* from;
  size_t bytes, valid;
};

struct Thread {
  enum class State : uint8_t { kReady, kWaiting, kExited };
  Block* block;
  uint3 index;
  unsigned number;  // linear index within the block
  State state;
  Operation operation;   // of the rendezvous where the thread waits
  uint8_t barrier;       // its number, for block and named barriers
  unsigned mask;         // its lanes, for warp collectives
  int source_lane;       // for shuffles
  uint64_t value;        // operand
  uint64_t result;       // written by the thread that completes the rendezvous
  Fiber* fiber;          // null before the thread has started
  const CallSite* site;  // of the rendezvous; it lives in the waiting thread's own frame
  Deferred<AsyncCopy> copies;
  Deferred<std::function<void()>> products;
};

struct Barrier {
  unsigned expected = 0;
  unsigned true_predicates = 0;
  std::vector<Thread*> waiting;
};

// What a multiprocessor keeps of a block.
struct Block {
  uint3 index;
  uint64_t serial;
  void* dynamic_memory;
  std::array<Thread, kMaxThreads> threads;
  std::array<unsigned, kMaxThreads / kWarpSize> warp_live;     // lanes that exist and have not exited
  std::array<unsigned, kMaxThreads / kWarpSize> warp_waiting;  // lanes at a collective
  std::array<Barrier, kNamedBarriers> barriers;
};

// Threads that can run, in the order in which they will.
class ReadyQueue {
 public:
  bool empty() const { return count_ == 0; }
  void clear() { count_ = 0; }
  void push_back(Thread* thread) { items_[(first_ + count_++) % kSize] = thread; }
  void push_front(Thread* thread) {
    first_ = (first_ + kSize - 1) % kSize;
    items_[first_] = thread;
    ++count_;
  }
  Thread* pop() {
    Thread* thread = items_[first_];
    first_ = (first_ + 1) % kSize;
    --count_;
    return thread;
  }

 private:
  static constexpr unsigned kSize = kMaxThreads * kMaxResidentBlocks;
  std::array<Thread*, kSize> items_;
  unsigned first_ = 0, count_ = 0;
};

struct Machine {
  std::mutex launch_mutex;  // one grid at a time
  Random random;

  // The launch.
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  bool failed = false;  // threads unwind instead of going on
  std::string failure;

  // The blocks that are alive: one, or all of a cooperative launch.
  std::array<Block, kMaxResidentBlocks> blocks;
  unsigned resident = 0;
  unsigned thread_count = 0;  // of each
  unsigned exited = 0;        // threads, of all
  bool depth_first = false;   // released threads run before the rest, not after
  uint64_t idle_yields = 0;   // since a thread last exited or passed a rendezvous
  Thread* current = nullptr;
  ReadyQueue ready;

  Fiber host;  // the stack of the host thread that launched
  Fiber* free_fibers = nullptr;
};

extern Machine machine;

// Thrown through a kernel to end its threads once the launch has failed. Not a std::exception.
struct Unwind {};

// Runs the first `resident` of machine.blocks to their end, or to machine.failed. The caller has set
// what a block does not share: index, serial and dynamic memory.
void run_blocks(unsigned resident);

// Records what went wrong and makes every thread of these blocks unwind; the first failure of a
// launch is kept.
void fail(const std::string& what);
[[noreturn]] void fail_current(const std::string& what);

// Marks the current thread as waiting; whoever completes the rendezvous releases it.
void mark_waiting(Operation operation, const CallSite& site);
// Lets others run until the current thread is next; unwinds it if the launch has failed.
void suspend();
// Makes threads ready again, in random order.
void release(Thread** threads, unsigned count);

// In warp.cpp: completes the collectives that the exit of thread allows.
void warp_lane_exited(const Thread& thread);
// In warp.cpp: answers __activemask where no thread can run any more; false where none waits for
// that.
bool resolve_active_masks();

const char* operation_name(Operation operation);
std::string describe(uint3 index);
std::string describe(const CallSite& site);

// In symbol_name.cpp: demangled name of a function, or its module and offset where the symbols were
// stripped.
std::string symbol_name(const void* function);

}  // namespace cvk::emulation
