// SPDX-License-Identifier: Apache-2.0
// The paper's masks. All thresholds, the stages' and each layer's own, are found side by side.
#include "mask_search.cuh"

namespace sniper {
namespace {

constexpr float kChoice = -2;  // in place of a threshold: take the fixed choice

struct Workspace {
  Search* searches;           // [stages + layers]
  uint32_t* bins;             // [stages + layers, kBins]
  float* thresholds;          // [stages + layers]; a layer's own come last
  unsigned long long* above;  // [stages + 1, layers]; the last row counts what is above the layer's own
  float* chosen;              // [stages, layers]
};

int64_t carve(void* memory, int64_t stages, int64_t layers, Workspace* out) {
  Carver carver(memory);
  carver.take(out->searches, stages + layers);
  carver.take(out->bins, (stages + layers) * kBins);
  carver.take(out->thresholds, stages + layers);
  carver.take(out->above, (stages + 1) * layers);
  carver.take(out->chosen, stages * layers);
  return carver.used();
}

__device__ int64_t flat_index() { return blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; }

__global__ void start_kernel(Scores scores, FixedStages stages, const int64_t* own, Search* searches) {
  const int64_t i = flat_index();
  if (i < stages.count) {
    searches[i] = {0, scores.offsets[scores.layers], stages.pruned[i], 0, 0};
  } else if (i < stages.count + scores.layers) {
    const int64_t layer = i - stages.count;
    searches[i] = {scores.offsets[layer], scores.offsets[layer + 1], own[layer], 0, 0};
  }
}

// blockIdx.z is the stage; one stage more stands for the layer's own threshold.
__global__ void count_kernel(Scores scores, int64_t stages, const float* thresholds, unsigned long long* above,
                             unsigned long long* suspects) {
  const int64_t layer = blockIdx.x, stage = blockIdx.z;
  const float threshold = thresholds[stage < stages ? stage : stages + layer];
  unsigned long long active = 0, suspicious = 0;
  for (int64_t i = scores.offsets[layer] + first_index(); i < scores.offsets[layer + 1]; i += index_step()) {
    const float value = scores.values[i];
    active += value > threshold;
    suspicious += is_suspicious(value);
  }
  add_to(&above[stage * scores.layers + layer], active);
  __syncthreads();
  if (stage == stages) add_to(suspects, suspicious);
}

__global__ void choose_kernel(Scores scores, FixedStages stages, const float* thresholds,
                              const unsigned long long* above, float* chosen) {
  const int64_t i = flat_index(), layer = i % scores.layers, stage = i / scores.layers;
  if (stage >= stages.count) return;
  const int64_t n = scores.offsets[layer + 1] - scores.offsets[layer];
  float threshold = thresholds[stage];
  if (n > 0 && 1 - static_cast<double>(above[i]) / static_cast<double>(n) > stages.cap) {
    threshold = above[stages.count * scores.layers + layer] ? thresholds[stages.count + layer] : kChoice;
  }
  chosen[i] = threshold;
}

__global__ void mask_kernel(Scores scores, FixedStages stages, const float* chosen, const uint8_t* choices,
                            uint8_t* masks) {
  const int64_t layer = blockIdx.x, n = scores.offsets[scores.layers];
  for (int64_t i = scores.offsets[layer] + first_index(); i < scores.offsets[layer + 1]; i += index_step()) {
    const float value = scores.values[i];
    uint8_t keep = 0;
    for (int64_t stage = 0; stage < stages.count; stage++) {
      const float threshold = chosen[stage * scores.layers + layer];
      const uint8_t now = threshold == kChoice ? choices[i] : value > threshold;
      keep = stages.nested ? keep | now : now;
      masks[stage * n + i] = keep;
    }
  }
}

// blockIdx.z is the stage.
__global__ void active_kernel(Scores scores, const uint8_t* masks, unsigned long long* counts) {
  const int64_t layer = blockIdx.x, stage = blockIdx.z;
  const uint8_t* mask = masks + stage * scores.offsets[scores.layers];
  unsigned long long active = 0;
  for (int64_t i = scores.offsets[layer] + first_index(); i < scores.offsets[layer + 1]; i += index_step()) {
    active += mask[i];
  }
  add_to(&counts[stage * scores.layers + layer], active);
}

}  // namespace

int64_t fixed_workspace(int64_t stages, int64_t layers) {
  Workspace work;
  return carve(nullptr, stages, layers, &work);
}

void fixed_masks_cuda(const Scores& scores, int64_t n, int64_t longest, const FixedStages& stages, const int64_t* own,
                      const uint8_t* choices, uint8_t* masks, int64_t* counts, int64_t* suspects, void* workspace,
                      void* stream) {
  if (n == 0 || stages.count == 0) return;  // a grid must not be empty
  Workspace work;
  carve(workspace, stages.count, scores.layers, &work);
  const auto on = static_cast<cudaStream_t>(stream);
  const auto layers = static_cast<unsigned>(scores.layers), count = static_cast<unsigned>(stages.count);
  auto* active = reinterpret_cast<unsigned long long*>(counts);
  auto* suspicious = reinterpret_cast<unsigned long long*>(suspects);
  const size_t row = scores.layers * sizeof(int64_t);
  check(cudaMemsetAsync(work.above, 0, (stages.count + 1) * row, on), "masks");
  check(cudaMemsetAsync(active, 0, stages.count * row, on), "masks");
  check(cudaMemsetAsync(suspicious, 0, sizeof(int64_t), on), "masks");

  const auto flat = [](int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); };
  start_kernel<<<flat(layers + count), kThreads, 0, on>>>(scores, stages, own, work.searches);
  select(scores.values, layers + count, blocks_for(n), work.searches, work.bins, work.thresholds, on);
  const unsigned across = blocks_for(longest);
  count_kernel<<<dim3(layers, across, count + 1), kThreads, 0, on>>>(scores, stages.count, work.thresholds, work.above,
                                                                     suspicious);
  choose_kernel<<<flat(scores.layers * stages.count), kThreads, 0, on>>>(scores, stages, work.thresholds, work.above,
                                                                         work.chosen);
  mask_kernel<<<dim3(layers, across), kThreads, 0, on>>>(scores, stages, work.chosen, choices, masks);
  active_kernel<<<dim3(layers, across, count), kThreads, 0, on>>>(scores, masks, active);
  check(cudaGetLastError(), "masks");
}

}  // namespace sniper
