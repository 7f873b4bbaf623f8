// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs. SNIPER_CPU=avx512|avx2|portable forces one; otherwise the widest that the CPU has.
#pragma once

#include <string>

#include "cpu/kernels.h"

namespace sniper::cpu {

// "avx512", "avx2" or "portable"; the first call decides. Throws std::invalid_argument when SNIPER_CPU asks for what
// this build or CPU lacks.
std::string instruction_set();

// Decides anew, as if SNIPER_CPU were `name` ("" for the widest).
void set_instruction_set(const std::string& name);

// Whether there are kernels that multiply bfloat16 as it is: with "avx512" on a CPU with AVX512_BF16.
bool has_bfloat16();

// Of the chosen instruction set, for float or uint16_t (bfloat16; only where has_bfloat16).
template <typename T>
const Kernels<T>& kernels();

}  // namespace sniper::cpu
