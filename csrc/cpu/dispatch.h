// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs. SNIPER_CPU=avx512|avx2|portable forces one; otherwise the widest that the CPU has.
#pragma once

#include <string>

#include "cpu/kernels.h"

namespace sniper::cpu {

// "avx512", "avx2" or "portable"; the first call decides. Throws std::invalid_argument when SNIPER_CPU asks for what this
// build or CPU lacks.
std::string instruction_set();

// Decides anew, as if SNIPER_CPU were `name` ("" for the widest).
void set_instruction_set(const std::string& name);

const Kernels<float>& float_kernels();

}  // namespace sniper::cpu
