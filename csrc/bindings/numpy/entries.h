// The entries of cvkernels._numpy, a function for each operator's file.
#pragma once

#include <pybind11/pybind11.h>

namespace cvk::bindings {

void define_nms(pybind11::module_& module);
void define_soft_nms(pybind11::module_& module);
void define_weighted_nms(pybind11::module_& module);
void define_matrix_nms(pybind11::module_& module);
void define_nms_rotated(pybind11::module_& module);

}  // namespace cvk::bindings
