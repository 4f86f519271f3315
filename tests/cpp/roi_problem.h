// What the C++ tests of RoI pooling operators share: problems in double precision, and their run on every backend.
//
// Op is a class of the operator's own:
//   template <class T> using Params;                        with shape, input, boxes, output, grad_output, grad_input, plan
//   layout, plan, forward_items, forward, backward_items, backward <isa>(params, ...)      the CPU passes
//   scratch, forward_cuda, backward_cuda                                                   the CUDA launchers
//   set_indices(params, argmax, backward)                   where the indices go, if there are any
//   Index                                                   what they are; int32_t if it does not say
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/roi_geometry.h"
#include "common/roi_plan.h"
#include "emulation/runtime_api.h"

namespace cvk::test {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Small whole numbers over 8: exact in every dtype.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  int whole(int low, int high) {  // low <= result < high
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return low + static_cast<int>((state_ >> 33) % static_cast<uint64_t>(high - low));
  }
  double eighth(int low, int high) { return whole(8 * low, 8 * high) / 8.0; }

 private:
  uint64_t state_;
};

struct Problem {
  RoiShape shape{};
  int64_t out_channels = 0;
  std::vector<double> input;        // [N, C, H, W]
  std::vector<double> boxes;        // [K, 5]
  std::vector<double> grad_output;  // [K, out_channels, PH, PW]

  int64_t outputs() const { return shape.boxes * out_channels * shape.bins(); }
  int64_t inputs() const { return shape.batch * shape.channels * shape.pixels(); }
};

struct Result {
  std::vector<double> output;      // [K, out_channels, PH, PW]
  std::vector<double> grad_input;  // [N, C, H, W]
};

inline Problem make(int64_t n, int64_t c, int64_t out_channels, int h, int w, int ph, int pw,
                    const std::vector<std::vector<double>>& boxes) {
  Problem p;
  p.shape = {n, c, h, w, static_cast<int64_t>(boxes.size()), ph, pw, 1.0, 2, true, false};
  p.out_channels = out_channels;
  Random random(17);
  for (int64_t i = 0; i < p.inputs(); ++i) p.input.push_back(random.eighth(-8, 8));
  for (int64_t i = 0; i < p.outputs(); ++i) p.grad_output.push_back(random.eighth(-4, 4));
  for (const auto& box : boxes) p.boxes.insert(p.boxes.end(), box.begin(), box.end());
  return p;
}

inline std::vector<std::vector<double>> some_boxes(int count, int64_t images, int h, int w, uint64_t seed) {
  Random random(seed);
  std::vector<std::vector<double>> boxes;
  for (int i = 0; i < count; ++i) {
    const double x = random.whole(-3, w), y = random.whole(-3, h);
    boxes.push_back({static_cast<double>(random.whole(0, static_cast<int>(images))), x, y, x + random.whole(0, w + 4),
                     y + random.whole(0, h + 4)});
  }
  return boxes;
}

// Offset of [n, c, i] in a tensor [n, channels, inner] or, channels last, [n, inner, channels].
inline std::vector<int64_t> permutation(int64_t n, int64_t channels, int64_t inner, bool channels_last) {
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < inner; ++p) {
        offsets.push_back(channels_last ? (i * inner + p) * channels + c : (i * channels + c) * inner + p);
      }
    }
  }
  return offsets;
}

template <class Op, class = void>
struct IndexOf {
  using type = int32_t;
};
template <class Op>
struct IndexOf<Op, std::void_t<typename Op::Index>> {
  using type = typename Op::Index;
};

// The tensors of a problem in one dtype and layout. Vectors have the exact size, so that ASan sees a step too far.
template <class Op, class T>
struct Buffers {
  using Params = typename Op::template Params<T>;

