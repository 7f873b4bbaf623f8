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

// Attention weights in place of scores s [rows, columns], and `dropped`, what dropout leaves of them. Rows
// [m * mask_rows, (m + 1) * mask_rows) see the keys where mask[m, columns] is not 0; a null mask hides none.
template <typename T>
void softmax_dropout(const Kernels<T>& kernels, T* s, const uint8_t* mask, int64_t mask_rows, T* dropped, int64_t rows,
                     int64_t columns, float scale, const Dropout& dropout, int threads);

// dL/ds in place of dy = dL/d(dropped), from the attention weights p.
template <typename T>
void softmax_dropout_backward(const Kernels<T>& kernels, T* dy, const T* p, int64_t rows, int64_t columns, float scale,
                              const Dropout& dropout, int threads);

}  // namespace sniper::cpu
