// Instruction-set levels of the CPU kernels, and the choice among them at run time.
//
// Every <op>_cpu.cpp is compiled once per level with -DCVK_ISA=<level>; its functions are templates on Isa, so each
// build has symbols of its own. `with_cpu_isa` calls a generic lambda with the level of this machine.
#pragma once

#include <type_traits>

namespace cvk {

enum class Isa : int {
  kBaseline = 0,  // x86-64-v2, or plain aarch64
  kV3 = 1,        // x86-64-v3: AVX2, FMA, F16C
  kV4 = 2,        // x86-64-v4: AVX-512 F, BW, CD, DQ, VL
};

// The best level that this machine runs and that the build contains. The environment variable
// CVKERNELS_CPU_ISA=v2|v3|v4 lowers it (never raises it). Decided once per process.
Isa cpu_isa();

// Whether pairs of bfloat16 are multiplied by AVX512_BF16, on top of v4: where the machine has it and it is faster than float32, which it
// is not on Intel's. No kernel is built for it: those that have a use for the instruction ask. CVKERNELS_CPU_PAIRS=0 leaves it out, =1 takes
// it where the machine has it; CVKERNELS_CPU_ISA=v4, v3 or v2 leaves it out as well.
bool cpu_bf16_pairs();

// What multiplies tiles of bfloat16 pairs (gemm/tiles_cpu.h): AMX where machine and system grant it, or the emulated unit, where it
// is built and CVKERNELS_CPU_TILES=emulated asks for it. None with CVKERNELS_CPU_TILES=0, and where the level is lowered as above.
// The first call asks the system for leave, once per process: it enlarges what a signal handler's stack must hold.
enum class Bf16Tiles { kNone, kAmx, kEmulated };
Bf16Tiles cpu_bf16_tiles();

// Whether 3 x 3 convolutions, and gradients of their weights, may take Winograd's form (gemm/winograd_cpu.h). Not if CVKERNELS_WINOGRAD=0.
bool cpu_may_winograd();

// "x86-64-v4" and the like.
const char* isa_name(Isa isa);

template <Isa isa>
using IsaTag = std::integral_constant<Isa, isa>;

template <class F>
auto with_cpu_isa(F&& f) {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case Isa::kV4:
      return f(IsaTag<Isa::kV4>{});
    case Isa::kV3:
      return f(IsaTag<Isa::kV3>{});
    default:
      break;
  }
#endif
  return f(IsaTag<Isa::kBaseline>{});
}

}  // namespace cvk
