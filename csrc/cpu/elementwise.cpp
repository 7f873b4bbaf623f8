// SPDX-License-Identifier: Apache-2.0
#include "cpu/elementwise.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/row_tasks.h"

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

void add_norm(const AddNorm& a, int64_t rows, int threads) {
  const int64_t step = std::max<int64_t>(1, kElements / a.columns);
  const auto run = kernels<float>().add_norm;
  parallel_for(threads, (rows + step - 1) / step,
               [&](int64_t task, int) { run(a, task * step, std::min(rows, (task + 1) * step)); });
}

void add_norm_backward(const AddNormGrad& g, int64_t rows, float* dweight, float* dbias, int threads) {
  thread_local Scratch scratch;
  const RowTasks tasks(rows, g.columns);
  const int64_t size = 2 * g.columns;
  const auto run = kernels<float>().add_norm_backward;
  float* sums = scratch.get<float>(tasks.count * size);
  tasks.run(threads, [&](int64_t task, int64_t begin, int64_t end) {
    std::fill_n(sums + task * size, size, 0.0f);
    run(g, begin, end, sums + task * size);
  });
  for (int64_t j = 0; j < size; j++) {
    float sum = 0;
    for (int64_t task = 0; task < tasks.count; task++) sum += sums[task * size + j];
    (j < g.columns ? dweight[j] : dbias[j - g.columns]) = sum;
  }
}

template void dropout(const Kernels<float>&, const float*, float*, int64_t, int64_t, const Dropout&, int);
template void relu_backward(const Kernels<float>&, const float*, const float*, float*, int64_t, float, int);
template void dropout(const Kernels<uint16_t>&, const uint16_t*, uint16_t*, int64_t, int64_t, const Dropout&, int);
template void relu_backward(const Kernels<uint16_t>&, const uint16_t*, const uint16_t*, uint16_t*, int64_t, float, int);

}  // namespace sniper::cpu
