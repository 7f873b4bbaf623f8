// SPDX-License-Identifier: Apache-2.0
// From saliencies to the nested masks of all stages; a stage is one scheduled sparsity. Everything is in CPU memory
// here; the functions that end in _cuda take device memory instead, queue their work on `stream` (a cudaStream_t)
// without waiting for it, and give the same bits.
#pragma once

#include <cstdint>

namespace sniper {

// The saliencies of all layers, one after the other: layer l has values[offsets[l]] to values[offsets[l + 1] - 1].
struct Scores {
  const float* values;
  const int64_t* offsets;
  int64_t layers;
};

// The paper's masks: what is strictly above the stage's threshold, the pruned[stage]-th smallest of all values.
struct FixedStages {
  const int64_t* pruned;  // 0 keeps everything; the sparsest stage comes first
  int64_t count;
  double cap;   // a layer sparser than this takes its own threshold, or else a fixed random choice
  bool nested;  // whether each stage keeps what the one before had
};

// Masks whose cap follows the sparsity: the pruned[stage] smallest of those values that are among the caps[stage,
// layer] smallest of their layer. Of equal values the first ones go.
struct FollowingStages {
  const int64_t* pruned;  // the sparsest stage comes first
  const int64_t* caps;    // [count, layers]
  int64_t count;
};

// The k-th smallest (k from 1) of n values >= 0, for each of `count` numbers k; -1 where k is 0.
// Returns how many values are negative, NaN or infinite (-0 is counted too): where there are any, the caller looks.
int64_t select_smallest(const float* values, int64_t n, const int64_t* k, int64_t count, float* found, int threads);

// Write masks [stages.count, n] of 0 and 1, and counts [stages.count, layers] of what is active; return as
// select_smallest does.
int64_t fixed_masks(const Scores& scores, const FixedStages& stages, uint8_t* masks, int64_t* counts, int threads);
int64_t following_masks(const Scores& scores, const FollowingStages& stages, uint8_t* masks, int64_t* counts,
                        int threads);

// The `keep` that Python makes with: keep = [False] * pruned + [True] * (n - pruned); random.Random(0).shuffle(keep).
void fixed_choice(int64_t n, int64_t pruned, uint8_t* keep);

#ifdef SNIPER_WITH_CUDA
// Whether the present GPU can run the kernels that were built.
bool cuda_usable();

// Bytes of device memory that the functions below work in.
int64_t fixed_workspace(int64_t stages, int64_t layers);
int64_t following_workspace(int64_t layers);

// All pointers, those inside the structs too, are to device memory. `n` is the number of values and `longest` that of
// the largest layer. `own` (int64 [layers]) is the k of each layer's own threshold; `choices` has fixed_choice for
// every layer, one after the other, or is null where the cap is 1. `suspects` is one int64, what the CPU functions
// return.
void fixed_masks_cuda(const Scores& scores, int64_t n, int64_t longest, const FixedStages& stages, const int64_t* own,
                      const uint8_t* choices, uint8_t* masks, int64_t* counts, int64_t* suspects, void* workspace,
                      void* stream);
void following_masks_cuda(const Scores& scores, int64_t n, int64_t longest, const FollowingStages& stages,
                          uint8_t* masks, int64_t* counts, int64_t* suspects, void* workspace, void* stream);
#endif

}  // namespace sniper
