// cvkernels._numpy: how the package was built, and the CPU kernels for NumPy arrays. Knows nothing of torch.
//
// An entry reads its arguments, fills them into Params and runs a kernel on the calling thread, without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "bindings/numpy/entries.h"
#include "common/isa.h"
#include "cvk_build_info.h"

namespace py = pybind11;

namespace cvk::bindings {
namespace {

std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) result.push_back(word);
  return result;
}

const char* tiles_name(Bf16Tiles tiles) {
  return tiles == Bf16Tiles::kAmx ? "amx" : tiles == Bf16Tiles::kEmulated ? "emulated" : "none";
}

py::dict build_info() {
  py::dict info;
  info["version"] = CVK_BUILD_VERSION;
  info["compiler"] = CVK_BUILD_COMPILER;
  info["cpu_isas"] = words(CVK_BUILD_CPU_ISAS);
  info["cpu_isa"] = isa_name(cpu_isa());
  info["cpu_bf16_pairs"] = cpu_bf16_pairs();
  info["cpu_bf16_tiles"] = tiles_name(cpu_bf16_tiles());
  info["cuda_version"] = CVK_BUILD_CUDA_VERSION;
  info["cuda_archs"] = words(CVK_BUILD_CUDA_ARCHS);
  return info;
}

}  // namespace
}  // namespace cvk::bindings

PYBIND11_MODULE(_numpy, module) {
  using namespace cvk::bindings;
  module.doc() = "Torch-free part of cvkernels: build information and CPU kernels for NumPy arrays.";
  module.def("build_info", &build_info);
  define_nms(module);
  define_soft_nms(module);
  define_weighted_nms(module);
  define_matrix_nms(module);
  define_nms_rotated(module);
}
