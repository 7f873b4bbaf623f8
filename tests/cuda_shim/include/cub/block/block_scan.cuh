// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda_runtime.h"

namespace cub {

template <typename T, int kThreads>
class BlockScan {
 public:
  struct TempStorage {
    T values[kThreads];
    uint64_t used[kThreads];
  };

  explicit BlockScan(TempStorage& storage) : storage_(storage) {}

  SHIM_UNCHECKED void ExclusiveSum(T value, T& before) {
    T total;
    ExclusiveSum(value, before, total);
  }

  SHIM_UNCHECKED void ExclusiveSum(T value, T& before, T& total) {
    shim::use_storage(storage_.used);
    storage_.values[shim::thread()] = value;
    shim::wait_for_block_inside_cub();
    T sums[2] = {};
    for (int i = 0; i < kThreads; i++) {
      if (i < shim::thread()) sums[0] += storage_.values[i];
      sums[1] += storage_.values[i];
    }
    before = sums[0];
    total = sums[1];
  }

  SHIM_UNCHECKED void InclusiveSum(T value, T& up_to, T& total) {
    T before;
    ExclusiveSum(value, before, total);
    up_to = before + value;
  }

 private:
  TempStorage& storage_;
};

}  // namespace cub
