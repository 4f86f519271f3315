// Instructions that CUDA C++ has no name for: asynchronous copies to shared memory, matrix fragments and their products. The only
// inline PTX of the project; under emulation the same functions follow the fragment layouts of the PTX manual, element by
// element (sections "Matrix multiply-accumulate operation using mma instruction" and "ldmatrix").
//
// Lane l of a warp has group g = l / 4 and place t = l % 4. All 32 lanes call a function together.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.cuh"

namespace cvk {

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

#else

template <int bytes>
inline void copy_async(void* to, const void* from, bool valid, emulation::CallSite site = emulation::CallSite::here()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "what cp.async copies");
  emulation::copy_async(to, from, bytes, valid ? bytes : 0, site);
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

#endif

}  // namespace cvk
