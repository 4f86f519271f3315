#include "common/isa.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cvk {
namespace {

struct Found {
  Isa isa;
  bool bf16_dot;    // AVX512_BF16
  bool bf16_pairs;  // and products go through it
  bool beyond;      // instructions on top of v4 may be used
};

Found detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  Isa best = Isa::kBaseline;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt")) {
    best = Isa::kV3;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = Isa::kV4;
    }
  }
  bool bf16_dot = best == Isa::kV4 && __builtin_cpu_supports("avx512bf16");
  bool beyond = best == Isa::kV4;
  if (const char* wish = std::getenv("CVKERNELS_CPU_ISA")) {
    Isa cap = best;
    if (std::strcmp(wish, "v2") == 0) cap = Isa::kBaseline;
    if (std::strcmp(wish, "v3") == 0) cap = Isa::kV3;
    if (static_cast<int>(cap) < static_cast<int>(best)) best = cap;
    if (best != Isa::kV4 || std::strcmp(wish, "v4") == 0) beyond = false;
  }
  bf16_dot = bf16_dot && beyond;
  // Perf: a Xeon of the Emerald Rapids generation begins such an instruction in every second cycle and four float32 ones in that time, so
  // numbers are multiplied twice as fast as pairs. 256 -> 256 3 x 3 over 50 x 84 pixels: 18.0 -> 6.4 ms. An EPYC 9005 gains by pairs.
  bool bf16_pairs = bf16_dot && !__builtin_cpu_is("intel");
  if (const char* wish = std::getenv("CVKERNELS_CPU_PAIRS")) {
    if (std::strcmp(wish, "0") == 0) bf16_pairs = false;
    if (std::strcmp(wish, "1") == 0) bf16_pairs = bf16_dot;
  }
  return {best, bf16_dot, bf16_pairs, beyond};
#else
  return {Isa::kBaseline, false, false, false};
#endif
}

const Found& found() {
  static const Found once = detect();
  return once;
}

#if defined(__x86_64__) && defined(__linux__)
__attribute__((target("xsave"))) uint64_t enabled_states() { return _xgetbv(0); }

// Whether the CPU has amx-tile and amx-bf16, and the system keeps tile registers and grants them to this process.
bool amx_granted() {
  constexpr unsigned kSystemSaves = 1u << 27, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // CPUID 1: ECX; 7: EDX
  constexpr uint64_t kTileStates = uint64_t{3} << 17;                                    // XCR0: configuration and data
  constexpr int kRequestPermission = 0x1023, kTileData = 18;                             // arch_prctl
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kSystemSaves) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  return (enabled_states() & kTileStates) == kTileStates && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool amx_granted() { return false; }
#endif

Bf16Tiles choose_tiles() {
  if (!found().beyond) return Bf16Tiles::kNone;
  if (const char* wish = std::getenv("CVKERNELS_CPU_TILES")) {
    if (std::strcmp(wish, "0") == 0) return Bf16Tiles::kNone;
#if defined(CVK_EMULATED_TILES)
    if (std::strcmp(wish, "emulated") == 0) return Bf16Tiles::kEmulated;
#endif
  }
  return found().bf16_dot && amx_granted() ? Bf16Tiles::kAmx : Bf16Tiles::kNone;
}

}  // namespace

Isa cpu_isa() { return found().isa; }

bool cpu_bf16_pairs() { return found().bf16_pairs; }

Bf16Tiles cpu_bf16_tiles() {
  static const Bf16Tiles once = choose_tiles();
  return once;
}

bool cpu_may_winograd() {
  static const bool may = [] {
    const char* wish = std::getenv("CVKERNELS_WINOGRAD");
    return wish == nullptr || std::strcmp(wish, "0") != 0;
  }();
  return may;
}

const char* isa_name(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kV4:
      return "x86-64-v4";
    case Isa::kV3:
      return "x86-64-v3";
    default:
      return "x86-64-v2";
  }
#elif defined(__aarch64__)
  (void)isa;
  return "aarch64";
#else
  (void)isa;
  return "generic";
#endif
}

}  // namespace cvk
