// The passes of position-sensitive pooling on the CPU. A bin reads one plane for each output channel, always the same pixels, so
// the weights of a bin are worked out once and its planes read side by side. SIMD has nothing to run along.
//
// Bins is a class of static functions, all of them CVK_HD, on the record of a box (which begins with a RecordHeader):
//
//   visit(record, shape, i, j, f)     f(y, x, weight) for the pixels of bin (i, j), in row order
//   divisor(record, shape, i, j)      what the weighted sum is divided by; called only where kDivides
#pragma once

#include <cstdint>

#include "common/position_sensitive.h"
#include "common/roi_passes.h"
#include "common/roi_tuning.h"
#include "common/scratch.h"
#include "common/simd.h"

namespace cvk {

// Planes of one image and one bin, or of neighbouring channels.
template <class E>
struct PsPlanes {
  E* data;
  int64_t plane_stride;  // from the plane of one output channel to the next
  int64_t pixel_stride, row_stride;
};

template <class Bins, class A>
CVK_HD A ps_divisor(char* record, const RoiShape& shape, int i, int j) {
  if constexpr (Bins::kDivides) return Bins::template divisor<A>(record, shape, i, j);
  return A(1);
}

// ---- forward

// Output channels of one bin, kGroup at a time while there are so many `left`; planes and out advance.
template <int kGroup, class Bins, class T, class A>
CVK_HD void ps_pool(const RoiShape& shape, char* record, int i, int j, A divisor, PsPlanes<const T>& planes, T*& out,
                    int64_t out_stride, int64_t& left) {
  for (; left >= kGroup; left -= kGroup, planes.data += kGroup * planes.plane_stride) {
    A sum[kGroup] = {};
    Bins::template visit<A>(record, shape, i, j, [&](int y, int x, A weight) {
      const T* pixel = planes.data + y * planes.row_stride + x * planes.pixel_stride;
      for (int g = 0; g < kGroup; ++g) {
        sum[g] = mul_add(weight, to_acc(pixel[g * planes.plane_stride]), sum[g]);
      }
    });
    for (int g = 0; g < kGroup; ++g, out += out_stride) {
      *out = from_acc<T>(Bins::kDivides ? sum[g] / divisor : sum[g]);
    }
  }
}

// Bin (i, j) of box k for the output channels [first_out, first_out + count).
template <class Bins, class T>
CVK_HD void ps_pool_bin(const PositionSensitiveParams<T>& params, int64_t k, int i, int j, int64_t first_out,
                        int64_t count) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const int64_t bins = shape.bins(), bin = int64_t{i} * shape.pooled_width + j, channel = first_out * bins + bin;
  const T* const image = params.input + params.plan.image_of[k] * shape.channels * shape.pixels();
  PsPlanes<const T> planes{image + channel * shape.pixels(), bins * shape.pixels(), 1, shape.width};
  if (shape.channels_last) planes = {image + channel, bins, shape.channels, shape.width * shape.channels};
  T* out = params.output + ps_offset(shape, k, first_out, bin);
  const int64_t out_stride = shape.channels_last ? 1 : bins;
  char* const record = params.plan.record(k);
  const A divisor = ps_divisor<Bins, A>(record, shape, i, j);
  ps_pool<8, Bins>(shape, record, i, j, divisor, planes, out, out_stride, count);
  ps_pool<4, Bins>(shape, record, i, j, divisor, planes, out, out_stride, count);
  ps_pool<2, Bins>(shape, record, i, j, divisor, planes, out, out_stride, count);
  ps_pool<1, Bins>(shape, record, i, j, divisor, planes, out, out_stride, count);
}

// Items: of planes an (image, bin, chunk of output channels), whose planes stay in cache while the boxes of the image pass by;
// channels-last a box.
CVK_HD int64_t ps_forward_items(const RoiShape& shape) {
  if (shape.channels_last) return shape.boxes;
  return shape.batch * shape.bins() * ceil_div<int64_t>(ps_out_channels(shape), kPsForwardPlanes);
}

template <Isa isa, class Bins, class T>
CVK_HD void ps_forward(const PositionSensitiveParams<T>& params, int64_t first, int64_t last) {
  const RoiShape& shape = params.shape;
  const RoiPlan& plan = params.plan;
  const int64_t out_channels = ps_out_channels(shape);
  for (int64_t item = first; item < last; ++item) {
    if (shape.channels_last) {
      for (int i = 0; i < shape.pooled_height; ++i) {
        for (int j = 0; j < shape.pooled_width; ++j) ps_pool_bin<Bins>(params, item, i, j, 0, out_channels);
      }
      continue;
    }
    const int64_t n = item % shape.batch, bin = item / shape.batch % shape.bins();
    const int i = static_cast<int>(bin / shape.pooled_width), j = static_cast<int>(bin % shape.pooled_width);
    const int64_t first_out = item / (shape.batch * shape.bins()) * kPsForwardPlanes;
    const int64_t count = min_of<int64_t>(kPsForwardPlanes, out_channels - first_out);
    for (int64_t b = plan.image_begin[n]; b < plan.image_begin[n + 1]; ++b) {
      ps_pool_bin<Bins>(params, plan.order[b], i, j, first_out, count);
    }
  }
}

// ---- backward: an item owns one image, a band of rows and some planes: those of one bin where the gradient lies in planes, those
// of neighbouring channels where it lies channels-last.

struct PsBackwardCut {
  int planes;  // of an item at most
  int64_t parts, bands, items;
  int rows;  // of a band
};

