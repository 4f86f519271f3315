// Gradients of weights on the CPU, each by the form that suits its shape.
#include "gemm/convolution.h"
#include "gemm/depthwise_weight_cpu.h"
#include "gemm/few_pixels_cpu.h"
#include "gemm/grouped_weight_cpu.h"
#include "gemm/plane_weight_cpu.h"
#include "gemm/tapped_weight_cpu.h"
#include "gemm/winograd_weight_cpu.h"

namespace cvk {

template <Isa isa, class T>
int64_t weight_gradient_items(const TappedWeightGradient<T>& p, ConvCut& cut) {
  if (is_depthwise(p.shape)) {
    cut = {};
    cut.form = ConvForm::kDepthwise;
    cut.parts = depthwise_weight_parts(p.shape);
    return depthwise_weight_items(p.shape, cut.parts);
  }
  if (few_pixels_fit<isa>(p)) {
    cut = few_pixels_cut(p);
    return cut.column_blocks;
  }
  const bool winograd = winograd_weight_pays<isa, T>(p.shape);
  // Perf: 16 to 24 channels of a group, channels-last, 8 images: 1.1 to 1.35 times as fast as from windows; planes 0.8 to 1.03 times.
  if (of_small_groups(p.shape) && !(winograd && p.shape.channels_last)) {
    const GroupedWeightPlan<isa, T> plan(p.shape);
    if (grouped_weight_pays(p.shape, plan)) {
      cut = grouped_weight_cut(p.shape, plan);
      return grouped_weight_items(cut);
    }
  }
  if (plane_weight_pays<T>(p.shape)) {
    cut = plane_weight_cut<isa, T>(p.shape);
    return weight_items(p.shape, cut);
  }
  cut = winograd ? winograd_weight_cut<isa, T>(p.shape) : weight_cut<isa, T>(p.shape);
  return weight_items(p.shape, cut);
}

template <Isa isa, class T>
void weight_gradient_slice(const TappedWeightGradient<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  switch (cut.form) {
    case ConvForm::kDepthwise:
      return depthwise_weight_slice<isa>(p, cut.parts, first, last);
    case ConvForm::kFewPixels:
      if constexpr (std::is_same_v<T, Acc<T>>) return few_pixels_slice<isa>(p, cut, first, last);
      return;  // not in half formats: few_pixels_fit
    case ConvForm::kGrouped:
      return form_slice<GroupedWeights<isa, T>>(p, cut, first, last);
    case ConvForm::kPlaneMap:
      if constexpr (std::is_same_v<T, Acc<T>>) return form_slice<PlaneWeights<isa, T>>(p, cut, first, last);
      return;  // not in half formats: plane_weight_pays
    case ConvForm::kWinograd:
      if constexpr (!std::is_same_v<T, double>) return form_slice<WinogradWeights<isa, T>>(p, cut, first, last);
      return;  // not in float64: winograd_weight_pays
    default:
      return weight_gradient<isa>(p, cut, first, last);
  }
}

template <Isa isa, class T>
void sum_weight_parts(const TappedWeightGradient<T>& p, int64_t parts, int64_t first, int64_t last) {
  using S = Simd<isa, Acc<T>>;
  const int64_t weights = p.shape.weights();
  for (int64_t i = first; i < last; i += S::kLanes) {
    const int count = static_cast<int>(min_of<int64_t>(S::kLanes, last - i));
    const auto load = [&](int64_t part) {
      const Acc<T>* from = p.partials + part * weights + i;
      return count == S::kLanes ? S::load(from) : S::load_partial(from, count);
    };
    typename S::Vec sum = load(0);
    for (int64_t part = 1; part < parts; ++part) sum = sum + load(part);
    S::store_partial(p.grad_weight + i, sum, count);
  }
}

#define CVK_INSTANTIATE(T)                                                                                      \
  template int64_t weight_gradient_items<Isa::CVK_ISA, T>(const TappedWeightGradient<T>&, ConvCut&);            \
  template void weight_gradient_slice<Isa::CVK_ISA, T>(const TappedWeightGradient<T>&, const ConvCut&, int64_t, \
                                                       int64_t);                                                \
  template void sum_weight_parts<Isa::CVK_ISA, T>(const TappedWeightGradient<T>&, int64_t, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
