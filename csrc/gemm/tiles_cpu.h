// Units that multiply matrices of bfloat16 pairs in tile registers: AMX (amx-tile and amx-bf16), and the same in C++.
//
// A unit has eight registers of up to 16 rows of 64 bytes, whose shapes a thread configures before it uses any and releases when
// it is done. Members take the numbers of registers as template arguments. multiply<c, a, b> adds to c, 16 x 16 float32, the
// product of a, rows of 16 words, and b, whose row k holds word k of each column; a word is two neighbours of the depth. For each
// element the unit adds up the products of the first halves and those of the second, then both to c, in float32, rounds to nearest
// even, and takes numbers below 2^-126 for zero, in what it reads and in what it writes.
//
// The C++ unit is for tests on machines without AMX (CVKERNELS_CPU_TILES=emulated): it does what the manual says of each instruction,
// and ends the process where the instruction would fault. AMX itself has not run these kernels yet.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, the instructions by their names.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/simd.h"

namespace cvk {

// Rows of a tile register, and its words in a row.
constexpr int kTileSide = 16;
constexpr int kTileRegisters = 8;

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];  // of the eight registers; the rest is reserved
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as the instruction wants it");

// All registers whole.
CVK_HD TileConfig whole_tiles() {
  TileConfig config{};
  config.palette = 1;
  for (int i = 0; i < kTileRegisters; ++i) {
    config.row_bytes[i] = kTileSide * 4;
    config.rows[i] = kTileSide;
  }
  return config;
}

// AMX. Only where cpu_bf16_tiles() says so.
template <Isa isa>
struct AmxTiles {
#if defined(__x86_64__)
  // The intrinsics would need a target that every caller up to the kernel's entry has too. No compiler keeps values in tile
  // registers on its own, and volatile keeps the order among these.
  static CVK_HD void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  static CVK_HD void release() { asm volatile("tilerelease"); }
  template <int tile>
  static CVK_HD void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  template <int tile>
  static CVK_HD void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static CVK_HD void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
  }
  template <int c, int a, int b>
  static CVK_HD void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
#endif
};

// The same in C++, registers of each thread its own.
template <Isa isa>
class EmulatedTiles {
 public:
  static CVK_HD void configure(const TileConfig& config) {
    Unit& u = unit();
    if (config.palette > 1 || config.start_row != 0) fault("ldtilecfg: palette or start_row");
    for (const uint8_t byte : config.reserved) check(byte == 0, "ldtilecfg: reserved bytes");
    for (int i = 0; i < kTileSide; ++i) {
      const bool there = i < kTileRegisters;
      check(there || (config.row_bytes[i] == 0 && config.rows[i] == 0), "ldtilecfg: reserved bytes");
      check(config.row_bytes[i] <= kTileSide * 4 && config.rows[i] <= kTileSide, "ldtilecfg: too large a tile");
      check((config.row_bytes[i] == 0) == (config.rows[i] == 0), "ldtilecfg: a tile with rows or columns only");
      if (there) {
        u.row_bytes[i] = config.row_bytes[i];
        u.rows[i] = config.rows[i];
      }
    }
    u.configured = config.palette == 1;
    memset(u.data, 0, sizeof(u.data));
  }
  static CVK_HD void release() { unit() = Unit{}; }

  template <int tile>
  static CVK_HD void zero() {
    zero(tile);
  }
  template <int tile>
  static CVK_HD void load(const void* from, int64_t stride) {
    load(tile, from, stride);
  }
  template <int tile>
  static CVK_HD void store(void* to, int64_t stride) {
    store(tile, to, stride);
  }
  template <int c, int a, int b>
  static CVK_HD void multiply() {
    multiply(c, a, b);
  }

