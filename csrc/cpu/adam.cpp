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

// Calls visit(begin, n) for the stretches of a piece that count, neighbours joined.
template <typename Visit>
void each_stretch(const Piece& piece, const Visit& visit) {
  const Parameter& p = *piece.parameter;
  if (!p.mask) return visit(piece.begin, piece.end - piece.begin);
  const uint8_t* active = p.mask + piece.begin / p.block * p.block_cols;
  for (int64_t row = piece.begin; row < piece.end; row++) {
    const int64_t at = row * p.block_cols * p.block;
    for (int64_t c = 0; c < p.block_cols;) {
      if (!active[c]) {
        c++;
        continue;
      }
      const int64_t first = c;
      while (c < p.block_cols && active[c]) c++;
      visit(at + first * p.block, (c - first) * p.block);
    }
  }
}

}  // namespace

double sum_squares(const std::vector<Parameter>& parameters, int threads) {
  const auto pieces = cut(parameters);
  const auto sum = kernels<float>().sum_squares;
  std::vector<double> sums(pieces.size());
  parallel_for(threads, pieces.size(), [&](int64_t i, int) {
    double total = 0;
    const float* g = pieces[i].parameter->tensors.g;
    each_stretch(pieces[i], [&](int64_t begin, int64_t n) { total += sum(g + begin, n); });
    sums[i] = total;
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
    each_stretch(pieces[i], [&](int64_t begin, int64_t n) { update(p.step, p.tensors, begin, n); });
  });
}

}  // namespace sniper::cpu
