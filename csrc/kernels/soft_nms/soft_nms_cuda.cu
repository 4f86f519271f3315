// Soft-NMS on CUDA. Contract and method: soft_nms.h.
//
// What was tried: on an H100 nothing else yet. Candidates for a measurement: the limits in soft_nms_tuning.h; offers that carry the
// number of their step and are polled themselves, which would save the barrier's trips to L2 in every step.
#include "common/box_reader.cuh"
#include "common/group_barrier.cuh"
#include "kernels/soft_nms/soft_nms.h"
#include "kernels/soft_nms/soft_nms_math.h"

namespace cvk {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kNobody = 0xffffffffu;  // an index
static_assert(kSoftNmsMostThreads<float> <= kWarp * kWarp && kSoftNmsMostBlocks <= kWarp, "a lane reads one offer");

// A score >= 0 as an integer that grows with it and is above 0, which stands for no score. Both zeros are one value.
CVK_DEVICE uint32_t key_of(float score) { return bit_cast<uint32_t>(score + 0.0f) + 1; }
CVK_DEVICE uint64_t key_of(double score) { return bit_cast<uint64_t>(score + 0.0) + 1; }

// A candidate for the next selection: the highest score, of these the lowest index.
template <class A>
struct Offer {
  using Key = decltype(key_of(A(0)));
  Key key = 0;
  unsigned index = kNobody;
};

CVK_DEVICE uint32_t most_of_warp(uint32_t key) { return __reduce_max_sync(kAllLanes, key); }
CVK_DEVICE uint64_t most_of_warp(uint64_t key) {
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  const uint32_t most = __reduce_max_sync(kAllLanes, high);
  const uint32_t low = __reduce_max_sync(kAllLanes, high == most ? static_cast<uint32_t>(key) : 0u);
  return static_cast<uint64_t>(most) << 32 | low;
}

template <class A>
CVK_DEVICE Offer<A> best_of_warp(const Offer<A>& mine) {
  Offer<A> best;
  best.key = most_of_warp(mine.key);
  best.index = __reduce_min_sync(kAllLanes, mine.key == best.key ? mine.index : kNobody);
  return best;
}

// Device memory; all pointers into one allocation.
template <class A>
struct SoftNmsMemory {
  using Key = typename Offer<A>::Key;
  unsigned* counters;  // [B] of the barrier between the blocks of an image
  Key* keys;           // [B, 2, kSoftNmsMostBlocks] offers of the blocks, in even and in odd steps
  unsigned* indices;   // [B, 2, kSoftNmsMostBlocks]
  A* scores;           // [B, N] current scores, below 0 once out; where shared memory does not hold them
};

template <class A>
SoftNmsMemory<A> carve(const SoftNmsParams<A>& params, char* memory, int64_t* bytes) {
  using Memory = SoftNmsMemory<A>;
  Memory result;
  int64_t used = 0;
  const auto take = [&](int64_t size) {
    char* at = memory + used;
    used += round_up<int64_t>(size, 256);
    return at;
  };
  const int64_t offers = params.batch * 2 * kSoftNmsMostBlocks, total = params.batch * params.count;
  const int64_t size = sizeof(A);
  result.counters = reinterpret_cast<unsigned*>(take(params.batch * 4));
  result.keys = reinterpret_cast<typename Memory::Key*>(take(offers * size));
  result.indices = reinterpret_cast<unsigned*>(take(offers * 4));
  result.scores = reinterpret_cast<A*>(take(total * size));
  *bytes = used;
  return result;
}

// The best offer of a block, for all its threads. One barrier: `step` alternates between two places.
template <class A>
CVK_DEVICE Offer<A> best_of_block(const Offer<A>& mine, unsigned step) {
  struct Shared {
    typename Offer<A>::Key keys[2][kWarp];
    unsigned indices[2][kWarp];
  };
  auto& shared = static_shared<Shared>();
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Offer<A> of_warp = best_of_warp(mine);
  if (lane == 0) {
    shared.keys[step][warp] = of_warp.key;
    shared.indices[step][warp] = of_warp.index;
  }
  __syncthreads();
  Offer<A> other;
  if (lane < blockDim.x / kWarp) {
    other.key = shared.keys[step][lane];
    other.index = shared.indices[step][lane];
  }
  return best_of_warp(other);
}

// The best offer of all blocks of an image, for all their threads.
template <class A>
CVK_DEVICE Offer<A> best_of_group(const Offer<A>& of_block, unsigned step, const SoftNmsMemory<A>& memory,
                                  int64_t image, unsigned member, unsigned members, GroupBarrier& barrier) {
  const int64_t first = (image * 2 + step) * kSoftNmsMostBlocks;
  if (threadIdx.x == 0) {
    memory.keys[first + member] = of_block.key;
    memory.indices[first + member] = of_block.index;
  }
  barrier.wait();
  const unsigned lane = threadIdx.x % kWarp;
  Offer<A> other;
  if (lane < members) {
    other.key = __ldcg(memory.keys + first + lane);
    other.index = __ldcg(memory.indices + first + lane);
  }
  return best_of_warp(other);
}

// `members` blocks for each image. A thread owns the boxes first, first + stride, ...; nobody else reads their scores.
template <class A>
__global__ void __launch_bounds__(kSoftNmsMostThreads<A>)
    soft_nms_kernel(SoftNmsParams<A> params, SoftNmsMemory<A> memory, unsigned members, bool scores_in_shared) {
  const int64_t image = blockIdx.x / members;
  const unsigned member = blockIdx.x % members;
  const unsigned count = static_cast<unsigned>(params.count);
  const unsigned first = member * blockDim.x + threadIdx.x, stride = members * blockDim.x;
  const BoxReader<A> boxes(params.boxes + image * params.count * 4);
  const int64_t* const classes = params.classes != nullptr ? params.classes + image * params.count : nullptr;
  int64_t* const keep = params.keep + image * params.max_output;
  A* const new_scores = params.new_scores + image * params.max_output;
  // The score of the own box number k: scores[k * score_stride].
  A* const scores = scores_in_shared ? dynamic_shared<A>() + threadIdx.x : memory.scores + image * params.count + first;
  const unsigned score_stride = scores_in_shared ? blockDim.x : stride;
  GroupBarrier barrier(memory.counters + image, members);

  Offer<A> mine;
  const auto consider = [&](A score, unsigned index) {  // in ascending order of index
    const auto key = key_of(score);
    if (key > mine.key) {
      mine.key = key;
      mine.index = index;
    }
  };
  A* current = scores;
  for (unsigned i = first; i < count; i += stride, current += score_stride) {
    const A score = params.scores[image * params.count + i];
    *current = score >= params.min_score ? score : A(-1);
    if (score >= params.min_score) consider(score, i);
  }

  // Without an intersection the weight is 1, unless everything above a negative threshold is removed.
  const bool only_overlapping = params.method != SoftNmsMethod::kHard || params.threshold >= A(0);
  int64_t selected = 0;
  for (; selected < params.max_output; ++selected) {
    const unsigned step = static_cast<unsigned>(selected % 2);
    Offer<A> best = best_of_block(mine, step);
    if (members > 1) best = best_of_group(best, step, memory, image, member, members, barrier);
    if (best.index == kNobody) break;  // the same for all blocks of the image
    const Box<A> chosen = boxes(best.index);
    const A chosen_area = box_area(chosen);
    mine = Offer<A>{};
    current = scores;
    for (unsigned i = first; i < count; i += stride, current += score_stride) {
      A score = *current;
      if (score < A(0)) continue;
      if (i == best.index) {
        keep[selected] = i;
        new_scores[selected] = score;
        *current = A(-1);
        continue;
      }
      const Box<A> box = boxes(i);
      const A intersection = box_intersection(chosen, box);
      if ((intersection > A(0) || !only_overlapping) && (classes == nullptr || classes[i] == classes[best.index])) {
        const A united = box_union(chosen_area, box_area(box), intersection);
        const A overlap = box_overlap(chosen, box, intersection, united, params.overlap);
        const A weight = soft_nms_weight(overlap, params.method, params.threshold, params.sigma);
        score = soft_nms_decayed(score, weight, params.min_score);
        *current = score;
        if (score < A(0)) continue;
      }
      consider(score, i);
    }
  }
  if (first == 0) params.kept[image] = selected;
  for (int64_t i = selected + first; i < params.max_output; i += stride) {
    keep[i] = -1;
    new_scores[i] = A(0);
  }
}

}  // namespace

