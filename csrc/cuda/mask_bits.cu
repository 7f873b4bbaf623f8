// SPDX-License-Identifier: Apache-2.0
#include "check.h"
#include "mask_bits.h"

namespace sniper {
namespace {

constexpr int kThreads = 256;

// One thread writes one byte, so no two threads touch the same one.
__global__ void pack_kernel(const uint8_t* values, int64_t n, uint8_t* bits) {
  int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (8 * i >= n) return;
  uint8_t byte = 0;
  for (int j = 0; j < 8 && 8 * i + j < n; j++) byte |= static_cast<uint8_t>((values[8 * i + j] & 1) << j);
  bits[i] = byte;
}

__global__ void unpack_kernel(const uint8_t* bits, int64_t n, uint8_t* values) {
  int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i < n) values[i] = (bits[i / 8] >> (i % 8)) & 1;
}

}  // namespace

void pack_bits_cuda(const uint8_t* values, int64_t n, uint8_t* bits, void* stream) {
  if (n == 0) return;
  int64_t bytes = (n + 7) / 8;
  pack_kernel<<<(bytes + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(values, n, bits);
  check(cudaGetLastError(), "pack_bits");
}

void unpack_bits_cuda(const uint8_t* bits, int64_t n, uint8_t* values, void* stream) {
  if (n == 0) return;
  unpack_kernel<<<(n + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(bits, n, values);
  check(cudaGetLastError(), "unpack_bits");
}

}  // namespace sniper
