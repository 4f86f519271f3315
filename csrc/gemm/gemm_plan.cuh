// Which shape of tiles the tensor-core engine takes for a product, and into how many parts it cuts the depth.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gemm/gemm_mma.cuh"

namespace cvk {

// What products may be formed with: float32 rounded to TF32; warpgroups.
struct GemmUnits {
  bool tf32, warpgroups;
};
// Those of T on the current device.
template <class T>
GemmUnits gemm_units(bool tf32) {
  return {tf32, sizeof(T) == 2 && has_warpgroups()};
}

// Calls f(math, shape of tiles) for each shape that a type has. Registers: a weight gradient in TF32 reads both operands element
// by element, and the largest shape would spill.
template <class T, bool kWeight, class F>
void for_each_gemm_shape(GemmUnits units, F&& f) {
  if constexpr (sizeof(T) == 8) {
    using Double = std::integral_constant<GemmMath, GemmMath::kDouble>;
    f(Double{}, GemmDoubleSmall{});
    f(Double{}, GemmDoubleNarrow{});
  } else if constexpr (sizeof(T) == 4) {
    using Tf32 = std::integral_constant<GemmMath, GemmMath::kTf32>;
    using Exact = std::integral_constant<GemmMath, GemmMath::k3xTf32>;
    if (units.tf32) {
      if constexpr (!kWeight) f(Tf32{}, GemmTf32Large{});
      f(Tf32{}, GemmTf32Medium{});
      f(Tf32{}, GemmFloatSmall{});
      f(Tf32{}, GemmFloatNarrow{});
    } else {
      f(Exact{}, GemmFloatSmall{});
      f(Exact{}, GemmFloatNarrow{});
    }
  } else {
    using Half = std::integral_constant<GemmMath, GemmMath::kHalf>;
    using Warpgroup = std::integral_constant<GemmMath, GemmMath::kWarpgroup>;
    f(Half{}, GemmHalfNarrow{});
    if (kWeight || !units.warpgroups) f(Half{}, GemmHalfSmall{});
    if (!units.warpgroups) {
      f(Half{}, GemmHalfMedium{});
      f(Half{}, GemmHalfLarge{});
    } else {
      f(Warpgroup{}, GemmGroupHuge{});
      f(Warpgroup{}, GemmGroupTall{});
      f(Warpgroup{}, GemmGroupLarge{});
      f(Warpgroup{}, GemmGroupMedium{});
      f(Warpgroup{}, GemmGroupWide{});
    }
  }
}

// How a problem is cut: which shape of tiles, and into how many parts the depth.
struct GemmPlan {
  int shape = 0;
  int splits = 1;
  double cost = 0;
};

// The time of a step of `blocks` blocks of an SM: they hide each other's latency until its units are busy.
template <class Shape>
double gemm_step_cost(int64_t blocks) {
  return max_of(Shape::kAlone, static_cast<double>(blocks) * Shape::kBusy);
}

// The cheapest plan by a rough count of time. A function of the problem and the units alone, so that sums are the same on every
// device of a kind. `most_splits` bounds the parts.
template <class T, bool kWeight>
GemmPlan plan_gemm(GemmUnits units, int64_t rows, int64_t columns, int64_t depth, int64_t groups,
                   int64_t most_splits = kGemmMmaMostSplits) {
  GemmPlan best;
  int index = 0;
  for_each_gemm_shape<T, kWeight>(units, [&](auto, auto shape) {
    using Shape = decltype(shape);
    const int64_t tiles = groups * ceil_div<int64_t>(rows, Shape::kRows) * ceil_div<int64_t>(columns, Shape::kColumns);
    const int64_t steps = max_of<int64_t>(1, ceil_div<int64_t>(depth, Shape::kDepth));
    const int64_t most = max_of<int64_t>(1, min_of(most_splits, steps / kGemmMmaLeastSteps));
    for (int64_t splits = 1; splits <= most; splits += max_of<int64_t>(1, splits / 2)) {  // every call plans: a dozen
      const int64_t blocks = ceil_div<int64_t>(tiles * splits, kGemmMmaSms);              // on the busiest SM
      const int64_t rounds = blocks / Shape::kBlocksPerSm, rest = blocks % Shape::kBlocksPerSm;
      const double step = (static_cast<double>(rounds) * gemm_step_cost<Shape>(Shape::kBlocksPerSm) +
                           (rest > 0 ? gemm_step_cost<Shape>(rest) : 0.0)) *
                          (kWeight ? Shape::kWeightCost : 1.0);
      const double ends = Shape::kBlocksPerSm == 1 ? kGemmMmaEndsAlone : kGemmMmaEnds;
      double cost = step * (static_cast<double>(ceil_div<int64_t>(steps, splits)) + ends * (splits > 1 ? 2 : 1));
      if (splits > 1) {
        cost += kGemmMmaSumLaunch + static_cast<double>(groups * rows * columns * (splits + 1)) / kGemmMmaSumsPerStep;
      }
      if (best.cost == 0 || cost < best.cost) best = {index, static_cast<int>(splits), cost};
    }
    ++index;
  });
  return best;
}

// Calls f(math, shape of tiles) for the shape of a plan.
template <class T, bool kWeight, class F>
cudaError_t with_gemm_shape(GemmUnits units, const GemmPlan& plan, F&& f) {
  int index = 0;
  cudaError_t status = cudaSuccess;
  for_each_gemm_shape<T, kWeight>(units, [&](auto math, auto shape) {
    if (index++ == plan.shape) status = f(math, shape);
  });
  return status;
}

}  // namespace cvk
