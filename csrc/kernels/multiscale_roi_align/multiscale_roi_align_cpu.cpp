// Levels of boxes on the CPU. Contract: multiscale_roi_align.h; pooling is RoI Align's (kernels/roi_align).
#include "kernels/multiscale_roi_align/multiscale_roi_align.h"

namespace cvk {

template <Isa isa, class A>
void multiscale_roi_align_levels_cpu(const MultiscaleRoiAlignLevelsParams<A>& params, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) {
    params.output[k] = roi_level_of_area(roi_level_area(params.boxes + k * 5), params.least_area, params.levels);
  }
}

template void multiscale_roi_align_levels_cpu<Isa::CVK_ISA, float>(const MultiscaleRoiAlignLevelsParams<float>&,
                                                                   int64_t, int64_t);
template void multiscale_roi_align_levels_cpu<Isa::CVK_ISA, double>(const MultiscaleRoiAlignLevelsParams<double>&,
                                                                    int64_t, int64_t);

}  // namespace cvk
