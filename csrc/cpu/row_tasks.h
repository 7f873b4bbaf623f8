// SPDX-License-Identifier: Apache-2.0
// Rows cut into tasks whose sums are added up afterwards: by the shape alone, so that sums have one order whatever the
// number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/parallel.h"

namespace sniper::cpu {

struct RowTasks {
  static constexpr int64_t kElements =
      1 << 15;                               // of a task, about: what is visited twice stays in the second-level cache
  static constexpr int64_t kMostSums = 256;  // tasks whose sums are added at the end

  int64_t rows, step, count;

  RowTasks(int64_t all, int64_t columns)
      : rows(all), step(std::max({int64_t{1}, kElements / columns, all / kMostSums})), count((all + step - 1) / step) {}

  // Calls body(task, begin, end) for the rows of each task.
  template <typename Body>
  void run(int threads, const Body& body) const {
    parallel_for(threads, count,
                 [&](int64_t task, int) { body(task, task * step, std::min(rows, (task + 1) * step)); });
  }
};

}  // namespace sniper::cpu
