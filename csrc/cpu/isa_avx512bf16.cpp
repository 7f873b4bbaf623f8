// SPDX-License-Identifier: Apache-2.0
#define SNIPER_VECTOR_BYTES 64
#define SNIPER_ELEMENT BFloat16
#define SNIPER_KERNELS kAvx512Bf16
#include "cpu/isa.inc"
