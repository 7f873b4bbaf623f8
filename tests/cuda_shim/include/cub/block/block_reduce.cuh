// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cub/block/block_scan.cuh"

namespace cub {

template <typename T, int kThreads>
class BlockReduce {
 public:
  using TempStorage = typename BlockScan<T, kThreads>::TempStorage;

  explicit BlockReduce(TempStorage& storage) : storage_(storage) {}

  // Of use in thread 0 only.
  SHIM_UNCHECKED T Sum(T value) {
    T before, total;
    BlockScan<T, kThreads>(storage_).ExclusiveSum(value, before, total);
    return shim::thread() == 0 ? total : static_cast<T>(0x5a5a5a5a);
  }

 private:
  TempStorage& storage_;
};

}  // namespace cub
