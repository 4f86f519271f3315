// AMX instructions on a machine without AMX: each is an invalid opcode there, and the signal's handler does what it encodes on the
// emulated unit (gemm/tiles_cpu.h). So the tests execute the very instructions that the library has.
//
// Encodings: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gemm/tiles_cpu.h"

namespace cvk {

class AmxTrap {
 public:
  AmxTrap() {
    struct sigaction action{};
    action.sa_sigaction = &AmxTrap::handle;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before_);
  }
  ~AmxTrap() { sigaction(SIGILL, &before_, nullptr); }
  static int64_t count() { return count_; }

  // Whether the CPU has tiles of its own, and the system lets this process use them.
  static bool cpu_has_tiles() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 1) != 0;
  }
  static bool tiles_are_granted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

 private:
  using Unit = EmulatedTiles<Isa::kBaseline>;

  // One instruction; its length, or 0 if it is none of AMX.
  static int execute(const uint8_t* code, const greg_t* registers) {
    static constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                     REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    enum { kNone, k66, kF3, kF2 };                                                    // the prefix that VEX stands for
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return 0;  // three bytes of VEX, 0F38.W0.128
    const int high_index = (code[1] & 0x40) != 0 ? 0 : 8, high_base = (code[1] & 0x20) != 0 ? 0 : 8;
    const int prefix = code[2] & 3, third = ~code[2] >> 3 & 15, opcode = code[3];
    const int mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
    if (mod == 3) {
      if (opcode == 0x5c && prefix == kF3) {
        Unit::multiply(reg, rm, third);
      } else if (opcode == 0x49 && prefix == kF2 && rm == 0) {
        Unit::zero(reg);
      } else if (opcode == 0x49 && prefix == kNone && code[4] == 0xc0) {
        Unit::release();
      } else {
        return 0;
      }
      return 5;
    }
    int length = 5;
    int64_t base = 0, index = 0;
    const bool sib = rm == 4;
    const int low_base = sib ? code[length] & 7 : rm;
    if (sib) {
      const int number = (code[length] >> 3 & 7) + high_index;
      if (number != 4) index = registers[kOrder[number]] << (code[length] >> 6);
      ++length;
    }
    const bool wide = mod == 2 || (mod == 0 && low_base == 5), relative = mod == 0 && low_base == 5;
    if (!relative) base = registers[kOrder[low_base + high_base]];
    int32_t offset = 0;
    if (wide) memcpy(&offset, code + length, 4);
    if (mod == 1) offset = static_cast<int8_t>(code[length]);
    length += wide ? 4 : mod == 1 ? 1 : 0;
    if (relative && !sib) base = reinterpret_cast<int64_t>(code) + length;
    char* address = reinterpret_cast<char*>(base + offset);
    if (opcode == 0x49 && prefix == kNone && reg == 0) {
      TileConfig config;
      memcpy(&config, address + index, sizeof(config));
      Unit::configure(config);
    } else if (opcode == 0x4b && prefix == kF2 && sib) {
      Unit::load(reg, address, index);
    } else if (opcode == 0x4b && prefix == kF3 && sib) {
      Unit::store(reg, address, index);
    } else {
      return 0;
    }
    return length;
  }

  static void handle(int, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const auto* code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
    const int length = execute(code, registers);
    if (length == 0) {
      std::fprintf(stderr, "an invalid instruction that is none of AMX: %02x %02x %02x %02x %02x\n", code[0], code[1],
                   code[2], code[3], code[4]);
      std::abort();
    }
    registers[REG_RIP] += length;
    ++count_;
  }

  static inline int64_t count_ = 0;
  struct sigaction before_{};
};

}  // namespace cvk
#endif