template <class A>
int64_t soft_nms_scratch_cuda(const SoftNmsParams<A>& params) {
  int64_t bytes = 0;
  carve(params, nullptr, &bytes);
  return bytes;
}

template <class A>
CudaStatus soft_nms_cuda(const SoftNmsParams<A>& params, const SoftNmsPlan& plan, void* scratch, CudaStream stream) {
  int64_t bytes = 0;
  const SoftNmsMemory<A> memory = carve(params, static_cast<char*>(scratch), &bytes);
  const int64_t blocks = params.batch * plan.blocks;
  if (blocks > 0x7fffffffLL) return static_cast<CudaStatus>(cudaErrorInvalidConfiguration);
  const int64_t boxes_of_thread = ceil_div<int64_t>(params.count, int64_t{plan.threads} * plan.blocks);
  const int64_t score_bytes = boxes_of_thread * plan.threads * static_cast<int64_t>(sizeof(A));
  const bool in_shared = score_bytes <= kSoftNmsSharedBytes;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(plan.threads)),
                            in_shared ? static_cast<size_t>(score_bytes) : 0};
  const unsigned members = static_cast<unsigned>(plan.blocks);
  if (members == 1) {
    return static_cast<CudaStatus>(launch(soft_nms_kernel<A>, config, stream, params, memory, members, in_shared));
  }
  cudaError_t status = cudaMemsetAsync(memory.counters, 0, static_cast<size_t>(params.batch) * 4, stream);
  if (status == cudaSuccess) {
    status = launch_cooperative(soft_nms_kernel<A>, config, stream, params, memory, members, in_shared);
  }
  return static_cast<CudaStatus>(status);
}

