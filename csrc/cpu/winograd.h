// SPDX-License-Identifier: Apache-2.0
// Convolutions by Winograd's minimal filtering, three neighbouring taps at a time.
#pragma once

#include "cpu/conv.h"

namespace sniper::cpu {

// One twin of a layout as a product sees it: block row r reads, for column tap * inner + c, input block c of the row
// that lies first_shift + tap * tap_shift further.
struct Twin {
  const Index& index;
  int64_t rows, inner;  // blocks
  int64_t first_shift, tap_shift;
  bool transposed;  // whether its blocks lie [out, in] in memory, i.e. not as `product` wants them
};

// Whether it takes fewer multiplications than tap by tap: of masks whose active blocks share their taps, half.
bool winograd_pays(const Shape& shape, const Twin& twin);

// As run_product in conv.cpp has it. Only where winograd_pays.
void run_winograd(const Kernels<float>& kernels, const Shape& shape, const Twin& twin, const float* w, int64_t w_stride,
                  const Product<float>& product, int threads);

}  // namespace sniper::cpu
