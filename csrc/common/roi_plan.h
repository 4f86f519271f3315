// Plans of RoI pooling on the CPU: the boxes of a call by image and place, and what each bin of a box reads, worked out once per
// box.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/bilinear.h"
#include "common/host_device.h"
#include "common/numeric.h"
#include "common/radix_sort.h"
#include "common/roi_geometry.h"
#include "common/roi_levels.h"
#include "common/roi_taps.h"
#include "common/roi_tuning.h"

namespace cvk {

// The boxes of a call digested. roi_layout fills the first four, the operator's plan the arena, roi_forward_items the last. Images
// of several levels (roi_levels.h) are numbered through: level * N + batch index.
struct RoiPlan {
  int64_t* order;           // [K] boxes by image, in an image neighbours one after another
  int64_t* image_begin;     // [L * N + 1] where an image's boxes begin in `order`
  int64_t* record_begin;    // [K + 1] offset in bytes of a box's record in `arena`
  int64_t* image_of;        // [K] image; of a box without a level, one of level 0
  char* arena;              // records
  bool copy_images;         // forward of NCHW: scratch copies of whole images, or of the boxes' rectangles
  Keyed<uint32_t>* places;  // [2 K] scratch of roi_layout; null: boxes stay as they come

  CVK_HD char* record(int64_t k) const { return arena + record_begin[k]; }
};

// Bits spread out, a zero between each and the next.
CVK_HD uint32_t roi_spread_bits(uint32_t v) {
  v = (v | (v << 8)) & 0x00ff00ffu;
  v = (v | (v << 4)) & 0x0f0f0f0fu;
  v = (v | (v << 2)) & 0x33333333u;
  return (v | (v << 1)) & 0x55555555u;
}

// A number for where a box lies, near for boxes that lie near each other: Z-order of cells of the map. Boxes of 5 columns have
// corners, others begin with their centre.
template <class A>
CVK_HD uint32_t roi_place(const A* box, int columns, double spatial_scale) {
  const auto cell = [&](A middle) {
    const A place = middle * (static_cast<A>(spatial_scale) / static_cast<A>(kRoiPlaceCell));
    if (!(place > A(0))) return 0u;  // NaN too
    return place < A(65535) ? static_cast<uint32_t>(place) : 65535u;
  };
  const bool corners = columns == 5;
  return roi_spread_bits(cell(corners ? A(0.5) * (box[2] + box[4]) : box[2])) << 1 |
         roi_spread_bits(cell(corners ? A(0.5) * (box[1] + box[3]) : box[1]));
}

// Groups and orders the boxes and places the records. bytes_of(k, level) is the size of box k's record, or negative where its
// entries are too many to be indexed. Returns the arena's bytes, or -1 - k for a bad batch index in row k, kRoiBadLevel - k for a
// bad level that was given, or kRoiTooManySamples.
constexpr int64_t kRoiTooManySamples = INT64_MIN;
constexpr int64_t kRoiBadLevel = INT64_MIN / 2;
template <class A, class Levels, class BytesOf>
CVK_HD int64_t roi_layout(const RoiShape& shape, const Levels& levels, const A* boxes, int columns, RoiPlan& plan,
                          BytesOf&& bytes_of) {
  const int64_t images = levels.count * shape.batch;
  for (int64_t n = 0; n <= images; ++n) plan.image_begin[n] = 0;
  const bool sorts = plan.places != nullptr && shape.boxes <= int64_t{UINT32_MAX};
  int64_t bytes = 0;
  for (int64_t k = 0; k < shape.boxes; ++k) {
    const A* box = boxes + k * columns;
    const int64_t image = roi_batch_index(box[0], shape.batch);
    if (image < 0) return -1 - k;
    const int level = roi_level(levels, box, k), own_level = max_of(level, 0);
    if (level < 0 && roi_levels_given(levels)) return kRoiBadLevel - k;
    const int64_t n = own_level * shape.batch + image;
    plan.image_of[k] = n;
    ++plan.image_begin[n + 1];
    if (sorts) {
      plan.places[k] = {roi_place(box, columns, roi_level_scale(levels, own_level)), static_cast<uint32_t>(k)};
    }
    const int64_t own =
        shape.channels == 0 ? 0 : bytes_of(k, level);  // without channels only the indices want checking
    if (own < 0) return kRoiTooManySamples;
    plan.record_begin[k] = bytes;
    bytes += own;
  }
  plan.record_begin[shape.boxes] = bytes;
  for (int64_t n = 0; n < images; ++n) plan.image_begin[n + 1] += plan.image_begin[n];
  // A stable counting sort of what is in order of places; image_begin[n] runs ahead while it deals and is set back afterwards.
  const Keyed<uint32_t>* places = sorts ? radix_sort(plan.places, plan.places + shape.boxes, shape.boxes) : nullptr;
  for (int64_t i = 0; i < shape.boxes; ++i) {
    const int64_t k = sorts ? places[i].value : i;
    plan.order[plan.image_begin[plan.image_of[k]]++] = k;
  }
  for (int64_t n = images; n > 0; --n) plan.image_begin[n] = plan.image_begin[n - 1];
  plan.image_begin[0] = 0;
  return bytes;
}

// The same for a single map; bytes_of(k).
template <class A, class BytesOf>
CVK_HD int64_t roi_layout(const RoiShape& shape, const A* boxes, int columns, RoiPlan& plan, BytesOf&& bytes_of) {
  return roi_layout(shape, RoiOneLevel{shape.spatial_scale}, boxes, columns, plan,
                    [&](int64_t k, int) -> int64_t { return bytes_of(k); });
}

// ---- records of separable pooling
//
// A record is a header, the begin indices of the lists of entries (y_lists + 1, then x_lists + 1), and the entries, first of
// the y axis, then of the x axis. For the mean an entry is a merged tap; for the maximum it is one sample.

// Which lists belong to bin (i, j).
struct SharedLists {  // the bins of a row share their y entries, those of a column their x entries
  static CVK_HD int64_t y_lists(const RoiShape& shape) { return shape.pooled_height; }
  static CVK_HD int64_t x_lists(const RoiShape& shape) { return shape.pooled_width; }
  static CVK_HD int64_t y(const RoiShape&, int i, int) { return i; }
  static CVK_HD int64_t x(const RoiShape&, int, int j) { return j; }
};
struct OwnLists {  // each bin has entries of its own
  static CVK_HD int64_t y_lists(const RoiShape& shape) { return shape.bins(); }
  static CVK_HD int64_t x_lists(const RoiShape& shape) { return shape.bins(); }
  static CVK_HD int64_t y(const RoiShape& shape, int i, int j) { return int64_t{i} * shape.pooled_width + j; }
  static CVK_HD int64_t x(const RoiShape& shape, int i, int j) { return y(shape, i, j); }
};

struct RecordHeader {
  int y_first, y_last, x_first, x_last;  // pixels read; empty when last < first
  int grid_y, grid_x;                    // samples per bin (maximum)
};

template <class A>
struct Sample {
  int index;  // within the bin; the entry is absent when the sample is outside
  BilinearAxis<A> axis;
};

constexpr int64_t kRecordAlign = 16;

template <class A, class Entry>
struct Record {
  RecordHeader* header;
  int* y_begin;
  int* x_begin;
  Entry* y;
  Entry* x;
};

template <class Entry>
CVK_HD int64_t record_bytes(int64_t y_lists, int64_t x_lists, int64_t entries) {
  const int64_t front = round_up<int64_t>(sizeof(RecordHeader) + (y_lists + x_lists + 2) * sizeof(int), kRecordAlign);
  return round_up<int64_t>(front + entries * sizeof(Entry), kRecordAlign);
}

template <class A, class Entry>
CVK_HD Record<A, Entry> record_at(char* p, int64_t y_lists, int64_t x_lists) {
  Record<A, Entry> record;
  record.header = reinterpret_cast<RecordHeader*>(p);
  record.y_begin = reinterpret_cast<int*>(p + sizeof(RecordHeader));
  record.x_begin = record.y_begin + y_lists + 1;
  const int64_t front = round_up<int64_t>(sizeof(RecordHeader) + (y_lists + x_lists + 2) * sizeof(int), kRecordAlign);
  record.y = reinterpret_cast<Entry*>(p + front);
  record.x = nullptr;  // known once the y axis is
  return record;
}

template <class A, class Entry>
CVK_HD Record<A, Entry> finished_record_at(char* p, int64_t y_lists, int64_t x_lists) {
  Record<A, Entry> record = record_at<A, Entry>(p, y_lists, x_lists);
  record.x = record.y + record.y_begin[y_lists];
  return record;
}

template <class A>
CVK_HD SampleRange inside_range(const RoiAxis<A>& axis, int bin) {
  return roi_sample_range(axis, bin, A(-1), static_cast<A>(axis.extent));
}

// Upper bound of the entries of one axis.
template <class A>
CVK_HD int64_t count_samples(const RoiAxis<A>& axis, int bins) {
  if (axis.samples <= 4) return static_cast<int64_t>(bins) * axis.samples;
  int64_t total = 0;
  for (int bin = 0; bin < bins; ++bin) {
    const SampleRange range = inside_range(axis, bin);
    total += range.last - range.first;
  }
  return total;
}

template <class A>
struct BoxAxes {
  RoiAxis<A> y, x;
};

template <class A>
CVK_HD BoxAxes<A> box_axes(const RoiShape& shape, const A* box) {
  const A scale = static_cast<A>(shape.spatial_scale);
  return {roi_axis(box[2], box[4], scale, shape.aligned, shape.pooled_height, shape.sampling_ratio, shape.height),
          roi_axis(box[1], box[3], scale, shape.aligned, shape.pooled_width, shape.sampling_ratio, shape.width)};
}

// Entries of one bin along one axis for the mean, a Tap or a SlopedTap each: samples merged into taps, divided by their number.
// Returns how many; extends [first, last] to their pixels.
template <class A, class Entry>
CVK_HD int plan_bin(const RoiAxis<A>& axis, int bin, Entry* taps, int& first, int& last) {
  int used = 0;
  const SampleRange range = inside_range(axis, bin);
  for (int i = range.first; i < range.last; ++i) {
    const A coordinate = roi_sample_coordinate(axis, bin, i);
    const BilinearAxis<A> sample = bilinear_axis(coordinate, axis.extent);
    if (!sample.inside) continue;
    const A slope = bilinear_slope(coordinate, sample) * axis.share, position = roi_sample_position(axis, bin, i);
    // A box with x2 < x1 (aligned) walks backwards; merging with any earlier tap of the bin covers both directions.
    const int pixels[2] = {sample.low, sample.high};
    const A weights[2] = {sample.low_weight * axis.share, sample.high_weight * axis.share};
    const A slopes[2] = {-slope, slope};
    for (int side = 0; side < 2; ++side) {
      int at = used;
      for (int back = used - 1; back >= 0 && back >= used - 2; --back) {
        if (taps[back].pixel == pixels[side]) at = back;
      }
      if (at == used) taps[used++] = empty_tap<Entry>(pixels[side]);
      add_to_tap(taps[at], weights[side], slopes[side], position);
      if (pixels[side] < first) first = pixels[side];
      if (pixels[side] > last) last = pixels[side];
    }
  }
  return used;
}

// Entries of one axis for the mean.
template <class A, class Entry>
CVK_HD int plan_axis(const RoiAxis<A>& axis, int bins, int* begin, Entry* taps, int& first, int& last) {
  int used = 0;
  first = axis.extent;
  last = -1;
  for (int bin = 0; bin < bins; ++bin) {
    begin[bin] = used;
    used += plan_bin(axis, bin, taps + used, first, last);
  }
  begin[bins] = used;
  return used;
}

// Entries of one axis of another kind (common/roi_taps.h).
template <class Axis, class Entry>
CVK_HD int plan_axis(const Axis& axis, int bins, int* begin, Entry* taps, int& first, int& last) {
  int used = 0;
  first = axis.extent;
  last = -1;
  for (int bin = 0; bin < bins; ++bin) {
    begin[bin] = used;
    const PixelRange range = roi_pixel_range(axis, bin);
    for (int pixel = range.first; pixel < range.last; ++pixel) {
      roi_pixel_tap(axis, bin, pixel, taps[used]);
      if (!tap_matters(taps[used])) continue;
      ++used;
      if (pixel < first) first = pixel;
      if (pixel > last) last = pixel;
    }
  }
  begin[bins] = used;
  return used;
}

// Upper bound of its entries.
template <class Axis>
CVK_HD int64_t count_pixels(const Axis& axis, int bins) {
  int64_t total = 0;
  for (int bin = 0; bin < bins; ++bin) {
    const PixelRange range = roi_pixel_range(axis, bin);
    total += range.last - range.first;
  }
  return total;
}

// Entries of one axis for the maximum: the samples that are inside.
template <class A>
CVK_HD int plan_axis(const RoiAxis<A>& axis, int bins, int* begin, Sample<A>* entries, int& first, int& last) {
  int used = 0;
  first = axis.extent;
  last = -1;
  for (int bin = 0; bin < bins; ++bin) {
    begin[bin] = used;
    const SampleRange range = inside_range(axis, bin);
    for (int i = range.first; i < range.last; ++i) {
      const BilinearAxis<A> sample = bilinear_axis(roi_sample_coordinate(axis, bin, i), axis.extent);
      if (!sample.inside) continue;
      entries[used++] = Sample<A>{i, sample};
      if (sample.low < first) first = sample.low;
      if (sample.high > last) last = sample.high;
    }
  }
  begin[bins] = used;
  return used;
}

template <class A, class Entry, class Axis>
CVK_HD RecordHeader& plan_axes(const RoiShape& shape, const Axis& y, const Axis& x, char* arena) {
  Record<A, Entry> record = record_at<A, Entry>(arena, shape.pooled_height, shape.pooled_width);
  RecordHeader& header = *record.header;
  const int used = plan_axis(y, shape.pooled_height, record.y_begin, record.y, header.y_first, header.y_last);
  plan_axis(x, shape.pooled_width, record.x_begin, record.y + used, header.x_first, header.x_last);
  return header;
}

template <class A, class Entry>
CVK_HD void plan_box(const RoiShape& shape, const A* box, char* arena) {
  const BoxAxes<A> axes = box_axes(shape, box);
  RecordHeader& header = plan_axes<A, Entry>(shape, axes.y, axes.x, arena);
  header.grid_y = axes.y.samples;
  header.grid_x = axes.x.samples;
}

// A row that reads nothing: what a box without a level is planned as.
template <class A>
struct RoiNoBox {
  A row[5];
  CVK_HD RoiNoBox() {
    const A nan = bit_cast<A>(static_cast<std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>>(-1));
    for (A& value : row) value = nan;
  }
};

// Bytes of plan_box's record, or -1 where a box has too many entries along an axis to be indexed by int.
template <class A, class Entry>
CVK_HD int64_t plan_box_bytes(const RoiShape& shape, const A* box) {
  constexpr int64_t kPerSample = std::is_same_v<Entry, Sample<A>> ? 1 : 2;  // a tap for each of its two pixels
  const BoxAxes<A> axes = box_axes(shape, box);
  const int64_t y_samples = count_samples(axes.y, shape.pooled_height);
  const int64_t x_samples = count_samples(axes.x, shape.pooled_width);
  if (max_of(y_samples, x_samples) >= int64_t{1} << 30) return -1;
  return record_bytes<Entry>(shape.pooled_height, shape.pooled_width, kPerSample * (y_samples + x_samples));
}

CVK_HD int64_t rectangle_pixels(const RecordHeader& rect) {
  return int64_t{max_of(0, rect.y_last - rect.y_first + 1)} * max_of(0, rect.x_last - rect.x_first + 1);
}

}  // namespace cvk
