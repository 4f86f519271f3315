// Boxes by coordinate, for SIMD.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/box.h"
#include "common/simd.h"

namespace cvk {

template <class A>
struct BoxWithArea {
  Box<A> box;
  A area;
};

// `stride` values of x1, then of y1, x2, y2, the area, and whatever columns the user adds. A column may hold integers of A's
// width (set_int).
template <class A>
struct BoxArrays {
  using Int = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  static constexpr int kColumns = 5;

  A* base;
  int64_t stride;

  static CVK_HD int64_t bytes(int64_t capacity, int columns = kColumns) {
    return columns * capacity * static_cast<int64_t>(sizeof(A));
  }
  CVK_HD BoxWithArea<A> get(int64_t i) const {
    const A* p = base + i;
    return {{p[0], p[stride], p[2 * stride], p[3 * stride]}, p[4 * stride]};
  }
  CVK_HD void set(int64_t i, const BoxWithArea<A>& b) const {
    A* p = base + i;
    p[0] = b.box.x1;
    p[stride] = b.box.y1;
    p[2 * stride] = b.box.x2;
    p[3 * stride] = b.box.y2;
    p[4 * stride] = b.area;
  }
  CVK_HD A* column(int which) const { return base + which * stride; }
  CVK_HD void set_int(int which, int64_t i, int64_t value) const {
    const Int narrow = static_cast<Int>(value);
    memcpy(column(which) + i, &narrow, sizeof(A));
  }
  CVK_HD int64_t get_int(int which, int64_t i) const {
    Int narrow;
    memcpy(&narrow, column(which) + i, sizeof(A));
    return narrow;
  }
  template <Isa isa>
  CVK_HD typename Simd<isa, A>::IntVec load_int(int which, int64_t i) const {
    typename Simd<isa, A>::IntVec v;
    memcpy(&v, column(which) + i, sizeof(v));
    return v;
  }
  template <Isa isa>
  CVK_HD Box<typename Simd<isa, A>::Vec> load(int64_t i) const {
    using S = Simd<isa, A>;
    const A* p = base + i;
    return {S::load(p), S::load(p + stride), S::load(p + 2 * stride), S::load(p + 3 * stride)};
  }
};

template <Isa isa, class A>
CVK_HD Box<typename Simd<isa, A>::Vec> broadcast_box(const Box<A>& box) {
  using S = Simd<isa, A>;
  return {S::broadcast(box.x1), S::broadcast(box.y1), S::broadcast(box.x2), S::broadcast(box.y2)};
}

}  // namespace cvk
