// SPDX-License-Identifier: Apache-2.0
// Sums over rows are added up in an order that the shape alone decides.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace sniper::cpu {

// Mean, and sum of squared distances to it, of each column of a contiguous [rows, columns], rows > 0.
void batch_moments(const float* x, int64_t rows, int64_t columns, float* mean, float* squares, int threads);

void batch_norm(const BatchNorm&, int64_t rows, float* y, int threads);

// dz for z = normal * weight + bias, and dweight and dbias [columns].
void batch_norm_gradient(const BatchNorm&, const float* dy, int64_t rows, float* dz, float* dweight, float* dbias,
                         int threads);

// Turns dz into dx, through the statistics too: `shares` [2, columns] are means of dz * normal and of dz over the batch
// that the statistics are of, which may be more than these rows.
void batch_norm_input(const BatchNorm&, const float* shares, int64_t rows, float* dz, int threads);

}  // namespace sniper::cpu
