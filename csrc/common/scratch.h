// Host memory of a kernel call: aligned for vectors, uninitialised, freed at the end of the scope.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "common/host_device.h"

namespace cvk {

class Scratch {
 public:
  CVK_HD explicit Scratch(int64_t bytes)
      : data_(bytes > 0 ? ::operator new(static_cast<size_t>(bytes), std::align_val_t(64)) : nullptr) {}
  CVK_HD ~Scratch() {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t(64));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class U>
  CVK_HD U* as() const {
    return static_cast<U*>(data_);
  }

 private:
  void* data_;
};

}  // namespace cvk
