#include "kernels/multiscale_roi_align/multiscale_roi_align.h"

#include <array>
#include <optional>
#include <vector>

#include "bindings/torch/roi_align_run.h"
#include "kernels/multiscale_roi_align/multiscale_roi_align_math.h"

namespace cvk::bindings {
namespace {

constexpr char kOp[] = "multiscale_roi_align";

using Tensors = std::vector<Tensor>;
using Scales = std::vector<double>;
using Sizes = std::vector<int64_t>;

// ---- checks, in the order of cvkernels/_checks/roi.py

void check_count(size_t levels) {
  if (levels < 1 || levels > kRoiMaxLevels) {
    reject(kOp, "features of 1 to ", kRoiMaxLevels, " levels, got ", levels);
  }
}

void check_features(const Tensors& features) {
  check_count(features.size());
  const Tensor& first = features[0];
  for (size_t i = 0; i < features.size(); ++i) {
    const Tensor& map = features[i];
    const std::string name = "features[" + std::to_string(i) + "]";
    if (map.dim() != 4) reject(kOp, name, " of shape (N, C, H, W), got ", shape_text(map));
    check_float(kOp, name.c_str(), map);
    if (i == 0) continue;
    if (map.size(0) != first.size(0) || map.size(1) != first.size(1)) {
      reject(kOp, name, " of shape (", first.size(0), ", ", first.size(1), ", H, W) as features[0], got ",
             shape_text(map));
    }
    check_same_dtype(kOp, name.c_str(), map, "features[0]", first);
    check_same_device(kOp, name.c_str(), map, "features[0]", first);
  }
}

void check_levels(const Tensor& levels, const Tensor& boxes) {
  if (levels.dim() != 1 || levels.size(0) != boxes.size(0)) {
    reject(kOp, "levels of shape (", boxes.size(0), ",), got ", shape_text(levels));
  }
  check_integer(kOp, "levels", levels);
  check_same_device(kOp, "levels", levels, "boxes", boxes);
}

void check_scales(const char* op, const Scales& scales, size_t levels, bool by_size) {
  if (scales.size() != levels) reject(op, "spatial_scales of ", levels, " values, got ", scales.size());
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!is_finite(scales[i]) || scales[i] <= 0) {
      reject(op, "spatial_scales[", i, "] to be finite and positive, got ", number_text(scales[i]));
    }
    if (by_size && i > 0 && scales[i] > scales[i - 1]) {
      reject(op, "spatial_scales[", i, "] of at most spatial_scales[", i - 1, "] (", number_text(scales[i - 1]),
             "), got ", number_text(scales[i]));
    }
  }
}

void check_canonical(const char* op, double canonical_scale, int64_t canonical_level) {
  if (!is_finite(canonical_scale) || canonical_scale <= 0) {
    reject(op, "canonical_scale to be finite and positive, got ", number_text(canonical_scale));
  }
  if (canonical_level != static_cast<int32_t>(canonical_level)) {
    reject(op, "canonical_level from -2^31 to 2^31 - 1, got ", canonical_level);
  }
}

// ---- what forward and backward share

// Torch's functions on the CPU, in place: the levels are torchvision's, whichever way the library beneath it rounds.
template <class A>
class TorchFunctions {
 public:
  void sqrt(A* values, int n) const { call("aten::sqrt_", values, n); }
  void log2(A* values, int n) const { call("aten::log2_", values, n); }

