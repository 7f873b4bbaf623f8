// SPDX-License-Identifier: Apache-2.0
#include "mask_rebuild.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/parallel.h"

namespace sniper {
namespace {

using cpu::parallel_for;

constexpr int kLanes = 32;

// kUnit: neighbouring channels are neighbours in memory.
template <bool kUnit>
float block_saliency(const StridedWeight& w, const StridedWeight& g, int64_t block) {
  float lanes[kLanes] = {};
  const int64_t wc = kUnit ? 1 : w.channel, gc = kUnit ? 1 : g.channel;
  for (int64_t row = 0; row < block; row++) {
    const float *wr = w.data + row * w.row, *gr = g.data + row * g.row;
    for (int64_t c = 0; c < block; c += kLanes, wr += kLanes * wc, gr += kLanes * gc) {
      const int64_t used = std::min<int64_t>(kLanes, block - c);
      if (used == kLanes) {
        for (int j = 0; j < kLanes; j++) lanes[j] += std::fabs(wr[j * wc] * gr[j * gc]);
      } else {
        for (int64_t j = 0; j < used; j++) lanes[j] += std::fabs(wr[j * wc] * gr[j * gc]);
      }
    }
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

// One of the twins: how its rows walk the mask. Row r, tap t, column c lies at r * row + t * tap + c * col.
struct Walk {
  int64_t rows, taps, cols;
  int64_t row, tap, col;
};

// Writes row pointers, columns and the longest-first order; calls at(entry, row, place in the mask) for every entry.
template <typename At>
void compress(const uint8_t* mask, const Walk& walk, int32_t* crow, int32_t* col, int32_t* order, const At& at) {
  int32_t entry = 0;
  crow[0] = 0;
  for (int64_t r = 0; r < walk.rows; r++) {
    for (int64_t t = 0; t < walk.taps; t++) {
      for (int64_t c = 0; c < walk.cols; c++) {
        const int64_t place = r * walk.row + t * walk.tap + c * walk.col;
        if (!mask[place]) continue;
        col[entry] = static_cast<int32_t>(t * walk.cols + c);
        at(entry++, r, place);
      }
    }
    crow[r + 1] = entry;
  }
  std::iota(order, order + walk.rows, 0);
  std::stable_sort(order, order + walk.rows,
                   [crow](int32_t a, int32_t b) { return crow[a + 1] - crow[a] > crow[b + 1] - crow[b]; });
}

void write_indices(const LayerUpdate& layer) {
  const int64_t width = layer.taps * layer.in_blocks, size = layer.out_blocks * width;
  std::vector<int32_t> entry_at(size);
  compress(layer.mask, {layer.out_blocks, layer.taps, layer.in_blocks, width, layer.in_blocks, 1}, layer.crow,
           layer.col, layer.order, [&](int32_t entry, int64_t row, int64_t place) {
             layer.row[entry] = static_cast<int32_t>(row);
             entry_at[place] = entry;
           });
  compress(layer.mask, {layer.in_blocks, layer.taps, layer.out_blocks, 1, layer.in_blocks, width}, layer.crow_t,
           layer.col_t, layer.order_t,
           [&](int32_t entry, int64_t, int64_t place) { layer.permutation_t[entry] = entry_at[place]; });
  std::memcpy(layer.block_mask, layer.mask, size);
}

enum class Action { kKeep, kZero, kRestore };

Action action(const LayerUpdate& layer, int64_t place) {
  const bool now = layer.mask[place], before = !layer.had_mask || layer.block_mask[place];
  if (now && !before) return layer.init ? Action::kRestore : Action::kKeep;
  return before && !now ? Action::kZero : Action::kKeep;
}

// Bytes of a weight row that share their fate.
struct Run {
  int64_t begin, size;
  Action action;
};

void change_values(const LayerUpdate& layer, int64_t out_block) {
  const int64_t width = layer.taps * layer.in_blocks, row_bytes = width * layer.block_bytes;
  std::vector<Run> runs;
  for (int64_t i = 0; i < width; i++) {
    const Action what = action(layer, out_block * width + i);
    if (what == Action::kKeep) continue;
    if (!runs.empty() && runs.back().action == what && runs.back().begin + runs.back().size == i * layer.block_bytes) {
      runs.back().size += layer.block_bytes;
    } else {
      runs.push_back({i * layer.block_bytes, layer.block_bytes, what});
    }
  }
  for (int64_t row = out_block * layer.block; row < (out_block + 1) * layer.block; row++) {
    for (const auto& run : runs) {
      const int64_t at = row * row_bytes + run.begin;
      if (run.action == Action::kZero) {
        std::memset(layer.weight + at, 0, run.size);
      } else {
        std::memcpy(layer.weight + at, layer.init + at, run.size);
      }
    }
  }
}

}  // namespace

void pool_saliency(StridedWeight w, StridedWeight g, BlockShape shape, float* scores, int threads) {
  const int64_t b = shape.block;
  const bool unit = w.channel == 1 && g.channel == 1;
  parallel_for(threads, shape.out_blocks * shape.in_blocks, [&](int64_t i, int) {
    const int64_t out = i / shape.in_blocks, in = i % shape.in_blocks;
    for (int64_t tap = 0; tap < shape.taps; tap++) {
      StridedWeight wb = w, gb = g;
      wb.data += out * b * w.row + in * b * w.channel + tap * w.tap;
      gb.data += out * b * g.row + in * b * g.channel + tap * g.tap;
      scores[(out * shape.taps + tap) * shape.in_blocks + in] =
          unit ? block_saliency<true>(wb, gb, b) : block_saliency<false>(wb, gb, b);
    }
  });
}

void update_layers(const LayerUpdate* layers, int64_t count, int threads) {
  struct BlockRow {
    const LayerUpdate* layer;
    int64_t row;
  };
  std::vector<BlockRow> rows;
  for (int64_t i = 0; i < count; i++) {
    for (int64_t row = 0; row < layers[i].out_blocks; row++) rows.push_back({&layers[i], row});
  }
  parallel_for(threads, rows.size(), [&](int64_t i, int) { change_values(*rows[i].layer, rows[i].row); });
  // After the values: they need the mask that this replaces.
  parallel_for(threads, count, [&](int64_t i, int) { write_indices(layers[i]); });
}

}  // namespace sniper
