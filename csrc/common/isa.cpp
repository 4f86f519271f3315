#include "common/isa.h"

#include <cstdlib>
#include <cstring>

namespace cvk {
namespace {

Isa detect() {
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
  if (const char* wish = std::getenv("CVKERNELS_CPU_ISA")) {
    Isa cap = best;
    if (std::strcmp(wish, "v2") == 0) cap = Isa::kBaseline;
    if (std::strcmp(wish, "v3") == 0) cap = Isa::kV3;
    if (static_cast<int>(cap) < static_cast<int>(best)) best = cap;
  }
  return best;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = detect();
  return isa;
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
