// SPDX-License-Identifier: Apache-2.0
// Both ends of a mask: block saliencies, from which masks are made, and the index arrays and weights that a new mask
// changes. Everything is in CPU memory here; the functions that end in _cuda take device memory instead, queue their
// work on `stream` (a cudaStream_t) without waiting for it, and give the same bits.
#pragma once

#include <cstdint>

namespace sniper {

// A float32 weight [N, C, taps] in any memory order; strides count values.
struct StridedWeight {
  const float* data;
  int64_t row, channel, tap;
};

// A weight cut into blocks of block x block.
struct BlockShape {
  int64_t out_blocks, taps, in_blocks, block;
};

// scores[out_block, tap, in_block] = sum of |w * g| over the block. Each of 32 lanes adds up every 32nd column of the
// block, row by row, and the lanes are added in halves: one order, whatever the threads and the device.
void pool_saliency(StridedWeight w, StridedWeight g, BlockShape shape, float* scores, int threads);

// One layer that gets a new mask. Each field is named here once: Python builds its table from this list, names, offsets
// and sizes included (bind_masks.cpp), so neither side can have another order than the other.
//   block_bytes    bytes of one row of a block
//   first_block    number of blocks in the layers before this one
//   had_mask       0: all blocks were active, and block_mask holds nothing yet
//   mask           [out_blocks, taps, in_blocks], the new one
//   block_mask     the present one, replaced by the new one
//   crow ... order_t   the arrays of BlockLayout; those that end in _t are of the transposed twin
//   weight         [N, taps, C] in memory
//   init           the same, or null: newly active blocks keep what they hold
#define SNIPER_LAYER_UPDATE_FIELDS(FIELD) \
  FIELD(int64_t, out_blocks)              \
  FIELD(int64_t, taps)                    \
  FIELD(int64_t, in_blocks)               \
  FIELD(int64_t, block)                   \
  FIELD(int64_t, block_bytes)             \
  FIELD(int64_t, first_block)             \
  FIELD(int64_t, had_mask)                \
  FIELD(const uint8_t*, mask)             \
  FIELD(uint8_t*, block_mask)             \
  FIELD(int32_t*, crow)                   \
  FIELD(int32_t*, col)                    \
  FIELD(int32_t*, row)                    \
  FIELD(int32_t*, order)                  \
  FIELD(int32_t*, crow_t)                 \
  FIELD(int32_t*, col_t)                  \
  FIELD(int32_t*, permutation_t)          \
  FIELD(int32_t*, order_t)                \
  FIELD(char*, weight)                    \
  FIELD(const char*, init)

struct LayerUpdate {
#define SNIPER_DECLARE_FIELD(type, name) type name;
  SNIPER_LAYER_UPDATE_FIELDS(SNIPER_DECLARE_FIELD)
#undef SNIPER_DECLARE_FIELD
};

// Writes the index arrays of BlockLayout, copies initial values into blocks that become active, zeroes blocks that
// become inactive, and touches nothing else.
void update_layers(const LayerUpdate* layers, int64_t count, int threads);

#ifdef SNIPER_WITH_CUDA
void pool_saliency_cuda(StridedWeight w, StridedWeight g, BlockShape shape, float* scores, void* stream);

// `layers` and `positions` (int32 [blocks]) are in device memory; `blocks` is the sum over all layers.
void update_layers_cuda(const LayerUpdate* layers, int64_t count, int64_t blocks, int32_t* positions, void* stream);
#endif

}  // namespace sniper
