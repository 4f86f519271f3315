// What the tests of the convolutions share: problems in small exact numbers, the definition in plain loops, and the maps and
// weights of a problem in a dtype and layout. Sums of products of eighths are exact in float32, so all paths give equal bits.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "common/activation.h"
#include "common/conv_shape.h"
#include "common/dtype.h"
#include "common/isa.h"

namespace cvk {

// Before anything asks: pairs of bfloat16 wherever there are instructions for them. float16 takes the other way.
[[maybe_unused]] inline const int kPairsAsked = setenv("CVKERNELS_CPU_PAIRS", "1", 1);

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  int whole(int low, int high) {  // low <= result < high
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return low + static_cast<int>((state_ >> 33) % static_cast<uint64_t>(high - low));
  }
  std::vector<double> eighths(int64_t count) {
    std::vector<double> values(count);
    for (double& value : values) value = whole(-16, 17) / 8.0;
    return values;
  }

 private:
  uint64_t state_;
};

inline std::ostream& operator<<(std::ostream& out, const ConvShape& s) {
  return out << s.batch << "x" << s.channels << "x" << s.height << "x" << s.width << " -> " << s.filters << "x"
             << s.out_height << "x" << s.out_width << " kernel " << s.kernel_height << "x" << s.kernel_width
             << " stride " << s.stride_y << "," << s.stride_x << " pad " << s.pad_top << "," << s.pad_left
             << " dilation " << s.dilation_y << "," << s.dilation_x << " groups " << s.groups
             << (s.channels_last ? " last" : "") << (s.weight_channels_last ? " weights last" : "");
}

// Padding on the bottom and right is that on the top and left, plus `more`.
inline ConvShape conv_shape(int64_t batch, int64_t channels, int height, int width, int64_t filters, int kernel_height,
                            int kernel_width, int stride = 1, int pad = 0, int dilation = 1, int groups = 1,
                            int more = 0) {
  ConvShape s;
  s.batch = batch;
  s.channels = channels;
  s.filters = filters;
  s.groups = groups;
  s.height = height;
  s.width = width;
  s.kernel_height = kernel_height;
  s.kernel_width = kernel_width;
  s.stride_y = s.stride_x = stride;
  s.pad_top = s.pad_left = pad;
  s.dilation_y = s.dilation_x = dilation;
  s.out_height = (height + 2 * pad + more - dilation * (kernel_height - 1) - 1) / stride + 1;
  s.out_width = (width + 2 * pad + more - dilation * (kernel_width - 1) - 1) / stride + 1;
  return s;
}

