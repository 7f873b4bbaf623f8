// SPDX-License-Identifier: Apache-2.0
// Block-sparse Linear and stride-1 Conv1d on the CPU, channels last. A Linear is one tap without padding.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace sniper::cpu {

// Row pointers, columns (tap * inner blocks + inner block) and the longest-first row order of one twin of a layout.
struct Index {
  const int32_t* crow;
  const int32_t* col;
  const int32_t* order;
};

struct Shape {
  int64_t batch, length_in, length_out;
  int64_t in, out, taps;  // in and out are multiples of block
  int64_t dilation, pad_left;
  int block;
};

// y[b, t] = dropout(relu(bias + sum over taps of w[:, tap] x[b, t + tap * dilation - pad_left])). w: [out, taps * in],
// row stride w_stride. bias (float) may be null.
template <typename T>
void forward(const Kernels<T>& kernels, const Shape& shape, const Index& index, const Sequences<const T>& x, const T* w,
             int64_t w_stride, const float* bias, bool relu, const Dropout& dropout, const Sequences<T>& y,
             int threads);

// dx from dy; `twin` is the transposed index. With a gate (its data may be null) `gate > 0 ? dx * gate_scale : 0`: the
// gradient of z for an input x = dropout(relu(z)), which is the gate.
template <typename T>
void input_grad(const Kernels<T>& kernels, const Shape& shape, const Index& twin, const Sequences<const T>& dy,
                const T* w, int64_t w_stride, const Sequences<const T>& gate, float gate_scale, const Sequences<T>& dx,
                int threads);

// dw [out, taps * in] contiguous: the gradient in active blocks, 0 elsewhere. With `add` it is added in active blocks,
// and others are not touched. db [out] may be null.
template <typename T>
void weight_grad(const Kernels<T>& kernels, const Shape& shape, const Index& index, const Index& twin,
                 const Sequences<const T>& dy, const Sequences<const T>& x, float* dw, float* db, bool add,
                 int threads);

}  // namespace sniper::cpu
