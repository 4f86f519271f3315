// Host side: launches, shared memory, seeds, errors and the copy functions.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>

#include "emulation/machine.h"
#include "emulation/runtime_api.h"

namespace cvk::emulation {

uint64_t block_serial = 0;
unsigned resident_block = 0;

namespace {

size_t most_shared_bytes(int sm) { return (sm >= 90 ? 227 : 163) * size_t{1024}; }
constexpr unsigned kSharedAlignment = 1024;
constexpr const char* kSeedVariable = "CVKERNELS_EMULATION_SEED";

uint64_t seed = 0;
uint64_t launches = 0;         // since the seed was set
std::string seed_environment;  // text of the variable when it was last applied

uint64_t blocks_started = 0;  // in this process

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_message;
thread_local bool in_kernel = false;

cudaError_t set_error(cudaError_t error, std::string message) {
  last_error = error;
  last_message = std::move(message);
  return error;
}

void apply_seed(uint64_t value) {
  seed = value;
  launches = 0;
}

bool read_seed_environment() {
  const char* text = std::getenv(kSeedVariable);
  if (text == nullptr) text = "";
  if (seed_environment == text) return true;
  if (*text != '\0') {
    char* end = nullptr;
    const uint64_t value = std::strtoull(text, &end, 10);
    if (*end != '\0' || *text < '0' || *text > '9') return false;
    apply_seed(value);
  }
  seed_environment = text;
  return true;
}

std::string configuration_problem(dim3 grid, dim3 block, size_t shared_bytes, int sm) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.x > kMaxThreads || block.y > kMaxThreads || block.z > 64) {
    return "block " + describe(block) + " is empty or larger than CUDA allows";
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "grid " + describe(grid) + " is larger than CUDA allows";
  }
  if (shared_bytes > most_shared_bytes(sm)) {
    return std::to_string(shared_bytes) + " bytes of dynamic shared memory, at most " +
           std::to_string(most_shared_bytes(sm)) + " are available";
  }
  return "";
}

void* allocate(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) std::abort();
  return memory;
}

// Runs the blocks `resident` at a time, in an order that depends on the seed: a walk through all of
// them with a random step.
void run_grid(dim3 grid, unsigned resident, size_t dynamic_bytes) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t random = uint64_t{machine.random.next()} << 32 | machine.random.next();
  uint64_t step = 1 + random % blocks;
  while (std::gcd(step, blocks) != 1) ++step;
  uint64_t block = machine.random.next() % blocks;
  for (uint64_t done = 0; done < blocks && !machine.failed; done += resident) {
    for (unsigned i = 0; i < resident; ++i) {
      Block& next = machine.blocks[i];
      next.index = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                    static_cast<unsigned>(block / grid.x / grid.y)};
      next.serial = ++blocks_started;
      poison(next.dynamic_memory, dynamic_bytes);
      block = (block + step) % blocks;
    }
    run_blocks(resident);
  }
}

}  // namespace

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, int sm, bool cooperative,
                   void (*body)(void*), void* argument) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (in_kernel) {
    fail_current("a kernel launched a kernel, which the emulation does not support");
  }
  const std::string problem = configuration_problem(grid, block, shared_bytes, sm);
  if (!problem.empty()) {
    return set_error(cudaErrorInvalidConfiguration, symbol_name(kernel) + ": " + problem);
  }
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (cooperative && blocks > kMaxResidentBlocks) {
    return set_error(cudaErrorCooperativeLaunchTooLarge, symbol_name(kernel) + ": " + std::to_string(blocks) +
                                                             " blocks launched cooperatively, at most " +
                                                             std::to_string(kMaxResidentBlocks) + " can be resident");
  }
  const std::lock_guard<std::mutex> lock(machine.launch_mutex);
  if (!read_seed_environment()) {
    return set_error(cudaErrorInvalidValue, std::string(kSeedVariable) + ": expected an unsigned integer, got '" +
                                                std::getenv(kSeedVariable) + "'");
  }
  const uint64_t launch_number = launches++;
  machine.random = Random(seed * 1000003 + launch_number);
  machine.body = body;
  machine.argument = argument;
  machine.failed = false;
  blockDim = block;
  gridDim = grid;
  const unsigned resident = cooperative ? static_cast<unsigned>(blocks) : 1;
  // Each of its exact size, so that ASan sees the first byte beyond.
  for (unsigned i = 0; i < resident; ++i) machine.blocks[i].dynamic_memory = allocate(shared_bytes, kSharedAlignment);
  in_kernel = true;
  run_grid(grid, resident, shared_bytes);
  in_kernel = false;
  for (unsigned i = 0; i < resident; ++i) std::free(machine.blocks[i].dynamic_memory);
  if (!machine.failed) return cudaSuccess;
  return set_error(cudaErrorLaunchFailure, symbol_name(kernel) + ", " + machine.failure + " (seed " +
                                               std::to_string(seed) + ", launch " + std::to_string(launch_number) +
                                               ")");
}

void begin_shared(SharedSlot& slot, size_t bytes, size_t alignment) {
  if (slot.data == nullptr) slot.data = allocate(bytes, std::max<size_t>(alignment, kSharedAlignment));
  poison(slot.data, bytes);
  slot.serial = block_serial;
}

bool has_warpgroups() {
  const char* text = std::getenv("CVKERNELS_EMULATION_SM");
  return text == nullptr || std::strcmp(text, "80") != 0;
}

void* dynamic_shared_memory() { return machine.current->block->dynamic_memory; }

void set_seed(uint64_t value) {
  const std::lock_guard<std::mutex> lock(machine.launch_mutex);
  apply_seed(value);
}

void poison(void* pointer, size_t bytes) {
  if (bytes != 0) std::memset(pointer, 0xff, bytes);
}

const std::string& last_error_message() { return last_message; }

}  // namespace cvk::emulation

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  using namespace cvk::emulation;
  if (error != cudaSuccess && error == last_error && !last_message.empty()) {
    return last_message.c_str();
  }
  return error == cudaSuccess ? "no error" : cudaGetErrorName(error);
}

cudaError_t cudaPeekAtLastError() { return cvk::emulation::last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = cvk::emulation::last_error;
  cvk::emulation::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  if (bytes != 0) std::memset(pointer, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes != 0) std::memmove(destination, source, bytes);
  return cudaSuccess;
}