// Shapes on both sides of every edge that the kernels have: tiles, panels, depths, channel blocks, phases, gaps.
inline std::vector<ConvShape> conv_shapes() {
  std::vector<ConvShape> shapes = {
      conv_shape(1, 1, 1, 1, 1, 1, 1),
      conv_shape(0, 8, 8, 8, 8, 1, 1),
      conv_shape(2, 3, 5, 6, 4, 3, 3, 1, 1),
      conv_shape(1, 17, 9, 10, 33, 3, 3, 1, 1),
      conv_shape(1, 5, 14, 15, 16, 1, 1),
      conv_shape(3, 40, 1, 1, 65, 1, 1),
      conv_shape(1, 3, 20, 19, 7, 7, 7, 2, 3),
      conv_shape(1, 70, 6, 5, 3, 3, 3, 1, 1),
      conv_shape(1, 2, 20, 21, 3, 18, 17, 1, 2),
      conv_shape(1, 2, 12, 13, 3, 2, 2, 5),
      conv_shape(2, 4, 9, 8, 6, 2, 3, 3, 2, 2, 2, 1),
      conv_shape(1, 300, 3, 3, 5, 1, 1),
      conv_shape(1, 3, 30, 31, 270, 1, 1),
      conv_shape(2, 8, 7, 9, 12, 3, 3, 2, 1, 1, 4),
      conv_shape(1, 4, 9, 9, 2, 3, 2, 4, 3, 6),
      conv_shape(0, 3, 4, 5, 2, 3, 3),
      conv_shape(1, 0, 4, 5, 2, 3, 3),
      conv_shape(1, 2, 3, 3, 2, 2, 2, 1, 4),
      conv_shape(2, 16, 7, 9, 24, 3, 3, 1, 1),  // whole vectors of channels: tensor cores copy 16 bytes at a time
      conv_shape(1, 64, 5, 6, 136, 3, 3, 2, 1),
      conv_shape(1, 32, 6, 7, 48, 3, 2, 1, 1, 2, 2),
      conv_shape(1, 128, 3, 5, 72, 1, 1),
      conv_shape(2, 40, 29, 31, 70, 3, 3, 1, 1),  // Winograd's form on the CPU: odd sizes, several items
      conv_shape(1, 64, 20, 21, 72, 3, 3, 1, 0, 1, 2),
      conv_shape(1, 340, 13, 14, 36, 3, 3, 1, 2),    // several blocks of channels
      conv_shape(2, 19, 33, 34, 21, 3, 3, 1, 1),     // the gradient of weights alone, in parts
      conv_shape(3, 70, 4, 3, 66, 3, 3, 1, 3),       // tiles outside the map
      conv_shape(2, 6, 9, 20, 6, 3, 3, 1, 1, 1, 6),  // depthwise from here on
      conv_shape(1, 70, 8, 7, 70, 5, 5, 2, 2, 1, 70),
      conv_shape(1, 3, 18, 40, 3, 4, 2, 3, 1, 2, 3),
      conv_shape(1, 2, 60, 90, 2, 3, 3, 1, 1, 1, 2),
      conv_shape(2, 37, 13, 15, 37, 5, 3, 2, 2, 1, 37),
      conv_shape(1, 9, 120, 130, 9, 3, 3, 2, 1, 1, 9),  // several strips
      conv_shape(2, 16, 9, 11, 16, 3, 3, 1, 1, 1, 16),  // whole vectors of channels, from here on
      conv_shape(1, 152, 7, 10, 152, 3, 3, 2, 1, 1, 152),
      conv_shape(1, 8, 11, 13, 8, 5, 5, 1, 2, 1, 8),
      conv_shape(1, 24, 12, 11, 24, 3, 4, 1, 1, 2, 24),
      conv_shape(1, 8, 17, 20, 8, 4, 2, 3, 1, 1, 8, 1),
      conv_shape(1, 16, 9, 9, 16, 3, 3, 4, 3, 6, 16),
      conv_shape(1, 8, 3, 1, 8, 1, 3, 1, 2, 1, 8),
      conv_shape(2, 8, 60, 71, 8, 3, 3, 1, 1, 1, 8),          // parts of the weight gradient
      conv_shape(1, 128, 12, 13, 128, 12, 11, 1, 1, 1, 128),  // weights beyond shared memory
      conv_shape(0, 8, 4, 5, 8, 3, 3, 1, 1, 1, 8),
      conv_shape(2, 6, 20, 30, 6, 1, 1, 1, 0, 1, 6),  // all rows are one
      conv_shape(1, 35, 14, 13, 35, 3, 3, 2, 1, 1, 35),
      conv_shape(1, 17, 40, 39, 17, 37, 37, 1, 0, 1, 17),  // fewer channels at a time on the CPU
      conv_shape(1, 2, 70, 66, 2, 66, 63, 1, 1, 1, 2),     // by definition: many taps
      conv_shape(1, 3, 5, 6, 3, 3, 3, 1, 700, 700, 3),     // and where a copy would be large
  };
  shapes[3].stride_x = 2;
  shapes[3].out_width = 8;
  return shapes;
}

