// SPDX-License-Identifier: Apache-2.0
// One visit of all parameters: the norm of their gradients, or Adam's update. Pruned blocks are neither read nor
// written.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace sniper::cpu {

// A parameter of `size` numbers that lie together. With a mask [block_rows, block_cols] it is a matrix of blocks of
// `block` x `block` of which only those that are true count; without one all do.
struct Parameter {
  AdamTensors tensors;
  AdamStep step;
  int64_t size;
  const uint8_t* mask;  // may be null
  int64_t block_rows, block_cols, block;
};

// The sum of the squares of all gradients; its bits do not depend on `threads`.
double sum_squares(const std::vector<Parameter>& parameters, int threads);

void adam(const std::vector<Parameter>& parameters, int threads);

}  // namespace sniper::cpu
