// Host memory of a kernel call: aligned for vectors, uninitialised, freed at the end of the scope.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "common/host_device.h"

namespace cvk {

class Scratch {
 public:
  CVK_HD explicit Scratch(int64_t bytes = 0) { reset(bytes); }
  CVK_HD ~Scratch() { reset(0); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Frees what it holds and allocates anew.
  CVK_HD void reset(int64_t bytes) {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    if (bytes > 0) data_ = ::operator new(static_cast<size_t>(bytes), std::align_val_t(64));
  }

  template <class U>
  CVK_HD U* as() const {
    return static_cast<U*>(data_);
  }

 private:
  void* data_ = nullptr;
};

}  // namespace cvk