// Maps of few pixels under many weights, which the CPU multiplies without packing these. Several blocks of the depth, panels of
// one to three vectors, pixels past the last of them in rows and padded, several images in an item, odd counts of everything.
inline std::vector<ConvShape> small_map_shapes() {
  return {
      conv_shape(3, 256, 5, 5, 76, 1, 1),
      conv_shape(1, 512, 4, 5, 180, 1, 1, 1, 0, 1, 2),
      conv_shape(1, 128, 5, 3, 71, 3, 3, 1, 1),
      conv_shape(2, 600, 5, 6, 35, 3, 3, 2, 1),
      conv_shape(1, 1100, 2, 3, 40, 2, 1),
      conv_shape(20, 300, 3, 3, 33, 2, 2, 1, 1, 2),
      conv_shape(1, 256, 3, 4, 72, 3, 3, 1, 1),
      conv_shape(1, 4, 3, 4, 150, 32, 31, 1, 16),  // planes: a channel fills a block
      conv_shape(2, 200, 10, 11, 24, 3, 3, 1, 1),
      conv_shape(3, 96, 7, 7, 21, 3, 3, 1, 1),
      conv_shape(2, 130, 15, 14, 31, 3, 3, 2, 1),
      conv_shape(1, 300, 6, 11, 9, 1, 1, 1, 1),
      conv_shape(5, 64, 6, 6, 66, 5, 5, 1, 2, 1, 2),
  };
}

// 1 x 1 over planes, which the CPU multiplies where they lie: any number of filters and vectors in a tile, several blocks of the depth
// and of columns, pixels past the last vector in rows and padded.
inline std::vector<ConvShape> plane_map_shapes() {
  return {
      conv_shape(2, 350, 7, 7, 21, 1, 1),
      conv_shape(1, 33, 9, 11, 40, 1, 1),
      conv_shape(1, 64, 12, 12, 18, 1, 1, 1, 0, 1, 2),
      conv_shape(1, 30, 4, 15, 1, 1, 1),
      conv_shape(3, 3, 3, 23, 6, 1, 1, 1, 0, 1, 3),
      conv_shape(1, 16, 1, 16, 300, 1, 1),
      conv_shape(2, 10, 5, 7, 15, 1, 1, 1, 0, 1, 5),
      conv_shape(1, 700, 4, 8, 9, 1, 1),
      conv_shape(1, 5, 2, 29, 30, 1, 1),
      conv_shape(7, 12, 14, 14, 20, 1, 1),
      conv_shape(2, 9, 40, 41, 13, 1, 1),
      conv_shape(2, 34, 16, 16, 70, 1, 1),
      conv_shape(2, 34, 10, 11, 41, 1, 1),
      conv_shape(1, 60, 12, 12, 340, 1, 1, 1, 0, 1, 2),
  };
}

// Transposed with steps of two along rows and more: targets of even and odd width and of one column, phases without taps, with as many
// and with different ones, that read the same pixels or not, several blocks of the depth and of columns, several items, groups.
inline std::vector<ConvShape> paired_shapes() {
  std::vector<ConvShape> shapes = {
      conv_shape(2, 17, 12, 30, 20, 2, 2, 2),          conv_shape(1, 30, 9, 23, 37, 3, 3, 2, 1),
      conv_shape(1, 290, 6, 9, 130, 3, 3, 2, 1),       conv_shape(3, 5, 7, 41, 70, 1, 1, 2),
      conv_shape(1, 24, 21, 1, 16, 3, 1, 2, 1),        conv_shape(1, 21, 17, 2, 18, 3, 2, 2),
      conv_shape(2, 18, 10, 70, 34, 4, 4, 2, 1),       conv_shape(1, 16, 40, 91, 40, 5, 5, 2, 2),
      conv_shape(1, 40, 11, 18, 60, 3, 4, 2, 1, 1, 2), conv_shape(1, 12, 13, 26, 33, 3, 3, 2, 2, 2),
      conv_shape(1, 3, 40, 37, 2, 17, 19, 2, 8),       conv_shape(1, 5, 40, 35, 6, 8, 8, 8),
      conv_shape(1, 2, 40, 41, 3, 27, 25, 2, 12),      conv_shape(1, 30, 16, 70, 40, 2, 2, 2),
      conv_shape(2, 9, 17, 57, 24, 3, 3, 2, 1),
  };
  shapes[1].stride_y = 1;
  shapes[1].out_height = 9;
  return shapes;
}

