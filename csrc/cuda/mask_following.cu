// SPDX-License-Identifier: Apache-2.0
// Masks whose cap follows the sparsity, stage after stage: what a layer may lose depends on what it lost before.
//
// A stage prunes the `wanted` smallest values of those that are among the caps[layer] smallest of their layer. Of layer
// l, min(caps[l], values up to x) of them are at most x, so the last one that goes is the smallest x for which these
// add up to `wanted`: its digits are found one after the other from one histogram a layer, and no value is sorted.
#include "mask_search.cuh"

namespace sniper {
namespace {

struct Workspace {
  Search* searches;   // [layers]
  uint32_t* bins;     // [layers, kBins]
  float* thresholds;  // [layers]
  int64_t* pruned;    // [layers], at this stage; while it is looked for, the most that it may be
  int64_t* below;     // [layers], how many values have smaller digits than those found so far
  int64_t* equal;     // [layers], how many have the same
};

int64_t carve(void* memory, int64_t layers, Workspace* out) {
  Carver carver(memory);
  carver.take(out->searches, layers);
  carver.take(out->bins, layers * kBins);
  carver.take(out->thresholds, layers);
  carver.take(out->pruned, layers);
  carver.take(out->below, layers);
  carver.take(out->equal, layers);
  return carver.used();
}

__global__ void suspects_kernel(Scores scores, unsigned long long* suspects) {
  const int64_t layer = blockIdx.x;
  unsigned long long suspicious = 0;
  for (int64_t i = scores.offsets[layer] + first_index(); i < scores.offsets[layer + 1]; i += index_step()) {
    suspicious += is_suspicious(scores.values[i]);
  }
  add_to(suspects, suspicious);
}

__global__ void start_kernel(Scores scores, const int64_t* caps, bool first, Workspace work) {
  const int64_t layer = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (layer >= scores.layers) return;
  const int64_t begin = scores.offsets[layer], end = scores.offsets[layer + 1];
  // What has stayed once, stays: rounding must not prune it again.
  const int64_t most = first ? end - begin : work.pruned[layer];
  work.pruned[layer] = caps[layer] < most ? caps[layer] : most;
  work.below[layer] = 0;
  work.searches[layer] = {begin, end, 1, 0, 0};  // `left` only says that there is something to count
}

// One thread block: finds the next digit of the last value that goes.
__global__ void descend_together_kernel(Workspace work, int64_t layers, const int64_t* wanted, int width) {
  using Scan = cub::BlockScan<long long, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  __shared__ long long last[kThreads];
  __shared__ int found;
  // How many candidates there are up to each of this thread's bins.
  long long up_to[kBinsPerThread] = {};
  for (int64_t layer = 0; layer < layers; layer++) {
    const uint32_t* mine = work.bins + layer * kBins + threadIdx.x * kBinsPerThread;
    long long sum = 0, before;
    for (int i = 0; i < kBinsPerThread; i++) sum += mine[i];
    Scan(scan).ExclusiveSum(sum, before);
    before += work.below[layer];
    for (int i = 0; i < kBinsPerThread; i++) {
      before += mine[i];
      up_to[i] += before < work.pruned[layer] ? before : work.pruned[layer];
    }
    __syncthreads();  // the next layer's scan uses the same memory
  }
  last[threadIdx.x] = up_to[kBinsPerThread - 1];
  if (threadIdx.x == 0) found = (1 << width) - 1;  // where there are fewer candidates than wanted, all of them go
  __syncthreads();
  long long smaller = threadIdx.x == 0 ? -1 : last[threadIdx.x - 1];
  for (int i = 0; i < kBinsPerThread; i++) {
    if (smaller < *wanted && *wanted <= up_to[i]) found = threadIdx.x * kBinsPerThread + i;
    smaller = up_to[i];
  }
  __syncthreads();
  for (int64_t layer = threadIdx.x; layer < layers; layer += kThreads) {
    const uint32_t* mine = work.bins + layer * kBins;
    int64_t below = work.below[layer];
    for (int i = 0; i < found; i++) below += mine[i];
    work.below[layer] = below;
    work.equal[layer] = mine[found];
    work.searches[layer].prefix = work.searches[layer].prefix << width | static_cast<uint32_t>(found);
  }
}

// One thread: shares what is wanted among the layers. Where several have values equal to the last one that goes, the
// first layer's go. Then each layer looks for its own last one.
__global__ void share_kernel(Scores scores, Workspace work, const int64_t* wanted, int64_t* active) {
  int64_t left = *wanted;
  for (int64_t layer = 0; layer < scores.layers; layer++) {
    const int64_t cap = work.pruned[layer], below = work.below[layer];
    left -= below < cap ? below : cap;
  }
  for (int64_t layer = 0; layer < scores.layers; layer++) {
    const int64_t cap = work.pruned[layer], below = work.below[layer], up_to = below + work.equal[layer];
    const int64_t sure = below < cap ? below : cap, equal = (up_to < cap ? up_to : cap) - sure;
    const int64_t taken = left < equal ? left : equal, pruned = sure + taken;
    left -= taken;
    const int64_t begin = scores.offsets[layer], end = scores.offsets[layer + 1];
    work.pruned[layer] = pruned;
    work.searches[layer] = {begin, end, pruned, 0, 0};
    active[layer] = end - begin - pruned;
  }
}

__global__ void mask_kernel(Scores scores, const float* thresholds, uint8_t* mask) {
  const int64_t layer = blockIdx.x;
  const float threshold = thresholds[layer];
  for (int64_t i = scores.offsets[layer] + first_index(); i < scores.offsets[layer + 1]; i += index_step()) {
    mask[i] = scores.values[i] > threshold;
  }
}

// One thread block a layer: of the values equal to the threshold, the first `left` go and the others stay.
__global__ void ties_kernel(Scores scores, const Search* searches, const float* thresholds, uint8_t* mask) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  const Search search = searches[blockIdx.x];
  const float threshold = thresholds[blockIdx.x];
  if (search.left == 0 || search.left == search.equal) return;
  int64_t seen = 0;
  for (int64_t base = search.begin; base < search.end; base += kThreads) {
    const int64_t i = base + threadIdx.x;
    const bool equal = i < search.end && scores.values[i] == threshold;
    int before, all;
    Scan(scan).ExclusiveSum(equal, before, all);
    if (equal && seen + before >= search.left) mask[i] = 1;
    seen += all;
    __syncthreads();  // the next scan uses the same memory
  }
}

}  // namespace

