// Bins as runs of pixels, for rotated RoI Align on the CPU: what a turned bin reads is no product of two axes. A bin's mean is the
// sum over its runs of weights times neighbouring pixels of a row.
#pragma once

#include <cstdint>

#include "common/roi_pooling.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "kernels/roi_align_rotated/roi_align_rotated_math.h"
#include "kernels/roi_align_rotated/roi_align_rotated_tuning.h"

namespace cvk {

// Pixels (y, x) to (y, x + count - 1).
struct PixelRun {
  int y, x, count;
};

// A record: its header, where the bins' runs and weights begin (bins + 1 each), the runs, the weights.
struct RunHeader {
  RecordHeader rectangle;
  int64_t weights;  // offset in bytes of the weights
};

template <class A>
struct RunRecord {
  RunHeader* header;
  int* run_begin;
  int* weight_begin;
  PixelRun* runs;
  A* weights;
};

CVK_HD int64_t run_record_front(int64_t bins) {
  return round_up<int64_t>(sizeof(RunHeader) + 2 * (bins + 1) * sizeof(int), kRecordAlign);
}

template <class A>
CVK_HD RunRecord<A> run_record_at(char* p, int64_t bins) {
  RunRecord<A> record;
  record.header = reinterpret_cast<RunHeader*>(p);
  record.run_begin = reinterpret_cast<int*>(p + sizeof(RunHeader));
  record.weight_begin = record.run_begin + bins + 1;
  record.runs = reinterpret_cast<PixelRun*>(p + run_record_front(bins));
  record.weights = reinterpret_cast<A*>(p + record.header->weights);
  return record;
}

// ---- how large a record may become

struct RunCount {
  int64_t runs, weights;
};

// Whether the samples of a bin are merged in a grid of the pixels around them.
CVK_HD bool merges_in_grid(int64_t samples, int64_t pixels) {
  return pixels <= kRotatedCellsPerSample * samples + kRotatedFewCells;
}

// Of one bin at most: each sample adds a run to two rows, and a weight to four pixels.
CVK_HD RunCount count_runs(int64_t samples, int64_t pixels) {
  if (samples == 0 || pixels == 0) return {0, 0};
  const int64_t weights = merges_in_grid(samples, pixels) ? pixels : 4 * samples;
  return {min_of(2 * samples, weights), weights};
}

// Of a box at most. Small boxes are not looked at bin by bin.
template <class A>
CVK_HD RunCount count_runs(const RoiShape& shape, const RotatedAxes<A>& axes) {
  const A rows = magnitude(axes.y.bin * axes.cosine) + magnitude(axes.x.bin * axes.sine) + A(4);
  const A columns = magnitude(axes.y.bin * axes.sine) + magnitude(axes.x.bin * axes.cosine) + A(4);
  const int64_t samples = int64_t{axes.y.samples} * axes.x.samples;
  const int64_t most = min_of(max_of(kRotatedCellsPerSample * samples + kRotatedFewCells, 4 * samples), shape.pixels());
  int64_t cells = most;
  if (rows * columns < static_cast<A>(most)) cells = static_cast<int64_t>(rows * columns);
  if (samples == 0) return {0, 0};
  if (shape.bins() * cells <= kRotatedCheapWeights) {
    return {shape.bins() * min_of(2 * samples, cells), shape.bins() * cells};
  }
  const RotatedBounds<A> bounds = rotated_map_bounds(axes);
  RunCount total{0, 0};
  for (int i = 0; i < shape.pooled_height; ++i) {
    for (int j = 0; j < shape.pooled_width; ++j) {
      const RotatedRange range = rotated_range(axes, bounds, i, j);
      const RunCount bin = count_runs(range.samples(), rotated_pixels(axes, range, i, j).pixels());
      total.runs += bin.runs;
      total.weights += bin.weights;
    }
  }
  return total;
}

CVK_HD int64_t run_record_weights(int64_t bins, int64_t runs) {
  return round_up<int64_t>(run_record_front(bins) + runs * static_cast<int64_t>(sizeof(PixelRun)), kRecordAlign);
}

// Bytes of a box's record, or -1 where its entries are too many to be indexed by int.
template <class A>
CVK_HD int64_t run_record_bytes(const RoiShape& shape, const RotatedAxes<A>& axes) {
  const RunCount count = count_runs(shape, axes);
  if (count.weights >= int64_t{1} << 30) return -1;
  return round_up<int64_t>(run_record_weights(shape.bins(), count.runs) + count.weights * sizeof(A), kRecordAlign);
}

// ---- writing a record

// Appends to the runs of a bin.
template <class A>
struct RunWriter {
  const RunRecord<A>& record;
  int runs = 0, weights = 0, first_of_bin = 0;

