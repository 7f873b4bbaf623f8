// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace sniper::cpu {

// Cuts [0, length) of every sequence into even panels of about `tokens` at most, all but the last a multiple of `tile`.
inline std::vector<Panel> cut_panels(int64_t batch, int64_t length, int64_t tokens, int64_t tile) {
  std::vector<Panel> panels;
  if (length == 0) return panels;
  const int64_t count = (length + tokens - 1) / tokens;
  const int64_t step = ((length + count - 1) / count + tile - 1) / tile * tile;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t t = 0; t < length; t += step) panels.push_back({b, t, std::min(t + step, length)});
  return panels;
}

}  // namespace sniper::cpu