// 1 x 1 over eight pixels or fewer: whole vectors of channels and parts of them, one and several blocks, odd numbers of filters, none.
inline std::vector<ConvShape> few_pixels_shapes() {
  return {
      conv_shape(1, 16, 1, 1, 2, 1, 1),   conv_shape(1, 240, 1, 1, 97, 1, 1), conv_shape(3, 33, 1, 1, 66, 1, 1),
      conv_shape(8, 71, 1, 1, 130, 1, 1), conv_shape(2, 530, 1, 1, 9, 1, 1),  conv_shape(5, 64, 1, 1, 64, 1, 1),
      conv_shape(1, 40, 2, 3, 70, 1, 1),  conv_shape(1, 1100, 1, 1, 7, 1, 1), conv_shape(7, 5, 1, 1, 4, 1, 1),
      conv_shape(2, 40, 1, 1, 0, 1, 1),
  };
}

// Groups of few channels, which the CPU multiplies without a gather: several to a vector and one to a vector or two, vectors and
// tiles partly filled, steps, taps apart, padding beyond the map, several items, several images at a time.
inline std::vector<ConvShape> grouped_shapes() {
  return {
      conv_shape(2, 24, 9, 17, 24, 3, 3, 1, 1, 1, 6),   conv_shape(1, 20, 11, 30, 20, 3, 2, 1, 2, 1, 10),
      conv_shape(1, 40, 8, 15, 40, 3, 3, 1, 1, 1, 5),   conv_shape(2, 48, 7, 7, 48, 3, 3, 1, 1, 1, 3),
      conv_shape(1, 48, 10, 13, 48, 3, 3, 2, 1, 1, 2),  conv_shape(1, 12, 14, 29, 12, 5, 3, 3, 4, 2, 3),
      conv_shape(1, 16, 40, 33, 16, 3, 3, 1, 1, 1, 4),  conv_shape(3, 14, 5, 9, 34, 3, 3, 1, 3, 2, 2),
      conv_shape(1, 8, 21, 20, 8, 2, 2, 3, 0, 1, 2),    conv_shape(1, 36, 6, 60, 54, 1, 3, 1, 1, 1, 3),
      conv_shape(0, 8, 6, 7, 8, 3, 3, 1, 1, 1, 2),      conv_shape(5, 34, 14, 14, 38, 3, 3, 1, 1, 1, 2),
      conv_shape(1, 21, 30, 34, 14, 3, 3, 2, 1, 1, 7),  conv_shape(9, 48, 3, 4, 72, 2, 3, 1, 1, 1, 4),
      conv_shape(2, 18, 100, 31, 18, 3, 3, 1, 1, 1, 2),
  };
}

// Maps of few channels, which the CPU multiplies from a padded copy: wide and narrow ones, several blocks of columns, windows that
// see nothing of the map, steps of every kind.
inline std::vector<ConvShape> thin_map_shapes() {
  std::vector<ConvShape> shapes = {
      conv_shape(1, 3, 3, 530, 18, 3, 3, 1, 1),  conv_shape(2, 3, 9, 461, 33, 3, 5, 2, 2),
      conv_shape(1, 4, 7, 112, 300, 3, 3, 1, 1), conv_shape(1, 1, 19, 40, 5, 5, 4, 1, 3),
      conv_shape(1, 2, 6, 54, 17, 3, 3, 2, 4),   conv_shape(2, 4, 9, 65, 16, 2, 2, 2),
      conv_shape(1, 3, 20, 59, 30, 3, 3, 1, 1),
  };
  shapes.back().stride_y = 3;
  shapes.back().out_height = 7;
  shapes.push_back(conv_shape(1, 3, 21, 60, 9, 3, 1, 1, 2, 2));  // one column of taps, rows apart
  shapes.back().dilation_x = 1;
  return shapes;
}

// Offset of [n, c, i] of a tensor [n, channels, inner] or, channels last, [n, inner, channels].
inline int64_t conv_at(int64_t n, int64_t c, int64_t i, int64_t channels, int64_t inner, bool last) {
  return last ? (n * inner + i) * channels + c : (n * channels + c) * inner + i;
}

struct ConvProblem {
  ConvShape shape;
  std::vector<double> input, weight, grad;        // contiguous
  std::vector<double> bias, input_bias;           // of the filters, of the channels
  std::vector<double> output, back, grad_weight;  // by the definition, from zero; no bias

