// How the depthwise kernels on CUDA (depthwise_cuda.cuh) are dealt out: axes, tiles, and which kernel a problem takes.
#pragma once

#include <cstdint>

#include "common/numeric.h"
#include "common/vec.cuh"
#include "gemm/depthwise_tuning.h"
#include "gemm/gemm_tuning.h"
#include "gemm/tapped.h"

namespace cvk {

// Neighbours that a thread has: fewer where more is loaded for each.
constexpr int depthwise_run(bool channels_last, int taps, int step) {
  return (channels_last ? kDepthwiseRun : kDepthwiseRows) / step / (taps > 3 ? 2 : 1);
}

// One axis: tap k of target pixel i reads source pixel (i * step + first + k * offset) / divisor, where that divides.
struct DepthwiseAxis {
  int target, extent, taps;  // pixels of the target, of the source
  int step, first, offset, divisor;

  // Source pixel, or -1.
  template <bool kDivides>
  CVK_DEVICE int source(int at) const {
    if (at < 0) return -1;
    if (kDivides && divisor > 1) {
      const unsigned place = static_cast<unsigned>(at), quotient = place / static_cast<unsigned>(divisor);
      if (quotient * static_cast<unsigned>(divisor) != place) return -1;
      at = static_cast<int>(quotient);
    }
    return at < extent ? at : -1;
  }
  // Bound of the magnitude of i * step + first + k * offset, with a run of pixels past the end.
  int64_t reach() const {
    return (int64_t{target} + kDepthwiseRows) * step + magnitude(int64_t{first}) + taps * magnitude(int64_t{offset});
  }
  // Whether `count` taps of neighbouring pixels may share what they load.
  bool shares(int count) const {
    return divisor == 1 && magnitude(offset) == 1 && taps >= count && (step == 1 || (step == 2 && offset == 1));
  }
};

// How vectors of channels and runs of pixels are dealt to blocks and threads.
struct DepthwiseTiling {
  int tile, tiles;       // vectors of a block, blocks that have all of them
  unsigned items, runs;  // runs of pixels of all rows of all images, of one row
  int group, groups,
      chunks;     // weight gradient: pieces of a kernel row of a block, blocks that have all of them, all pieces
  unsigned each;  // items of a block
};

// How a pass is launched. What it holds depends on the problem (and the alignment of its maps) alone.
struct DepthwisePlan {
  bool plain = false;
  DepthwiseAxis y{}, x{};
  int taps = 1, step = 1;  // kTaps, kStep
  DepthwiseTiling tiling{};
  int64_t blocks = 0, parts = 1, shared_bytes = 0;
};

inline DepthwiseAxis depthwise_axis(bool transposed, int in, int out, int taps, int stride, int pad, int dilation) {
  if (transposed) return {in, out, taps, 1, pad, -dilation, stride};
  return {out, in, taps, stride, -pad, dilation, 1};
}

// Vectors need aligned maps. Over planes a forward kernel has all of its taps at once, or one at a time.
inline DepthwisePlan depthwise_plan(const ConvShape& s, bool transposed, bool forward, int vector, bool aligned) {
  DepthwisePlan plan;
  plan.y = depthwise_axis(transposed, s.height, s.out_height, s.kernel_height, s.stride_y, s.pad_top, s.dilation_y);
  plan.x = depthwise_axis(transposed, s.width, s.out_width, s.kernel_width, s.stride_x, s.pad_left, s.dilation_x);
  const DepthwiseAxis &along = s.channels_last ? plan.x : plan.y, &across = s.channels_last ? plan.y : plan.x;
  if (!s.channels_last && forward) {
    const bool square = along.taps == across.taps;
    plan.taps = square && (along.taps == 3 || (along.taps == 5 && along.step == 1)) ? along.taps : 1;
  } else {
    plan.taps = 3;
  }
  if (!along.shares(plan.taps)) plan.taps = 1;
  if (plan.taps > 1) plan.step = along.step;
  const int64_t vectors = s.channels_last ? s.channels / vector : s.channels;
  const int64_t runs = ceil_div(along.target, depthwise_run(s.channels_last, plan.taps, plan.step));
  const int64_t items = s.batch * across.target * runs * (s.channels_last ? 1 : vectors);
  constexpr int64_t kNarrow = 0x7fffffff;
  plan.plain = max_of(items, max_of(s.pixels(), s.out_pixels())) > kNarrow || vectors > kNarrow / vector ||
               max_of(plan.y.reach(), plan.x.reach()) > kNarrow ||
               (s.channels_last && (!aligned || s.channels % vector != 0));
  if (plan.plain) return plan;
  plan.tiling.tiles = static_cast<int>(s.channels_last ? ceil_div<int64_t>(vectors, kDepthwiseTile) : vectors);
  plan.tiling.tile = static_cast<int>(ceil_div<int64_t>(vectors, plan.tiling.tiles));
  plan.tiling.runs = static_cast<unsigned>(runs);
  plan.tiling.items = static_cast<unsigned>(items);
  return plan;
}

template <class T>
DepthwisePlan depthwise_plan(const TappedProduct<T>& p) {
  DepthwisePlan plan =
      depthwise_plan(p.shape, p.transposed, true, kWide<T>, is_wide_aligned(p.source) && is_wide_aligned(p.target));
  DepthwiseTiling& tiling = plan.tiling;
  if (!plan.plain && p.shape.channels_last) {
    plan.shared_bytes = (int64_t{p.shape.kernel_size()} + 1) * tiling.tile * kWide<T> * sizeof(Acc<T>);
    plan.plain = plan.shared_bytes > kDepthwiseSharedBytes;
  }
  if (plan.plain || !p.shape.channels_last) {
    plan.blocks = ceil_div<int64_t>(plan.plain ? p.shape.batch * p.shape.channels * p.target_plane() : tiling.items,
                                    kDepthwiseThreads);
    return plan;
  }
  const int64_t slots = kDepthwiseThreads / tiling.tile, steps = ceil_div<int64_t>(tiling.items, slots);
  const int64_t wanted = steps * tiling.tiles / kDepthwiseBlocks;
  tiling.each = static_cast<unsigned>(slots * min_of<int64_t>(max_of<int64_t>(wanted, 1), kDepthwiseSteps));
  plan.blocks = tiling.tiles * ceil_div<int64_t>(tiling.items, tiling.each);
  return plan;
}

template <class T>
DepthwisePlan depthwise_plan(const TappedWeightGradient<T>& p) {
  DepthwisePlan plan =
      depthwise_plan(p.shape, false, false, kWide<T>, is_wide_aligned(p.input) && is_wide_aligned(p.grad_output));
  plan.blocks = p.shape.weights();
  if (plan.plain) return plan;
  DepthwiseTiling& tiling = plan.tiling;
  const bool last = p.shape.channels_last;
  tiling.chunks = ceil_div(plan.x.taps, plan.taps) * (last ? plan.y.taps : ceil_div(plan.y.taps, plan.taps));
  tiling.groups = last ? ceil_div(tiling.chunks, kDepthwiseGroup) : tiling.chunks;
  tiling.group = ceil_div(tiling.chunks, tiling.groups);
  const int64_t items = tiling.items / (last ? 1 : static_cast<unsigned>(tiling.tiles));
  tiling.items = static_cast<unsigned>(items);
  const int64_t blocks = int64_t{tiling.tiles} * tiling.groups;
  const int64_t slots = kDepthwiseThreads / (tiling.tile * tiling.group);
  const int64_t most = max_of<int64_t>(items / (slots * kDepthwiseLeastSteps), 1);
  const int64_t parts = min_of(max_of<int64_t>(kDepthwiseBlocks / blocks, 1), most);
  tiling.each = static_cast<unsigned>(max_of<int64_t>(ceil_div(items, parts), 1));
  plan.parts = max_of<int64_t>(ceil_div<int64_t>(items, tiling.each), 1);
  plan.blocks = blocks * plan.parts;
  return plan;
}

}  // namespace cvk