template <class A>
CudaStatus soft_nms_cuda(const SoftNmsParams<A>& params, void* scratch, CudaStream stream) {
  int resident = 0;
  if (params.count >= kSoftNmsGroupFrom) {
    const LaunchConfig largest{dim3(), dim3(kSoftNmsMostThreads<A>), static_cast<size_t>(kSoftNmsSharedBytes)};
    const cudaError_t status = most_resident_blocks(soft_nms_kernel<A>, largest, &resident);
    if (status != cudaSuccess) return static_cast<CudaStatus>(status);
  }
  return soft_nms_cuda(params, soft_nms_plan<A>(params.batch, params.count, resident), scratch, stream);
}

template int64_t soft_nms_scratch_cuda<float>(const SoftNmsParams<float>&);
template int64_t soft_nms_scratch_cuda<double>(const SoftNmsParams<double>&);
template CudaStatus soft_nms_cuda<float>(const SoftNmsParams<float>&, const SoftNmsPlan&, void*, CudaStream);
template CudaStatus soft_nms_cuda<double>(const SoftNmsParams<double>&, const SoftNmsPlan&, void*, CudaStream);
template CudaStatus soft_nms_cuda<float>(const SoftNmsParams<float>&, void*, CudaStream);
template CudaStatus soft_nms_cuda<double>(const SoftNmsParams<double>&, void*, CudaStream);

}  // namespace cvk