 private:
  static void call(const char* function, A* values, int n) {
    if (n == 0) return;
    const int64_t size = n, stride = 1;
    const Tensor view =
        torch::stable::from_blob(values, torch::headeronly::IntHeaderOnlyArrayRef(&size, 1),
                                 torch::headeronly::IntHeaderOnlyArrayRef(&stride, 1),
                                 torch::stable::Device(torch::headeronly::DeviceType::CPU), kScalarType<A>);
    std::array<StableIValue, 1> stack{torch::stable::detail::from(view)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(function, "", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);
  }
};

template <class A>
void fill_least_areas(const Scales& scales, double canonical_scale, int64_t canonical_level, A* least_area) {
  const TorchFunctions<A> functions;
  const LevelRule<A, TorchFunctions<A>> rule(canonical_scale, canonical_level, functions);
  rule.least_areas(scales.data(), static_cast<int>(scales.size()), least_area);
}

// How the boxes of a call find their levels.
struct Rule {
  const std::optional<Tensor>& levels;
  const Scales& scales;
  double canonical_scale;
  int64_t canonical_level;

  void check(size_t count, const Tensor& boxes) const {
    if (levels) check_levels(*levels, boxes);
    check_scales(kOp, scales, count, !levels);
    check_canonical(kOp, canonical_scale, canonical_level);
  }
};

// The levels that are given, as the kernels read them; an empty one where there are none.
std::optional<Tensor> given_levels(const Rule& rule) {
  if (!rule.levels) return std::nullopt;
  return converted(*rule.levels, ScalarType::Long);
}

// Params of a pass but for its maps' memory and its own tensors.
template <class T>
RoiAlignParams<T> params_of(const std::vector<RoiShape>& shapes, const Rule& rule, const std::optional<Tensor>& given,
                            const Tensor& coordinates) {
  RoiAlignParams<T> params{};
  params.shape = shapes[0];
  params.boxes = data<Acc<T>>(coordinates);
  params.levels.count = static_cast<int>(shapes.size());
  for (size_t i = 0; i < shapes.size(); ++i) {
    params.levels.maps[i] = {nullptr, nullptr, shapes[i].height, shapes[i].width, shapes[i].spatial_scale};
  }
  if (given) {
    params.levels.given = data<int64_t>(*given);
  } else if (params.levels.count > 1) {
    fill_least_areas(rule.scales, rule.canonical_scale, rule.canonical_level, params.levels.least_area);
  }
  return params;
}

// As the first map lies whose strides can tell contiguous from channels-last.
bool maps_are_channels_last(const Tensors& features) {
  for (const Tensor& map : features) {
    if (map.size(1) > 1 && map.size(2) * map.size(3) > 1) return is_channels_last(map);
  }
  return false;
}

// ---- operators

struct Forward {
  Tensor output, argmax;
};

Forward forward_checked(const Tensors& features, const Tensor& boxes, const Rule& rule, int64_t pooled_height,
                        int64_t pooled_width, int64_t sampling_ratio, bool aligned, bool maximum) {
  check_features(features);
  check_roi_boxes(kOp, boxes, "features[0]", features[0]);
  rule.check(features.size(), boxes);
  const bool channels_last = maps_are_channels_last(features);
  std::vector<RoiShape> shapes;
  Tensors maps;
  for (size_t i = 0; i < features.size(); ++i) {
    const Tensor& map = features[i];
    shapes.push_back(roi_shape(kOp,
                               {map.size(0), map.size(1), map.size(2), map.size(3), boxes.size(0), rule.scales[i],
                                pooled_height, pooled_width, sampling_ratio, aligned},
                               channels_last));
    maps.push_back(dense(map, channels_last));
  }
  const Tensor& first = features[0];
  Forward result;
  result.output = allocate_pooled(shapes[0], first.scalar_type(), first);
  if (maximum) result.argmax = allocate_pooled(shapes[0], ScalarType::Int, first);
  with_float(kOp, "features[0]", first, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    const std::optional<Tensor> given = given_levels(rule);
    RoiAlignParams<T> params = params_of<T>(shapes, rule, given, coordinates);
    for (size_t i = 0; i < maps.size(); ++i) params.levels.maps[i].input = data<T>(maps[i]);
    params.output = mutable_data<T>(result.output);
    params.argmax = maximum ? mutable_data<int32_t>(result.argmax) : nullptr;
    run_roi_align_forward(kOp, params, first);
  });
  return result;
}

