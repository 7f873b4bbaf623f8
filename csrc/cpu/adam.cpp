// SPDX-License-Identifier: Apache-2.0
#include "cpu/adam.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace sniper::cpu {
namespace {

constexpr int64_t kNumbers = 1 << 15;  // of a piece, about

// Some rows of one masked parameter, or a stretch of one without a mask.
struct Piece {
  const Parameter* parameter;
  int64_t begin, end;
};

std::vector<Piece> cut(const std::vector<Parameter>& parameters) {
  std::vector<Piece> pieces;
  for (const Parameter& p : parameters) {
    const int64_t width = p.block_cols * p.block;
    const int64_t count = p.mask ? p.block_rows * p.block : p.size;
    // Rows of a piece lie in one row of blocks: every block size is a multiple of 16.
    const int64_t step = !p.mask ? kNumbers : width * p.block > kNumbers ? 16 : p.block;
    for (int64_t i = 0; i < count; i += step) pieces.push_back({&p, i, std::min(count, i + step)});
  }
  return pieces;
}

// The stretches of a piece, neighbouring blocks joined.
const std::vector<Stretch>& stretches_of(const Piece& piece) {
  thread_local std::vector<Stretch> runs, found;
  const Parameter& p = *piece.parameter;
  found.clear();
  if (!p.mask) {
    found.push_back({piece.begin, piece.end - piece.begin});
    return found;
  }
  runs.clear();  // of one row: all rows of a row of blocks have the same
  const uint8_t* active = p.mask + piece.begin / p.block * p.block_cols;
  for (int64_t c = 0; c < p.block_cols; c++) {
    if (!active[c]) continue;
    if (c && active[c - 1])
      runs.back().n += p.block;
    else
      runs.push_back({c * p.block, p.block});
  }
  for (int64_t row = piece.begin; row < piece.end; row++)
    for (const Stretch& run : runs) found.push_back({row * p.block_cols * p.block + run.begin, run.n});
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
