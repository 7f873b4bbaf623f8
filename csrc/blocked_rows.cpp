// SPDX-License-Identifier: Apache-2.0
#include "blocked_rows.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"

namespace sniper {
namespace {

bool is_zero(const uint8_t* bytes, int64_t n) {
  uint64_t any = 0, word;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    std::memcpy(&word, bytes + i, 8);
    any |= word;
  }
  for (; i < n; i++) any |= bytes[i];
  return any == 0;
}

// Calls visit(address) for the row pieces of all pruned blocks until one returns false.
template <typename Visit>
void each_pruned(const BlockedRows& w, const uint8_t* mask, int threads, const Visit& visit) {
  std::atomic<bool> go{true};
  cpu::parallel_for(threads, w.block_rows, [&](int64_t r, int) {
    const uint8_t* row_mask = mask + r * w.block_cols;
    for (int64_t i = 0; i < w.block_size && go.load(std::memory_order_relaxed); i++) {
      uint8_t* row = w.data + (r * w.block_size + i) * w.row_stride;
      for (int64_t c = 0; c < w.block_cols; c++) {
        if (!row_mask[c] && !visit(row + c * w.block_bytes)) go.store(false, std::memory_order_relaxed);
      }
    }
  });
}

// Calls visit(address, offset in what is packed) for the row pieces of all active blocks.
template <typename Visit>
void each_active(const BlockedRows& w, const uint8_t* mask, int threads, const Visit& visit) {
  std::vector<int64_t> first(w.block_rows + 1, 0);  // active blocks in front of a row of blocks
  for (int64_t r = 0; r < w.block_rows; r++) {
    first[r + 1] = first[r];
    for (int64_t c = 0; c < w.block_cols; c++) first[r + 1] += mask[r * w.block_cols + c] != 0;
  }
  cpu::parallel_for(threads, w.block_rows, [&](int64_t r, int) {
    int64_t offset = first[r] * w.block_size * w.block_bytes;
    for (int64_t c = 0; c < w.block_cols; c++) {
      if (!mask[r * w.block_cols + c]) continue;
      uint8_t* piece = w.data + r * w.block_size * w.row_stride + c * w.block_bytes;
      for (int64_t i = 0; i < w.block_size; i++, piece += w.row_stride, offset += w.block_bytes) visit(piece, offset);
    }
  });
}

}  // namespace

bool pruned_is_nonzero(const BlockedRows& weight, const uint8_t* mask, int threads) {
  std::atomic<bool> found{false};
  each_pruned(weight, mask, threads, [&](const uint8_t* piece) {
    if (is_zero(piece, weight.block_bytes)) return true;
    found.store(true, std::memory_order_relaxed);
    return false;
  });
  return found.load();
}

bool zero_pruned(const BlockedRows& weight, const uint8_t* mask, int threads) {
  std::atomic<bool> found{false};
  // Reading first leaves clean memory clean: most steps leave zeros where zeros were.
  each_pruned(weight, mask, threads, [&](uint8_t* piece) {
    if (is_zero(piece, weight.block_bytes)) return true;
    std::memset(piece, 0, weight.block_bytes);
    found.store(true, std::memory_order_relaxed);
    return true;
  });
  return found.load();
}

void pack_active(const BlockedRows& weight, const uint8_t* mask, uint8_t* packed, int threads) {
  each_active(weight, mask, threads,
              [&](const uint8_t* piece, int64_t offset) { std::memcpy(packed + offset, piece, weight.block_bytes); });
}

void unpack_active(const BlockedRows& weight, const uint8_t* mask, const uint8_t* packed, int threads) {
  each_active(weight, mask, threads,
              [&](uint8_t* piece, int64_t offset) { std::memcpy(piece, packed + offset, weight.block_bytes); });
}

}  // namespace sniper
