#include "common/isa.h"

#include <cstdlib>
#include <cstring>

namespace cvk {
namespace {

struct Found {
  Isa isa;
  bool bf16_dot;
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
  if (const char* wish = std::getenv("CVKERNELS_CPU_ISA")) {
    Isa cap = best;
    if (std::strcmp(wish, "v2") == 0) cap = Isa::kBaseline;
    if (std::strcmp(wish, "v3") == 0) cap = Isa::kV3;
    if (static_cast<int>(cap) < static_cast<int>(best)) best = cap;
    if (best != Isa::kV4 || std::strcmp(wish, "v4") == 0) bf16_dot = false;
  }
  return {best, bf16_dot};
#else
  return {Isa::kBaseline, false};
#endif
}

const Found& found() {
  static const Found once = detect();
  return once;
}

}  // namespace

Isa cpu_isa() { return found().isa; }

bool cpu_has_bf16_dot() { return found().bf16_dot; }

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
