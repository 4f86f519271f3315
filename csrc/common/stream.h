// Stores past the caches on the CPU, for results that the caches could not hold anyway: the line is not read before it is written.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#include "common/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cvk {

// memcpy whose whole cache lines bypass the caches. After the last one of a work item comes stream_fence().
template <Isa isa>
CVK_HD void stream_copy(void* to, const void* from, int64_t bytes) {
#if defined(__x86_64__)
  constexpr int kLine = 64;
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kLine);
  const int64_t front = misaligned == 0 ? 0 : (kLine - misaligned < bytes ? kLine - misaligned : bytes);
  memcpy(out, in, static_cast<size_t>(front));
  int64_t i = front;
  for (; i + kLine <= bytes; i += kLine) {
#if defined(__AVX512F__)
    if constexpr (isa == Isa::kV4) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out + i), _mm512_loadu_si512(in + i));
      continue;
    }
#endif
    for (int part = 0; part < kLine; part += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i + part)));
    }
  }
  memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
#else
  memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// Orders the stores of stream_copy before whatever tells other threads that they are done.
CVK_HD void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace cvk