  CVK_HD void begin_bin(int64_t bin) {
    record.run_begin[bin] = first_of_bin = runs;
    record.weight_begin[bin] = weights;
  }
  CVK_HD void add(int y, int x, A weight) {
    if (weight == A(0)) return;
    const PixelRun* last = runs > first_of_bin ? record.runs + runs - 1 : nullptr;
    if (last == nullptr || last->y != y || last->x + last->count != x) record.runs[runs++] = PixelRun{y, x, 0};
    ++record.runs[runs - 1].count;
    record.weights[weights++] = weight;
  }
};

// f(y axis, x axis) for the samples of a range that are inside.
template <class A, class F>
CVK_HD void for_each_inside(const RotatedAxes<A>& axes, const RotatedRange& range, int bin_y, int bin_x, F&& f) {
  for (int i = range.y.first; i < range.y.last; ++i) {
    for (int j = range.x.first; j < range.x.last; ++j) {
      const RotatedSample<A> sample = rotated_sample(axes, bin_y, bin_x, i, j);
      if (sample.inside()) f(sample.y, sample.x);
    }
  }
}

// Writes the record of a box. `grid` holds `cells` elements and grows with the bins.
template <Isa isa, class A>
CVK_HD void plan_runs(const RoiShape& shape, const RotatedAxes<A>& axes, char* p, Scratch& grid, int64_t& cells) {
  RunHeader& header = *reinterpret_cast<RunHeader*>(p);
  header.weights = run_record_weights(shape.bins(), count_runs(shape, axes).runs);
  const RunRecord<A> record = run_record_at<A>(p, shape.bins());
  RecordHeader rect{shape.height, -1, shape.width, -1, 0, 0};
  RunWriter<A> writer{record};
  const RotatedBounds<A> bounds = rotated_map_bounds(axes);
  const A share = axes.y.share * axes.x.share;
  for (int i = 0; i < shape.pooled_height; ++i) {
    for (int j = 0; j < shape.pooled_width; ++j) {
      writer.begin_bin(int64_t{i} * shape.pooled_width + j);
      const RotatedRange range = rotated_range(axes, bounds, i, j);
      const PixelRectangle pixels = rotated_pixels(axes, range, i, j);
      if (pixels.empty()) continue;
      rect.y_first = min_of(rect.y_first, pixels.y_first);
      rect.y_last = max_of(rect.y_last, pixels.y_last - 1);
      rect.x_first = min_of(rect.x_first, pixels.x_first);
      rect.x_last = max_of(rect.x_last, pixels.x_last - 1);
      if (!merges_in_grid(range.samples(), pixels.pixels())) {
        for_each_inside(axes, range, i, j, [&](const BilinearAxis<A>& y, const BilinearAxis<A>& x) {
          writer.add(y.low, x.low, y.low_weight * x.low_weight * share);
          writer.add(y.low, x.high, y.low_weight * x.high_weight * share);
          writer.add(y.high, x.low, y.high_weight * x.low_weight * share);
          writer.add(y.high, x.high, y.high_weight * x.high_weight * share);
        });
        continue;
      }
      if (pixels.pixels() > cells) {
        cells = pixels.pixels();
        grid.reset(cells * sizeof(A));
      }
      A* const weights = grid.template as<A>();
      const int columns = pixels.x_last - pixels.x_first;
      for (int64_t cell = 0; cell < pixels.pixels(); ++cell) weights[cell] = A(0);
      for_each_inside(axes, range, i, j, [&](const BilinearAxis<A>& y, const BilinearAxis<A>& x) {
        A* const upper = weights + static_cast<int64_t>(y.low - pixels.y_first) * columns - pixels.x_first;
        A* const lower = weights + static_cast<int64_t>(y.high - pixels.y_first) * columns - pixels.x_first;
        upper[x.low] += y.low_weight * x.low_weight;
        upper[x.high] += y.low_weight * x.high_weight;
        lower[x.low] += y.high_weight * x.low_weight;
        lower[x.high] += y.high_weight * x.high_weight;
      });
      const A* cell = weights;
      for (int y = pixels.y_first; y < pixels.y_last; ++y) {
        for (int x = pixels.x_first; x < pixels.x_last; ++x) writer.add(y, x, *cell++ * share);
      }
    }
  }
  record.run_begin[shape.bins()] = writer.runs;
  record.weight_begin[shape.bins()] = writer.weights;
  header.rectangle = rect;
}

// ---- pooling, and its adjoint

// The mean of a bin over kVecs vectors of channels, in registers.
template <Isa isa, int kVecs, class E, class A>
CVK_HD void mean_of_runs(const View<E>& view, const PixelRun* run, const PixelRun* last, const A* weights, int64_t c,
                         typename Simd<isa, A>::Vec (&sum)[kVecs]) {
  using S = Simd<isa, A>;
  for (int v = 0; v < kVecs; ++v) sum[v] = typename S::Vec{};
  for (; run < last; ++run) {
    const E* pixel = view.pixel(run->y, run->x) + c;
    for (int n = run->count; n > 0; --n, ++weights, pixel += view.pixel_stride) {
      const typename S::Vec weight = S::broadcast(*weights);
      for (int v = 0; v < kVecs; ++v) sum[v] = S::mul_add(weight, S::load(pixel + v * S::kLanes), sum[v]);
    }
  }
}

// One box, channels [0, channels) of the view; out[bin * stride + channel].
template <Isa isa, class A, class E, class Out>
CVK_HD void pool_runs(const View<E>& view, const RoiShape& shape, char* p, int channels, Out* out, int64_t stride) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  const RunRecord<A> record = run_record_at<A>(p, shape.bins());
  for (int64_t bin = 0; bin < shape.bins(); ++bin, out += stride) {
    const PixelRun* first = record.runs + record.run_begin[bin];
    const PixelRun* last = record.runs + record.run_begin[bin + 1];
    const A* weights = record.weights + record.weight_begin[bin];
    int c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
      typename S::Vec sum[4];
      mean_of_runs<isa>(view, first, last, weights, c, sum);
      for (int v = 0; v < 4; ++v) S::store(out + c + v * kLanes, sum[v]);
    }
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes) {
      typename S::Vec sum[2];
      mean_of_runs<isa>(view, first, last, weights, c, sum);
      for (int v = 0; v < 2; ++v) S::store(out + c + v * kLanes, sum[v]);
    }
    for (; c + kLanes <= channels; c += kLanes) {
      typename S::Vec sum[1];
      mean_of_runs<isa>(view, first, last, weights, c, sum);
      S::store(out + c, sum[0]);
    }
    for (; c < channels; ++c) {
      A sum = A(0);
      const A* weight = weights;
      for (const PixelRun* run = first; run < last; ++run) {
        const E* pixel = view.pixel(run->y, run->x) + c;
        for (int n = 0; n < run->count; ++n) sum = mul_add(*weight++, to_acc(pixel[n * view.pixel_stride]), sum);
      }
      out[c] = from_acc<Out>(sum);
    }
  }
}

