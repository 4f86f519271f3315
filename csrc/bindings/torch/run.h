// The only place that starts work: takes the device guard and the current stream, turns a CUDA error into an exception,
// and calls parallel_for. One binding source is compiled three times, once per backend:
//   _C        -DCVK_BACKEND_CPU       defines the schemas; CPU kernels behind key CPU
//   _cuda     -DCVK_BACKEND_CUDA      CUDA kernels behind key CUDA
//   _emulated -DCVK_BACKEND_EMULATED  defines the schemas; the CUDA kernels, emulated, behind key CPU
#pragma once

#include <memory>
#include <new>

#include "bindings/torch/checks.h"
#include "common/cuda_types.h"
#include "common/isa.h"
#include "common/parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(CVK_BACKEND_CUDA)
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#elif defined(CVK_BACKEND_EMULATED)
#include "emulation/runtime_api.h"
#endif

namespace cvk::bindings {

enum class Backend { kCpu, kCuda, kEmulated };
#if defined(CVK_BACKEND_CPU)
inline constexpr Backend kBackend = Backend::kCpu;
#elif defined(CVK_BACKEND_CUDA)
inline constexpr Backend kBackend = Backend::kCuda;
#elif defined(CVK_BACKEND_EMULATED)
inline constexpr Backend kBackend = Backend::kEmulated;
#else
#error "compile the bindings with one of CVK_BACKEND_CPU, CVK_BACKEND_CUDA, CVK_BACKEND_EMULATED"
#endif
inline constexpr bool kOnCpu = kBackend == Backend::kCpu;

// Work that a CPU pass can be cut into: `grain` items are the least that a thread should get.
struct Work {
  int64_t items;
  int64_t grain = 1;
};

// Items that share `operations` multiply-adds or copies of one value. A thread gets at least 2^20 of them, 50 to 100 us:
// waking a thread costs 5 us on an idle machine and milliseconds on a busy one.
inline Work work_of(int64_t items, int64_t operations) {
  constexpr int64_t kLeast = int64_t{1} << 20;
  const int64_t per_item = operations / (items > 0 ? items : 1);
  return {items, per_item >= kLeast ? 1 : kLeast / (per_item > 0 ? per_item : 1) + 1};
}

// Runs f(isa) once on this thread; for serial steps of a CPU pass.
template <class F>
auto once(F&& f) {
  return with_cpu_isa(f);
}

// Torch's thread pool for a CPU kernel of several phases (common/parallel.h).
inline Parallel torch_parallel() {
  Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.start = [](void*, int64_t items, int64_t grain, Parallel::Body body, void* argument) {
    torch::stable::parallel_for(0, items, grain, [&](int64_t first, int64_t last) { body(argument, first, last); });
  };
  return parallel;
}

// cpu_slice(isa, first, last) over [0, work.items) on the CPU backend, else cuda_launch(stream).
template <class Slice, class Launch>
void run([[maybe_unused]] const char* op, [[maybe_unused]] const Tensor& on, [[maybe_unused]] Work work,
         [[maybe_unused]] Slice&& cpu_slice, [[maybe_unused]] Launch&& cuda_launch) {
#if defined(CVK_BACKEND_CPU)
  if (work.items <= 0) return;
  with_cpu_isa([&](auto isa) {
    if (work.items <= work.grain) {
      cpu_slice(isa, int64_t{0}, work.items);
    } else {
      torch::stable::parallel_for(0, work.items, work.grain,
                                  [&](int64_t first, int64_t last) { cpu_slice(isa, first, last); });
    }
  });
#else
  CudaStatus status = 0;
#if defined(CVK_BACKEND_CUDA)
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  status = cuda_launch(static_cast<CudaStream>(stream));
#else
  status = cuda_launch(CudaStream{nullptr});
#endif
  if (status != 0) {
    throw std::runtime_error(std::string(op) + ": CUDA error " + std::to_string(status) + ": " +
                             cudaGetErrorString(static_cast<cudaError_t>(status)));
  }
#endif
}

// Asks for pages of 2 MiB behind a large result. Torch's CPU allocator hands out fresh memory for it, call after call, and the
// first touch of each page costs more than computing its content. Perf: filling 50 MB takes 18 ms in pages of 4 KiB, 2.8 ms in
// these (EPYC 9005, Linux with transparent_hugepage = madvise).
inline void prefer_huge_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  // Advice: where it is not taken, pages stay small.
  if (first < last) static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
#endif
}

// An uninitialised tensor on the device of `like`; under emulation filled with NaN patterns, so that a test sees every
// element that a kernel forgot.
inline Tensor allocate(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor& like,
                       bool channels_last = false) {
  Tensor tensor = torch::stable::empty(
      torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type, std::nullopt, like.device(),
      std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
  if constexpr (kOnCpu) prefer_huge_pages(tensor);
#if defined(CVK_BACKEND_EMULATED)
  emulation::poison(tensor.mutable_data_ptr(), static_cast<size_t>(tensor.numel()) * tensor.element_size());
#endif
  return tensor;
}

// Host scratch of a CPU pass, uninitialised.
template <class U>
class HostScratch {
 public:
  explicit HostScratch(int64_t count) : data_(new U[static_cast<size_t>(count > 0 ? count : 1)]) {}
  U* get() const { return data_.get(); }

 private:
  std::unique_ptr<U[]> data_;
};

template <class U>
const U* data(const Tensor& tensor) {
  return static_cast<const U*>(tensor.const_data_ptr());
}
template <class U>
U* mutable_data(const Tensor& tensor) {
  return static_cast<U*>(const_cast<Tensor&>(tensor).mutable_data_ptr());
}

}  // namespace cvk::bindings

// Declares an operator's schemas (once per process) and its kernels for this library's dispatch key:
//   CVK_SCHEMAS(m) { m.def("..."); }    CVK_KERNELS(m) { m.impl("...", TORCH_BOX(&...)); }
#if defined(CVK_BACKEND_CUDA)
#define CVK_SCHEMAS(m) [[maybe_unused]] static void unused_schemas(torch::stable::detail::StableLibrary& m)
#define CVK_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(cvkernels, CUDA, m)
#else
#define CVK_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(cvkernels, m)
#define CVK_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(cvkernels, CPU, m)
#endif
