// SPDX-License-Identifier: Apache-2.0
#include "cpu/winograd.h"

#include <algorithm>
#include <vector>

#include "cpu/panels.h"
#include "cpu/parallel.h"

namespace sniper::cpu {
namespace {

constexpr int64_t kLeastRows = 256;  // of all sequences: with fewer, packing the weights costs more than is saved

// Tokens of a task and channels that it takes at a time, whose values at all points stay in the second-level cache.
// Each panel reads all weights anew: those that are larger than what a thread has of the last cache meet longer panels.
struct Cut {
  int64_t tokens, channels;
};
constexpr Cut kCut{96, 384}, kCutOfLarge{288, 128};
constexpr int64_t kLarge = 8 << 20;

// Taps in the order of the tokens that they read, in groups of three.
struct Taps {
  int64_t groups, first_shift;
  std::vector<int64_t> place;  // of a tap in that order

  explicit Taps(const Shape& shape, const Twin& twin)
      : groups((shape.taps + kTapsAtOnce - 1) / kTapsAtOnce), first_shift(twin.first_shift), place(shape.taps) {
    if (twin.tap_shift < 0) first_shift += (shape.taps - 1) * twin.tap_shift;
    for (int64_t tap = 0; tap < shape.taps; tap++) place[tap] = twin.tap_shift < 0 ? shape.taps - 1 - tap : tap;
  }
};

// Bit p: whether a product at point p is needed for active taps, one bit each.
unsigned points_of(unsigned taps) {
  unsigned points = 0;
  for (int i = 0; i < kTapsAtOnce; i++)
    if (taps >> i & 1) points |= kPointsOfTap[i];
  return points;
}

// Active taps of each source, a group of taps of an input block: [rows, groups * inner].
std::vector<uint8_t> active_taps(const Twin& twin, const Taps& taps) {
  const int64_t sources = taps.groups * twin.inner;
  std::vector<uint8_t> active(twin.rows * sources);
  for (int64_t r = 0; r < twin.rows; r++)
    for (int32_t e = twin.index.crow[r]; e < twin.index.crow[r + 1]; e++) {
      const int64_t place = taps.place[twin.index.col[e] / twin.inner], inner = twin.index.col[e] % twin.inner;
      active[r * sources + place / kTapsAtOnce * twin.inner + inner] |= 1 << place % kTapsAtOnce;
    }
  return active;
}

// Products of blocks at all points that active taps take.
int64_t count_products(const std::vector<uint8_t>& active) {
  int64_t products = 0;
  for (const uint8_t taps : active) products += __builtin_popcount(points_of(taps));
  return products;
}

struct Plan {
  int64_t tokens;              // of a panel
  int64_t chunks, chunk;       // and input blocks of a chunk
  std::vector<int32_t> begin;  // as `Winograd` has it
  std::vector<int32_t> sources;
  std::vector<uint8_t> active;  // taps of each row's sources [rows, groups * inner]
  std::vector<int32_t> places;  // of those at each point: the entry [rows, groups * inner, points]
};

Plan make_plan(const Shape& shape, const Twin& twin, const Taps& taps) {
  const int64_t sources = taps.groups * twin.inner;
  Plan plan;
  plan.active = active_taps(twin, taps);
  plan.places.resize(plan.active.size() * kPoints);
  const int64_t bytes = count_products(plan.active) * shape.block * shape.block * static_cast<int64_t>(sizeof(float));
  const Cut& cut = bytes < kLarge ? kCut : kCutOfLarge;
  plan.tokens = cut.tokens;
  plan.chunk = std::max<int64_t>(1, cut.channels / (shape.block * taps.groups));
  plan.chunks = (twin.inner + plan.chunk - 1) / plan.chunk;
  plan.begin.push_back(0);
  for (int64_t k = 0; k < plan.chunks; k++) {
    const int64_t from = k * plan.chunk, to = std::min(twin.inner, from + plan.chunk);
    for (int64_t r = 0; r < twin.rows; r++)
      for (int p = 0; p < kPoints; p++) {
        for (int64_t group = 0; group < taps.groups; group++)
          for (int64_t c = from; c < to; c++) {
            const int64_t source = r * sources + group * twin.inner + c;
            if (!(points_of(plan.active[source]) >> p & 1)) continue;
            plan.places[source * kPoints + p] = static_cast<int32_t>(plan.sources.size());
            plan.sources.push_back(static_cast<int32_t>(group * (to - from) + c - from));
          }
        plan.begin.push_back(static_cast<int32_t>(plan.sources.size()));
      }
  }
  return plan;
}

}  // namespace

bool winograd_pays(const Shape& shape, const Twin& twin) {
  if (shape.taps < kTapsAtOnce || shape.dilation != 1 || shape.batch * shape.length_out < kLeastRows) return false;
  const std::vector<uint8_t> active = active_taps(twin, Taps(shape, twin));
  // A tenth less at the least, since inputs and sums take time of their own.
  return 10 * count_products(active) < 9 * kQuad * twin.index.crow[twin.rows];
}

void run_winograd(const Kernels<float>& kernels, const Shape& shape, const Twin& twin, const float* w, int64_t w_stride,
                  const Product<float>& product, int threads) {
  thread_local Scratch weight_scratch, task_scratch;
  const Taps taps(shape, twin);
  const Plan plan = make_plan(shape, twin, taps);
  const int block = shape.block;
  const int64_t area = static_cast<int64_t>(block) * block, sources = taps.groups * twin.inner;
  const WinogradKernels& winograd = *kernels.winograd;

  float* packed = weight_scratch.get<float>(static_cast<int64_t>(plan.sources.size()) * area);
  float* scratch = task_scratch.get<float>(kTapsAtOnce * area * threads);
  parallel_for(threads, twin.rows, [&](int64_t r, int slot) {
    float* const own = scratch + kTapsAtOnce * area * slot;
    for (int64_t s = 0; s < sources; s++) {
      const int64_t source = r * sources + s;
      if (!plan.active[source]) continue;
      const float* three[kTapsAtOnce] = {};
      for (int64_t tap = 0; tap < shape.taps; tap++) {
        const int64_t i = taps.place[tap] - s / twin.inner * kTapsAtOnce;
        if (i < 0 || i >= kTapsAtOnce || !(plan.active[source] >> i & 1)) continue;
        const int64_t inner = s % twin.inner, out = twin.transposed ? r : inner, in = twin.transposed ? inner : r;
        kernels.pack(w + out * block * w_stride + tap * shape.in + in * block, w_stride, block, twin.transposed,
                     own + i * area);
        three[i] = own + i * area;
      }
      float* points[kPoints] = {};
      for (int p = 0; p < kPoints; p++)
        if (points_of(plan.active[source]) >> p & 1) points[p] = packed + plan.places[source * kPoints + p] * area;
      winograd.weights(three, area, points);
    }
  });

  const int64_t tile = kernels.tile_rows(block);
  const auto panels = cut_panels(shape.batch, product.y.length, plan.tokens, tile * kQuad);
  const int64_t count = static_cast<int64_t>(panels.size());
  if (count == 0) return;
  // Rows in parts only where there are too few panels for the threads: each part spreads its inputs anew.
  const int64_t parts = std::min(twin.rows, (2 * threads + count - 1) / count), most = (twin.rows + parts - 1) / parts;
  const auto quads_of = [&](const Panel& panel) {  // in whole tiles
    return (panel.end - panel.begin + tile * kQuad - 1) / (tile * kQuad) * tile;
  };
  const int64_t unit = kPoints * quads_of(panels[0]) * block;
  const int64_t inputs = taps.groups * std::min(plan.chunk, twin.inner) * unit,
                sums = plan.chunks > 1 ? most * unit : unit;
  scratch = task_scratch.get<float>((inputs + sums) * threads);
  Winograd g{};
  g.out = product;
  g.out.packed = packed;
  g.begin = plan.begin.data();
  g.sources = plan.sources.data();
  g.rows = twin.rows;
  g.chunks = plan.chunks;
  parallel_for(threads, parts * count, [&](int64_t task, int slot) {
    const Panel& panel = panels[task / parts];
    const int64_t part = task % parts, first = twin.rows * part / parts, end = twin.rows * (part + 1) / parts;
    Winograd own = g;
    own.quads = quads_of(panel);
    float *u = scratch + (inputs + sums) * slot, *m = u + inputs;
    for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
      const int64_t from = chunk * plan.chunk, width = std::min(twin.inner, from + plan.chunk) - from;
      for (int64_t group = 0; group < taps.groups; group++)
        winograd.spread(product.x, panel.batch, panel.begin + taps.first_shift + group * kTapsAtOnce, own.quads,
                        from * block, width * block, block, u + group * width * kPoints * own.quads * block);
      for (int64_t r = first; r < end; r++)
        winograd.row(own, chunk, r, panel, u, plan.chunks > 1 ? m + (r - first) * unit : m);
    }
  });
}

}  // namespace sniper::cpu
