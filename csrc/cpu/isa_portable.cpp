// SPDX-License-Identifier: Apache-2.0
#define SNIPER_VECTOR_BYTES 16
#define SNIPER_ELEMENT Float32
#define SNIPER_WINOGRAD
#define SNIPER_KERNELS kPortableF32
#include "cpu/isa.inc"
