// What the entries of cvkernels._numpy share: how arguments are read, and results.
//
// An entry words no error: it answers None where an argument is not as wanted, and cvkernels/numpy then says what is wrong
// with it. So a call with good arguments costs no check in Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "common/box_overlap.h"
#include "common/isa.h"
#include "common/numeric.h"
#include "common/parallel.h"

namespace cvk::bindings {

namespace py = pybind11;

// A float array: of doubles where wide, else of floats.
struct Values {
  const void* data = nullptr;
  bool wide = false;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

// The sizes of an array with a value per box: [N] or [B, N]; with columns() one more.
struct Shape {
  int dims = 0;
  std::array<int64_t, 3> sizes{};

  Shape columns(int64_t count) const {
    Shape result = *this;
    result.sizes[static_cast<size_t>(result.dims++)] = count;
    return result;
  }
};

template <class Type>
struct TypeTag {
  using T = Type;
};

// Calls f with a tag of double or float.
template <class F>
auto with_width(bool wide, F&& f) {
  return wide ? f(TypeTag<double>{}) : f(TypeTag<float>{});
}

// Reads arguments; good() stays true while each is as wanted. What it returns for another must not be used. Arrays that are
// contiguous, aligned, in native byte order and of the type wanted are read in place; it holds copies of others.
class Reader {
 public:
  bool good() const { return good_; }
  void want(bool condition) { good_ = good_ && condition; }

  // The size of dimension `dim` of an array of `dims` dimensions.
  int64_t size(py::handle value, int dims, int dim) {
    want(py::isinstance<py::array>(value) && array_of(value).ndim() == dims);
    return good_ ? array_of(value).shape(dim) : 0;
  }

  // float16, float32 or float64, as float or double.
  Values floats(py::handle value, const Shape& shape) {
    const int64_t bytes =
        has_shape(value, shape) && array_of(value).dtype().kind() == 'f' ? array_of(value).itemsize() : 0;
    want(bytes == 2 || bytes == 4 || bytes == 8);
    if (!good_) return {};
    return bytes == 8 ? Values{plain<double>(value), true} : Values{plain<float>(value), false};
  }

  // `values`, read from `value`, as doubles or as floats.
  Values with_type(bool wide, const Values& values, py::handle value) {
    if (!good_ || values.wide == wide) return values;
    if (wide) return {plain<double>(value), true};
    py::array_t<float> narrow(array_of(value).size());
    std::copy_n(values.as<double>(), narrow.size(), narrow.mutable_data());
    held_.push_back(narrow);
    return {narrow.data(), false};
  }

  // uint8, int8, int16, int32 or int64, as int64. None gives null.
  const int64_t* integers(py::handle value, const Shape& shape) {
    if (value.is_none()) return nullptr;
    want(has_shape(value, shape));
    if (!good_) return nullptr;
    const char kind = array_of(value).dtype().kind();
    want(kind == 'i' || (kind == 'u' && array_of(value).itemsize() == 1));
    return good_ ? plain<int64_t>(value) : nullptr;
  }

  double finite(py::handle value) {
    double result = std::numeric_limits<double>::quiet_NaN();
    if (PyFloat_Check(value.ptr())) {
      result = PyFloat_AS_DOUBLE(value.ptr());
    } else if (PyLong_Check(value.ptr())) {
      result = PyLong_AsDouble(value.ptr());
      if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        want(false);
      }
    }
    want(is_finite(result));
    return result;
  }

  double positive(py::handle value) {
    const double result = finite(value);
    want(result > 0);
    return result;
  }

  double not_negative(py::handle value) {
    const double result = finite(value);
    want(result >= 0);
    return result;
  }

  // At least 0.
  int64_t width(py::handle value) {
    want(PyLong_CheckExact(value.ptr()));
    int overflow = 0;
    const int64_t result = good_ ? PyLong_AsLongLongAndOverflow(value.ptr(), &overflow) : 0;
    want(overflow == 0 && result >= 0);
    return result;
  }

  // The most rows of a result without padding: at most `count`, which None stands for.
  int64_t limit(py::handle value, int64_t count) { return value.is_none() ? count : std::min(count, width(value)); }

  bool flag(py::handle value) {
    want(PyLong_Check(value.ptr()) || PyFloat_Check(value.ptr()));  // a bool is an int
    return good_ && PyObject_IsTrue(value.ptr()) == 1;
  }

  // The place of a str among `choices`; an enumeration lists them in the same order.
  template <class Choice, size_t count>
  Choice choice(py::handle value, const std::array<std::string_view, count>& choices) {
    want(PyUnicode_Check(value.ptr()));
    if (!good_) return Choice{};
    Py_ssize_t length = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(value.ptr(), &length);
    if (text == nullptr) PyErr_Clear();  // lone surrogates
    const std::string_view word = text == nullptr ? std::string_view() : std::string_view(text, length);
    const auto found = std::find(choices.begin(), choices.end(), word);
    want(found != choices.end());
    return static_cast<Choice>(found - choices.begin());
  }

