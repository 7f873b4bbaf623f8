// SPDX-License-Identifier: Apache-2.0
// Thresholds and masks of all stages. All thresholds, the global ones and each layer's own, are found side by side, so
// that the host has nothing to wait for.
#include <algorithm>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "check.h"
#include "mask_update.h"

namespace sniper {
namespace {

constexpr int kThreads = 256, kDigits = 3, kBins = 2048, kBinsPerThread = kBins / kThreads;
// Values >= 0 are ordered as their bits are. Three digits without the sign: 11 + 11 + 9 bits.
constexpr int kShift[kDigits] = {20, 9, 0}, kWidth[kDigits] = {11, 11, 9};
constexpr float kChoice = -2;  // in place of a threshold: take the fixed choice

// One selection: the `left`-th smallest of those values from begin to end whose bits start with the prefix.
struct Search {
  int64_t begin, end, left;
  uint32_t prefix;
};

struct Workspace {
  Search* searches;           // [stages + layers]
  uint32_t* bins;             // [stages + layers, kBins]
  float* thresholds;          // [stages + layers]; a layer's own come last
  unsigned long long* above;  // [stages + 1, layers]; the last row counts what is above the layer's own
  float* chosen;              // [stages, layers]
};

// Cuts the workspace into its arrays; returns the bytes used.
int64_t carve(char* memory, int64_t stages, int64_t layers, Workspace* out) {
  int64_t used = 0;
  const auto take = [&](auto*& array, int64_t count) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(memory + used);
    used += (count * sizeof(*array) + 15) / 16 * 16;
  };
  const int64_t searches = stages + layers;
  take(out->searches, searches);
  take(out->bins, searches * kBins);
  take(out->thresholds, searches);
  take(out->above, (stages + 1) * layers);
  take(out->chosen, stages * layers);
  return used;
}

__device__ int64_t first_index() { return blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; }
__device__ int64_t index_step() { return gridDim.x * static_cast<int64_t>(kThreads); }

__global__ void start_kernel(Scores scores, Stages stages, const int64_t* caps, Search* searches) {
  const int64_t i = first_index();
  if (i < stages.count) {
    searches[i] = {0, scores.offsets[scores.layers], stages.ranks[i], 0};
  } else if (i < stages.count + scores.layers) {
    const int64_t layer = i - stages.count;
    searches[i] = {scores.offsets[layer], scores.offsets[layer + 1], caps[layer], 0};
  }
}

// blockIdx.y is the search.
__global__ void histogram_kernel(const float* values, const Search* searches, int shift, int width, uint32_t* bins) {
  __shared__ uint32_t own[kBins];
  const Search search = searches[blockIdx.y];
  const int64_t begin = search.begin + first_index();
  if (search.left == 0 || search.begin + blockIdx.x * static_cast<int64_t>(kThreads) >= search.end) return;
  for (int i = threadIdx.x; i < kBins; i += kThreads) own[i] = 0;
  __syncthreads();
  for (int64_t i = begin; i < search.end; i += index_step()) {
    const uint32_t bits = __float_as_uint(values[i]) & 0x7fffffffu;
    // A shift by 31 leaves the empty prefix of the first digit.
    if (bits >> (shift + width) == search.prefix) atomicAdd(&own[(bits >> shift) & ((1u << width) - 1)], 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (own[i]) atomicAdd(&bins[blockIdx.y * static_cast<int64_t>(kBins) + i], own[i]);
  }
}

// blockIdx.x is the search: finds its next digit.
__global__ void descend_kernel(const uint32_t* bins, int width, Search* searches, float* thresholds) {
  using Scan = cub::BlockScan<long long, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  const Search search = searches[blockIdx.x];
  const uint32_t* mine = bins + blockIdx.x * static_cast<int64_t>(kBins) + threadIdx.x * kBinsPerThread;
  long long sum = 0, before;
  for (int i = 0; i < kBinsPerThread; i++) sum += mine[i];
  Scan(scan).ExclusiveSum(sum, before);
  __syncthreads();  // every thread has read the search before one of them writes it
  if (search.left == 0 || search.begin == search.end) {
    if (threadIdx.x == 0) thresholds[blockIdx.x] = -1;
  } else if (before < search.left && search.left <= before + sum) {
    int64_t left = search.left - before;
    int digit = 0;
    while (left > mine[digit]) left -= mine[digit++];
    const uint32_t prefix = search.prefix << width | (threadIdx.x * kBinsPerThread + digit);
    searches[blockIdx.x] = {search.begin, search.end, left, prefix};
    thresholds[blockIdx.x] = __uint_as_float(prefix);  // of the last digit, the whole value
  }
}

__device__ void add_to(unsigned long long* total, unsigned long long count) {
  using Reduce = cub::BlockReduce<unsigned long long, kThreads>;
  __shared__ typename Reduce::TempStorage reduce;
  count = Reduce(reduce).Sum(count);
  if (threadIdx.x == 0 && count) atomicAdd(total, count);
}

// blockIdx.y is the layer, blockIdx.z the stage; one stage more stands for the layer's own threshold.
__global__ void count_kernel(Scores scores, int64_t stages, const float* thresholds, unsigned long long* above,
                             unsigned long long* suspects) {
  const int64_t layer = blockIdx.y, stage = blockIdx.z;
  const float threshold = thresholds[stage < stages ? stage : stages + layer];
  unsigned long long active = 0, suspicious = 0;
  for (int64_t i = scores.offsets[layer] + first_index(); i < scores.offsets[layer + 1]; i += index_step()) {
    const float value = scores.values[i];
    active += value > threshold;
    suspicious += __float_as_uint(value) >= 0x7f800000u;
  }
  add_to(&above[stage * scores.layers + layer], active);
  __syncthreads();
  if (stage == stages) add_to(suspects, suspicious);
}

__global__ void choose_kernel(Scores scores, Stages stages, const float* thresholds, const unsigned long long* above,
                              float* chosen) {
  const int64_t i = first_index(), layer = i % scores.layers, stage = i / scores.layers;
  if (stage >= stages.count) return;
  const int64_t n = scores.offsets[layer + 1] - scores.offsets[layer];
  float threshold = thresholds[stage];
  if (n > 0 && 1 - static_cast<double>(above[i]) / static_cast<double>(n) > stages.cap) {
    threshold = above[stages.count * scores.layers + layer] ? thresholds[stages.count + layer] : kChoice;
  }
  chosen[i] = threshold;
}

// blockIdx.y is the layer.
__global__ void mask_kernel(Scores scores, Stages stages, const float* chosen, const uint8_t* choices, uint8_t* masks) {
  const int64_t layer = blockIdx.y, n = scores.offsets[scores.layers];
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

// blockIdx.y is the layer, blockIdx.z the stage.
__global__ void active_kernel(Scores scores, const uint8_t* masks, unsigned long long* counts) {
  const int64_t layer = blockIdx.y, stage = blockIdx.z;
  const uint8_t* mask = masks + stage * scores.offsets[scores.layers];
  unsigned long long active = 0;
  for (int64_t i = scores.offsets[layer] + first_index(); i < scores.offsets[layer + 1]; i += index_step()) {
    active += mask[i];
  }
  add_to(&counts[stage * scores.layers + layer], active);
}

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, 1024));
}

