// Launching kernels and declaring shared memory, alike under nvcc and under emulation.
//
// A .cu file includes this header and nothing else of CUDA. nvcc compiles it for the GPU; any C++17
// compiler compiles the same file for the CPU against csrc/emulation (see emulation/cuda_runtime.h
// for the model and its limits).
//
//   template <class T>
//   __global__ void __launch_bounds__(256)
//       row_sum_kernel(const T* input,  // [rows, columns]
//                      T* sums,         // [rows]
//                      int64_t columns) {
//     struct Shared {             // static shared memory: one struct, declared inside the kernel
//       float partial[8];
//       int count;
//     };
//     auto& shared = cvk::static_shared<Shared>();
//     float* row = cvk::dynamic_shared<float>();  // LaunchConfig::shared_bytes, aligned as T, 16 bytes at least
//     ...
//     __syncthreads();
//   }
//
//   return cvk::launch(row_sum_kernel<T>, {dim3(rows), dim3(256), columns * sizeof(float)}, stream,
//                      input, sums, columns);
//
// Shared memory. Plain `__shared__` is not used outside this header: the emulation could neither
// poison it at the start of a block nor let ASan see its bounds (it is a compile error there). The
// rules of static_shared<S>():
//  * S is a class of trivial members; it begins uninitialised (poisoned under emulation).
//  * S names the memory: two calls with the same S share it, so give each kernel and each helper a
//    struct of its own, declared inside the function where possible. Calling it again in the same
//    block returns the same memory.
//  * Call it from device code only; a reference to it may be passed on.
// dynamic_shared<T>() is the same memory for every T of one kernel, alignments above 16 apart from the others.
//
// launch_cooperative() starts all blocks of the grid at once, so that they may wait for each other
// (common/group_barrier.cuh); a grid of more blocks than can be resident together is refused.
// most_resident_blocks() says how many can, on the current device with nothing else on it; only
// config.block and config.shared_bytes count.
//
// Under emulation a launch runs the whole grid before it returns, and kernel arguments are copied
// for each thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <tuple>

#include "emulation/cuda_runtime.h"
#endif

namespace cvk {

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic shared memory
  int sm = 80;              // the oldest GPU that it is for: under emulation, how much of that there is
};

#if defined(__CUDACC__)

template <class S>
__device__ __forceinline__ S& static_shared() {
  static_assert(std::is_class<S>::value, "static_shared takes a struct of its own");
  __shared__ S memory;
  return memory;
}

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  if constexpr (alignof(T) > 16) {
    static_assert(alignof(T) <= 1024, "what shared memory is aligned to");
    extern __shared__ __align__(1024) unsigned char cvk_aligned_dynamic_shared_memory[];
    return reinterpret_cast<T*>(cvk_aligned_dynamic_shared_memory);
  } else {
    extern __shared__ __align__(16) unsigned char cvk_dynamic_shared_memory[];
    return reinterpret_cast<T*>(cvk_dynamic_shared_memory);
  }
}

// Barrier `id` (1..15; __syncthreads is 0) among `threads` threads of the block, a multiple of 32.
__device__ __forceinline__ void named_barrier(unsigned id, unsigned threads) { __barrier_sync_count(id, threads); }

namespace detail {

// Static and dynamic shared memory together may take 48 KiB unasked. The static part is not known here, so ask early.
template <class... P>
cudaError_t allow_shared_memory(void (*kernel)(P...), size_t bytes) {
  if (bytes <= 16 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchConfig& config, cudaStream_t stream, bool cooperative,
                   A&&... arguments) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return cudaSuccess;
  cudaError_t error = allow_shared_memory(kernel, config.shared_bytes);
  if (error == cudaSuccess) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t launch_config = {};
    launch_config.gridDim = config.grid;
    launch_config.blockDim = config.block;
    launch_config.dynamicSmemBytes = config.shared_bytes;
    launch_config.stream = stream;
    launch_config.attrs = &attribute;
    launch_config.numAttrs = cooperative ? 1 : 0;
    error = cudaLaunchKernelEx(&launch_config, kernel, std::forward<A>(arguments)...);
  }
  // The caller gets the error; left in place it would be blamed on somebody else's next call.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace detail

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchConfig& config, cudaStream_t stream, A&&... arguments) {
  return detail::launch(kernel, config, stream, false, std::forward<A>(arguments)...);
}

