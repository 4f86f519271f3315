// The part of CUDA's host API that launchers and bindings use, and the switches of the emulation
// itself.
//
// The names and values are CUDA's, and so are the mangled names of functions that take or return
// these types. Everything runs at once on the calling thread: a stream is only carried along, and a
// copy or a launch is complete when it returns. Include this file, not cuda_runtime.h, where the
// device functions (threadIdx, min, ...) are not wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "emulation/vector_types.h"

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
typedef cudaError cudaError_t;
typedef struct CUstream_st* cudaStream_t;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};

const char* cudaGetErrorName(cudaError_t error);
// For the error of this host thread's last failed launch: what went wrong, where, and in which
// kernel.
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();  // and forgets it
cudaError_t cudaPeekAtLastError();
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);

namespace cvk::emulation {

// Chooses the order of blocks and threads of the launches that follow. Two launches in a row differ
// in order; the n-th launch after set_seed(s) always has the same one. The environment variable
// CVKERNELS_EMULATION_SEED does the same: it is read at every launch and applied whenever its text
// has changed since the last one. Without either the seed is 0.
void set_seed(uint64_t seed);

// Fills memory with 0xFF: NaN in every floating-point type, -1 in every integer type. For memory
// that a real device would hand out uninitialised; shared memory is poisoned by the launch itself.
void poison(void* pointer, size_t bytes);

// Whether the emulated GPU has products of warpgroups: yes, unless the environment variable CVKERNELS_EMULATION_SM is 80.
bool has_warpgroups();

// Message of this host thread's last failed launch; empty where none has failed.
const std::string& last_error_message();

// Runs body(argument) once per thread of the grid; all its blocks at once in a cooperative launch. `sm` says how much shared memory
// there is: that of compute capability 8.0 (80) or 9.0 (90).
// cvk::launch and cvk::launch_cooperative (common/launch.cuh) are the ways to call it.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, int sm, bool cooperative,
                   void (*body)(void*), void* argument);

}  // namespace cvk::emulation