  ConvProblem(const ConvShape& s, uint64_t seed) : shape(s) {
    Random random(seed);
    input = random.eighths(s.batch * s.channels * s.pixels());
    weight = random.eighths(s.weights());
    grad = random.eighths(s.batch * s.filters * s.out_pixels());
    bias = random.eighths(s.filters);
    input_bias = random.eighths(s.channels);
    compute();
  }
  // Results anew, of tensors that were changed.
  void compute() {
    output.assign(grad.size(), 0);
    back.assign(input.size(), 0);
    grad_weight.assign(weight.size(), 0);
    for_each_product([&](int64_t out, int64_t w, int64_t in) {
      output[out] += weight[w] * input[in];
      back[in] += weight[w] * grad[out];
      grad_weight[w] += grad[out] * input[in];
    });
  }

 private:
  template <class F>
  void for_each_product(F&& f) const {
    const ConvShape& s = shape;
    for (int64_t n = 0; n < s.batch; ++n) {
      for (int64_t o = 0; o < s.filters; ++o) {
        for (int64_t c = 0; c < s.group_channels(); ++c) {
          const int64_t channel = o / s.group_filters() * s.group_channels() + c;
          for (int i = 0; i < s.kernel_height; ++i) {
            for (int j = 0; j < s.kernel_width; ++j) {
              for (int y = 0; y < s.out_height; ++y) {
                for (int x = 0; x < s.out_width; ++x) {
                  const int v = y * s.stride_y - s.pad_top + i * s.dilation_y;
                  const int u = x * s.stride_x - s.pad_left + j * s.dilation_x;
                  if (v < 0 || v >= s.height || u < 0 || u >= s.width) continue;
                  f(((n * s.filters + o) * s.out_height + y) * s.out_width + x,
                    ((o * s.group_channels() + c) * s.kernel_height + i) * s.kernel_width + j,
                    ((n * s.channels + channel) * s.height + v) * s.width + u);
                }
              }
            }
          }
        }
      }
    }
  }
};

// A contiguous [n, channels, inner] tensor in a dtype and layout. Exact size, so that ASan sees a step too far.
template <class T>
std::vector<T> conv_tensor(const std::vector<double>& values, int64_t n, int64_t channels, int64_t inner, bool last) {
  std::vector<T> result(values.size());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < inner; ++p) {
        result[conv_at(i, c, p, channels, inner, last)] =
            from_acc<T>(static_cast<Acc<T>>(values[(i * channels + c) * inner + p]));
      }
    }
  }
  return result;
}
template <class T>
std::vector<T> conv_nans(size_t count) {
  return std::vector<T>(count, from_acc<T>(std::numeric_limits<Acc<T>>::quiet_NaN()));
}

template <class T>
void expect_equal(const std::vector<T>& actual, const std::vector<T>& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(to_acc(actual[i]), to_acc(expected[i])) << what << ", element " << i;
  }
}

// All layouts of a shape that the kernels know.
template <class F>
void for_each_layout(ConvShape shape, F&& f) {
  for (const int layout : {0, 1, 2}) {
    shape.channels_last = layout > 0;
    shape.weight_channels_last = layout > 1;
    f(shape);
  }
}

// How a pass is cut into slices: at once, or item by item from the last to the first.
template <class F>
void in_slices(int64_t items, bool at_once, F&& f) {
  if (at_once) {
    if (items > 0) f(int64_t{0}, items);
    return;
  }
  for (int64_t i = items; i-- > 0;) f(i, i + 1);
}

template <class T>
std::string dtype_name() {
  return std::is_same_v<T, float>    ? "float"
         : std::is_same_v<T, double> ? "double"
         : std::is_same_v<T, half_t> ? "half"
                                     : "bfloat16";
}

// Calls f(isa) for the instruction sets that this machine has.
template <class F>
void for_each_isa(F&& f) {
  f(IsaTag<Isa::kBaseline>{});
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV3) f(IsaTag<Isa::kV3>{});
  if (cpu_isa() >= Isa::kV4) f(IsaTag<Isa::kV4>{});
#endif
}

}  // namespace cvk