template <class... P, class... A>
cudaError_t launch_cooperative(void (*kernel)(P...), const LaunchConfig& config, cudaStream_t stream,
                               A&&... arguments) {
  return detail::launch(kernel, config, stream, true, std::forward<A>(arguments)...);
}

template <class... P>
cudaError_t most_resident_blocks(void (*kernel)(P...), const LaunchConfig& config, int* blocks) {
  int device = 0, processors = 0, per_processor = 0;
  const int threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  cudaError_t error = detail::allow_shared_memory(kernel, config.shared_bytes);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, config.shared_bytes);
  }
  if (error != cudaSuccess) cudaGetLastError();
  *blocks = processors * per_processor;
  return error;
}

// Whether this library has code for sm_90a, and the current device runs it. (Under CUDA_FORCE_PTX_JIT it does not, unseen here.)
inline bool has_warpgroups() {
#if defined(CVK_CUDA_SM90A)
  int device = 0, major = 0, minor = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  if (!known) cudaGetLastError();
  return known && major == 9 && minor == 0;
#else
  return false;
#endif
}

#else

template <class S>
inline S& static_shared() {
  static_assert(std::is_class_v<S>, "static_shared takes a struct of its own");
  static_assert(std::is_trivially_default_constructible_v<S> && std::is_trivially_destructible_v<S>,
                "shared memory begins uninitialised");
  static emulation::SharedSlot slots[emulation::kMaxResidentBlocks];
  emulation::SharedSlot& slot = slots[emulation::resident_block];
  if (slot.serial != emulation::block_serial) {
    emulation::begin_shared(slot, sizeof(S), alignof(S));
  }
  return *static_cast<S*>(slot.data);
}

template <class T>
inline T* dynamic_shared() {
  return static_cast<T*>(emulation::dynamic_shared_memory());
}

inline void named_barrier(unsigned id, unsigned threads, emulation::CallSite site = emulation::CallSite::here()) {
  emulation::named_barrier(id, threads, site);
}

namespace detail {

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchConfig& config, bool cooperative, A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
  using Arguments = std::tuple<std::remove_const_t<P>...>;
  struct Call {
    void (*kernel)(P...);
    Arguments arguments;
  } call{kernel, Arguments(std::forward<A>(arguments)...)};
  return emulation::launch(
      reinterpret_cast<const void*>(kernel), config.grid, config.block, config.shared_bytes, config.sm, cooperative,
      [](void* opaque) {
        const Call& it = *static_cast<const Call*>(opaque);
        std::apply(it.kernel, it.arguments);
      },
      &call);
}

}  // namespace detail

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchConfig& config, cudaStream_t /*stream*/, A&&... arguments) {
  return detail::launch(kernel, config, false, std::forward<A>(arguments)...);
}

template <class... P, class... A>
cudaError_t launch_cooperative(void (*kernel)(P...), const LaunchConfig& config, cudaStream_t /*stream*/,
                               A&&... arguments) {
  return detail::launch(kernel, config, true, std::forward<A>(arguments)...);
}

template <class... P>
cudaError_t most_resident_blocks(void (*)(P...), const LaunchConfig&, int* blocks) {
  *blocks = static_cast<int>(emulation::kMaxResidentBlocks);
  return cudaSuccess;
}

inline bool has_warpgroups() { return emulation::has_warpgroups(); }

#endif

// Whether so many blocks can be launched along x.
inline cudaError_t grid_fits(int64_t blocks) {
  return blocks > 0x7fffffffLL ? cudaErrorInvalidConfiguration : cudaSuccess;
}

}  // namespace cvk
