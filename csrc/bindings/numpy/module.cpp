// cvkernels._numpy: how the package was built, and the CPU kernels for NumPy arrays. Knows nothing of torch.
//
// cvkernels/numpy.py has checked the arguments and made the arrays contiguous; here they are filled into Params and run,
// without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "common/box_overlap.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "cvk_build_info.h"
#include "kernels/nms/nms.h"

namespace py = pybind11;

namespace cvk::bindings {
namespace {

std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) result.push_back(word);
  return result;
}

py::dict build_info() {
  py::dict info;
  info["version"] = CVK_BUILD_VERSION;
  info["compiler"] = CVK_BUILD_COMPILER;
  info["cpu_isas"] = words(CVK_BUILD_CPU_ISAS);
  info["cpu_isa"] = isa_name(cpu_isa());
  info["cuda_version"] = CVK_BUILD_CUDA_VERSION;
  info["cuda_archs"] = words(CVK_BUILD_CUDA_ARCHS);
  return info;
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// boxes [N, 4], scores [N], max_output >= 0 -> kept indices by descending score. On the calling thread.
template <class A, class S>
py::array_t<int64_t> nms(const Array<A>& boxes, const Array<S>& scores, double iou_threshold, int64_t max_output) {
  NmsParams<A, S> params{};
  params.count = scores.shape(0);
  params.boxes = boxes.data();
  params.scores = scores.data();
  params.threshold = overlap_threshold<A>(iou_threshold);
  params.max_output = max_output;
  std::vector<int64_t> keep(static_cast<size_t>(std::min(params.count, max_output)));
  params.keep = keep.data();
  int64_t kept = 0;
  {
    py::gil_scoped_release release;
    kept = with_cpu_isa([&](auto isa) { return nms_cpu<decltype(isa)::value>(params, Parallel{}); });
  }
  return py::array_t<int64_t>(kept, keep.data());
}

template <class A, class S>
void define_nms(py::module_& module) {
  // noconvert: a silent copy here would hide a dtype that the Python side did not settle.
  module.def("nms", &nms<A, S>, py::arg("boxes").noconvert(), py::arg("scores").noconvert(), py::arg("iou_threshold"),
             py::arg("max_output"));
}

}  // namespace
}  // namespace cvk::bindings

PYBIND11_MODULE(_numpy, module) {
  using namespace cvk::bindings;
  module.doc() = "Torch-free part of cvkernels: build information and CPU kernels for NumPy arrays.";
  module.def("build_info", &build_info);
  define_nms<float, float>(module);
  define_nms<float, double>(module);
  define_nms<double, float>(module);
  define_nms<double, double>(module);
}