template <class A>
CVK_HD PsBackwardCut ps_backward_cut(const RoiShape& shape) {
  PsBackwardCut cut;
  cut.planes = shape.channels_last ? kPsChannelTile : kPsBackwardPlanes;
  cut.parts = shape.channels_last ? ceil_div<int64_t>(shape.channels, cut.planes)
                                  : shape.bins() * ceil_div<int64_t>(ps_out_channels(shape), cut.planes);
  const int64_t row_bytes = static_cast<int64_t>(shape.width) * cut.planes * sizeof(A);
  const int64_t rows = max_of<int64_t>(1, kRoiBandBytes / max_of<int64_t>(1, row_bytes));
  cut.rows = static_cast<int>(min_of<int64_t>(rows, shape.height));
  cut.bands = shape.pixels() == 0 ? 0 : ceil_div<int64_t>(shape.height, cut.rows);
  cut.items = shape.batch * cut.parts * cut.bands;
  return cut;
}

// The gradient of one box and bin to kGroup planes of the band [y_begin, y_end).
template <int kGroup, class Bins, class A>
CVK_HD void ps_spread(const PsPlanes<A>& planes, const RoiShape& shape, char* record, int i, int j, int y_begin,
                      int y_end, const A (&grad)[kGroup]) {
  Bins::template visit<A>(record, shape, i, j, [&](int y, int x, A weight) {
    if (y < y_begin || y >= y_end) return;
    A* pixel = planes.data + (y - y_begin) * planes.row_stride + x * planes.pixel_stride;
    for (int g = 0; g < kGroup; ++g) {
      pixel[g * planes.plane_stride] = mul_add(weight, grad[g], pixel[g * planes.plane_stride]);
    }
  });
}

template <Isa isa, class Bins, class T>
CVK_HD void ps_backward(const PositionSensitiveParams<T>& params, int64_t first, int64_t last) {
  using A = Acc<T>;
  const RoiShape& shape = params.shape;
  const RoiPlan& plan = params.plan;
  const int64_t bins = shape.bins(), out_channels = ps_out_channels(shape);
  const PsBackwardCut cut = ps_backward_cut<A>(shape);
  const Scratch band(static_cast<int64_t>(cut.rows) * shape.width * cut.planes * sizeof(A));
  A* const sums = band.template as<A>();
  for (int64_t item = first; item < last; ++item) {
    const int64_t n = item % shape.batch, part = item / shape.batch / cut.bands;
    const int y_begin = static_cast<int>(item / shape.batch % cut.bands) * cut.rows;
    const int y_end = static_cast<int>(min_of<int64_t>(int64_t{y_begin} + cut.rows, shape.height));
    const int64_t pixels = static_cast<int64_t>(y_end - y_begin) * shape.width;
    const int64_t from = static_cast<int64_t>(y_begin) * shape.width;
    memset(sums, 0, static_cast<size_t>(pixels * cut.planes) * sizeof(A));
    // f(k) for the boxes that reach the band.
    const auto over_boxes = [&](auto&& f) {
      for (int64_t b = plan.image_begin[n]; b < plan.image_begin[n + 1]; ++b) {
        const int64_t k = plan.order[b];
        const RecordHeader& rect = roi_rectangle(plan, k);
        if (rect.y_last < y_begin || rect.y_first >= y_end || rect.x_last < rect.x_first) continue;
        f(k);
      }
    };
    if (shape.channels_last) {
      const int64_t c = part * cut.planes;
      const int channels = static_cast<int>(min_of<int64_t>(cut.planes, shape.channels - c));
      over_boxes([&](int64_t k) {
        for (int v = 0; v < channels; ++v) {
          const int64_t bin = (c + v) % bins, o = (c + v) / bins;
          const int i = static_cast<int>(bin / shape.pooled_width), j = static_cast<int>(bin % shape.pooled_width);
          const A grad[1] = {to_acc(params.grad_output[ps_offset(shape, k, o, bin)]) /
                             ps_divisor<Bins, A>(plan.record(k), shape, i, j)};
          ps_spread<1, Bins>(PsPlanes<A>{sums + v * pixels, 0, 1, shape.width}, shape, plan.record(k), i, j, y_begin,
                             y_end, grad);
        }
      });
      T* const to = params.grad_input + (n * shape.pixels() + from) * shape.channels + c;
      transpose_matrix<isa>(sums, pixels, to, shape.channels, channels, pixels);
      continue;
    }
    const int64_t bin = part % bins, first_out = part / bins * cut.planes;
    const int i = static_cast<int>(bin / shape.pooled_width), j = static_cast<int>(bin % shape.pooled_width);
    const int count = static_cast<int>(min_of<int64_t>(cut.planes, out_channels - first_out));
    over_boxes([&](int64_t k) {
      const T* const at = params.grad_output + ps_offset(shape, k, first_out, bin);
      const A divisor = ps_divisor<Bins, A>(plan.record(k), shape, i, j);
      A grad[kPsBackwardPlanes];  // planes beyond the last gather what nobody reads
      for (int g = 0; g < kPsBackwardPlanes; ++g) {
        const A value = g < count ? to_acc(at[g * bins]) : A(0);
        grad[g] = Bins::kDivides ? value / divisor : value;
      }
      ps_spread<kPsBackwardPlanes, Bins>(PsPlanes<A>{sums, pixels, 1, shape.width}, shape, plan.record(k), i, j,
                                         y_begin, y_end, grad);
    });
    for (int g = 0; g < count; ++g) {
      T* const to = params.grad_input + (n * shape.channels + (first_out + g) * bins + bin) * shape.pixels() + from;
      convert_row<isa>(sums + g * pixels, to, pixels);
    }
  }
}

}  // namespace cvk
