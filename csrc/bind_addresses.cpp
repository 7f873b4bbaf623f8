// SPDX-License-Identifier: Apache-2.0
// Where many tensors lie, for Python to compare: one call in place of several attributes of each.
#include <cstdint>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace sniper {
namespace {

py::object checked(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// A method of tensors, since torch's structs differ from version to version. It refuses what is no tensor.
PyObject* method(const char* name) {
  return py::object(py::module_::import("torch").attr("Tensor").attr(name)).release().ptr();
}

py::object call(PyObject* method, py::handle tensor) {
  PyObject* const self = tensor.ptr();
  return checked(PyObject_Vectorcall(method, &self, 1, nullptr));
}

// 0 for None.
int64_t address(py::handle tensor) {
  // Found once, since looking for it takes a third of calling it.
  static PyObject* const data_ptr = method("data_ptr");
  return tensor.is_none() ? 0 : call(data_ptr, tensor).cast<int64_t>();
}

void add_strides(std::vector<int64_t>& numbers, py::handle tensor) {
  static PyObject* const stride = method("stride");
  const py::tuple strides(call(stride, tensor));
  numbers.push_back(strides.size());
  for (const py::handle each : strides) numbers.push_back(each.cast<int64_t>());
}

py::bytes packed(const std::vector<int64_t>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int64_t)};
}

py::bytes addresses(const py::list& tensors) {
  std::vector<int64_t> numbers;
  numbers.reserve(tensors.size());
  for (const py::handle tensor : tensors) numbers.push_back(address(tensor));
  return packed(numbers);
}

py::bytes optimizer_places(const py::list& params, const py::dict& states, const py::tuple& names) {
  static PyObject* const grad_name = PyUnicode_InternFromString("grad");
  static PyObject* const is_cuda_name = PyUnicode_InternFromString("is_cuda");
  static PyObject* const element_size = method("element_size");
  std::vector<int64_t> numbers;
  numbers.reserve(12 * params.size());
  for (const py::handle p : params) {
    numbers.push_back(address(p));
    add_strides(numbers, p);
    const py::object grad = checked(PyObject_GetAttr(p.ptr(), grad_name));
    if (grad.is_none()) {
      numbers.push_back(-1);
      continue;
    }
    numbers.push_back(call(element_size, grad).cast<int64_t>());
    add_strides(numbers, grad);
    const bool on_gpu = checked(PyObject_GetAttr(p.ptr(), is_cuda_name)).ptr() == Py_True;
    numbers.push_back(on_gpu ? address(grad) : 0);
  }
  // Not looked up by parameter: a tensor's hash is a function of Python.
  for (const auto& [p, state] : states) {
    numbers.push_back(reinterpret_cast<int64_t>(p.ptr()));
    for (const py::handle name : names) {
      PyObject* const tensor = PyDict_GetItemWithError(state.ptr(), name.ptr());
      if (!tensor && PyErr_Occurred()) throw py::error_already_set();
      numbers.push_back(tensor ? address(tensor) : 0);
    }
  }
  return packed(numbers);
}

}  // namespace

void bind_addresses(py::module_& m) {
  m.def("addresses", &addresses, "int64 of each tensor of a list: its address; 0 for None.");
  m.def("optimizer_places", &optimizer_places,
        "int64: of each parameter its address and strides, its gradient's bytes of a number and strides and, on a GPU, "
        "the gradient's address; "
        "of each state of an optimizer its parameter and the addresses of the tensors that are named.");
}

}  // namespace sniper
