// SPDX-License-Identifier: Apache-2.0
// Order statistics of many stretches of one array side by side, by radix selection: for each digit, one launch counts
// and one finds the digit, so that the host has nothing to wait for.
#pragma once

#include <algorithm>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "check.h"
#include "mask_stages.h"

namespace sniper {
namespace {

constexpr int kThreads = 256, kDigits = 3, kBins = 2048, kBinsPerThread = kBins / kThreads;
// Values >= 0 are ordered as their bits are. Three digits without the sign: 11 + 11 + 9 bits.
constexpr int kShift[kDigits] = {20, 9, 0}, kWidth[kDigits] = {11, 11, 9};

// The `left`-th smallest of those values from begin to end whose bits start with the prefix; `equal` of them do.
// Nothing is looked for where `left` is 0.
struct Search {
  int64_t begin, end, left, equal;
  uint32_t prefix;
};

// Cuts a workspace into arrays.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  void take(T*& array, int64_t count) {
    array = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + 15) / 16 * 16;
  }

  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// blockIdx.x is a layer or a search, and the blocks along y share its values.
__device__ int64_t first_index() { return blockIdx.y * static_cast<int64_t>(kThreads) + threadIdx.x; }
__device__ int64_t index_step() { return gridDim.y * static_cast<int64_t>(kThreads); }

inline unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, 1024));
}

// Adds up the values of one digit into bins [searches, kBins], which hold zeros.
__global__ void histogram_kernel(const float* values, const Search* searches, int shift, int width, uint32_t* bins) {
  __shared__ uint32_t own[kBins];
  const Search search = searches[blockIdx.x];
  if (search.left == 0 || search.begin + blockIdx.y * static_cast<int64_t>(kThreads) >= search.end) return;
  for (int i = threadIdx.x; i < kBins; i += kThreads) own[i] = 0;
  __syncthreads();
  for (int64_t i = search.begin + first_index(); i < search.end; i += index_step()) {
    const uint32_t bits = __float_as_uint(values[i]) & 0x7fffffffu;
    // A shift by 31 leaves the empty prefix of the first digit.
    if (bits >> (shift + width) == search.prefix) atomicAdd(&own[(bits >> shift) & ((1u << width) - 1)], 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (own[i]) atomicAdd(&bins[blockIdx.x * static_cast<int64_t>(kBins) + i], own[i]);
  }
}

// blockIdx.x is the search: finds its next digit. After the last one thresholds holds the value, or -1 where nothing is
// looked for.
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
    searches[blockIdx.x] = {search.begin, search.end, left, mine[digit], prefix};
    thresholds[blockIdx.x] = __uint_as_float(prefix);
  }
}

// Adds the sum of a block's counts to `total`. A barrier must lie between two calls.
__device__ void add_to(unsigned long long* total, unsigned long long count) {
  using Reduce = cub::BlockReduce<unsigned long long, kThreads>;
  __shared__ typename Reduce::TempStorage reduce;
  count = Reduce(reduce).Sum(count);
  if (threadIdx.x == 0 && count) atomicAdd(total, count);
}

// Negative, NaN or infinite; -0 too.
__device__ bool is_suspicious(float value) { return __float_as_uint(value) >= 0x7f800000u; }

// Counts digit `digit` of all searches; `across` blocks share the values of one.
inline void count_digit(const float* values, unsigned searches, unsigned across, int digit, const Search* all,
                        uint32_t* bins, cudaStream_t stream) {
  check(cudaMemsetAsync(bins, 0, searches * kBins * sizeof(uint32_t), stream), "masks");
  histogram_kernel<<<dim3(searches, across), kThreads, 0, stream>>>(values, all, kShift[digit], kWidth[digit], bins);
}

// Runs all searches to their end.
inline void select(const float* values, unsigned searches, unsigned across, Search* all, uint32_t* bins,
                   float* thresholds, cudaStream_t stream) {
  for (int digit = 0; digit < kDigits; digit++) {
    count_digit(values, searches, across, digit, all, bins, stream);
    descend_kernel<<<searches, kThreads, 0, stream>>>(bins, kWidth[digit], all, thresholds);
  }
}

}  // namespace
}  // namespace sniper
