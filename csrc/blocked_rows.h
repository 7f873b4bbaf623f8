// SPDX-License-Identifier: Apache-2.0
// A weight as blocks of a mask: what lies in the pruned ones, and the active ones copied together.
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

// Zeroes what pruned_is_nonzero looks for, and writes nowhere else; says whether there was anything.
bool zero_pruned(const BlockedRows& weight, const uint8_t* mask, int threads);

// Copies the active blocks to `packed`, in the mask's order and each block's rows behind one another, or back from it.
void pack_active(const BlockedRows& weight, const uint8_t* mask, uint8_t* packed, int threads);
void unpack_active(const BlockedRows& weight, const uint8_t* mask, const uint8_t* packed, int threads);

}  // namespace sniper
