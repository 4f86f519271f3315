// CUDA's execution model on the CPU: what a .cu file gets in place of CUDA's cuda_runtime.h when
// g++ compiles it.
//
// Model. Every CUDA thread is a fiber: a stack of its own and a few saved registers. One host
// thread runs the blocks of a grid one after another; those of a cooperative launch, of which there
// may be four, all at once. A thread runs until it has to wait for others (a barrier, a warp
// collective); then the next thread that can run takes over. When all threads that the rendezvous
// needs have arrived, they become ready again in a new random order. So threads really are suspended
// in the middle of a kernel, as on a GPU, yet the run is deterministic: the seed and the number of
// the launch decide every order.
//
// What it catches, in the place where a GPU would give a wrong number now and then, or hang:
//  * A missing barrier. A thread runs as far as it can before its neighbours move, so it reads what
//    is not there yet: the poison (NaN, -1) with which shared memory begins, or an older value.
//    Other seeds give other orders, so the result differs from seed to seed.
//  * A barrier that not all threads reach, two different barriers at once, a collective with a lane
//    that never comes, a lane outside its own mask: the launch fails with cudaErrorLaunchFailure,
//    and last_error_message() names the kernel, the block and the source lines where threads wait.
//  * Access outside shared memory: with -fsanitize=address, because each shared allocation has its
//    exact size.
//  * A shuffle from a lane that does not take part gives poison.
//  * An asynchronous copy that nobody waits for, or into memory that others still read: it happens at once or at the wait, as
//    the seed has it.
//
// What it does not: the order is changed only where threads wait, so an unguarded read-modify-write
// (sum += x by many threads with no atomic) goes unseen; compute-sanitizer's racecheck on a GPU
// sees it. Memory has one order for all threads, so a missing fence goes unseen. Unless the launch is
// cooperative, waiting for another block works only if that block has started earlier. A thread that
// spins on a flag must call __nanosleep() or __threadfence() in the loop, or nothing else gets to run;
// a flag that nobody sets is an error after a second or two. __launch_bounds__ is not checked.
//
// Where things are: vector_types.h, runtime_api.h (host side), execution.h and device_functions.h
// (device side); in the .cpp files fiber (stacks and switches), execution (scheduler and block
// barriers), warp (collectives), launch (grids, memory, errors) and symbol_name (a kernel's name
// from its address). Matrix instructions and asynchronous copies are in common/ptx.cuh. Not here, because no kernel uses it
// yet: cooperative groups, TMA, wgmma, textures, clusters.
#pragma once

#include "emulation/device_functions.h"
#include "emulation/execution.h"
#include "emulation/runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "declare shared memory with cvk::static_shared or cvk::dynamic_shared");
