// The passes of a convolution on the CPU, each with the kernel that suits its shape: how many work items it has, and a slice of
// them.
#pragma once

#include <cstdint>

#include "gemm/depthwise_cpu.h"
#include "gemm/depthwise_weight_cpu.h"
#include "gemm/grouped_cpu.h"
#include "gemm/grouped_weight_cpu.h"
#include "gemm/plane_map_cpu.h"
#include "gemm/plane_weight_cpu.h"
#include "gemm/small_map_cpu.h"
#include "gemm/tapped_cpu.h"
#include "gemm/tapped_weight_cpu.h"
#include "gemm/thin_map_cpu.h"
#include "gemm/winograd_cpu.h"

namespace cvk {

template <Isa isa, class T>
CVK_HD int64_t product_items(const TappedProduct<T>& p, int threads, ConvCut& cut) {
  cut = {};
  if (is_depthwise(p.shape)) {
    cut.form = ConvForm::kDepthwise;
    return depthwise_items<isa>(p);
  }
  if (is_dot_product(p)) {
    cut.form = ConvForm::kDot;
    return dot_product_items(p);
  }
  if (const WindowPlan plan = grouped_plan<isa>(p); plan.rows > 0) {
    cut = grouped_cut(p, plan, threads);
    return grouped_items(p, cut);
  }
  if (plane_map_fits<isa>(p)) {
    cut = plane_map_cut<isa>(p, threads);
    return tapped_items(p, cut);
  }
  const int64_t products = tapped_cycles<isa>(p);
  if (thin_map_pays<isa>(p, products)) {
    cut = thin_map_cut<isa>(p);
    return tapped_items(p, cut);
  }
  const bool small_map = small_map_pays<isa>(p, products);
  if (winograd_pays<isa>(p, small_map ? small_map_cycles<isa>(p) : products)) {
    cut = winograd_cut<isa>(p, threads);
  } else if (small_map) {
    cut = small_map_cut<isa>(p, threads);
  } else {
    cut = tapped_cut<isa>(p, threads);
  }
  return tapped_items(p, cut);
}

// A slice of the work items of a form that is a class.
template <class Form, class Problem>
CVK_HD void form_slice(const Problem& p, const ConvCut& cut, int64_t first, int64_t last) {
  Form form(p, cut);
  for (int64_t index = first; index < last; ++index) form.item(index);
}

template <Isa isa, class T>
CVK_HD void product_slice(const TappedProduct<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  switch (cut.form) {
    case ConvForm::kDepthwise:
      return depthwise_slice<isa>(p, first, last);
    case ConvForm::kDot:
      return dot_product<isa>(p, first, last);
    case ConvForm::kThinMap:
      return form_slice<ThinMap<isa, T>>(p, cut, first, last);
    case ConvForm::kGrouped:
      return form_slice<Grouped<isa, T>>(p, cut, first, last);
    case ConvForm::kPlaneMap:
      if constexpr (std::is_same_v<T, Acc<T>>) return form_slice<PlaneMap<isa, T>>(p, cut, first, last);
      return;  // not in half formats: plane_map_fits
    case ConvForm::kSmallMap:
      if constexpr (std::is_same_v<T, Acc<T>>) return form_slice<SmallMap<isa, T>>(p, cut, first, last);
      return;  // not in half formats: small_map_fits
    case ConvForm::kWinograd:
      if constexpr (!std::is_same_v<T, double>) return form_slice<Winograd<isa, T>>(p, cut, first, last);
      return;  // not in float64: winograd_pays
    case ConvForm::kTapped:
      return tapped_product<isa>(p, cut, first, last);
  }
}

template <Isa isa, class T>
CVK_HD int64_t weight_gradient_items(const TappedWeightGradient<T>& p, ConvCut& cut) {
  if (is_depthwise(p.shape)) {
    cut = {};
    cut.form = ConvForm::kDepthwise;
    cut.parts = depthwise_weight_parts(p.shape);
    return depthwise_weight_items(p.shape, cut.parts);
  }
  if (of_small_groups(p.shape)) {
    const GroupedWeightPlan<isa, T> plan(p.shape);
    if (grouped_weight_pays(p.shape, plan)) {
      cut = grouped_weight_cut(p.shape, plan);
      return grouped_weight_items(cut);
    }
  }
  if (plane_weight_pays<T>(p.shape)) {
    cut = plane_weight_cut<isa, T>(p.shape);
    return plane_weight_items(p.shape, cut);
  }
  cut = weight_cut<isa, T>(p.shape);
  return weight_items(p.shape, cut);
}

template <Isa isa, class T>
CVK_HD void weight_gradient_slice(const TappedWeightGradient<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  switch (cut.form) {
    case ConvForm::kDepthwise:
      return depthwise_weight_slice<isa>(p, cut.parts, first, last);
    case ConvForm::kGrouped:
      return form_slice<GroupedWeights<isa, T>>(p, cut, first, last);
    case ConvForm::kPlaneMap:
      if constexpr (std::is_same_v<T, Acc<T>>) return form_slice<PlaneWeights<isa, T>>(p, cut, first, last);
      return;  // not in half formats: plane_weight_pays
    default:
      return weight_gradient<isa>(p, cut, first, last);
  }
}

}  // namespace cvk