 private:
  static py::array array_of(py::handle value) { return py::reinterpret_borrow<py::array>(value); }

  static bool has_shape(py::handle value, const Shape& shape) {
    if (!py::isinstance<py::array>(value)) return false;
    const py::array array = array_of(value);
    return array.ndim() == shape.dims && std::equal(array.shape(), array.shape() + shape.dims, shape.sizes.begin());
  }

  // The data of an array, or of a copy of it that is as the kernels take it.
  template <class T>
  const T* plain(py::handle value) {
    constexpr int kLayout = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    const py::array array = array_of(value);
    const py::dtype dtype = array.dtype();
    if (dtype.num() == py::dtype::num_of<T>() && dtype.byteorder() == '=' && (array.flags() & kLayout) == kLayout) {
      return static_cast<const T*>(array.data());
    }
    const py::array_t<T, kLayout | py::array::forcecast> copy(py::reinterpret_borrow<py::object>(value));
    held_.push_back(copy);
    return copy.data();
  }

  bool good_ = true;
  std::vector<py::object> held_;
};

// ---- what every function of the family takes

struct Candidates {
  Shape rows;
  int64_t batch = 1, count = 0;
  Values boxes, scores;
  const int64_t* classes = nullptr;  // or null

  const int64_t* classes_of(int64_t image) const { return classes == nullptr ? nullptr : classes + image * count; }
};

// Boxes [N, columns], or [B, N, columns] with dims 3. `columns` 0: an array [N, N] in place of the boxes.
inline Candidates read_candidates(Reader& read, int dims, int64_t columns, py::handle boxes, py::handle scores,
                                  py::handle idxs) {
  Candidates result;
  if (dims == 3) {
    result.batch = read.size(boxes, dims, 0);
    result.rows = result.rows.columns(result.batch);
  }
  result.count = read.size(boxes, dims, dims - 2);
  result.rows = result.rows.columns(result.count);
  read.want(result.count <= std::numeric_limits<int32_t>::max());
  result.boxes = read.floats(boxes, result.rows.columns(columns == 0 ? result.count : columns));
  result.scores = read.floats(scores, result.rows);
  result.classes = read.integers(idxs, result.rows);
  return result;
}

// The same with boxes and scores of one type: double where one of the two is.
inline Candidates of_one_type(Reader& read, const Candidates& candidates, py::handle boxes, py::handle scores) {
  const bool wide = candidates.boxes.wide || candidates.scores.wide;
  Candidates result = candidates;
  result.boxes = read.with_type(wide, candidates.boxes, boxes);
  result.scores = read.with_type(wide, candidates.scores, scores);
  return result;
}

struct Overlap {
  OverlapCriterion criterion = OverlapCriterion::kIou;
  double beta = 1;

  template <class A>
  OverlapRule<A> rule() const {
    return {criterion, positive_parameter<A>(beta)};
  }
};

inline Overlap read_overlap(Reader& read, py::handle criterion, py::handle beta) {
  constexpr std::array<std::string_view, 4> kCriteria{"iou", "giou", "diou", "ciou"};
  const auto place = read.choice<OverlapCriterion>(criterion, kCriteria);
  return {place, read.positive(beta)};
}

// ---- results

// Uninitialised memory of a call; of a few values on the stack.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    if (count > kSmall) large_.reset(new T[static_cast<size_t>(count)]);
  }
  T* get() { return large_ != nullptr ? large_.get() : small_; }

 private:
  static constexpr int64_t kSmall = 128;
  T small_[kSmall];
  std::unique_ptr<T[]> large_;
};

template <class T>
py::array_t<T> empty(std::initializer_list<int64_t> sizes) {
  int64_t bytes = sizeof(T);
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes)) throw std::bad_alloc();
  }
  return py::array_t<T>(py::array::ShapeContainer(sizes.begin(), sizes.end()));
}

template <class T>
py::array_t<T> copied(const T* values, int64_t count) {
  py::array_t<T> result = empty<T>({count});
  if (count > 0) std::memcpy(result.mutable_data(), values, static_cast<size_t>(count) * sizeof(T));
  return result;
}

// Rows of `columns` values at `index`, which is in range; without columns a value each.
inline py::array taken(const Values& values, const int64_t* index, int64_t count, int64_t columns = 0) {
  return with_width(values.wide, [&](auto type) -> py::array {
    using T = typename decltype(type)::T;
    const T* const from = values.as<T>();
    if (columns == 0) {
      py::array_t<T> result = empty<T>({count});
      T* const to = result.mutable_data();
      for (int64_t row = 0; row < count; ++row) to[row] = from[index[row]];
      return std::move(result);
    }
    py::array_t<T> result = empty<T>({count, columns});
    T* const to = result.mutable_data();
    for (int64_t row = 0; row < count; ++row) std::copy_n(from + index[row] * columns, columns, to + row * columns);
    return std::move(result);
  });
}

// Runs f without the GIL; f takes the instruction set of this machine.
template <class F>
void without_gil(F&& f) {
  const py::gil_scoped_release release;
  with_cpu_isa(f);
}

}  // namespace cvk::bindings
