// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "mask_stages.h"

namespace sniper {
namespace {

__global__ void empty_kernel() {}

}  // namespace

bool cuda_usable() {
  cudaFuncAttributes attributes;
  const bool usable = cudaFuncGetAttributes(&attributes, empty_kernel) == cudaSuccess;
  cudaGetLastError();  // a GPU that has no image of the kernel is no error of whoever calls next
  return usable;
}

}  // namespace sniper
