// Hard NMS on CUDA. Contract and method: nms.h.
//
// What was tried: nothing on a GPU yet; the structure is chosen from PERFORMANCE notes (no N^2 mask, no host step).
#include "common/launch.cuh"
#include "kernels/nms/nms.h"
#include "kernels/nms/nms_math.h"

namespace cvk {
namespace {

constexpr int kWarp = 32;

// A box in score order, as the passes read it.
template <class A>
struct alignas(4 * sizeof(A)) RankedBox {
  A x1, y1, x2, y2;
  CVK_HD Box<A> box() const { return {x1, y1, x2, y2}; }
};

// Scratch in device memory; all pointers into one allocation.
template <class A>
struct NmsScratch {
  RankedBox<A>* boxes;  // [B, N]
  int64_t* classes;     // [B, N] or null
  int* chunk_kept;      // [B, kNmsChunk] positions kept by the last chunk
  int* chunk_count;     // [B]
  uint32_t* removed;    // [B, words] one bit per box: suppressed, or not taking part
  int64_t words;        // of one image
};

CVK_HD int64_t aligned_bytes(int64_t bytes) { return round_up<int64_t>(bytes, 256); }

template <class A>
NmsScratch<A> carve(const NmsBatchParams<A>& params, char* memory, int64_t* bytes) {
  NmsScratch<A> scratch;
  int64_t used = 0;
  const auto take = [&](int64_t size) {
    char* at = memory + used;
    used += aligned_bytes(size);
    return at;
  };
  scratch.words = ceil_div<int64_t>(params.count, kWarp);
  const int64_t total = params.batch * params.count;
  scratch.boxes = reinterpret_cast<RankedBox<A>*>(take(total * static_cast<int64_t>(sizeof(RankedBox<A>))));
  scratch.classes = params.classes != nullptr ? reinterpret_cast<int64_t*>(take(total * 8)) : nullptr;
  scratch.chunk_kept = reinterpret_cast<int*>(take(params.batch * kNmsChunk * 4));
  scratch.chunk_count = reinterpret_cast<int*>(take(params.batch * 4));
  scratch.removed = reinterpret_cast<uint32_t*>(take(params.batch * scratch.words * 4));
  *bytes = used;
  return scratch;
}

// Boxes and classes into score order; NaN scores and the bits beyond N start as removed. One thread per position.
template <class A>
__global__ void __launch_bounds__(kNmsSuppressThreads)
    nms_prepare_kernel(NmsBatchParams<A> params, NmsScratch<A> scratch, int64_t blocks) {
  const int64_t image = blockIdx.x / blocks;
  const int64_t position = (blockIdx.x % blocks) * kNmsSuppressThreads + threadIdx.x;
  bool removed = true;
  if (position < params.count) {
    const int64_t at = image * params.count + position;
    const int64_t source = image * params.count + params.order[at];
    const A* box = params.boxes + 4 * source;
    scratch.boxes[at] = RankedBox<A>{box[0], box[1], box[2], box[3]};
    if (scratch.classes != nullptr) scratch.classes[at] = params.classes[source];
    const float score = params.ordered_scores[at];
    removed = !(score == score);
  }
  const uint32_t word = __ballot_sync(0xffffffffu, removed);
  if (threadIdx.x % kWarp == 0 && position < params.count) {
    scratch.removed[image * scratch.words + position / kWarp] = word;
  }
  // The padding of the output, spread over the same threads.
  const int64_t threads = blocks * kNmsSuppressThreads;
  for (int64_t i = position; i < params.max_output; i += threads) params.keep[image * params.max_output + i] = -1;
  if (position == 0) params.kept[image] = 0;
}

// Decides positions [chunk * kNmsChunk, + kNmsChunk) of each image, whose boxes already carry the verdict of all earlier
// chunks. Warp after warp decides its 32 boxes in registers and shows the kept ones to the later warps.
template <class A>
__global__ void __launch_bounds__(kNmsChunk)
    nms_decide_kernel(NmsBatchParams<A> params, NmsScratch<A> scratch, int64_t chunk) {
  struct Shared {
    RankedBox<A> boxes[2][kWarp];  // two rounds, so that one barrier a round suffices
    int64_t classes[2][kWarp];
    int count[2];
    int kept_before[2];  // boxes of this chunk kept up to and including the round
  };
  auto& shared = static_shared<Shared>();
  const int64_t image = blockIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t position = chunk * kNmsChunk + threadIdx.x;
  const int64_t already = params.kept[image];
  const int64_t room = params.max_output - already;
  if (room <= 0) {  // the same for the whole block
    if (threadIdx.x == 0) scratch.chunk_count[image] = 0;
    return;
  }

  const bool present = position < params.count;
  RankedBox<A> mine{};
  int64_t my_class = 0;
  bool alive = false;
  if (present) {
    mine = scratch.boxes[image * params.count + position];
    if (scratch.classes != nullptr) my_class = scratch.classes[image * params.count + position];
    alive = ((scratch.removed[image * scratch.words + position / kWarp] >> lane) & 1u) == 0;
  }
  const A my_area = box_area(mine.box());

  // Which later lanes of this warp my box would suppress.
  uint32_t suppressed_by_me = 0;
  for (int other = 1; other < kWarp; ++other) {
    const Box<A> box{__shfl_sync(0xffffffffu, mine.x1, other), __shfl_sync(0xffffffffu, mine.y1, other),
                     __shfl_sync(0xffffffffu, mine.x2, other), __shfl_sync(0xffffffffu, mine.y2, other)};
    const int64_t its_class =
        scratch.classes != nullptr
            ? static_cast<int64_t>(__shfl_sync(0xffffffffu, static_cast<long long>(my_class), other))
            : 0;
    if (other > lane && its_class == my_class &&
        nms_suppresses(mine.box(), my_area, box, box_area(box), params.threshold)) {
      suppressed_by_me |= 1u << other;
    }
  }

  const int rounds =
      static_cast<int>(min_of<int64_t>(kNmsChunk / kWarp, ceil_div<int64_t>(params.count - chunk * kNmsChunk, kWarp)));
  for (int round = 0; round < rounds; ++round) {
    const int side = round & 1;
    if (warp == round) {
      const int before = round == 0 ? 0 : shared.kept_before[side ^ 1];
      uint32_t pending = __ballot_sync(0xffffffffu, alive);
      uint32_t kept = 0;
      int count = 0;
      while (pending != 0 && before + count < room) {
        const int first = __ffs(static_cast<int>(pending)) - 1;
        kept |= 1u << first;
        ++count;
        pending &= ~(__shfl_sync(0xffffffffu, suppressed_by_me, first) | (1u << first));
      }
      if ((kept >> lane) & 1u) {
        const int slot = __popc(kept & ((1u << lane) - 1u));
        shared.boxes[side][slot] = mine;
        shared.classes[side][slot] = my_class;
        scratch.chunk_kept[image * kNmsChunk + before + slot] = static_cast<int>(threadIdx.x);
        params.keep[image * params.max_output + already + before + slot] =
            params.order[image * params.count + position];
      }
      if (lane == 0) {
        shared.count[side] = count;
        shared.kept_before[side] = before + count;
      }
    }
    __syncthreads();
    if (warp > round && alive) {
      for (int k = 0; k < shared.count[side]; ++k) {
        const Box<A> box = shared.boxes[side][k].box();
        if (shared.classes[side][k] == my_class &&
            nms_suppresses(box, box_area(box), mine.box(), my_area, params.threshold)) {
          alive = false;
          break;
        }
      }
    }
  }
  if (threadIdx.x == 0) {
    const int kept = shared.kept_before[(rounds - 1) & 1];
    scratch.chunk_count[image] = kept;
    params.kept[image] = already + kept;
  }
}

// Tests every box after the chunk against the boxes that the chunk kept. One thread per position, one word per warp.
template <class A>
__global__ void __launch_bounds__(kNmsSuppressThreads, kNmsSuppressBlocksPerSm)
    nms_suppress_kernel(NmsBatchParams<A> params, NmsScratch<A> scratch, int64_t chunk, int64_t blocks) {
  struct Shared {
    RankedBox<A> boxes[kNmsSuppressThreads];
    int64_t classes[kNmsSuppressThreads];
  };
  auto& shared = static_shared<Shared>();
  const int64_t image = blockIdx.x / blocks;
  const int count = scratch.chunk_count[image];
  if (count == 0 || params.kept[image] >= params.max_output) return;  // the same for the whole block
  const int64_t position = (chunk + 1) * kNmsChunk + (blockIdx.x % blocks) * kNmsSuppressThreads + threadIdx.x;
  const bool present = position < params.count;
  RankedBox<A> mine{};
  int64_t my_class = 0;
  uint32_t word = 0xffffffffu;
  if (present) {
    mine = scratch.boxes[image * params.count + position];
    if (scratch.classes != nullptr) my_class = scratch.classes[image * params.count + position];
    word = scratch.removed[image * scratch.words + position / kWarp];
  }
  const A my_area = box_area(mine.box());
  bool alive = present && ((word >> (threadIdx.x % kWarp)) & 1u) == 0;
  for (int begin = 0; begin < count; begin += kNmsSuppressThreads) {
    const int tile = min_of(kNmsSuppressThreads, count - begin);
    if (static_cast<int>(threadIdx.x) < tile) {
      const int64_t at = image * params.count + chunk * kNmsChunk +
                         scratch.chunk_kept[image * kNmsChunk + begin + static_cast<int>(threadIdx.x)];
      shared.boxes[threadIdx.x] = scratch.boxes[at];
      shared.classes[threadIdx.x] = scratch.classes != nullptr ? scratch.classes[at] : 0;
    }
    __syncthreads();
    for (int k = 0; alive && k < tile; ++k) {
      const Box<A> box = shared.boxes[k].box();
      if (shared.classes[k] == my_class && nms_suppresses(box, box_area(box), mine.box(), my_area, params.threshold)) {
        alive = false;
      }
    }
    __syncthreads();
  }
  const uint32_t removed = __ballot_sync(0xffffffffu, !alive);
  if (threadIdx.x % kWarp == 0 && present) {
    scratch.removed[image * scratch.words + position / kWarp] = word | removed;
  }
}

}  // namespace

template <class A>
int64_t nms_scratch_cuda(const NmsBatchParams<A>& params) {
  int64_t bytes = 0;
  carve(params, nullptr, &bytes);
  return bytes;
}

template <class A>
CudaStatus nms_cuda(const NmsBatchParams<A>& params, void* scratch_memory, CudaStream stream) {
  int64_t bytes = 0;
  const NmsScratch<A> scratch = carve(params, static_cast<char*>(scratch_memory), &bytes);
  // Blocks of an image; images lie one after another in the grid's x, which alone may pass 65,535.
  const auto blocks = [](int64_t threads) { return ceil_div<int64_t>(threads, kNmsSuppressThreads); };
  const auto grid = [&](int64_t blocks_of_image) {
    return dim3(static_cast<unsigned>(params.batch * blocks_of_image));
  };
  const int64_t every = blocks(max_of<int64_t>(1, max_of(params.count, min_of(params.max_output, kNmsMostPadding))));
  if (params.batch > 0x7fffffffLL / every) return static_cast<CudaStatus>(cudaErrorInvalidConfiguration);
  cudaError_t status =
      launch(nms_prepare_kernel<A>, {grid(every), dim3(kNmsSuppressThreads)}, stream, params, scratch, every);
  const int64_t chunks = params.max_output > 0 ? ceil_div<int64_t>(params.count, kNmsChunk) : 0;
  for (int64_t chunk = 0; chunk < chunks && status == cudaSuccess; ++chunk) {
    status = launch(nms_decide_kernel<A>, {grid(1), dim3(kNmsChunk)}, stream, params, scratch, chunk);
    const int64_t later = params.count - (chunk + 1) * kNmsChunk;
    if (status == cudaSuccess && later > 0) {
      status = launch(nms_suppress_kernel<A>, {grid(blocks(later)), dim3(kNmsSuppressThreads)}, stream, params, scratch,
                      chunk, blocks(later));
    }
  }
  return static_cast<CudaStatus>(status);
}

template int64_t nms_scratch_cuda<float>(const NmsBatchParams<float>&);
template int64_t nms_scratch_cuda<double>(const NmsBatchParams<double>&);
template CudaStatus nms_cuda<float>(const NmsBatchParams<float>&, void*, CudaStream);
template CudaStatus nms_cuda<double>(const NmsBatchParams<double>&, void*, CudaStream);

}  // namespace cvk
