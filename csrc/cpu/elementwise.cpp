// SPDX-License-Identifier: Apache-2.0
#include "cpu/elementwise.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace sniper::cpu {
namespace {

// Elements of a task: enough to hide its start, few enough to share among many threads.
constexpr int64_t kElements = 1 << 15;

}  // namespace

template <typename T>
void dropout(const Kernels<T>& kernels, const T* x, T* y, int64_t rows, int64_t columns, const Dropout& dropout,
             int threads) {
  if (rows == 0 || columns == 0) return;
  const int64_t step = std::max<int64_t>(1, kElements / columns);
  parallel_for(threads, (rows + step - 1) / step, [&](int64_t task, int) {
    kernels.dropout(x, y, columns, task * step, std::min(rows, (task + 1) * step), dropout);
  });
}

template <typename T>
void relu_backward(const Kernels<T>& kernels, const T* dy, const T* y, T* dx, int64_t n, float scale, int threads) {
  parallel_for(threads, (n + kElements - 1) / kElements, [&](int64_t task, int) {
    kernels.relu_backward(dy, y, dx, task * kElements, std::min(n, (task + 1) * kElements), scale);
  });
}

template void dropout(const Kernels<float>&, const float*, float*, int64_t, int64_t, const Dropout&, int);
template void relu_backward(const Kernels<float>&, const float*, const float*, float*, int64_t, float, int);
template void dropout(const Kernels<uint16_t>&, const uint16_t*, uint16_t*, int64_t, int64_t, const Dropout&, int);
template void relu_backward(const Kernels<uint16_t>&, const uint16_t*, const uint16_t*, uint16_t*, int64_t, float, int);

}  // namespace sniper::cpu
