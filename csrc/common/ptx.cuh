// Instructions that CUDA C++ has no name for: asynchronous copies to shared memory, matrix fragments and their products. The only
// inline PTX of the project; under emulation the same functions follow the fragment layouts of the PTX manual, element by
// element (sections "Matrix multiply-accumulate operation using mma instruction", "ldmatrix" and "Asynchronous warpgroup level
// matrix instructions").
//
// Lane l of a warp has group g = l / 4 and place t = l % 4. All 32 lanes call a function together; those whose names begin with
// warpgroup, all four warps of a group whose first is a multiple of four, and only on sm_90a.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.cuh"

namespace cvk {

// Whether code that is compiled right here can have products of a warpgroup.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kWarpgroupsHere = false;
#else
constexpr bool kWarpgroupsHere = true;
#endif

#if defined(__CUDACC__)

namespace detail {
CVK_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
}  // namespace detail

// Copies 4, 8 or 16 bytes from global to shared memory, both aligned to that; zeros where not `valid`, and then `from` is not
// read. Perf: 16 bytes pass L1 by.
template <int bytes>
CVK_DEVICE void copy_async(void* to, const void* from, bool valid) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "what cp.async copies");
  const int source_bytes = valid ? bytes : 0;
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::shared_address(to)), "l"(from),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(detail::shared_address(to)), "l"(from),
                 "n"(bytes), "r"(source_bytes)
                 : "memory");
  }
}
// 16 bytes, of which only the first `valid` are read and the rest are zeros; L1 keeps them where `cached`.
CVK_DEVICE void copy_async_part(void* to, const void* from, int valid, bool cached) {
  asm volatile(
      "{\n.reg .pred cached;\nsetp.ne.b32 cached, %3, 0;\n@cached cp.async.ca.shared.global [%0], [%1], 16, %2;\n"
      "@!cached cp.async.cg.shared.global [%0], [%1], 16, %2;\n}\n" ::"r"(detail::shared_address(to)),
      "l"(from), "r"(valid), "r"(int{cached})
      : "memory");
}
// Ends a group of this thread's copies.
CVK_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `groups` of this thread's groups are under way. Other threads see the copies after a barrier.
template <int groups>
CVK_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// Four 8 x 8 matrices of 2-byte elements: lane l passes the address of row l % 8 of matrix l / 8 (16 bytes, aligned) and gets
// elements (g, 2t) and (g, 2t + 1) of matrix i in registers[i]; transposed, elements (2t, g) and (2t + 1, g).
CVK_DEVICE void load_matrices(const void* row, uint32_t (&registers)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(detail::shared_address(row))
               : "memory");
}
CVK_DEVICE void load_matrices_transposed(const void* row, uint32_t (&registers)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(detail::shared_address(row))
               : "memory");
}

// c[16, 8] += a[16, 16] * b[16, 8]. a: elements (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) and their right neighbours;
// b: (2t, g), (2t + 8, g) and those below; c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
CVK_DEVICE void matrix_multiply(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4], half_t) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
CVK_DEVICE void matrix_multiply(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4], bfloat16_t) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A float rounded to TF32 (10 bits of mantissa, ties away from zero).
CVK_DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
// c[16, 8] += a[16, 8] * b[8, 8] of TF32. a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g), (t + 4, g); c as above.
CVK_DEVICE void matrix_multiply_tf32(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c[8, 8] += a[8, 4] * b[4, 8]. a: (g, t); b: (t, g); c: (g, 2t), (g, 2t + 1).
CVK_DEVICE void matrix_multiply(double a, double b, double (&c)[2]) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
}

// ---- products of a warpgroup, on sm_90a

// An operand in shared memory, rows x depth of 2-byte elements, in lines of 128 bytes: with the depth inner, line r is row r with
// 64 depths; with the depth outer, line k is depth k with 64 rows, and further 64 rows are `leading_bytes` ahead. Chunk c of 16
// bytes of the line at address a is at c ^ (a / 128 % 8). Lines follow one another in memory, the first of the tile at a multiple
// of 1,024.
struct WarpgroupOperand {
  uint64_t descriptor;

