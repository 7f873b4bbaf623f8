// SPDX-License-Identifier: Apache-2.0
// What the files that know Python share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace sniper {

// Pointers arrive as integers; shapes, dtypes and devices were checked by the caller.
template <typename T>
T* as(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_adam(pybind11::module_& m);
void bind_addresses(pybind11::module_& m);
// Everything about masks: bits, saliencies, stages, layouts.
void bind_masks(pybind11::module_& m);

}  // namespace sniper
