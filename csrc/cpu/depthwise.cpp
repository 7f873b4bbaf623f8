// SPDX-License-Identifier: Apache-2.0
#include "cpu/depthwise.h"

#include <algorithm>
#include <numeric>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace sniper::cpu {
namespace {

// row[i] = x[i - pad], 0 where there is none, i in [0, count), and slack behind.
void lay(const float* x, int64_t length, int64_t pad, int64_t count, float* row) {
  const int64_t begin = std::clamp<int64_t>(pad, 0, count), end = std::clamp<int64_t>(length + pad, begin, count);
  std::fill(row, row + begin, 0.0f);
  std::copy(x + begin - pad, x + end - pad, row + begin);
  std::fill(row + end, row + count + kDepthwiseSlack, 0.0f);
}

float* scratch(int64_t count) {
  thread_local Scratch memory;
  return memory.get<float>(count);
}

}  // namespace

void depthwise(const DepthwiseShape& s, const float* x, const float* w, const float* bias, float* y, int threads) {
  const auto run = kernels<float>().depthwise;
  const int64_t count = s.length_out + s.taps - 1;
  parallel_for(threads, s.batch * s.channels, [&](int64_t i, int) {
    const int64_t c = i % s.channels;
    float* row = scratch(count + kDepthwiseSlack);
    lay(x + i * s.length_in, s.length_in, s.pad_left, count, row);
    run(row, w + c * s.taps, s.taps, bias ? bias[c] : 0, y + i * s.length_out, s.length_out);
  });
}

void depthwise_backward(const DepthwiseShape& s, const float* dy, const float* x, const float* w, float* dx, float* dw,
                        float* db, int threads) {
  const auto row_of = kernels<float>().depthwise;
  const auto weight_of = kernels<float>().depthwise_weight;
  // The input gradient is a convolution of dy with the filter turned round.
  const int64_t of_dy = s.length_in + s.taps - 1, of_x = s.length_out + s.taps - 1;
  parallel_for(threads, s.channels, [&](int64_t c, int) {
    float* turned = scratch(of_dy + of_x + s.length_out + s.taps + 3 * kDepthwiseSlack);
    float* row = turned + s.taps;
    float* x_row = row + of_dy + kDepthwiseSlack;
    float* dy_row = x_row + of_x + kDepthwiseSlack;
    std::reverse_copy(w + c * s.taps, w + (c + 1) * s.taps, turned);
    if (dw) std::fill_n(dw + c * s.taps, s.taps, 0.0f);
    double sum = 0;
    for (int64_t b = 0; b < s.batch; b++) {
      const float* from = dy + (b * s.channels + c) * s.length_out;
      const int64_t at = (b * s.channels + c) * s.length_in;
      if (dx) {
        lay(from, s.length_out, s.taps - 1 - s.pad_left, of_dy, row);
        row_of(row, turned, s.taps, 0, dx + at, s.length_in);
      }
      if (dw) {
        lay(x + at, s.length_in, s.pad_left, of_x, x_row);
        lay(from, s.length_out, 0, s.length_out, dy_row);
        weight_of(x_row, dy_row, s.length_out, s.taps, dw + c * s.taps);
      }
      if (db) sum = std::accumulate(from, from + s.length_out, sum);
    }
    if (db) db[c] = static_cast<float>(sum);
  });
}

}  // namespace sniper::cpu