  CVK_DEVICE WarpgroupOperand(const void* first, int leading_bytes)
      : descriptor((detail::shared_address(first) & 0x3ffffu) >> 4 | uint64_t(leading_bytes / 16) << 16 |
                   uint64_t{1024 / 16} << 32 | uint64_t{1} << 62) {}
  // Further on in memory.
  CVK_DEVICE WarpgroupOperand plus(int bytes) const {
    WarpgroupOperand further = *this;
    further.descriptor += static_cast<unsigned>(bytes) / 16;
    return further;
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CVK_WARPGROUP_ASM(...) asm volatile(__VA_ARGS__)
#else
#define CVK_WARPGROUP_ASM(...) __trap()
#endif

// Makes what this thread has written to shared memory visible to warpgroup products that start after a barrier.
CVK_DEVICE void warpgroup_publish() { CVK_WARPGROUP_ASM("fence.proxy.async.shared::cta;" :: : "memory"); }
// Before the first product on registers that other instructions have written.
CVK_DEVICE void warpgroup_begin() { CVK_WARPGROUP_ASM("wgmma.fence.sync.aligned;" :: : "memory"); }
// Ends a group of products.
CVK_DEVICE void warpgroup_commit() { CVK_WARPGROUP_ASM("wgmma.commit_group.sync.aligned;" :: : "memory"); }
// Until at most `groups` groups of products are under way; until then neither operands nor sums may be touched.
template <int groups>
CVK_DEVICE void warpgroup_wait() {
  CVK_WARPGROUP_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}
// Keeps the compiler from reading sums ahead of the wait before.
template <int count>
CVK_DEVICE void warpgroup_finished(float (&sums)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// c[64, columns] += a[64, 16] * b[columns, 16], or, not `adds`, = it. Warp w of the group has rows 16 w to 16 w + 15 of c, in
// every eight columns as m16n8 above: element (16 w + g + 8 (i / 2 % 2), 8 (i / 4) + 2t + i % 2) in c[i].
#define CVK_SUMS8(i)                                                                                          \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), \
      "+f"(c[i + 7])
#define CVK_SUMS32(i) CVK_SUMS8(i), CVK_SUMS8(i + 8), CVK_SUMS8(i + 16), CVK_SUMS8(i + 24)
#define CVK_REGISTERS32                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CVK_REGISTERS64                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CVK_REGISTERS128                                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define CVK_WARPGROUP_MULTIPLY(columns, type, registers, descriptors, flags, adds_, ...)                           \
  template <bool kLeftOuter, bool kRightOuter>                                                                     \
  CVK_DEVICE void warpgroup_multiply(const WarpgroupOperand& a, const WarpgroupOperand& b, bool adds,              \
                                     float (&c)[columns / 2], CVK_WARPGROUP_TYPE_##type) {                         \
    CVK_WARPGROUP_ASM("{\n.reg .pred adds;\nsetp.ne.b32 adds, " adds_                                              \
                      ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." #type "." #type " {" registers \
                      "}, " descriptors ", adds, 1, 1, " flags ";\n}\n" : __VA_ARGS__ : "l"(a.descriptor),         \
                      "l"(b.descriptor), "n"(kLeftOuter ? 1 : 0), "n"(kRightOuter ? 1 : 0), "r"(int{adds}));       \
  }
#define CVK_WARPGROUP_TYPE_f16 half_t
#define CVK_WARPGROUP_TYPE_bf16 bfloat16_t
CVK_WARPGROUP_MULTIPLY(64, f16, CVK_REGISTERS32, "%32, %33", "%34, %35", "%36", CVK_SUMS32(0))
CVK_WARPGROUP_MULTIPLY(64, bf16, CVK_REGISTERS32, "%32, %33", "%34, %35", "%36", CVK_SUMS32(0))
CVK_WARPGROUP_MULTIPLY(128, f16, CVK_REGISTERS64, "%64, %65", "%66, %67", "%68", CVK_SUMS32(0), CVK_SUMS32(32))
CVK_WARPGROUP_MULTIPLY(128, bf16, CVK_REGISTERS64, "%64, %65", "%66, %67", "%68", CVK_SUMS32(0), CVK_SUMS32(32))
CVK_WARPGROUP_MULTIPLY(256, f16, CVK_REGISTERS128, "%128, %129", "%130, %131", "%132", CVK_SUMS32(0), CVK_SUMS32(32),
                       CVK_SUMS32(64), CVK_SUMS32(96))
CVK_WARPGROUP_MULTIPLY(256, bf16, CVK_REGISTERS128, "%128, %129", "%130, %131", "%132", CVK_SUMS32(0), CVK_SUMS32(32),
                       CVK_SUMS32(64), CVK_SUMS32(96))
#undef CVK_SUMS8
#undef CVK_SUMS32
#undef CVK_REGISTERS32
#undef CVK_REGISTERS64
#undef CVK_REGISTERS128
#undef CVK_WARPGROUP_MULTIPLY
#undef CVK_WARPGROUP_TYPE_f16
#undef CVK_WARPGROUP_TYPE_bf16
#undef CVK_WARPGROUP_ASM

#else

template <int bytes>
inline void copy_async(void* to, const void* from, bool valid, emulation::CallSite site = emulation::CallSite::here()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "what cp.async copies");
  emulation::copy_async(to, from, bytes, valid ? bytes : 0, site);
}
inline void copy_async_part(void* to, const void* from, int valid, bool,
                            emulation::CallSite site = emulation::CallSite::here()) {
  emulation::copy_async(to, from, 16, static_cast<size_t>(valid), site);
}
inline void copy_async_commit() { emulation::copy_async_commit(); }
template <int groups>
inline void copy_async_wait() {
  emulation::copy_async_wait(groups);
}

namespace detail {

template <bool transposed>
inline void load_matrices(const void* row, uint32_t (&registers)[4], const emulation::CallSite& site) {
  struct Lane {
    const void* row;
    uint32_t* registers;
  } mine{row, registers};
  emulation::warp_execute(
      [](void* const* lanes) {
        const auto element = [&](int matrix, int i, int j) {
          const Lane& lane = *static_cast<const Lane*>(lanes[8 * matrix + i]);
          uint16_t bits;
          memcpy(&bits, static_cast<const char*>(lane.row) + 2 * j, sizeof(bits));
          return uint32_t{bits};
        };
        for (int l = 0; l < 32; ++l) {
          const int g = l / 4, t = l % 4;
          for (int m = 0; m < 4; ++m) {
            const uint32_t low = transposed ? element(m, 2 * t, g) : element(m, g, 2 * t);
            const uint32_t high = transposed ? element(m, 2 * t + 1, g) : element(m, g, 2 * t + 1);
            static_cast<const Lane*>(lanes[l])->registers[m] = low | high << 16;
          }
        }
      },
      &mine, site);
}

// One float of a register of two.
template <class T>
inline float half_of(uint32_t bits, int which) {
  return to_acc(bit_cast<T>(static_cast<uint16_t>(bits >> (16 * which))));
}
inline float tf32_of(uint32_t bits) { return bit_cast<float>(bits & 0xffffe000u); }

}  // namespace detail

inline void load_matrices(const void* row, uint32_t (&registers)[4],
                          emulation::CallSite site = emulation::CallSite::here()) {
  detail::load_matrices<false>(row, registers, site);
}
inline void load_matrices_transposed(const void* row, uint32_t (&registers)[4],
                                     emulation::CallSite site = emulation::CallSite::here()) {
  detail::load_matrices<true>(row, registers, site);
}

// Numerics: products are exact, a sum is formed in float64 and rounded once; a GPU rounds within it, in an order that is not
// documented.
template <class T>
inline void matrix_multiply(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4], T,
                            emulation::CallSite site = emulation::CallSite::here()) {
  struct Lane {
    const uint32_t *a, *b;
    float* c;
  } mine{a, b, c};
  emulation::warp_execute(
      [](void* const* lanes) {
        const auto lane = [&](int l) -> const Lane& { return *static_cast<const Lane*>(lanes[l]); };
        for (int l = 0; l < 32; ++l) {
          for (int i = 0; i < 4; ++i) {
            const int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
            double sum = lane(l).c[i];
            for (int k = 0; k < 16; ++k) {
              // Element (row, k): group row % 8, place k % 8 / 2.
              const uint32_t left = lane(row % 8 * 4 + k % 8 / 2).a[row / 8 + 2 * (k / 8)];
              const uint32_t right = lane(column * 4 + k % 8 / 2).b[k / 8];
              sum += static_cast<double>(detail::half_of<T>(left, k % 2)) * detail::half_of<T>(right, k % 2);
            }
            lane(l).c[i] = static_cast<float>(sum);
          }
        }
      },
      &mine, site);
}

inline uint32_t to_tf32(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinity and NaN
  return (bits + 0x1000u) & 0xffffe000u;
}
inline void matrix_multiply_tf32(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4],
                                 emulation::CallSite site = emulation::CallSite::here()) {
  struct Lane {
    const uint32_t *a, *b;
    float* c;
  } mine{a, b, c};
  emulation::warp_execute(
      [](void* const* lanes) {
        const auto lane = [&](int l) -> const Lane& { return *static_cast<const Lane*>(lanes[l]); };
        for (int l = 0; l < 32; ++l) {
          for (int i = 0; i < 4; ++i) {
            const int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
            double sum = lane(l).c[i];
            for (int k = 0; k < 8; ++k) {
              const uint32_t left = lane(row % 8 * 4 + k % 4).a[row / 8 + 2 * (k / 4)];
              const uint32_t right = lane(column * 4 + k % 4).b[k / 4];
              sum += static_cast<double>(detail::tf32_of(left)) * detail::tf32_of(right);
            }
            lane(l).c[i] = static_cast<float>(sum);
          }
        }
      },
      &mine, site);
}

inline void matrix_multiply(double a, double b, double (&c)[2],
                            emulation::CallSite site = emulation::CallSite::here()) {
  struct Lane {
    double a, b;
    double* c;
  } mine{a, b, c};
  emulation::warp_execute(
      [](void* const* lanes) {
        const auto lane = [&](int l) -> const Lane& { return *static_cast<const Lane*>(lanes[l]); };
        for (int l = 0; l < 32; ++l) {
          for (int i = 0; i < 2; ++i) {
            const int row = l / 4, column = 2 * (l % 4) + i;
            double sum = lane(l).c[i];
            for (int k = 0; k < 4; ++k) sum = fma(lane(4 * row + k).a, lane(4 * column + k).b, sum);
            lane(l).c[i] = sum;
          }
        }
      },
      &mine, site);
}

// ---- products of a warpgroup

struct WarpgroupOperand {
  const char* first;
  int leading_bytes;

