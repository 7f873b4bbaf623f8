// SPDX-License-Identifier: Apache-2.0
// The extension's functions about masks, with the CUDA sources run by the stand-in, and the stand-in's own controls.
#include "bindings.h"
#include "shim.h"

PYBIND11_MODULE(_cuda_shim, m) {
  m.attr("with_cuda") = true;
  sniper::bind_masks(m);
  m.def("allow", &shim::allow);
  m.def("forget", &shim::forget);
  m.def("seed", &shim::seed);
  m.def("launches", &shim::launches);
  m.def("set_has_image", &shim::set_has_image);
}
