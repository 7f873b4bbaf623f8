// SPDX-License-Identifier: Apache-2.0
// What lies in the pruned blocks of a weight. Backends that skip them do not care; dense products do.
#pragma once

#include <cstdint>

namespace sniper {

// A weight as rows of blocks, in bytes, so that one function serves every dtype.
struct BlockedRows {
  uint8_t* data;
  int64_t row_stride;   // bytes from one row to the next
  int64_t block_rows;   // rows of blocks
  int64_t block_cols;   // blocks in a row of blocks, taps included
  int64_t block_size;   // rows of a block
  int64_t block_bytes;  // bytes of a block's row
};

// Whether any byte of a block whose mask is 0 differs from 0 (so -0.0 counts). Stops early.
bool pruned_is_nonzero(const BlockedRows& weight, const uint8_t* mask, int threads);

// Zeroes what pruned_is_nonzero looks for, and writes nowhere else.
void zero_pruned(const BlockedRows& weight, const uint8_t* mask, int threads);

}  // namespace sniper