Tensors backward_checked(const Tensor& grad, const Tensor* argmax, const Tensor& boxes, const Rule& rule,
                         int64_t pooled_height, int64_t pooled_width, int64_t batch, int64_t channels,
                         const Sizes& heights, const Sizes& widths, int64_t sampling_ratio, bool aligned) {
  check_count(heights.size());
  if (widths.size() != heights.size()) reject(kOp, "widths of ", heights.size(), " values, got ", widths.size());
  check_float(kOp, "grad", grad);
  check_roi_boxes(kOp, boxes, "grad", grad);
  check_roi_pooled(kOp, "grad", grad, boxes.size(0), channels, pooled_height, pooled_width);
  if (argmax != nullptr) check_roi_argmax(kOp, *argmax, grad);
  rule.check(heights.size(), boxes);
  const bool channels_last = is_channels_last(grad);
  std::vector<RoiShape> shapes;
  Tensors gradients;
  for (size_t i = 0; i < heights.size(); ++i) {
    shapes.push_back(roi_shape(kOp,
                               {batch, channels, heights[i], widths[i], boxes.size(0), rule.scales[i], pooled_height,
                                pooled_width, sampling_ratio, aligned},
                               channels_last));
    gradients.push_back(allocate({batch, channels, heights[i], widths[i]}, grad.scalar_type(), grad, channels_last));
  }
  const Tensor upstream = dense(grad, channels_last);
  const Tensor indices = argmax != nullptr ? dense(*argmax, channels_last) : upstream;
  with_float(kOp, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::T;
    const Tensor coordinates = converted(boxes, kScalarType<Acc<T>>);
    const std::optional<Tensor> given = given_levels(rule);
    RoiAlignParams<T> params = params_of<T>(shapes, rule, given, coordinates);
    params.grad_output = data<T>(upstream);
    params.saved_argmax = argmax != nullptr ? data<int32_t>(indices) : nullptr;
    for (size_t i = 0; i < gradients.size(); ++i) params.levels.maps[i].grad_input = mutable_data<T>(gradients[i]);
    if (batch > 0 && channels > 0) run_roi_align_backward(kOp, params, grad);
  });
  return gradients;
}

Tensor multiscale_roi_align(const Tensors& features, const Tensor& boxes, const std::optional<Tensor>& levels,
                            const Scales& spatial_scales, int64_t pooled_height, int64_t pooled_width,
                            int64_t sampling_ratio, bool aligned, double canonical_scale, int64_t canonical_level) {
  const Rule rule{levels, spatial_scales, canonical_scale, canonical_level};
  return forward_checked(features, boxes, rule, pooled_height, pooled_width, sampling_ratio, aligned, false).output;
}

std::tuple<Tensor, Tensor> multiscale_roi_align_max(const Tensors& features, const Tensor& boxes,
                                                    const std::optional<Tensor>& levels, const Scales& spatial_scales,
                                                    int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                                                    bool aligned, double canonical_scale, int64_t canonical_level) {
  const Rule rule{levels, spatial_scales, canonical_scale, canonical_level};
  Forward result = forward_checked(features, boxes, rule, pooled_height, pooled_width, sampling_ratio, aligned, true);
  return {result.output, result.argmax};
}

Tensors multiscale_roi_align_backward(const Tensor& grad, const Tensor& boxes, const std::optional<Tensor>& levels,
                                      const Scales& spatial_scales, int64_t pooled_height, int64_t pooled_width,
                                      int64_t batch_size, int64_t channels, const Sizes& heights, const Sizes& widths,
                                      int64_t sampling_ratio, bool aligned, double canonical_scale,
                                      int64_t canonical_level) {
  const Rule rule{levels, spatial_scales, canonical_scale, canonical_level};
  return backward_checked(grad, nullptr, boxes, rule, pooled_height, pooled_width, batch_size, channels, heights,
                          widths, sampling_ratio, aligned);
}

