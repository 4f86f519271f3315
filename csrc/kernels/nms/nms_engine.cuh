// Exact greedy NMS on CUDA for any pair test: boxes in score order, in chunks. One block decides a chunk, warp after warp in
// registers; then all later boxes are tested against the boxes that the chunk kept.
//
// A Rule says what a box is and when it suppresses another:
//   using Item = ...;                                      // what a test reads of a box: plain data, whole 4-byte words
//   Item load(int64_t box) const;                          // of box `box` of all images
//   bool suppresses(const Item& kept, const Item& other) const;
//   static constexpr bool kHeavy = ...;                    // needs more registers than 64
// It is passed to kernels by value. Two rules that differ in speed only (a criterion known when compiled) are two types.
#pragma once

#include "common/launch.cuh"
#include "kernels/nms/nms.h"

namespace cvk {

// What the engine reads and writes, boxes apart; as in NmsBatchParams.
struct NmsProblem {
  int64_t batch, count, max_output;
  const int64_t* order;         // [B, N]
  const float* ordered_scores;  // [B, N]
  const int64_t* classes;       // [B, N] or null
  int64_t* keep;                // [B, max_output]
  int64_t* kept;                // [B]
  int64_t* owner;               // [B, N] or null
};

namespace nms_engine {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class Rule>
inline constexpr int kChunk = Rule::kHeavy ? kNmsHeavyChunk : kNmsChunk;
template <class Rule>
inline constexpr int kSuppressBlocks = Rule::kHeavy ? kNmsHeavySuppressBlocksPerSm : kNmsSuppressBlocksPerSm;

// Device memory; all pointers into one allocation. Positions are places in score order.
template <class Rule>
struct Memory {
  using Item = typename Rule::Item;
  Item* items;        // [B, N] by position
  int64_t* classes;   // [B, N] by position, or null
  int* chunk_kept;    // [B, chunk] positions in the chunk that the last chunk kept
  int* chunk_count;   // [B]
  uint32_t* removed;  // [B, words] one bit per position: suppressed, or not taking part
  int64_t words;      // of one image
};

template <class Rule>
Memory<Rule> carve(const NmsProblem& problem, char* memory, int64_t* bytes) {
  using Item = typename Rule::Item;
  Memory<Rule> result;
  int64_t used = 0;
  const auto take = [&](int64_t size) {
    char* at = memory + used;
    used += round_up<int64_t>(size, 256);
    return at;
  };
  result.words = ceil_div<int64_t>(problem.count, kWarp);
  const int64_t total = problem.batch * problem.count;
  result.items = reinterpret_cast<Item*>(take(total * static_cast<int64_t>(sizeof(Item))));
  result.classes = problem.classes != nullptr ? reinterpret_cast<int64_t*>(take(total * 8)) : nullptr;
  result.chunk_kept = reinterpret_cast<int*>(take(problem.batch * kChunk<Rule> * 4));
  result.chunk_count = reinterpret_cast<int*>(take(problem.batch * 4));
  result.removed = reinterpret_cast<uint32_t*>(take(problem.batch * result.words * 4));
  *bytes = used;
  return result;
}

// The item of another lane.
template <class Item>
CVK_DEVICE Item shuffled(const Item& mine, int lane) {
  static_assert(sizeof(Item) % 4 == 0, "an item is whole words");
  struct Words {
    uint32_t values[sizeof(Item) / 4];
  };
  Words words = bit_cast<Words>(mine);
#pragma unroll
  for (uint32_t& word : words.values) word = __shfl_sync(kAllLanes, word, lane);
  return bit_cast<Item>(words);
}

// Items and classes into score order; NaN scores and the bits beyond N start as removed. One thread per position.
template <class Rule>
__global__ void __launch_bounds__(kNmsSuppressThreads)
    nms_prepare_kernel(NmsProblem problem, Rule rule, Memory<Rule> memory, int64_t blocks) {
  const int64_t image = blockIdx.x / blocks;
  const int64_t position = (blockIdx.x % blocks) * kNmsSuppressThreads + threadIdx.x;
  bool removed = true;
  if (position < problem.count) {
    const int64_t at = image * problem.count + position;
    const int64_t source = image * problem.count + problem.order[at];
    memory.items[at] = rule.load(source);
    if (memory.classes != nullptr) memory.classes[at] = problem.classes[source];
    if (problem.owner != nullptr) problem.owner[at] = -1;
    const float score = problem.ordered_scores[at];
    removed = !(score == score);
  }
  const uint32_t word = __ballot_sync(kAllLanes, removed);
  if (threadIdx.x % kWarp == 0 && position < problem.count) {
    memory.removed[image * memory.words + position / kWarp] = word;
  }
  // The padding of the output, spread over the same threads.
  const int64_t threads = blocks * kNmsSuppressThreads;
  for (int64_t i = position; i < problem.max_output; i += threads) problem.keep[image * problem.max_output + i] = -1;
  if (position == 0) problem.kept[image] = 0;
}

// Says that the box at a position belongs to a row of keep.
CVK_DEVICE void claim(const NmsProblem& problem, int64_t image, int64_t position, int64_t row) {
  const int64_t first = image * problem.count;
  problem.owner[first + problem.order[first + position]] = row;
}

// Decides positions [chunk * kChunk, + kChunk) of each image, whose boxes already carry the verdict of all earlier
// chunks. Warp after warp decides its 32 boxes in registers and shows the kept ones to the later warps.
template <class Rule>
__global__ void __launch_bounds__(kChunk<Rule>)
    nms_decide_kernel(NmsProblem problem, Rule rule, Memory<Rule> memory, int64_t chunk) {
  using Item = typename Rule::Item;
  struct Shared {
    Item items[2][kWarp];  // two rounds, so that one barrier a round suffices
    int64_t classes[2][kWarp];
    int count[2];
    int kept_before[2];  // boxes of this chunk kept up to and including the round
  };
  auto& shared = static_shared<Shared>();
  const int64_t image = blockIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t position = chunk * kChunk<Rule> + threadIdx.x;
  const int64_t already = problem.kept[image];
  const int64_t room = problem.max_output - already;
  if (room <= 0) {  // the same for the whole block
    if (threadIdx.x == 0) memory.chunk_count[image] = 0;
    return;
  }

  const bool present = position < problem.count;
  Item mine{};
  int64_t my_class = 0;
  bool alive = false;
  if (present) {
    mine = memory.items[image * problem.count + position];
    if (memory.classes != nullptr) my_class = memory.classes[image * problem.count + position];
    alive = ((memory.removed[image * memory.words + position / kWarp] >> lane) & 1u) == 0;
  }

  // Which later lanes of this warp my box would suppress.
  uint32_t suppressed_by_me = 0;
  for (int other = 1; other < kWarp; ++other) {
    const Item item = shuffled(mine, other);
    const int64_t its_class =
        memory.classes != nullptr
            ? static_cast<int64_t>(__shfl_sync(kAllLanes, static_cast<long long>(my_class), other))
            : 0;
    if (other > lane && its_class == my_class && rule.suppresses(mine, item)) suppressed_by_me |= 1u << other;
  }

  const int rounds = static_cast<int>(
      min_of<int64_t>(kChunk<Rule> / kWarp, ceil_div<int64_t>(problem.count - chunk * kChunk<Rule>, kWarp)));
  for (int round = 0; round < rounds; ++round) {
    const int side = round & 1;
    const int before = round == 0 ? 0 : shared.kept_before[side ^ 1];
    if (warp == round) {
      uint32_t pending = __ballot_sync(kAllLanes, alive);
      uint32_t kept = 0;
      int count = 0, my_owner = -1;
      while (pending != 0 && before + count < room) {
        const int first = __ffs(static_cast<int>(pending)) - 1;
        const uint32_t taken = __shfl_sync(kAllLanes, suppressed_by_me, first) | (1u << first);
        if ((pending & taken) >> lane & 1u) my_owner = before + count;
        kept |= 1u << first;
        ++count;
        pending &= ~taken;
      }
      if ((kept >> lane) & 1u) {
        const int slot = __popc(kept & ((1u << lane) - 1u));
        shared.items[side][slot] = mine;
        shared.classes[side][slot] = my_class;
        memory.chunk_kept[image * kChunk<Rule> + before + slot] = static_cast<int>(threadIdx.x);
        problem.keep[image * problem.max_output + already + before + slot] =
            problem.order[image * problem.count + position];
      }
      if (problem.owner != nullptr && my_owner >= 0) claim(problem, image, position, already + my_owner);
      if (lane == 0) {
        shared.count[side] = count;
        shared.kept_before[side] = before + count;
      }
    }
    __syncthreads();
    if (warp > round && alive) {
      for (int k = 0; k < shared.count[side]; ++k) {
        if (shared.classes[side][k] == my_class && rule.suppresses(shared.items[side][k], mine)) {
          if (problem.owner != nullptr) claim(problem, image, position, already + before + k);
          alive = false;
          break;
        }
      }
    }
  }
  if (threadIdx.x == 0) {
    const int kept = shared.kept_before[(rounds - 1) & 1];
    memory.chunk_count[image] = kept;
    problem.kept[image] = already + kept;
  }
}

// Tests every box after the chunk against the boxes that the chunk kept. One thread per position, one word per warp.
template <class Rule>
__global__ void __launch_bounds__(kNmsSuppressThreads, kSuppressBlocks<Rule>)
    nms_suppress_kernel(NmsProblem problem, Rule rule, Memory<Rule> memory, int64_t chunk, int64_t blocks) {
  using Item = typename Rule::Item;
  struct Shared {
    Item items[kNmsSuppressThreads];
    int64_t classes[kNmsSuppressThreads];
  };
  auto& shared = static_shared<Shared>();
  const int64_t image = blockIdx.x / blocks;
  const int count = memory.chunk_count[image];
  const int64_t kept = problem.kept[image];
  // The same for the whole block. A full result still finds owners.
  if (count == 0 || (kept >= problem.max_output && problem.owner == nullptr)) return;
  const int64_t position = (chunk + 1) * kChunk<Rule> + (blockIdx.x % blocks) * kNmsSuppressThreads + threadIdx.x;
  const bool present = position < problem.count;
  Item mine{};
  int64_t my_class = 0;
  uint32_t word = 0xffffffffu;
  if (present) {
    mine = memory.items[image * problem.count + position];
    if (memory.classes != nullptr) my_class = memory.classes[image * problem.count + position];
    word = memory.removed[image * memory.words + position / kWarp];
  }
  bool alive = present && ((word >> (threadIdx.x % kWarp)) & 1u) == 0;
  for (int begin = 0; begin < count; begin += kNmsSuppressThreads) {
    const int tile = min_of(kNmsSuppressThreads, count - begin);
    if (static_cast<int>(threadIdx.x) < tile) {
      const int64_t at = image * problem.count + chunk * kChunk<Rule> +
                         memory.chunk_kept[image * kChunk<Rule> + begin + static_cast<int>(threadIdx.x)];
      shared.items[threadIdx.x] = memory.items[at];
      shared.classes[threadIdx.x] = memory.classes != nullptr ? memory.classes[at] : 0;
    }
    __syncthreads();
    for (int k = 0; alive && k < tile; ++k) {
      if (shared.classes[k] == my_class && rule.suppresses(shared.items[k], mine)) {
        if (problem.owner != nullptr) claim(problem, image, position, kept - count + begin + k);
        alive = false;
      }
    }
    __syncthreads();
  }
  const uint32_t removed = __ballot_sync(kAllLanes, !alive);
  if (threadIdx.x % kWarp == 0 && present) {
    memory.removed[image * memory.words + position / kWarp] = word | removed;
  }
}

// Bytes of device scratch.
template <class Rule>
int64_t scratch_bytes(const NmsProblem& problem) {
  int64_t bytes = 0;
  carve<Rule>(problem, nullptr, &bytes);
  return bytes;
}

template <class Rule>
cudaError_t run(const NmsProblem& problem, const Rule& rule, void* scratch, cudaStream_t stream) {
  int64_t bytes = 0;
  const auto memory = carve<Rule>(problem, static_cast<char*>(scratch), &bytes);
  // Blocks of an image; images lie one after another in the grid's x, which alone may pass 65,535.
  const auto blocks = [](int64_t threads) { return ceil_div<int64_t>(threads, kNmsSuppressThreads); };
  const auto grid = [&](int64_t blocks_of_image) {
    return dim3(static_cast<unsigned>(problem.batch * blocks_of_image));
  };
  const int64_t every = blocks(max_of<int64_t>(1, max_of(problem.count, min_of(problem.max_output, kNmsMostPadding))));
  if (problem.batch > 0x7fffffffLL / every) return cudaErrorInvalidConfiguration;
  cudaError_t status =
      launch(nms_prepare_kernel<Rule>, {grid(every), dim3(kNmsSuppressThreads)}, stream, problem, rule, memory, every);
  const int64_t chunks = problem.max_output > 0 ? ceil_div<int64_t>(problem.count, kChunk<Rule>) : 0;
  for (int64_t chunk = 0; chunk < chunks && status == cudaSuccess; ++chunk) {
    status = launch(nms_decide_kernel<Rule>, {grid(1), dim3(kChunk<Rule>)}, stream, problem, rule, memory, chunk);
    const int64_t later = problem.count - (chunk + 1) * kChunk<Rule>;
    if (status == cudaSuccess && later > 0) {
      status = launch(nms_suppress_kernel<Rule>, {grid(blocks(later)), dim3(kNmsSuppressThreads)}, stream, problem,
                      rule, memory, chunk, blocks(later));
    }
  }
  return status;
}

}  // namespace nms_engine
}  // namespace cvk
