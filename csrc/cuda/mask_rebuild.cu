// SPDX-License-Identifier: Apache-2.0
#include <cub/block/block_scan.cuh>

#include "check.h"
#include "mask_rebuild.h"

namespace sniper {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;

// One warp adds up one block, a lane every 32nd column. No fused multiply-add: the bits are those of the CPU.
__global__ void pool_kernel(StridedWeight w, StridedWeight g, BlockShape shape, float* scores) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (i >= shape.out_blocks * shape.taps * shape.in_blocks) return;
  const int64_t in = i % shape.in_blocks, tap = i / shape.in_blocks % shape.taps;
  const int64_t row = i / shape.in_blocks / shape.taps * shape.block, channel = in * shape.block;
  const float* wb = w.data + row * w.row + channel * w.channel + tap * w.tap;
  const float* gb = g.data + row * g.row + channel * g.channel + tap * g.tap;
  float sum = 0;
  for (int64_t r = 0; r < shape.block; r++) {
    for (int64_t c = lane; c < shape.block; c += kWarp) {
      sum = __fadd_rn(sum, fabsf(__fmul_rn(wb[r * w.row + c * w.channel], gb[r * g.row + c * g.channel])));
    }
  }
  for (int half = kWarp / 2; half > 0; half /= 2) sum = __fadd_rn(sum, __shfl_down_sync(kAll, sum, half));
  if (lane == 0) scores[i] = sum;
}

// The longest row first, of equal rows the lower one: each row counts those before it. `lengths` are crow + 1 before
// they are summed up.
__device__ void write_order(const int32_t* lengths, int64_t rows, int32_t* order) {
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) {
    const int32_t mine = lengths[r];
    int64_t before = 0;
    for (int64_t other = 0; other < rows; other++) {
      before += lengths[other] > mine || (lengths[other] == mine && other < r);
    }
    order[before] = static_cast<int32_t>(r);
  }
}

// Turns row lengths into row pointers, in place. Ends with a barrier: all threads see all of them.
__device__ void sum_lengths(int32_t* crow, int64_t rows) {
  using Scan = cub::BlockScan<int32_t, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  if (threadIdx.x == 0) crow[0] = 0;
  int32_t carry = 0;
  for (int64_t base = 0; base < rows; base += kThreads) {
    const int64_t r = base + threadIdx.x;
    int32_t value = r < rows ? crow[r + 1] : 0, total;
    Scan(scan).InclusiveSum(value, value, total);
    if (r < rows) crow[r + 1] = carry + value;
    carry += total;
    __syncthreads();
  }
}

// One thread block writes the index arrays of one layer, a warp for each block row. kTwin: of the transposed twin,
// which needs the positions that the other one left.
template <bool kTwin>
__global__ void index_kernel(const LayerUpdate* layers, int32_t* positions) {
  const LayerUpdate layer = layers[blockIdx.x];
  const int64_t rows = kTwin ? layer.in_blocks : layer.out_blocks, cols = kTwin ? layer.out_blocks : layer.in_blocks;
  const int64_t width = layer.taps * cols;
  int32_t* crow = kTwin ? layer.crow_t : layer.crow;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // Where entry i of row r lies in the mask.
  const auto place = [&](int64_t r, int64_t i) {
    return kTwin ? (i % cols * layer.taps + i / cols) * layer.in_blocks + r : r * width + i;
  };
  for (int64_t r = warp; r < rows; r += kWarps) {
    int32_t length = 0;
    for (int64_t base = 0; base < width; base += kWarp) {
      length += __popc(__ballot_sync(kAll, base + lane < width && layer.mask[place(r, base + lane)]));
    }
    if (lane == 0) crow[r + 1] = length;
  }
  __syncthreads();
  write_order(crow + 1, rows, kTwin ? layer.order_t : layer.order);
  __syncthreads();
  sum_lengths(crow, rows);
  for (int64_t r = warp; r < rows; r += kWarps) {
    int32_t start = crow[r];
    for (int64_t base = 0; base < width; base += kWarp) {
      const int64_t i = base + lane;
      const bool active = i < width && layer.mask[place(r, i)];
      const unsigned all = __ballot_sync(kAll, active);
      const int32_t entry = start + __popc(all & ((1u << lane) - 1));
      start += __popc(all);
      if (!active) continue;
      (kTwin ? layer.col_t : layer.col)[entry] = static_cast<int32_t>(i);
      if (kTwin) {
        layer.permutation_t[entry] = positions[layer.first_block + place(r, i)];
      } else {
        layer.row[entry] = static_cast<int32_t>(r);
        positions[layer.first_block + place(r, i)] = entry;
      }
    }
  }
}

__device__ int64_t layer_of(const LayerUpdate* layers, int64_t count, int64_t block) {
  int64_t low = 0, high = count - 1;  // the last layer that starts at or before the block
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (layers[middle].first_block <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Writes the block's rows from `from`, or zeroes where it is null.
template <typename Word>
__device__ void write_block(const LayerUpdate& layer, int64_t offset, const char* from) {
  const int64_t stride = layer.taps * layer.in_blocks * layer.block_bytes, words = layer.block_bytes / sizeof(Word);
  for (int64_t i = threadIdx.x; i < layer.block * words; i += kThreads) {
    const int64_t at = offset + i / words * stride + i % words * sizeof(Word);
    *reinterpret_cast<Word*>(layer.weight + at) = from ? *reinterpret_cast<const Word*>(from + at) : Word{};
  }
}

// One thread block for each block of each weight.
__global__ void value_kernel(const LayerUpdate* layers, int64_t count) {
  const LayerUpdate layer = layers[layer_of(layers, count, blockIdx.x)];
  const int64_t i = blockIdx.x - layer.first_block, width = layer.taps * layer.in_blocks;
  const bool now = layer.mask[i], before = !layer.had_mask || layer.block_mask[i];
  __syncthreads();  // all have read the mask that this replaces
  if (threadIdx.x == 0) layer.block_mask[i] = now;
  if (now == before || (now && !layer.init)) return;
  const int64_t offset = (i / width * layer.block * width + i % width) * layer.block_bytes;
  const char* from = now ? layer.init : nullptr;
  const auto bits = reinterpret_cast<uintptr_t>(layer.weight) | reinterpret_cast<uintptr_t>(from) | layer.block_bytes;
  if (bits % sizeof(uint4) == 0) {
    write_block<uint4>(layer, offset, from);
  } else {
    write_block<uint8_t>(layer, offset, from);
  }
}

}  // namespace

void pool_saliency_cuda(StridedWeight w, StridedWeight g, BlockShape shape, float* scores, void* stream) {
  const int64_t blocks = shape.out_blocks * shape.taps * shape.in_blocks;
  if (blocks == 0) return;
  pool_kernel<<<(blocks + kWarps - 1) / kWarps, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(w, g, shape, scores);
  check(cudaGetLastError(), "pool_saliency");
}

void update_layers_cuda(const LayerUpdate* layers, int64_t count, int64_t blocks, int32_t* positions, void* stream) {
  if (count == 0 || blocks == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  index_kernel<false><<<count, kThreads, 0, on>>>(layers, positions);
  index_kernel<true><<<count, kThreads, 0, on>>>(layers, positions);
  value_kernel<<<blocks, kThreads, 0, on>>>(layers, count);
  check(cudaGetLastError(), "update_layers");
}

}  // namespace sniper
