// SPDX-License-Identifier: Apache-2.0
#include "cpu/conv.h"

#include <type_traits>
#include <vector>

#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "cpu/winograd.h"

namespace sniper::cpu {
namespace {

// Tokens of a task. Chosen so that a panel of inputs stays in the second-level cache while a block row's weights
// stream.
constexpr int64_t kProductTokens = 96;

// A result of so many bytes goes past the caches: before it is read again most of it would have left them, and a line
// that is written through them is read from memory first.
constexpr int64_t kPastCaches = 2 << 20;

// Whether all rows begin at cache lines.
template <typename T>
bool on_lines(const Sequences<T>& y) {
  const int64_t numbers = 64 / static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(y.data) % 64 == 0 && y.row_stride % numbers == 0 && y.batch_stride % numbers == 0;
}

// Marks for each block of columns the entry that reads it first: in the first block row, the row furthest ahead.
void mark_first_reads(const Twin& twin, int block, Entry* entries) {
  std::vector<Entry*> first(twin.inner, nullptr);
  for (int64_t i = 0; i < twin.rows; i++) {
    const int32_t r = twin.index.order[i];
    Entry* const begin = entries + twin.index.crow[r];
    for (Entry* entry = begin; entry < entries + twin.index.crow[r + 1]; entry++) {
      Entry*& found = first[entry->column / block];
      if (!found || (found >= begin && found < entry && entry->shift > found->shift)) found = entry;
    }
  }
  for (Entry* entry : first)
    if (entry) entry->fetch = true;
}

template <typename T>
void run_product(const Kernels<T>& kernels, const Shape& shape, const Twin& twin, const T* w, int64_t w_stride,
                 Product<T> product, int threads) {
  thread_local Scratch entry_scratch, weight_scratch;
  const int block = shape.block;
  product.block = block;
  product.columns = twin.rows * block;
  const int64_t bytes = shape.batch * product.y.length * product.columns * static_cast<int64_t>(sizeof(T));
  product.past_caches = bytes >= kPastCaches && on_lines(product.y);
  if constexpr (std::is_same_v<T, float>)
    if (winograd_pays(shape, twin)) return run_winograd(kernels, shape, twin, w, w_stride, product, threads);
  const Index& index = twin.index;
  const int64_t nnz = index.crow[twin.rows], area = static_cast<int64_t>(block) * block;
  Entry* entries = entry_scratch.get<Entry>(nnz);
  T* packed = weight_scratch.get<T>(nnz * area);
  parallel_for(threads, twin.rows, [&](int64_t r, int) {
    for (int64_t p = index.crow[r]; p < index.crow[r + 1]; p++) {
      const int64_t tap = index.col[p] / twin.inner, inner = index.col[p] % twin.inner;
      entries[p].shift = static_cast<int32_t>(twin.first_shift + tap * twin.tap_shift);
      entries[p].column = static_cast<int32_t>(inner * block);
      entries[p].fetch = false;
      const int64_t out = twin.transposed ? r : inner, in = twin.transposed ? inner : r;
      const T* from = w + out * block * w_stride + tap * shape.in + in * block;
      kernels.pack(from, w_stride, block, twin.transposed, packed + p * area);
    }
  });
  mark_first_reads(twin, block, entries);
  product.crow = index.crow;
  product.entries = entries;
  product.packed = packed;
  const auto panels = cut_panels(shape.batch, product.y.length, kProductTokens, kernels.tile_rows(block));
  const int64_t count = static_cast<int64_t>(panels.size());
  parallel_for(threads, twin.rows * count, [&](int64_t task, int) {
    kernels.product(product, index.order[task % twin.rows], panels[task / twin.rows]);
  });
}

}  // namespace

template <typename T>
void forward(const Kernels<T>& kernels, const Shape& shape, const Index& index, const Sequences<const T>& x, const T* w,
             int64_t w_stride, const float* bias, bool relu, const Dropout& dropout, const Sequences<T>& y,
             int threads) {
  Product<T> product{};
  product.x = x;
  product.y = y;
  product.bias = bias;
  product.relu = relu;
  product.dropout = dropout;
  const Twin twin{index, shape.out / shape.block, shape.in / shape.block, -shape.pad_left, shape.dilation, true};
  run_product(kernels, shape, twin, w, w_stride, product, threads);
}

template <typename T>
void input_grad(const Kernels<T>& kernels, const Shape& shape, const Index& twin_index, const Sequences<const T>& dy,
                const T* w, int64_t w_stride, const Sequences<const T>& gate, float gate_scale, const Sequences<T>& dx,
                int threads) {
  Product<T> product{};
  product.gate = gate;
  product.gate_scale = gate_scale;
  product.x = dy;
  product.y = dx;
  const Twin twin{twin_index, shape.in / shape.block, shape.out / shape.block, shape.pad_left, -shape.dilation, false};
  run_product(kernels, shape, twin, w, w_stride, product, threads);
}

template void forward(const Kernels<float>&, const Shape&, const Index&, const Sequences<const float>&, const float*,
                      int64_t, const float*, bool, const Dropout&, const Sequences<float>&, int);
template void input_grad(const Kernels<float>&, const Shape&, const Index&, const Sequences<const float>&, const float*,
                         int64_t, const Sequences<const float>&, float, const Sequences<float>&, int);
template void forward(const Kernels<uint16_t>&, const Shape&, const Index&, const Sequences<const uint16_t>&,
                      const uint16_t*, int64_t, const float*, bool, const Dropout&, const Sequences<uint16_t>&, int);
template void input_grad(const Kernels<uint16_t>&, const Shape&, const Index&, const Sequences<const uint16_t>&,
                         const uint16_t*, int64_t, const Sequences<const uint16_t>&, float, const Sequences<uint16_t>&,
                         int);

}  // namespace sniper::cpu
