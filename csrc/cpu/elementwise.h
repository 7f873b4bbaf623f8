// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace sniper::cpu {

// y = dropout(x) on a contiguous [rows, columns], with the words that `forward` draws for the same seed and shape. The
// gradient is the same function of dy. y may be x.
template <typename T>
void dropout(const Kernels<T>& kernels, const T* x, T* y, int64_t rows, int64_t columns, const Dropout& dropout,
             int threads);

// dx = y > 0 ? dy * scale : 0, the gradient of y = dropout(relu(x)) with scale = 1 / (1 - p).
template <typename T>
void relu_backward(const Kernels<T>& kernels, const T* dy, const T* y, T* dx, int64_t n, float scale, int threads);

void add_norm(const AddNorm&, int64_t rows, int threads);

// dweight and dbias [columns] too, each added up in an order that the shape alone decides.
void add_norm_backward(const AddNormGrad&, int64_t rows, float* dweight, float* dbias, int threads);

}  // namespace sniper::cpu
