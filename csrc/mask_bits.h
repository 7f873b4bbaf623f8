// SPDX-License-Identifier: Apache-2.0
// Masks as bits: value i of a bool array is bit i % 8 of byte i / 8, as numpy.packbits(bitorder="little") has it.
#pragma once

#include <cstdint>

namespace sniper {

void pack_bits(const uint8_t* values, int64_t n, uint8_t* bits);
void unpack_bits(const uint8_t* bits, int64_t n, uint8_t* values);

#ifdef SNIPER_WITH_CUDA
// The same on device memory, queued on `stream` (a cudaStream_t); throws std::runtime_error with CUDA's own words.
void pack_bits_cuda(const uint8_t* values, int64_t n, uint8_t* bits, void* stream);
void unpack_bits_cuda(const uint8_t* bits, int64_t n, uint8_t* values, void* stream);
#endif

}  // namespace sniper
