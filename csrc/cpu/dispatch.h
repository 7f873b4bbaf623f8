// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs. SNIPER_CPU=avx512|avx2|portable forces one; otherwise the widest that the CPU has.
#pragma once

#include <string>

#include "cpu/kernels.h"

namespace sniper::cpu {

// Throws std::runtime_error when SNIPER_CPU asks for what this build or CPU lacks. Reads the variable at every call.
std::string instruction_set();

const Kernels<float>& float_kernels();

}  // namespace sniper::cpu
