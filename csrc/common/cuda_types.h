// The two CUDA types that cross the border between kernels and bindings, named without any CUDA header: the same
// declarations serve the CPU build, the CUDA build and the emulation.
#pragma once

struct CUstream_st;

namespace cvk {

using CudaStream = CUstream_st*;  // the type behind cudaStream_t
using CudaStatus = int;           // the value of a cudaError_t, 0 is success

}  // namespace cvk