int64_t following_workspace(int64_t layers) {
  Workspace work;
  return carve(nullptr, layers, &work);
}

void following_masks_cuda(const Scores& scores, int64_t n, int64_t longest, const FollowingStages& stages,
                          uint8_t* masks, int64_t* counts, int64_t* suspects, void* workspace, void* stream) {
  if (n == 0 || stages.count == 0) return;  // a grid must not be empty
  Workspace work;
  carve(workspace, scores.layers, &work);
  const auto on = static_cast<cudaStream_t>(stream);
  const auto layers = static_cast<unsigned>(scores.layers);
  const unsigned across = blocks_for(longest);
  auto* suspicious = reinterpret_cast<unsigned long long*>(suspects);
  check(cudaMemsetAsync(suspicious, 0, sizeof(int64_t), on), "masks");
  suspects_kernel<<<dim3(layers, across), kThreads, 0, on>>>(scores, suspicious);
  for (int64_t stage = 0; stage < stages.count; stage++) {
    const int64_t *caps = stages.caps + stage * scores.layers, *wanted = stages.pruned + stage;
    uint8_t* mask = masks + stage * n;
    start_kernel<<<(layers + kThreads - 1) / kThreads, kThreads, 0, on>>>(scores, caps, stage == 0, work);
    for (int digit = 0; digit < kDigits; digit++) {
      count_digit(scores.values, layers, across, digit, work.searches, work.bins, on);
      descend_together_kernel<<<1, kThreads, 0, on>>>(work, scores.layers, wanted, kWidth[digit]);
    }
    share_kernel<<<1, 1, 0, on>>>(scores, work, wanted, counts + stage * scores.layers);
    select(scores.values, layers, across, work.searches, work.bins, work.thresholds, on);
    mask_kernel<<<dim3(layers, across), kThreads, 0, on>>>(scores, work.thresholds, mask);
    ties_kernel<<<layers, kThreads, 0, on>>>(scores, work.searches, work.thresholds, mask);
  }
  check(cudaGetLastError(), "masks");
}

}  // namespace sniper
