// SPDX-License-Identifier: Apache-2.0
// What the module that Python loads asks of the stand-in.
#pragma once

#include <cstdint>

namespace shim {

// Kernels may touch these bytes, until the next forget().
void allow(uintptr_t address, int64_t bytes);
void forget();
void seed(unsigned value);
int64_t launches();
void set_has_image(bool has);

}  // namespace shim