void select(const Scores& scores, int64_t n, unsigned searches, const Workspace& work, cudaStream_t stream) {
  for (int digit = 0; digit < kDigits; digit++) {
    const size_t bytes = static_cast<size_t>(searches) * kBins * sizeof(uint32_t);
    check(cudaMemsetAsync(work.bins, 0, bytes, stream), "plan_masks");
    histogram_kernel<<<dim3(blocks_for(n), searches), kThreads, 0, stream>>>(scores.values, work.searches,
                                                                             kShift[digit], kWidth[digit], work.bins);
    descend_kernel<<<searches, kThreads, 0, stream>>>(work.bins, kWidth[digit], work.searches, work.thresholds);
  }
}

}  // namespace

int64_t plan_workspace(int64_t stages, int64_t layers) {
  Workspace work;
  return carve(nullptr, stages, layers, &work);
}

void plan_masks_cuda(const Scores& scores, int64_t n, int64_t longest, const Stages& stages, const int64_t* caps,
                     const uint8_t* choices, uint8_t* masks, int64_t* counts, int64_t* suspects, void* workspace,
                     void* stream) {
  Workspace work;
  carve(static_cast<char*>(workspace), stages.count, scores.layers, &work);
  const auto on = static_cast<cudaStream_t>(stream);
  const auto layers = static_cast<unsigned>(scores.layers), count = static_cast<unsigned>(stages.count);
  auto* active = reinterpret_cast<unsigned long long*>(counts);
  auto* suspicious = reinterpret_cast<unsigned long long*>(suspects);
  const size_t rows = scores.layers * sizeof(int64_t);
  check(cudaMemsetAsync(work.above, 0, (stages.count + 1) * rows, on), "plan_masks");
  check(cudaMemsetAsync(active, 0, stages.count * rows, on), "plan_masks");
  check(cudaMemsetAsync(suspicious, 0, sizeof(int64_t), on), "plan_masks");

  start_kernel<<<blocks_for(layers + count), kThreads, 0, on>>>(scores, stages, caps, work.searches);
  select(scores, n, layers + count, work, on);
  const unsigned across = blocks_for(longest);
  count_kernel<<<dim3(across, layers, count + 1), kThreads, 0, on>>>(scores, stages.count, work.thresholds, work.above,
                                                                     suspicious);
  choose_kernel<<<(layers * count + kThreads - 1) / kThreads, kThreads, 0, on>>>(scores, stages, work.thresholds,
                                                                                 work.above, work.chosen);
  mask_kernel<<<dim3(across, layers), kThreads, 0, on>>>(scores, stages, work.chosen, choices, masks);
  active_kernel<<<dim3(across, layers, count), kThreads, 0, on>>>(scores, masks, active);
  check(cudaGetLastError(), "plan_masks");
}

}  // namespace sniper
