// SPDX-License-Identifier: Apache-2.0
// The fixed random choice of the authors' published masks.
#include <algorithm>
#include <utility>

#include "mask_stages.h"

namespace sniper {
namespace {

// Python's random.Random(0): MT19937 seeded with the array {0}.
class PythonRandom {
 public:
  PythonRandom() {
    state_[0] = 19650218;
    for (int i = 1; i < kSize; i++) state_[i] = 1812433253u * mixed(i - 1, 30) + i;
    int i = 1;
    for (int k = 0; k < kSize; k++) {
      state_[i] ^= mixed(i - 1, 30) * 1664525u;
      if (++i == kSize) state_[0] = state_[kSize - 1], i = 1;
    }
    for (int k = 0; k < kSize - 1; k++) {
      state_[i] = (state_[i] ^ (mixed(i - 1, 30) * 1566083941u)) - i;
      if (++i == kSize) state_[0] = state_[kSize - 1], i = 1;
    }
    state_[0] = 0x80000000u;
  }

  // Uniform in [0, n), 0 < n < 2^32, as Random._randbelow draws it.
  uint32_t below(uint32_t n) {
    int zeros = 0;
    while (!(n << zeros >> 31)) zeros++;
    uint32_t drawn;
    while ((drawn = next() >> zeros) >= n) continue;
    return drawn;
  }

 private:
  static constexpr int kSize = 624, kMiddle = 397;

  uint32_t mixed(int i, int shift) const { return state_[i] ^ (state_[i] >> shift); }

  uint32_t next() {
    if (used_ == kSize) refill();
    uint32_t y = state_[used_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }

  void refill() {
    for (int i = 0; i < kSize; i++) {
      const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kSize] & 0x7fffffffu);
      state_[i] = state_[(i + kMiddle) % kSize] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    used_ = 0;
  }

  uint32_t state_[kSize];
  int used_ = kSize;
};

}  // namespace

void fixed_choice(int64_t n, int64_t pruned, uint8_t* keep) {
  std::fill(keep, keep + pruned, uint8_t{0});
  std::fill(keep + pruned, keep + n, uint8_t{1});
  PythonRandom random;
  for (int64_t i = n - 1; i > 0; i--) std::swap(keep[i], keep[random.below(static_cast<uint32_t>(i + 1))]);
}

}  // namespace sniper
