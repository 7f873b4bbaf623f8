// SPDX-License-Identifier: Apache-2.0
// The weight gradient: which entries and tokens a task takes, and where its sums go.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/conv.h"
#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "cpu/winograd.h"

namespace sniper::cpu {
namespace {

constexpr int kGroup = 8;        // entries of a task: their sums (128 KiB at block 64) stay in the second-level cache
constexpr int kTasks = 16;       // at least, where there are tokens enough: more write sums that have to be added
constexpr int kLeastPanels = 8;  // of a chunk: with fewer the partial sums cost more than they save

// By Winograd: input blocks of a task, with the sums of six points each, and tokens of a panel.
constexpr int kSources = 3;
constexpr int64_t kWinogradTokens = 192;

// Some entries of one block row: the work of one task in one chunk of tokens.
struct Group {
  int32_t row, first, count;
  bool with_bias;
};

struct Plan {
  std::vector<Entry> entries;  // of each block row by input block, then tap
  std::vector<float*> dw;      // where the block of an entry lies
  std::vector<Group> groups;   // the largest first
};

Plan make_plan(const Shape& shape, const Index& index, const Index& twin, float* dw, bool with_bias, bool winograd) {
  const int64_t rows = shape.out / shape.block, inner = shape.in / shape.block, width = shape.taps * shape.in;
  Plan plan;
  plan.entries.resize(index.crow[rows]);
  plan.dw.resize(index.crow[rows]);
  std::vector<int32_t> next(index.crow, index.crow + rows);
  for (int64_t c = 0; c < inner; c++)
    for (int32_t p = twin.crow[c]; p < twin.crow[c + 1]; p++) {  // by tap: the twin lists them so
      const int64_t tap = twin.col[p] / rows, r = twin.col[p] % rows;
      const int32_t at = next[r]++;
      plan.entries[at].shift = static_cast<int32_t>(tap * shape.dilation - shape.pad_left);
      plan.entries[at].column = static_cast<int32_t>(c * shape.block);
      plan.dw[at] = dw + r * shape.block * width + tap * shape.in + c * shape.block;
    }
  const auto source = [&](const Entry& entry) {  // input block and taps at once, as three_taps_from has it
    return std::pair(entry.column, (entry.shift + shape.pad_left) / kTapsAtOnce);
  };
  std::vector<int32_t> starts;
  for (int32_t r = 0; r < rows; r++) {
    const int32_t begin = index.crow[r], end = index.crow[r + 1];
    starts.clear();  // of what a task may not be cut within
    for (int32_t p = begin; p < end; p++)
      if (!winograd || p == begin || source(plan.entries[p]) != source(plan.entries[p - 1])) starts.push_back(p);
    const int32_t count = static_cast<int32_t>(starts.size()), most = winograd ? kSources : kGroup;
    const int32_t pieces = std::max((count + most - 1) / most, with_bias ? 1 : 0);
    starts.push_back(end);
    for (int32_t k = 0; k < pieces; k++) {
      const int32_t from = starts[count * k / pieces], to = starts[count * (k + 1) / pieces];
      plan.groups.push_back({r, from, to - from, with_bias && k == 0});
    }
  }
  const auto larger = [](const Group& a, const Group& b) { return a.count > b.count; };
  std::stable_sort(plan.groups.begin(), plan.groups.end(), larger);
  return plan;
}

// Sums of each chunk of tokens: [chunk][entry][block, block], then [chunk][out] for the bias.
struct Partial {
  float* dw;
  float* db;
  int64_t chunks;
};

// Zeros the pruned blocks of 16 rows of dw.
void zero_pruned_rows(const Shape& shape, const Index& index, int64_t r, int64_t first, float* dw) {
  const int64_t block = shape.block, width = shape.taps * shape.in;
  const int32_t begin = index.crow[r], end = index.crow[r + 1];
  for (int64_t i = first; i < first + 16; i++) {
    float* row = dw + (r * block + i) * width;
    int64_t done = 0;
    for (int32_t p = begin; p < end; p++) {
      const int64_t at = index.col[p] * block;
      std::memset(row + done, 0, (at - done) * sizeof(float));
      done = at + block;
    }
    std::memset(row + done, 0, (width - done) * sizeof(float));
  }
}

// Adds up the chunks of the active blocks of 16 rows, in order, and writes the sums to dw or adds them to it.
void add_chunks(const Shape& shape, const Index& index, const Plan& plan, const Partial& partial, int64_t r,
                int64_t first, bool add) {
  const int64_t block = shape.block, area = block * block, width = shape.taps * shape.in, nnz = plan.entries.size();
  for (int32_t p = index.crow[r]; p < index.crow[r + 1]; p++)
    for (int64_t i = first; i < first + 16; i++) {
      float sum[kMaxBlock];
      const float* part = partial.dw + p * area + i * block;
      std::memcpy(sum, part, block * sizeof(float));
      for (int64_t c = 1; c < partial.chunks; c++)
        for (int64_t j = 0; j < block; j++) sum[j] += part[c * nnz * area + j];
      float* to = plan.dw[p] + i * width;
      for (int64_t j = 0; j < block; j++) to[j] = add ? to[j] + sum[j] : sum[j];
    }
}

// Few groups make too few tasks: then the tokens are cut into chunks too, however many threads there are, so that sums
// have one order.
int64_t count_chunks(const Plan& plan, int64_t panels) {
  const int64_t groups = plan.groups.size();
  if (groups == 0) return 1;
  return std::max<int64_t>(1, std::min((kTasks + groups - 1) / groups, panels / kLeastPanels));
}

int64_t index_size(const Shape& shape) { return shape.out / shape.block * shape.taps * (shape.in / shape.block); }

void add_bias_chunks(const Partial& partial, int64_t out, float* db) {
  for (int64_t n = 0; n < out; n++) {
    db[n] = partial.db[n];
    for (int64_t c = 1; c < partial.chunks; c++) db[n] += partial.db[c * out + n];
  }
}

}  // namespace

template <typename T>
void weight_grad(const Kernels<T>& kernels, const Shape& shape, const Index& index, const Index& twin,
                 const Sequences<const T>& dy, const Sequences<const T>& x, float* dw, float* db, bool add,
                 int threads) {
  thread_local Scratch sum_scratch, panel_scratch;
  const int64_t block = shape.block, width = shape.taps * shape.in, area = block * block;
  bool winograd = false;
  if constexpr (std::is_same_v<T, float>)
    winograd = winograd_pays(shape, {index, shape.out / shape.block, shape.in / shape.block, -shape.pad_left, 1, true});
  const int64_t tokens = winograd ? kWinogradTokens : kernels.wgrad_tokens;
  const auto panels = cut_panels(shape.batch, shape.length_out, tokens, winograd ? kQuad : 1);
  const int64_t panel_count = panels.size();
  if (panel_count == 0) {
    if (!add) std::fill_n(dw, shape.out * width, 0.0f);
    if (db) std::fill_n(db, shape.out, 0.0f);
    return;
  }
  const Plan plan = make_plan(shape, index, twin, dw, db != nullptr, winograd);
  const int64_t nnz = plan.entries.size();

  // With one chunk the sums go to dw itself, else beside it.
  Partial partial{nullptr, nullptr, count_chunks(plan, panel_count)};
  std::vector<float*> places = plan.dw;
  const bool split = partial.chunks > 1;
  if (split) {
    partial.dw = sum_scratch.get<float>(partial.chunks * (nnz * area + shape.out));
    partial.db = partial.dw + partial.chunks * nnz * area;
    places.resize(partial.chunks * nnz);
    for (int64_t i = 0; i < partial.chunks * nnz; i++) places[i] = partial.dw + i * area;
  }
  const int64_t longest = (panels[0].end - panels[0].begin + kQuad - 1) / kQuad;
  const int64_t bytes = winograd ? kPoints * (2 * longest * block + kSources * area) * 4
                                 : kernels.wgrad_scratch(kernels.wgrad_tokens, shape.block, kGroup);
  char* scratch = panel_scratch.get<char>(bytes * threads);

  parallel_for(threads, plan.groups.size() * partial.chunks, [&](int64_t task, int slot) {
    const int64_t chunk = task % partial.chunks;
    const Group& group = plan.groups[task / partial.chunks];
    float* sums = split ? partial.db + chunk * shape.out : db;
    WeightGrad<T> g{};
    g.x = x;
    g.dy = dy;
    g.entries = plan.entries.data() + group.first;
    g.dw = places.data() + chunk * nnz + group.first;
    g.db = group.with_bias ? sums + group.row * block : nullptr;
    g.dw_stride = split ? block : width;
    g.block_row = group.row;
    g.count = group.count;
    g.block = shape.block;
    g.add = add && !split;
    const int64_t begin = panel_count * chunk / partial.chunks, end = panel_count * (chunk + 1) / partial.chunks;
    for (int64_t i = begin; i < end; i++) {
      const Panel* next = i + 1 < end ? &panels[i + 1] : nullptr;
      char* own = scratch + slot * bytes;
      if constexpr (std::is_same_v<T, float>)
        if (winograd) {
          float* points = reinterpret_cast<float*>(own);
          kernels.winograd->wgrad(g, -shape.pad_left, panels[i], next, i > begin, points,
                                  points + kSources * kPoints * area);
          continue;
        }
      kernels.wgrad(g, panels[i], next, i > begin, own);
    }
  });
  const bool full = nnz == index_size(shape);
  if (split || !(add || full))
    parallel_for(threads, shape.out / 16, [&](int64_t task, int) {
      const int64_t r = task * 16 / block, first = task * 16 % block;
      if (!add && !full) zero_pruned_rows(shape, index, r, first, dw);
      if (split) add_chunks(shape, index, plan, partial, r, first, add);
    });
  if (db && split) add_bias_chunks(partial, shape.out, db);
}

template void weight_grad(const Kernels<float>&, const Shape&, const Index&, const Index&,
                          const Sequences<const float>&, const Sequences<const float>&, float*, float*, bool, int);
template void weight_grad(const Kernels<uint16_t>&, const Shape&, const Index&, const Index&,
                          const Sequences<const uint16_t>&, const Sequences<const uint16_t>&, float*, float*, bool,
                          int);

}  // namespace sniper::cpu
