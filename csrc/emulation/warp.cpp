// Warp collectives.
//
// A lane deposits its operand and waits. The lane that arrives last (or whose exit leaves no other
// to wait for) computes the result of every lane, because a fast lane may already be at its next
// collective when a slow one resumes.
#include <algorithm>
#include <cstdio>

#include "emulation/machine.h"

namespace cvk::emulation {
namespace {

// What a lane brings to warp_execute.
struct MatrixOperand {
  void (*run)(void* const* lanes);
  void* mine;
};

Thread& lane_thread(Block& block, unsigned warp, unsigned lane) { return block.threads[warp * kWarpSize + lane]; }

template <class F>
void for_each_lane(unsigned lanes, F&& f) {
  for (; lanes != 0; lanes &= lanes - 1) f(static_cast<unsigned>(__builtin_ctz(lanes)));
}

uint64_t combine(Operation operation, uint64_t a, uint64_t b) {
  const int64_t sa = static_cast<int64_t>(a), sb = static_cast<int64_t>(b);
  switch (operation) {
    case Operation::kReduceAdd:
      return a + b;
    case Operation::kReduceMin:
      return static_cast<uint64_t>(std::min(sa, sb));
    case Operation::kReduceMax:
      return static_cast<uint64_t>(std::max(sa, sb));
    case Operation::kReduceAnd:
      return a & b;
    case Operation::kReduceOr:
      return a | b;
    default:
      return a ^ b;
  }
}

void compute_results(Block& block, unsigned warp, unsigned lanes, Operation operation) {
  const auto thread = [&](unsigned lane) -> Thread& { return lane_thread(block, warp, lane); };
  switch (operation) {
    case Operation::kShfl:
    case Operation::kShflUp:
    case Operation::kShflDown:
    case Operation::kShflXor:
      for_each_lane(lanes, [&](unsigned lane) {
        const unsigned source = static_cast<unsigned>(thread(lane).source_lane);
        // A lane that takes no part has no defined value to give: poison.
        thread(lane).result = (lanes >> source & 1) ? thread(source).value : ~uint64_t{0};
      });
      return;
    case Operation::kBallot:
    case Operation::kAny:
    case Operation::kAll: {
      uint64_t votes = 0;
      for_each_lane(lanes, [&](unsigned lane) { votes |= thread(lane).value << lane; });
      if (operation == Operation::kAny) votes = votes != 0;
      if (operation == Operation::kAll) votes = votes == lanes;
      for_each_lane(lanes, [&](unsigned lane) { thread(lane).result = votes; });
      return;
    }
    case Operation::kMatchAny:
      for_each_lane(lanes, [&](unsigned lane) {
        uint64_t equal = 0;
        for_each_lane(lanes,
                      [&](unsigned other) { equal |= uint64_t{thread(other).value == thread(lane).value} << other; });
        thread(lane).result = equal;
      });
      return;
    case Operation::kSyncwarp:
      return;
    case Operation::kMatrix: {
      void* operands[kWarpSize];
      const auto operand = [&](unsigned lane) { return reinterpret_cast<const MatrixOperand*>(thread(lane).value); };
      for (unsigned lane = 0; lane < kWarpSize; ++lane) operands[lane] = operand(lane)->mine;
      operand(0)->run(operands);
      return;
    }
    default: {
      const unsigned first = static_cast<unsigned>(__builtin_ctz(lanes));
      uint64_t total = thread(first).value;
      for_each_lane(lanes & (lanes - 1), [&](unsigned lane) { total = combine(operation, total, thread(lane).value); });
      for_each_lane(lanes, [&](unsigned lane) { thread(lane).result = total; });
    }
  }
}

void release_lanes(Block& block, unsigned warp, unsigned lanes) {
  Thread* threads[kWarpSize];
  unsigned count = 0;
  for_each_lane(lanes, [&](unsigned lane) { threads[count++] = &lane_thread(block, warp, lane); });
  block.warp_waiting[warp] &= ~lanes;
  release(threads, count);
}

// Completes the collective where `member` waits if every lane of its mask that has not exited waits
// there too.
void try_complete(const Thread& member) {
  Block& block = *member.block;
  const unsigned warp = member.number / kWarpSize;
  const unsigned lanes = member.mask & block.warp_live[warp];
  if ((lanes & ~block.warp_waiting[warp]) != 0) return;
  bool same = true;
  for_each_lane(lanes, [&](unsigned lane) {
    const Thread& other = lane_thread(block, warp, lane);
    same = same && other.operation == member.operation && other.mask == member.mask;
    if (member.operation == Operation::kMatrix) {
      const auto run_of = [](const Thread& thread) {
        return reinterpret_cast<const MatrixOperand*>(thread.value)->run;
      };
      same = same && run_of(other) == run_of(member);
    }
  });
  if (!same) return;
  if (member.operation == Operation::kMatrix && lanes != ~0u) {
    fail("a warp matrix instruction " + describe(*member.site) + " without all 32 lanes, warp of thread " +
         describe(member.index));
    return;
  }
  compute_results(block, warp, lanes, member.operation);
  release_lanes(block, warp, lanes);
}

}  // namespace

uint64_t warp_collective(Operation operation, unsigned mask, uint64_t value, int source_lane, const CallSite& site) {
  Thread& self = *machine.current;
  const unsigned warp = self.number / kWarpSize, lane = self.number % kWarpSize;
  if ((mask >> lane & 1) == 0) {
    char text[24];
    std::snprintf(text, sizeof(text), "0x%08x", mask);
    fail_current(std::string(operation_name(operation)) + " " + describe(site) + ": mask " + text +
                 " lacks the calling lane " + std::to_string(lane) + ", thread " + describe(self.index));
  }
  mark_waiting(operation, site);
  self.mask = mask;
  self.value = value;
  self.source_lane = source_lane;
  self.block->warp_waiting[warp] |= 1u << lane;
  try_complete(self);
  suspend();
  return self.result;
}

void warp_execute(void (*run)(void* const* lanes), void* mine, const CallSite& site) {
  const MatrixOperand operand{run, mine};
  warp_collective(Operation::kMatrix, ~0u, reinterpret_cast<uint64_t>(&operand), 0, site);
}

void warp_lane_exited(const Thread& thread) {
  Block& block = *thread.block;
  const unsigned warp = thread.number / kWarpSize, lane = thread.number % kWarpSize;
  // One completion can leave others in the same state, so look again until nothing changes.
  for (unsigned seen = 0; seen != block.warp_waiting[warp];) {
    seen = block.warp_waiting[warp];
    for_each_lane(seen, [&](unsigned other) {
      if ((block.warp_waiting[warp] >> other & 1) == 0) return;
      const Thread& waiting = lane_thread(block, warp, other);
      if (waiting.operation != Operation::kActivemask && (waiting.mask >> lane & 1)) {
        try_complete(waiting);
      }
    });
  }
}

unsigned active_mask(const CallSite& site) {
  Thread& self = *machine.current;
  mark_waiting(Operation::kActivemask, site);
  self.mask = 0;
  self.block->warp_waiting[self.number / kWarpSize] |= 1u << (self.number % kWarpSize);
  suspend();
  return static_cast<unsigned>(self.result);
}

bool resolve_active_masks() {
  bool any = false;
  const unsigned warps = (machine.thread_count + kWarpSize - 1) / kWarpSize;
  for (unsigned i = 0; i < warps * machine.resident; ++i) {
    Block& block = machine.blocks[i / warps];
    const unsigned warp = i % warps;
    const auto thread = [&](unsigned lane) -> Thread& { return lane_thread(block, warp, lane); };
    unsigned candidates = 0;
    for_each_lane(block.warp_waiting[warp], [&](unsigned lane) {
      if (thread(lane).operation == Operation::kActivemask) candidates |= 1u << lane;
    });
    while (candidates != 0) {  // one group per source line
      const int line = thread(static_cast<unsigned>(__builtin_ctz(candidates))).site->line;
      unsigned group = 0;
      for_each_lane(candidates, [&](unsigned lane) {
        if (thread(lane).site->line == line) group |= 1u << lane;
      });
      for_each_lane(group, [&](unsigned lane) { thread(lane).result = group; });
      candidates &= ~group;
      release_lanes(block, warp, group);
      any = true;
    }
  }
  return any;
}

}  // namespace cvk::emulation