// One bin's gradient, kVecs vectors of channels, onto the pixels of a run.
template <Isa isa, int kVecs, class G, class A>
CVK_HD void add_run(const G* grad, const A* weights, int count, A* pixel, int pitch) {
  using S = Simd<isa, A>;
  typename S::Vec g[kVecs];
  for (int v = 0; v < kVecs; ++v) g[v] = S::load(grad + v * S::kLanes);
  for (int n = 0; n < count; ++n, pixel += pitch) {
    const typename S::Vec weight = S::broadcast(weights[n]);
    for (int v = 0; v < kVecs; ++v) {
      S::store(pixel + v * S::kLanes, S::mul_add(weight, g[v], S::load(pixel + v * S::kLanes)));
    }
  }
}

// grad[bin * stride + channel] spread over the pixels of rows [y_begin, y_end), as spread_box does.
template <Isa isa, class A, class G>
CVK_HD void spread_runs(const G* grad, int64_t stride, const RoiShape& shape, char* p, int channels, int y_begin,
                        int y_end, A* pixels, int pitch) {
  using S = Simd<isa, A>;
  constexpr int kLanes = S::kLanes;
  constexpr int kMost = kRoiChannelTile / kLanes > 0 ? kRoiChannelTile / kLanes : 1;
  const RunRecord<A> record = run_record_at<A>(p, shape.bins());
  for (int64_t bin = 0; bin < shape.bins(); ++bin, grad += stride) {
    const A* weights = record.weights + record.weight_begin[bin];
    const PixelRun* const last = record.runs + record.run_begin[bin + 1];
    for (const PixelRun* run = record.runs + record.run_begin[bin]; run < last; weights += run->count, ++run) {
      if (run->y < y_begin || run->y >= y_end) continue;
      A* const row = pixels + (static_cast<int64_t>(run->y - y_begin) * shape.width + run->x) * pitch;
      int c = 0;
      for (; c + kMost * kLanes <= channels; c += kMost * kLanes) {
        add_run<isa, kMost>(grad + c, weights, run->count, row + c, pitch);
      }
      for (; c + kLanes <= channels; c += kLanes) add_run<isa, 1>(grad + c, weights, run->count, row + c, pitch);
      for (; c < channels; ++c) {
        const A g = to_acc(grad[c]);
        for (int n = 0; n < run->count; ++n) row[c + n * pitch] = mul_add(weights[n], g, row[c + n * pitch]);
      }
    }
  }
}

}  // namespace cvk
