// SPDX-License-Identifier: Apache-2.0
#include "cpu/batch_norm.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/row_tasks.h"

namespace sniper::cpu {

void batch_moments(const float* x, int64_t rows, int64_t columns, float* mean, float* squares, int threads) {
  thread_local Scratch scratch;
  const RowTasks tasks(rows, columns);
  float* parts = scratch.get<float>(tasks.count * 2 * columns);
  const auto run = kernels<float>().batch_moments;
  tasks.run(threads,
            [&](int64_t task, int64_t begin, int64_t end) { run(x, columns, begin, end, parts + task * 2 * columns); });
  for (int64_t j = 0; j < columns; j++) {
    // As Chan, Golub and LeVeque put two parts' moments together.
    double m = 0, s = 0, n = 0;
    for (int64_t task = 0; task < tasks.count; task++) {
      const float* part = parts + task * 2 * columns;
      const double more = static_cast<double>(std::min(rows - task * tasks.step, tasks.step));
      const double apart = part[j] - m, all = n + more;
      m += apart * more / all;
      s += part[columns + j] + apart * apart * n * more / all;
      n = all;
    }
    mean[j] = static_cast<float>(m);
    squares[j] = static_cast<float>(s);
  }
}

void batch_norm(const BatchNorm& a, int64_t rows, float* y, int threads) {
  const auto run = kernels<float>().batch_norm;
  RowTasks(rows, a.columns).run(threads, [&](int64_t, int64_t begin, int64_t end) { run(a, begin, end, y); });
}

void batch_norm_gradient(const BatchNorm& a, const float* dy, int64_t rows, float* dz, float* dweight, float* dbias,
                         int threads) {
  thread_local Scratch scratch;
  const RowTasks tasks(rows, a.columns);
  const int64_t size = 2 * a.columns;
  float* sums = scratch.get<float>(tasks.count * size);
  const auto run = kernels<float>().batch_norm_gradient;
  tasks.run(threads, [&](int64_t task, int64_t begin, int64_t end) {
    std::fill_n(sums + task * size, size, 0.0f);
    run(a, dy, begin, end, dz, sums + task * size);
  });
  for (int64_t j = 0; j < size; j++) {
    double sum = 0;
    for (int64_t task = 0; task < tasks.count; task++) sum += sums[task * size + j];
    (j < a.columns ? dweight[j] : dbias[j - a.columns]) = static_cast<float>(sum);
  }
}

void batch_norm_input(const BatchNorm& a, const float* shares, int64_t rows, float* dz, int threads) {
  const auto run = kernels<float>().batch_norm_input;
  RowTasks(rows, a.columns).run(threads, [&](int64_t, int64_t begin, int64_t end) { run(a, shares, begin, end, dz); });
}

}  // namespace sniper::cpu
