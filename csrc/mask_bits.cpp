// SPDX-License-Identifier: Apache-2.0
#include "mask_bits.h"

#include <cstring>

namespace sniper {

void pack_bits(const uint8_t* values, int64_t n, uint8_t* bits) {
  int64_t whole = n / 8;
  for (int64_t i = 0; i < whole; i++) {
    // Eight bytes of 0 or 1 gathered into one by a multiplication: byte j lands in bit 56 + j.
    uint64_t eight;
    std::memcpy(&eight, values + 8 * i, 8);
    bits[i] = static_cast<uint8_t>((eight * 0x0102040810204080ull) >> 56);
  }
  if (n % 8) {
    uint8_t last = 0;
    for (int64_t j = 8 * whole; j < n; j++) last |= static_cast<uint8_t>((values[j] & 1) << (j % 8));
    bits[whole] = last;
  }
}

void unpack_bits(const uint8_t* bits, int64_t n, uint8_t* values) {
  for (int64_t i = 0; i < n; i++) values[i] = (bits[i / 8] >> (i % 8)) & 1;
}

}  // namespace sniper
