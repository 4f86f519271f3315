// A parallel loop that the caller lends to a CPU kernel of several phases. Kernels start no threads of their own: the
// torch binding lends torch's pool, the NumPy binding and the C++ tests lend a plain loop.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/host_device.h"

namespace cvk {

struct Parallel {
  using Body = void (*)(void* argument, int64_t first, int64_t last);

  // Calls body(argument, first, last) on disjoint slices that cover [0, items), of at least `grain` items each.
  void (*start)(void* context, int64_t items, int64_t grain, Body body, void* argument) = nullptr;
  void* context = nullptr;
  int threads = 1;  // how many the loop may use

  template <class F>
  CVK_HD void operator()(int64_t items, int64_t grain, F&& f) const {
    if (items <= 0) return;
    if (start == nullptr || threads <= 1 || items <= grain) {
      f(int64_t{0}, items);
      return;
    }
    using Function = std::remove_reference_t<F>;
    start(
        context, items, grain,
        [](void* argument, int64_t first, int64_t last) { (*static_cast<Function*>(argument))(first, last); }, &f);
  }
};

}  // namespace cvk
