// A kernel's name from its address. Kernels are often static or hidden, so dladdr does not know
// them: this reads the full symbol table from the file of the module instead. It is only needed
// when a launch has failed.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "emulation/machine.h"

namespace cvk::emulation {
namespace {

std::string demangle(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  std::string result = status == 0 ? text.get() : name;
  // "void cvk::nms_kernel<float>(float const*, int)" -> "cvk::nms_kernel<float>"
  int depth = 0;
  for (size_t i = result.size(); i-- > 0;) {
    if (result[i] == ')') ++depth;
    if (result[i] == '(' && --depth == 0) {
      result.erase(i);
      break;
    }
  }
  if (result.rfind("void ", 0) == 0) result.erase(0, 5);
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t at; (at = result.find(anonymous)) != std::string::npos;) {
    result.erase(at, anonymous.size());
  }
  return result;
}

// The function symbol at an address relative to the module's load address; empty where the file has
// none.
std::string symbol_in_file(const char* path, uintptr_t address) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return "";
  std::vector<char> bytes(static_cast<size_t>(file.tellg()));
  file.seekg(0);
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ElfW(Ehdr) header;
  if (bytes.size() < sizeof(header)) return "";
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return "";
  const auto section = [&](size_t index, ElfW(Shdr) & out) {
    const size_t offset = header.e_shoff + index * sizeof(out);
    if (index >= header.e_shnum || offset + sizeof(out) > bytes.size()) return false;
    std::memcpy(&out, bytes.data() + offset, sizeof(out));
    return out.sh_type == SHT_NOBITS || out.sh_offset + out.sh_size <= bytes.size();
  };
  for (size_t index = 0; index < header.e_shnum; ++index) {
    ElfW(Shdr) symbols, names;
    if (!section(index, symbols) || symbols.sh_type != SHT_SYMTAB) continue;
    if (!section(symbols.sh_link, names)) continue;
    for (size_t i = 0; i < symbols.sh_size / sizeof(ElfW(Sym)); ++i) {
      ElfW(Sym) symbol;
      std::memcpy(&symbol, bytes.data() + symbols.sh_offset + i * sizeof(symbol), sizeof(symbol));
      if ((symbol.st_info & 0xf) == STT_FUNC && symbol.st_value == address && symbol.st_name < names.sh_size) {
        return demangle(bytes.data() + names.sh_offset + symbol.st_name);
      }
    }
  }
  return "";
}

}  // namespace

std::string symbol_name(const void* function) {
  Dl_info info;
  link_map* map = nullptr;
  if (dladdr1(function, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) {
    return "a kernel at an unknown address";
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(function) - map->l_addr;
  // The main program's name may be relative to a directory that was left; /proc knows the file.
  const bool main_program = map->l_name == nullptr || *map->l_name == '\0';
  std::string name = symbol_in_file(main_program ? "/proc/self/exe" : map->l_name, address);
  if (name.empty() && info.dli_sname != nullptr && info.dli_saddr == function) {
    name = demangle(info.dli_sname);
  }
  if (name.empty()) {
    char text[32];
    std::snprintf(text, sizeof(text), "+0x%llx", static_cast<unsigned long long>(address));
    name = std::string("the kernel at ") + info.dli_fname + text;
  }
  return name;
}

}  // namespace cvk::emulation