Tensors multiscale_roi_align_max_backward(const Tensor& grad, const Tensor& argmax, const Tensor& boxes,
                                          const std::optional<Tensor>& levels, const Scales& spatial_scales,
                                          int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                                          int64_t channels, const Sizes& heights, const Sizes& widths,
                                          int64_t sampling_ratio, bool aligned, double canonical_scale,
                                          int64_t canonical_level) {
  const Rule rule{levels, spatial_scales, canonical_scale, canonical_level};
  return backward_checked(grad, &argmax, boxes, rule, pooled_height, pooled_width, batch_size, channels, heights,
                          widths, sampling_ratio, aligned);
}

Tensor multiscale_roi_align_levels(const Tensor& boxes, const Scales& spatial_scales, double canonical_scale,
                                   int64_t canonical_level) {
  constexpr char kName[] = "roi_levels";
  constexpr int64_t kOperations = 20;
  check_roi_boxes(kName, boxes, "boxes", boxes);
  if (spatial_scales.empty() || spatial_scales.size() > kRoiMaxLevels) {
    reject(kName, "spatial_scales of 1 to ", kRoiMaxLevels, " values, got ", spatial_scales.size());
  }
  check_scales(kName, spatial_scales, spatial_scales.size(), true);
  check_canonical(kName, canonical_scale, canonical_level);
  const Tensor levels = allocate({boxes.size(0)}, ScalarType::Long, boxes);
  with_float(kName, "boxes", boxes, [&](auto type) {
    using A = Acc<typename decltype(type)::T>;
    const Tensor coordinates = converted(boxes, kScalarType<A>);
    MultiscaleRoiAlignLevelsParams<A> params{};
    params.boxes = data<A>(coordinates);
    params.count = boxes.size(0);
    params.levels = static_cast<int>(spatial_scales.size());
    params.output = mutable_data<int64_t>(levels);
    fill_least_areas(spatial_scales, canonical_scale, canonical_level, params.least_area);
    run(
        kName, boxes, work_of(params.count, kOperations * params.count),
        [&](auto isa, int64_t first, int64_t last) { multiscale_roi_align_levels_cpu<isa.value>(params, first, last); },
        [&](CudaStream stream) { return multiscale_roi_align_levels_cuda(params, stream); });
  });
  return levels;
}

}  // namespace

CVK_SCHEMAS(m) {
  m.def(
      "multiscale_roi_align(Tensor[] features, Tensor boxes, Tensor? levels, float[] spatial_scales, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned, float canonical_scale, "
      "int canonical_level) -> Tensor");
  m.def(
      "multiscale_roi_align_max(Tensor[] features, Tensor boxes, Tensor? levels, float[] spatial_scales, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned, float canonical_scale, "
      "int canonical_level) -> (Tensor output, Tensor argmax)");
  m.def(
      "multiscale_roi_align_backward(Tensor grad, Tensor boxes, Tensor? levels, float[] spatial_scales, "
      "SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt[] heights, "
      "SymInt[] widths, int sampling_ratio, bool aligned, float canonical_scale, int canonical_level) -> Tensor[]");
  m.def(
      "multiscale_roi_align_max_backward(Tensor grad, Tensor argmax, Tensor boxes, Tensor? levels, "
      "float[] spatial_scales, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, "
      "SymInt[] heights, SymInt[] widths, int sampling_ratio, bool aligned, float canonical_scale, "
      "int canonical_level) -> Tensor[]");
  m.def(
      "multiscale_roi_align_levels(Tensor boxes, float[] spatial_scales, float canonical_scale, int canonical_level) "
      "-> Tensor");
}

CVK_KERNELS(m) {
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align));
  m.impl("multiscale_roi_align_max", TORCH_BOX(&multiscale_roi_align_max));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward));
  m.impl("multiscale_roi_align_max_backward", TORCH_BOX(&multiscale_roi_align_max_backward));
  m.impl("multiscale_roi_align_levels", TORCH_BOX(&multiscale_roi_align_levels));
}

}  // namespace cvk::bindings
