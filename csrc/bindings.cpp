// SPDX-License-Identifier: Apache-2.0
// The only file that knows Python. Pointers arrive as integers; shapes, dtypes and devices were checked by the caller.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "mask_bits.h"

namespace py = pybind11;

namespace {

template <typename T>
T* as(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_mask_bits(py::module_& m) {
  m.def(
      "pack_bits",
      [](uintptr_t values, int64_t n, uintptr_t bits) {
        sniper::pack_bits(as<const uint8_t>(values), n, as<uint8_t>(bits));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "unpack_bits",
      [](uintptr_t bits, int64_t n, uintptr_t values) {
        sniper::unpack_bits(as<const uint8_t>(bits), n, as<uint8_t>(values));
      },
      py::call_guard<py::gil_scoped_release>());
#ifdef SNIPER_WITH_CUDA
  m.def("pack_bits_cuda", [](uintptr_t values, int64_t n, uintptr_t bits, uintptr_t stream) {
    sniper::pack_bits_cuda(as<const uint8_t>(values), n, as<uint8_t>(bits), as<void>(stream));
  });
  m.def("unpack_bits_cuda", [](uintptr_t bits, int64_t n, uintptr_t values, uintptr_t stream) {
    sniper::unpack_bits_cuda(as<const uint8_t>(bits), n, as<uint8_t>(values), as<void>(stream));
  });
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
#ifdef SNIPER_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  bind_mask_bits(m);
}