  WarpgroupOperand(const void* data, int leading) : first(static_cast<const char*>(data)), leading_bytes(leading) {}
  WarpgroupOperand plus(int bytes) const { return {first + bytes, leading_bytes}; }

  template <bool kOuter, class T>
  float element(int row, int k) const {
    const char* plain = first + (kOuter ? row / 64 * leading_bytes + k * 128 + row % 64 * 2 : row * 128 + k * 2);
    const auto address = reinterpret_cast<uintptr_t>(plain);
    T value;
    memcpy(&value, reinterpret_cast<const char*>(address ^ (address / 128 % 8 * 16)), sizeof(value));
    return to_acc(value);
  }
};

inline void warpgroup_publish() {}
inline void warpgroup_begin() {}
inline void warpgroup_commit() { emulation::product_commit(); }
template <int groups>
inline void warpgroup_wait() {
  emulation::product_wait(groups);
}
template <int count>
inline void warpgroup_finished(float (&)[count]) {}

template <bool kLeftOuter, bool kRightOuter, int count, class T>
inline void warpgroup_multiply(const WarpgroupOperand& a, const WarpgroupOperand& b, bool adds, float (&c)[count], T,
                               emulation::CallSite site = emulation::CallSite::here()) {
  emulation::warp_execute([](void* const*) {}, nullptr, site);  // all lanes are here
  const int thread = static_cast<int>(emulation::linear_thread()), lane = thread % 32;
  const int first_row = thread / 32 % 4 * 16 + lane / 4, first_column = 2 * (lane % 4);
  emulation::product([=, sums = &c[0]] {
    float left[2][16];
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 16; ++k) left[i][k] = a.element<kLeftOuter, T>(first_row + 8 * i, k);
    }
    for (int i = 0; i < count; ++i) {
      double sum = adds ? sums[i] : 0.0f;
      for (int k = 0; k < 16; ++k) {
        sum +=
            static_cast<double>(left[i / 2 % 2][k]) * b.element<kRightOuter, T>(8 * (i / 4) + first_column + i % 2, k);
      }
      sums[i] = static_cast<float>(sum);
    }
  });
}

#endif

}  // namespace cvk
