// SPDX-License-Identifier: Apache-2.0
// From saliencies to masks, and from masks to the index arrays that kernels walk. Everything is in CPU memory here; the
// functions that end in _cuda take device memory instead, queue their work on `stream` (a cudaStream_t) without waiting
// for it, and give the same integers.
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

// The saliencies of all layers, one after the other: layer l has values[offsets[l]] to values[offsets[l + 1] - 1].
struct Scores {
  const float* values;
  const int64_t* offsets;
  int64_t layers;

  int64_t size(int64_t layer) const { return offsets[layer + 1] - offsets[layer]; }
};

// A mask for each stage: what is strictly above the stage's threshold, the ranks[stage]-th smallest of all values.
struct Stages {
  const int64_t* ranks;  // 0 keeps everything; the sparsest stage comes first
  int64_t count;
  double cap;   // a layer sparser than this takes its own threshold, or else a fixed random choice
  bool nested;  // whether each stage keeps what the one before had
};

// The k-th smallest (k from 1) of n values >= 0, for each of the given ranks; -1 for rank 0.
// Returns how many values are negative, NaN or infinite (-0 is counted too): where there are any, the caller looks.
int64_t select_smallest(const float* values, int64_t n, const int64_t* ranks, int64_t count, float* found, int threads);

// Writes masks [stages.count, n] of 0 and 1, and counts [stages.count, layers] of what is active; returns as
// select_smallest does.
int64_t plan_masks(const Scores& scores, const Stages& stages, uint8_t* masks, int64_t* counts, int threads);

// The `keep` that Python makes with: keep = [False] * pruned + [True] * (n - pruned); random.Random(0).shuffle(keep).
void fixed_choice(int64_t n, int64_t pruned, uint8_t* keep);

// How many values of a layer the cap lets go at most.
inline int64_t most_pruned(double cap, int64_t n) { return static_cast<int64_t>(cap * static_cast<double>(n)); }

// One layer that gets a new mask. Python fills these words in this order, one row of a table for each layer.
struct LayerUpdate {
  int64_t out_blocks, taps, in_blocks, block;
  int64_t block_bytes;  // of one row of a block
  int64_t first_block;  // blocks in the layers before this one
  int64_t had_mask;     // 0: all blocks were active, and block_mask holds nothing yet
  const uint8_t* mask;  // [out_blocks, taps, in_blocks], the new one
  uint8_t* block_mask;  // the present one, replaced by the new one
  int32_t *crow, *col, *row, *order;
  int32_t *crow_t, *col_t, *permutation_t, *order_t;
  char* weight;      // [N, taps, C] in memory
  const char* init;  // the same, or null: newly active blocks keep what they hold
};
static_assert(sizeof(LayerUpdate) == 19 * sizeof(int64_t));

// Writes the index arrays of BlockLayout, copies initial values into blocks that become active, zeroes blocks that
// become inactive, and touches nothing else.
void update_layers(const LayerUpdate* layers, int64_t count, int threads);

#ifdef SNIPER_WITH_CUDA
void pool_saliency_cuda(StridedWeight w, StridedWeight g, BlockShape shape, float* scores, void* stream);

// Bytes of device memory that plan_masks_cuda works in.
int64_t plan_workspace(int64_t stages, int64_t layers);

// `scores.offsets`, `stages.ranks` and `caps` (int64 [layers], the rank of each layer's own threshold) are in device
// memory; `choices` has fixed_choice for every layer, one after the other, or is null where the cap is 1. `suspects` is
// one int64, what plan_masks returns. `longest` is the size of the largest layer.
void plan_masks_cuda(const Scores& scores, int64_t n, int64_t longest, const Stages& stages, const int64_t* caps,
                     const uint8_t* choices, uint8_t* masks, int64_t* counts, int64_t* suspects, void* workspace,
                     void* stream);

// `layers` and `positions` (int32 [blocks]) are in device memory; `blocks` is the sum over all layers.
void update_layers_cuda(const LayerUpdate* layers, int64_t count, int64_t blocks, int32_t* positions, void* stream);
#endif

}  // namespace sniper