  explicit Buffers(const Problem& p)
      : shape(p.shape),
        input_at(permutation(shape.batch, shape.channels, shape.pixels(), shape.channels_last)),
        output_at(permutation(shape.boxes, p.out_channels, shape.bins(), shape.channels_last)),
        input(p.inputs()),
        output(p.outputs(), from_acc<T>(Acc<T>(kNan))),
        grad_output(p.outputs()),
        grad_input(p.inputs(), from_acc<T>(Acc<T>(kNan))),
        argmax(p.outputs(), -12345) {
    for (int64_t i = 0; i < p.inputs(); ++i) input[input_at[i]] = from_acc<T>(Acc<T>(p.input[i]));
    for (int64_t i = 0; i < p.outputs(); ++i) grad_output[output_at[i]] = from_acc<T>(Acc<T>(p.grad_output[i]));
    for (double value : p.boxes) boxes.push_back(static_cast<Acc<T>>(value));
  }

  Params params(bool backward) {
    Params result{};
    result.shape = shape;
    result.boxes = boxes.data();
    if (backward) {
      result.grad_output = grad_output.data();
      result.grad_input = grad_input.data();
    } else {
      result.input = input.data();
      result.output = output.data();
    }
    Op::set_indices(result, argmax.data(), backward);
    return result;
  }

  Result result() const {
    Result values;
    for (int64_t at : output_at) values.output.push_back(to_acc(output[at]));
    for (int64_t at : input_at) values.grad_input.push_back(to_acc(grad_input[at]));
    return values;
  }

  RoiShape shape;
  std::vector<int64_t> input_at, output_at;
  std::vector<T> input, output, grad_output, grad_input;
  std::vector<typename IndexOf<Op>::type> argmax;
  std::vector<Acc<T>> boxes;
};

// How a pass is cut into slices: at once, or item by item from the last to the first.
template <class F>
void over(int64_t items, bool at_once, F&& f) {
  if (at_once) {
    if (items > 0) f(int64_t{0}, items);
    return;
  }
  for (int64_t i = items; i-- > 0;) f(i, i + 1);
}

template <class Op, Isa isa, class T>
void pass_on_cpu(Buffers<Op, T>& buffers, bool backward, bool at_once, int64_t* bad_row = nullptr) {
  auto params = buffers.params(backward);
  const int64_t k = params.shape.boxes;
  std::vector<int64_t> order(k), image_of(k), record_begin(k + 1), image_begin(params.shape.batch + 1);
  params.plan.order = order.data();
  params.plan.image_of = image_of.data();
  params.plan.record_begin = record_begin.data();
  params.plan.image_begin = image_begin.data();
  std::vector<Keyed<uint32_t>> places(2 * k);
  params.plan.places = places.data();
  const int64_t bytes = Op::template layout<isa>(params);
  if (bytes < 0) {
    if (bad_row != nullptr) *bad_row = -1 - bytes;
    return;
  }
  std::vector<char> arena(bytes);
  params.plan.arena = arena.data();
  if (params.shape.channels == 0) return;
  over(k, at_once, [&](int64_t first, int64_t last) { Op::template plan<isa>(params, first, last); });
  if (backward) {
    over(Op::template backward_items<isa>(params), at_once,
         [&](int64_t first, int64_t last) { Op::template backward<isa>(params, first, last); });
  } else if (k > 0) {
    over(Op::template forward_items<isa>(params), at_once,
         [&](int64_t first, int64_t last) { Op::template forward<isa>(params, first, last); });
  }
}

template <class Op, Isa isa, class T>
Result on_cpu(const Problem& p, bool at_once = true) {
  Buffers<Op, T> buffers(p);
  pass_on_cpu<Op, isa>(buffers, false, at_once);
  pass_on_cpu<Op, isa>(buffers, true, at_once);
  return buffers.result();
}

template <class Op, class T>
Result on_emulation(const Problem& p, uint64_t seed) {
  Buffers<Op, T> buffers(p);
  emulation::set_seed(seed);
  const auto forward = buffers.params(false);
  if (p.outputs() > 0) {
    std::vector<char> scratch(Op::scratch(forward));
    emulation::poison(scratch.data(), scratch.size());
    EXPECT_EQ(Op::forward_cuda(forward, scratch.data()), 0) << emulation::last_error_message();
  }
  if (p.inputs() > 0) {
    EXPECT_EQ(Op::backward_cuda(buffers.params(true)), 0) << emulation::last_error_message();
  }
  return buffers.result();
}

