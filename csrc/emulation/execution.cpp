// Scheduler of the blocks that are alive, and their barriers.
#include "emulation/execution.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>

#include "emulation/machine.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cvk::emulation {

Machine machine;

namespace {

// So many fences and sleeps with no thread exiting or passing a rendezvous in between take about a
// second or two.
constexpr uint64_t kMaxIdleYields = uint64_t{1} << 24;

void set_current(Thread& thread) {
  machine.current = &thread;
  threadIdx = thread.index;
  if (thread.block->serial == block_serial) return;
  blockIdx = thread.block->index;
  block_serial = thread.block->serial;
  resident_block = static_cast<unsigned>(thread.block - machine.blocks.data());
}

void free_fiber(Fiber* fiber) {
  fiber->next_free = machine.free_fibers;
  machine.free_fibers = fiber;
}

// Runs the current thread to its end on the running fiber.
void run_thread() {
  Thread& thread = *machine.current;
  try {
    machine.body(machine.argument);
  } catch (const Unwind&) {
  } catch (...) {
    fail("an exception left the kernel in thread " + describe(thread.index));
  }
  thread.state = Thread::State::kExited;
  ++machine.exited;
  machine.idle_yields = 0;
  thread.block->warp_live[thread.number / kWarpSize] &= ~(1u << (thread.number % kWarpSize));
  if (!machine.failed) warp_lane_exited(thread);
}

std::string at(const Thread& thread) {
  std::string text = operation_name(thread.operation);
  if (thread.operation == Operation::kNamedBarrier) {
    text += " " + std::to_string(thread.barrier);
  } else if (thread.operation >= Operation::kSyncwarp && thread.operation < Operation::kActivemask) {
    char mask[24];
    std::snprintf(mask, sizeof(mask), " of mask 0x%08x", thread.mask);
    text += mask;
  }
  return text + " " + describe(*thread.site);
}

template <class F>
void for_each_thread(F&& f) {
  for (unsigned block = 0; block < machine.resident; ++block) {
    for (unsigned i = 0; i < machine.thread_count; ++i) f(machine.blocks[block].threads[i]);
  }
}

std::string name(const Thread& thread) {
  return "thread " + describe(thread.index) +
         (machine.resident > 1 ? " of block " + describe(thread.block->index) : std::string());
}

// Who has left and who waits where.
std::string describe_threads() {
  struct Place {
    unsigned count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Place> places;
  for_each_thread([&](const Thread& thread) {
    if (thread.state != Thread::State::kWaiting) return;
    Place& place = places[at(thread)];
    if (place.count++ == 0) place.first = &thread;
  });
  std::string text = "of " + std::to_string(machine.thread_count * machine.resident) + " threads " +
                     std::to_string(machine.exited) + " have exited";
  for (const auto& [where, place] : places) {
    text += "; " + std::to_string(place.count) + " wait for ever at " + where + ", the first is " + name(*place.first);
  }
  return text;
}

// The thread to run next; null where all have exited.
Thread* next_thread() {
  if (machine.ready.empty() && machine.exited < machine.thread_count * machine.resident && !resolve_active_masks()) {
    fail("divergent barrier or collective: " + describe_threads());
  }
  return machine.ready.empty() ? nullptr : machine.ready.pop();
}

void fiber_main();

Fiber* take_fiber() {
  if (machine.free_fibers == nullptr) return create_fiber(fiber_main);
  Fiber* fiber = machine.free_fibers;
  machine.free_fibers = fiber->next_free;
  return fiber;
}

// What every fiber does for ever: run a thread to its end, then the next. Perf: a thread that
// begins after another has ended takes over the same warm stack without a switch, so a kernel with
// no barriers needs one fiber.
void fiber_main() {
  enter_fiber();
  for (;;) {
    run_thread();
    Fiber* self = machine.current->fiber;
    Thread* next = next_thread();
    if (next != nullptr && next->fiber == nullptr) {
      next->fiber = self;
      set_current(*next);
      continue;
    }
    free_fiber(self);
    if (next != nullptr) set_current(*next);
    switch_fiber(*self, next == nullptr ? machine.host : *next->fiber);
  }
}

void switch_to_next() {
  Thread* self = machine.current;
  Thread* next = next_thread();  // not null: self has not exited
  if (next == self) return;
  if (next->fiber == nullptr) next->fiber = take_fiber();
  set_current(*next);
  switch_fiber(*self->fiber, *next->fiber);
}

bool same_place(const CallSite& a, const CallSite& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Puts the current thread among those that wait at the barrier.
void arrive(Barrier& barrier, unsigned id, Operation operation, unsigned expected, bool predicate,
            const CallSite& site) {
  Thread& self = *machine.current;
  if (barrier.waiting.empty()) {
    barrier.expected = expected;
    barrier.true_predicates = 0;
  } else {
    const Thread& other = *barrier.waiting.front();
    const bool same = other.operation == operation && barrier.expected == expected &&
                      (operation == Operation::kNamedBarrier || same_place(*other.site, site));
    if (!same) {
      fail_current("divergent barrier: thread " + describe(self.index) + " arrives at " + operation_name(operation) +
                   " " + describe(site) + " while thread " + describe(other.index) + " waits at " + at(other));
    }
  }
  mark_waiting(operation, site);
  self.barrier = static_cast<uint8_t>(id);
  barrier.true_predicates += predicate;
  barrier.waiting.push_back(&self);
}

// Releases a complete barrier, then suspends the current thread, which is one of its threads either
// way.
void finish(Barrier& barrier) {
  if (barrier.waiting.size() == barrier.expected) {
    release(barrier.waiting.data(), barrier.expected);
    barrier.waiting.clear();
  }
  suspend();
}

}  // namespace

namespace {

// Puts the threads of a block at the start of the kernel, and lists them.
void prepare_block(Block& block, Thread** order) {
  const unsigned count = machine.thread_count;
  for (Barrier& barrier : block.barriers) barrier.waiting.clear();
  const unsigned warps = (count + kWarpSize - 1) / kWarpSize;
  for (unsigned warp = 0; warp < warps; ++warp) {
    const unsigned lanes = std::min(count - warp * kWarpSize, kWarpSize);
    block.warp_live[warp] = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
    block.warp_waiting[warp] = 0;
  }
  uint3 index = {0, 0, 0};
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.block = &block;
    thread.index = index;
    thread.number = i;
    thread.state = Thread::State::kReady;
    thread.fiber = nullptr;
    thread.copies.clear();
    thread.products.clear();
    order[i] = &thread;
    if (++index.x == blockDim.x) {
      index.x = 0;
      if (++index.y == blockDim.y) {
        index.y = 0;
        ++index.z;
      }
    }
  }
}

}  // namespace

void run_blocks(unsigned resident) {
  machine.resident = resident;
  machine.thread_count = blockDim.x * blockDim.y * blockDim.z;
  machine.exited = 0;
  machine.ready.clear();
  static std::array<Thread*, kMaxThreads * kMaxResidentBlocks> order;
  for (unsigned block = 0; block < resident; ++block) {
    prepare_block(machine.blocks[block], order.data() + block * machine.thread_count);
  }
  // Depth first, one warp can be far ahead of another; breadth first, all are about equally far.
  machine.depth_first = machine.random.next() & 1;
  release(order.data(), resident * machine.thread_count);

  Thread* first = next_thread();
  first->fiber = take_fiber();
  set_current(*first);
  switch_fiber(machine.host, *first->fiber);
  machine.current = nullptr;
}

void release(Thread** threads, unsigned count) {
  machine.idle_yields = 0;
  machine.random.shuffle(threads, count);
  for (unsigned i = 0; i < count; ++i) {
    threads[i]->state = Thread::State::kReady;
    if (machine.depth_first) {
      machine.ready.push_front(threads[i]);
    } else {
      machine.ready.push_back(threads[i]);
    }
  }
}

void mark_waiting(Operation operation, const CallSite& site) {
  Thread& self = *machine.current;
  self.operation = operation;
  self.site = &site;
  self.state = Thread::State::kWaiting;
}

void suspend() {
  switch_to_next();
  if (machine.failed) throw Unwind();
}

void fail(const std::string& what) {
  if (machine.failed) return;
  machine.failed = true;
  machine.failure = "block " + describe(blockIdx) + ": " + what;
  // Every started thread runs once more, to unwind; those that have not started never do.
  machine.ready.clear();
  for_each_thread([](Thread& thread) {
    if (thread.state == Thread::State::kExited) return;
    if (thread.fiber == nullptr) {
      thread.state = Thread::State::kExited;
      ++machine.exited;
    } else if (&thread != machine.current || thread.state == Thread::State::kWaiting) {
      machine.ready.push_back(&thread);
    }
  });
}

void fail_current(const std::string& what) {
  fail(what);
  throw Unwind();
}

namespace {

void perform(const AsyncCopy& copy) {
  if (copy.valid != 0) std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

}  // namespace

void copy_async(void* to, const void* from, size_t bytes, size_t valid, const CallSite& site) {
  Thread& self = *machine.current;
  const bool aligned = reinterpret_cast<uintptr_t>(to) % bytes == 0 && reinterpret_cast<uintptr_t>(from) % bytes == 0;
  if (!aligned || valid > bytes) {
    fail_current("an asynchronous copy of " + std::to_string(bytes) + " bytes " + describe(site) +
                 " from or to an address that is no multiple of that, thread " + describe(self.index));
  }
  const AsyncCopy copy{to, from, bytes, valid};
  // At once or as late as may be: a missing wait shows, and so does a buffer that is filled while others still read it.
  if ((machine.random.next() & 1) != 0)
    perform(copy);
  else
    self.copies.add(copy);
}

void copy_async_commit() { machine.current->copies.commit(); }

void copy_async_wait(unsigned groups) { machine.current->copies.wait(groups, perform); }

void product(std::function<void()> work) {
  Thread& self = *machine.current;
  // In order: a sum takes one product after the other.
  if (self.products.empty() && (machine.random.next() & 1) != 0)
    work();
  else
    self.products.add(std::move(work));
}

void product_commit() { machine.current->products.commit(); }

void product_wait(unsigned groups) {
  machine.current->products.wait(groups, [](const auto& work) { work(); });
}

int block_barrier(Operation operation, bool predicate, const CallSite& site) {
  Barrier& barrier = machine.current->block->barriers[0];
  arrive(barrier, 0, operation, machine.thread_count, predicate, site);
  if (operation != Operation::kSyncthreads && barrier.waiting.size() == barrier.expected) {
    uint64_t result = barrier.true_predicates;
    if (operation == Operation::kSyncthreadsAnd) result = result == barrier.expected;
    if (operation == Operation::kSyncthreadsOr) result = result != 0;
    for (Thread* thread : barrier.waiting) thread->result = result;
  }
  Thread& self = *machine.current;
  finish(barrier);
  return static_cast<int>(self.result);
}

void named_barrier(unsigned id, unsigned threads, const CallSite& site) {
  if (id >= kNamedBarriers || threads == 0 || threads % kWarpSize != 0 || threads > machine.thread_count) {
    fail_current("named barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads " +
                 describe(site) + ": the number must be below 16, the threads a multiple of 32 within the block");
  }
  Barrier& barrier = machine.current->block->barriers[id];
  arrive(barrier, id, Operation::kNamedBarrier, threads, false, site);
  finish(barrier);
}

void yield(const CallSite& site) {
  Thread& self = *machine.current;
  if (++machine.idle_yields > kMaxIdleYields) {
    fail_current("threads spin on a flag that nobody sets, " + name(self) + " among them, " + describe(site) + ": " +
                 describe_threads());
  }
  machine.ready.push_back(&self);
  suspend();
}

void trap(const char* message) { fail_current(std::string(message) + " in thread " + describe(threadIdx)); }

unsigned linear_thread() { return machine.current->number; }

const char* operation_name(Operation operation) {
  static constexpr const char* kNames[] = {
      "__syncthreads",     "__syncthreads_count", "__syncthreads_and", "__syncthreads_or", "named barrier",
      "__syncwarp",        "__shfl_sync",         "__shfl_up_sync",    "__shfl_down_sync", "__shfl_xor_sync",
      "__ballot_sync",     "__any_sync",          "__all_sync",        "__match_any_sync", "__reduce_add_sync",
      "__reduce_min_sync", "__reduce_max_sync",   "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync",
      "__activemask",      "a matrix instruction"};
  static_assert(std::size(kNames) == static_cast<size_t>(Operation::kMatrix) + 1);
  return kNames[static_cast<size_t>(operation)];
}

std::string describe(uint3 index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

std::string describe(const CallSite& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string("[") + (slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line) + " in " +
         site.function + "]";
}

}  // namespace cvk::emulation
