// SPDX-License-Identifier: Apache-2.0
#include "cpu/adam.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace sniper::cpu {
namespace {

constexpr int64_t kNumbers = 1 << 15;  // of a piece without a mask

// A row of blocks of one masked parameter, or a stretch of one without a mask.
struct Piece {
  const Parameter* parameter;
  int64_t begin, end;
};

std::vector<Piece> cut(const std::vector<Parameter>& parameters) {
  std::vector<Piece> pieces;
  for (const Parameter& p : parameters) {
    const int64_t count = p.mask ? p.block_rows * p.block : p.size;
    const int64_t step = p.mask ? p.block : kNumbers;
    for (int64_t i = 0; i < count; i += step) pieces.push_back({&p, i, std::min(count, i + step)});
  }
  return pieces;
}

// The stretches of a piece, neighbouring blocks as one. A block at a time: row by row over all blocks of a row the same
// bytes come more slowly.
const std::vector<Stretch>& stretches_of(const Piece& piece) {
  thread_local std::vector<Stretch> found;
  const Parameter& p = *piece.parameter;
  found.clear();
  if (!p.mask) {
    found.push_back({piece.begin, piece.end - piece.begin, 1, 0});
    return found;
  }
  const int64_t width = p.block_cols * p.block;
  const uint8_t* active = p.mask + piece.begin / p.block * p.block_cols;
  for (int64_t c = 0; c < p.block_cols; c++) {
    if (!active[c]) continue;
    if (c > 0 && active[c - 1])
      found.back().n += p.block;
    else
      found.push_back({piece.begin * width + c * p.block, p.block, piece.end - piece.begin, width});
  }
  return found;
}

}  // namespace

double sum_squares(const std::vector<Parameter>& parameters, int threads) {
  const auto pieces = cut(parameters);
  const auto sum = kernels<float>().sum_squares;
  std::vector<double> sums(pieces.size());
  parallel_for(threads, pieces.size(), [&](int64_t i, int) {
    const auto& found = stretches_of(pieces[i]);
    sums[i] = sum(pieces[i].parameter->tensors.g, found.data(), found.size());
  });
  double total = 0;
  for (const double each : sums) total += each;
  return total;
}

void adam(const std::vector<Parameter>& parameters, int threads) {
  const auto pieces = cut(parameters);
  const auto update = kernels<float>().adam;
  parallel_for(threads, pieces.size(), [&](int64_t i, int) {
    const Parameter& p = *pieces[i].parameter;
    const auto& found = stretches_of(pieces[i]);
    update(p.step, p.tensors, found.data(), found.size());
  });
}

}  // namespace sniper::cpu
