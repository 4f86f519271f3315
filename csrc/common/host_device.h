// Function qualifiers shared by host and device code.
//
// CVK_HD marks arithmetic that CPU and CUDA kernels share. It is force-inlined on the host too: the CPU kernels are
// compiled once per instruction set, and an out-of-line copy of a shared helper would let the linker hand AVX-512 code
// to a machine without it.
#pragma once

#if defined(__CUDACC__)
#define CVK_HD __host__ __device__ __forceinline__
#define CVK_DEVICE __device__ __forceinline__
#else
#define CVK_HD inline __attribute__((always_inline))
#define CVK_DEVICE inline __attribute__((always_inline))
#endif
