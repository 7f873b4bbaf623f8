// SPDX-License-Identifier: Apache-2.0
// A convolution with one filter a channel, along time; x, y and their gradients are contiguous [batch, channels,
// length], filters [channels, taps]. Each sum has an order that the shape alone decides.
#pragma once

#include <cstdint>

namespace sniper::cpu {

struct DepthwiseShape {
  int64_t batch, channels, length_in, length_out, taps, pad_left;
};

// y[b, c, t] = bias[c] + sum_k w[c, k] * x[b, c, t + k - pad_left], x being 0 where there is none; bias may be null.
void depthwise(const DepthwiseShape&, const float* x, const float* w, const float* bias, float* y, int threads);

// Each of dx, dw [channels, taps] and db [channels] may be null.
void depthwise_backward(const DepthwiseShape&, const float* dy, const float* x, const float* w, float* dx, float* dw,
                        float* db, int threads);

}  // namespace sniper::cpu
