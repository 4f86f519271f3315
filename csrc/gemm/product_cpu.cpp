// Tapped products on the CPU, each by the form that suits its shape.
#include "gemm/convolution.h"
#include "gemm/depthwise_cpu.h"
#include "gemm/few_pixels_cpu.h"
#include "gemm/grouped_cpu.h"
#include "gemm/plane_map_cpu.h"
#include "gemm/small_map_cpu.h"
#include "gemm/tapped_cpu.h"
#include "gemm/thin_map_cpu.h"
#include "gemm/winograd_cpu.h"

namespace cvk {

template <Isa isa, class T>
int64_t product_items(const TappedProduct<T>& p, int threads, ConvCut& cut) {
  cut = {};
  if (is_depthwise(p.shape)) {
    cut.form = ConvForm::kDepthwise;
    return depthwise_items<isa>(p);
  }
  if (few_pixels_fit<isa>(p)) {
    cut = few_pixels_cut<isa>(p, threads);
    return cut.column_blocks;
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

template <Isa isa, class T>
void product_slice(const TappedProduct<T>& p, const ConvCut& cut, int64_t first, int64_t last) {
  switch (cut.form) {
    case ConvForm::kDepthwise:
      return depthwise_slice<isa>(p, first, last);
    case ConvForm::kFewPixels:
      return few_pixels_slice<isa>(p, cut, first, last);
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

#define CVK_INSTANTIATE(T)                                                                 \
  template int64_t product_items<Isa::CVK_ISA, T>(const TappedProduct<T>&, int, ConvCut&); \
  template void product_slice<Isa::CVK_ISA, T>(const TappedProduct<T>&, const ConvCut&, int64_t, int64_t);
CVK_INSTANTIATE(float)
CVK_INSTANTIATE(double)
CVK_INSTANTIATE(half_t)
CVK_INSTANTIATE(bfloat16_t)
#undef CVK_INSTANTIATE

}  // namespace cvk
