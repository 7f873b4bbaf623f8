// SPDX-License-Identifier: Apache-2.0
// Attention with key mask and dropout, float32.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace sniper::cpu {

struct AttentionShape {
  int64_t batch, heads, queries, keys, channels;  // channels of one head
};

// A [batch, rows, heads * channels] tensor with contiguous channels.
template <typename T>
struct HeadRows {
  T* data;
  int64_t batch_stride, row_stride;
};

// y = dropout(softmax(scale * (q k^T + places))) v over the keys that `mask` [batch, keys] marks (null: all). places[t,
// j] = position_q[t] . p[keys - 1 - t + j]; p has 2 * keys - 1 rows and one batch, there are as many queries as keys,
// and without places its data is null. Dropout's mask is that of a [heads, batch, queries, keys] tensor in which a
// sequence's keys that count come first. `normal` [heads, batch, queries, 2] gets each row's highest score and 1 / sum
// of e^(score - highest), for backward.
void attention(const AttentionShape&, const HeadRows<const float>& q, const HeadRows<const float>& k,
               const HeadRows<const float>& v, const HeadRows<const float>& position_q, const HeadRows<const float>& p,
               const uint8_t* mask, float scale, const Dropout&, const HeadRows<float>& y, float* normal, int threads);

// Gradients; dk and dv have the same strides. Bits do not depend on `threads`.
void attention_backward(const AttentionShape&, const HeadRows<const float>& q, const HeadRows<const float>& k,
                        const HeadRows<const float>& v, const HeadRows<const float>& position_q,
                        const HeadRows<const float>& p, const HeadRows<const float>& dy, const uint8_t* mask,
                        float scale, const Dropout&, const float* normal, const HeadRows<float>& dq,
                        const HeadRows<float>& dk, const HeadRows<float>& dv, const HeadRows<float>& dposition_q,
                        const HeadRows<float>& dp, int threads);

}  // namespace sniper::cpu