// Runs f(result, name) for every backend of this machine.
template <class Op, class T, class F>
void for_each_backend(const Problem& p, F&& f) {
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kV4) f(on_cpu<Op, Isa::kV4, T>(p), "v4");
  if (cpu_isa() >= Isa::kV3) f(on_cpu<Op, Isa::kV3, T>(p), "v3");
#endif
  f(on_cpu<Op, Isa::kBaseline, T>(p), "baseline");
  f(on_emulation<Op, T>(p, 0), "emulated");
  f(on_emulation<Op, T>(p, 7), "emulated, another order");
}

// ---- Comparing

template <class T>
double tolerance() {
  if (std::is_same<T, double>::value) return 1e-12;
  if (std::is_same<T, float>::value) return 1e-5;
  return std::is_same<T, half_t>::value ? 1.0 / 1024 : 1.0 / 128;
}

inline void expect_near(const std::vector<double>& actual, const std::vector<double>& expected, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double scale = 0;
  for (double value : expected) scale = std::max(scale, std::fabs(value));
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_LE(std::fabs(actual[i] - expected[i]), tolerance * (std::fabs(expected[i]) + 0.05 * scale))
        << what << " at " << i << ": " << actual[i] << " expected " << expected[i];
  }
}

// A bad image index: the CPU names the row, CUDA gives what `definition` says of it: nothing.
template <class Op, class T, class Definition>
void expect_bad_image_index_is_harmless(int64_t c, int64_t out_channels, Definition&& definition) {
  for (double index : {2.0, -1.0, 1e9, kNan, kInf}) {
    const Problem p = make(2, c, out_channels, 4, 4, 2, 2, {{0, 0, 0, 3, 3}, {index, 0, 0, 3, 3}, {1, 0, 0, 3, 3}});
    Buffers<Op, T> buffers(p);
    int64_t row = -1;
    pass_on_cpu<Op, Isa::kBaseline>(buffers, false, true, &row);
    EXPECT_EQ(row, 1);
    const Result expected = definition(p), actual = on_emulation<Op, T>(p, 3);
    expect_near(actual.output, expected.output, tolerance<T>(), "output");
    expect_near(actual.grad_input, expected.grad_input, tolerance<T>(), "gradient");
  }
}

// Indices of 16 bits lead to the same values and gradients as those of 32, bit for bit; OpOf<Index> is the Op of either.
template <template <class> class OpOf, class T>
void expect_width_changes_no_bit(Problem p) {
  for (bool channels_last : {false, true}) {
    p.shape.channels_last = channels_last;
    std::vector<Result> wide;
    for_each_backend<OpOf<int32_t>, T>(p, [&](const Result& result, const char*) { wide.push_back(result); });
    size_t next = 0;
    for_each_backend<OpOf<int16_t>, T>(p, [&](const Result& result, const char* backend) {
      EXPECT_EQ(result.output, wide[next].output) << backend;
      EXPECT_EQ(result.grad_input, wide[next].grad_input) << backend;
      ++next;
    });
  }
}

// Neither how work is cut nor the order of threads changes a bit of either result.
template <class Op, class T>
void expect_order_changes_no_bit(Problem p) {
  for (bool channels_last : {false, true}) {
    p.shape.channels_last = channels_last;
    const Result whole = on_cpu<Op, Isa::kBaseline, T>(p, true);
    const Result sliced = on_cpu<Op, Isa::kBaseline, T>(p, false);
    EXPECT_EQ(whole.output, sliced.output);
    EXPECT_EQ(whole.grad_input, sliced.grad_input);
    const Result first = on_emulation<Op, T>(p, 1);
    for (uint64_t seed = 2; seed < 6; ++seed) {
      const Result other = on_emulation<Op, T>(p, seed);
      EXPECT_EQ(first.output, other.output) << "seed " << seed;
      EXPECT_EQ(first.grad_input, other.grad_input) << "seed " << seed;
    }
  }
}

}  // namespace cvk::test