  // By numbers that are known when it runs.
  static CVK_HD void zero(int tile) {
    used(tile, "tilezero");
    memset(unit().data[tile], 0, sizeof(unit().data[tile]));
  }
  static CVK_HD void load(int tile, const void* from, int64_t stride) {
    used(tile, "tileloadd");
    Unit& u = unit();
    memset(u.data[tile], 0, sizeof(u.data[tile]));
    for (int i = 0; i < u.rows[tile]; ++i) {
      memcpy(u.data[tile][i], static_cast<const char*>(from) + i * stride, u.row_bytes[tile]);
    }
  }
  static CVK_HD void store(int tile, void* to, int64_t stride) {
    used(tile, "tilestored");
    const Unit& u = unit();
    for (int i = 0; i < u.rows[tile]; ++i) {
      memcpy(static_cast<char*>(to) + i * stride, u.data[tile][i], u.row_bytes[tile]);
    }
  }
  __attribute__((noinline)) static void multiply(int c, int a, int b) {
    check(c != a && c != b && a != b, "tdpbf16ps: a tile twice");
    for (const int tile : {c, a, b}) used(tile, "tdpbf16ps");
    Unit& u = unit();
    const int words = u.row_bytes[a] / 4, columns = u.row_bytes[c] / 4;
    check(u.rows[c] == u.rows[a] && u.row_bytes[c] == u.row_bytes[b] && words == u.rows[b] && u.row_bytes[a] % 4 == 0 &&
              u.row_bytes[c] % 4 == 0,
          "tdpbf16ps: shapes of the tiles");
    for (int m = 0; m < u.rows[c]; ++m) {
      float first[kTileSide] = {}, second[kTileSide] = {};
      for (int k = 0; k < words; ++k) {
        const uint32_t word = u.data[a][m][k], *row = u.data[b][k];
        const float low = flushed(word << 16), high = flushed(word & 0xffff0000u);
        // A product of two bfloat16 is exact in float32 but at the ends of its range: this rounds once, as a fused operation does.
        for (int n = 0; n < columns; ++n) {
          first[n] = flushed(first[n] + low * flushed(row[n] << 16));
          second[n] = flushed(second[n] + high * flushed(row[n] & 0xffff0000u));
        }
      }
      for (int n = 0; n < columns; ++n) {
        const float sum = flushed(u.data[c][m][n]) + flushed(first[n] + second[n]);
        u.data[c][m][n] = bit_cast<uint32_t>(flushed(sum));
      }
    }
  }

 private:
  struct Unit {
    bool configured;
    uint16_t row_bytes[kTileRegisters];
    uint8_t rows[kTileRegisters];
    uint32_t data[kTileRegisters][kTileSide][kTileSide];
  };
  static CVK_HD Unit& unit() {
    static thread_local Unit of_this_thread;
    return of_this_thread;
  }

  [[noreturn]] static CVK_HD void fault(const char* what) {
    std::fprintf(stderr, "cvkernels: fault of the emulated tile unit: %s\n", what);
    std::abort();
  }
  static CVK_HD void check(bool holds, const char* what) {
    if (!holds) fault(what);
  }
  static CVK_HD void used(int tile, const char* by) {
    check(unit().configured, "a tile is used and none is configured on this thread");
    check(unit().rows[tile] > 0, by);
  }

  static CVK_HD float flushed(uint32_t bits) {
    return bit_cast<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
  }
  static CVK_HD float flushed(float value) { return flushed(bit_cast<uint32_t>(value)); }
};

// A word of two neighbours of the depth that U multiplies. Memory is read and written as word_t.
template <class U>
struct tile_word_t : word_t {
  using Unit = U;
};

template <class P>
struct TileUnitOf {
  static constexpr bool kThere = false;
};
template <class U>
struct TileUnitOf<tile_word_t<U>> {
  static constexpr bool kThere = true;
};
template <class P>
inline constexpr bool kGemmTiles = TileUnitOf<P>::kThere;

// What a thread holds while it multiplies operands P: where these are tiles, their configuration.
template <class P>
class GemmSession {
 public:
  CVK_HD GemmSession() {
    if constexpr (kGemmTiles<P>) P::Unit::configure(whole_tiles());
  }
  CVK_HD ~GemmSession() {
    if constexpr (kGemmTiles<P>) P::Unit::release();
  }
  GemmSession(const GemmSession&) = delete;
  GemmSession& operator=(const GemmSession&) = delete;
};

}  // namespace cvk
