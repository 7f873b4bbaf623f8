// SPDX-License-Identifier: Apache-2.0
#include "cpu/attention.h"

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace sniper::cpu {
namespace {

constexpr int64_t kTasks = 16;    // at least, where there are queries enough
constexpr int64_t kQueries = 96;  // of a chunk, at least: each packs all keys

// Few heads make too few tasks: then queries are cut into chunks too, however many threads there are, so that the
// gradients of k and v are summed in one order.
int64_t count_chunks(const AttentionShape& shape) {
  const int64_t heads = shape.batch * shape.heads;
  return std::max<int64_t>(1, std::min((kTasks + heads - 1) / heads, shape.queries / kQueries));
}

// Of each sequence, the keys that count.
struct Keys {
  std::vector<int32_t> rows;   // their rows, one sequence's behind the other's; empty without a mask
  std::vector<int64_t> begin;  // of each sequence
  bool masked;

  Keys(const AttentionShape& shape, const uint8_t* mask) : begin(shape.batch + 1), masked(mask) {
    for (int64_t b = 0; b < shape.batch; b++) {
      for (int64_t i = 0; mask && i < shape.keys; i++)
        if (mask[b * shape.keys + i]) rows.push_back(static_cast<int32_t>(i));
      begin[b + 1] = mask ? static_cast<int64_t>(rows.size()) : begin[b] + shape.keys;
    }
  }
};

template <typename T>
T* head_of(const HeadRows<T>& t, const AttentionShape& shape, int64_t b, int64_t h) {
  return t.data + b * t.batch_stride + h * shape.channels;
}

// All tensors that forward and backward read.
struct Inputs {
  const AttentionShape& shape;
  const HeadRows<const float>&q, &k, &v, &position_q, &p;
  float scale;
  const Dropout& dropout;
  float* normal;
  Keys keys;

  AttentionHead head(int64_t b, int64_t h) const {
    AttentionHead a{};
    a.q = head_of(q, shape, b, h), a.k = head_of(k, shape, b, h), a.v = head_of(v, shape, b, h);
    a.q_stride = q.row_stride, a.k_stride = k.row_stride, a.v_stride = v.row_stride;
    a.p = p.data ? head_of(p, shape, 0, h) : nullptr;
    a.position_q = p.data ? head_of(position_q, shape, b, h) : nullptr;
    a.p_stride = p.row_stride, a.position_q_stride = position_q.row_stride;
    a.key_rows = keys.masked ? keys.rows.data() + keys.begin[b] : nullptr;
    a.keys = keys.begin[b + 1] - keys.begin[b];
    a.all_keys = shape.keys;
    a.channels = shape.channels;
    a.first_row = static_cast<uint64_t>(h * shape.batch + b) * shape.queries;
    a.scale = scale;
    a.dropout = dropout;
    a.normal = normal + 2 * (h * shape.batch + b) * shape.queries;
    return a;
  }
};

void zero_rows(float* rows, int64_t stride, int64_t count, int64_t columns) {
  for (int64_t i = 0; i < count; i++) std::fill_n(rows + i * stride, columns, 0.0f);
}

// Adds [chunks, rows, columns] up, in order.
void add_chunks(const float* parts, int64_t chunks, int64_t rows, int64_t columns, float* to, int64_t stride) {
  const int64_t size = rows * columns;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) {
      float sum = parts[i * columns + j];
      for (int64_t c = 1; c < chunks; c++) sum += parts[c * size + i * columns + j];
      to[i * stride + j] = sum;
    }
}

}  // namespace

void attention(const AttentionShape& shape, const HeadRows<const float>& q, const HeadRows<const float>& k,
               const HeadRows<const float>& v, const HeadRows<const float>& position_q, const HeadRows<const float>& p,
               const uint8_t* mask, float scale, const Dropout& dropout, const HeadRows<float>& y, float* normal,
               int threads) {
  if (shape.batch == 0 || shape.queries == 0) return;
  thread_local Scratch scratch;
  const auto& kernels = cpu::kernels<float>();
  const Inputs inputs{shape, q, k, v, position_q, p, scale, dropout, normal, Keys(shape, mask)};
  const int64_t chunks = count_chunks(shape);
  const int64_t size = kernels.attention_scratch(shape.keys, shape.channels, false, p.data);
  float* memory = scratch.get<float>(size * threads);
  parallel_for(threads, shape.batch * shape.heads * chunks, [&](int64_t task, int slot) {
    const int64_t chunk = task % chunks, h = task / chunks % shape.heads, b = task / chunks / shape.heads;
    const int64_t begin = shape.queries * chunk / chunks, end = shape.queries * (chunk + 1) / chunks;
    const AttentionHead head = inputs.head(b, h);
    float* to = head_of(y, shape, b, h);
    if (head.keys)
      kernels.attention(head, begin, end, to, y.row_stride, memory + slot * size);
    else
      zero_rows(to + begin * y.row_stride, y.row_stride, end - begin, shape.channels);
  });
}

void attention_backward(const AttentionShape& shape, const HeadRows<const float>& q, const HeadRows<const float>& k,
                        const HeadRows<const float>& v, const HeadRows<const float>& position_q,
                        const HeadRows<const float>& p, const HeadRows<const float>& dy, const uint8_t* mask,
                        float scale, const Dropout& dropout, const float* normal, const HeadRows<float>& dq,
                        const HeadRows<float>& dk, const HeadRows<float>& dv, const HeadRows<float>& dposition_q,
                        const HeadRows<float>& dp, int threads) {
  if (shape.batch == 0) {  // of all gradients this one alone has numbers then
    const int64_t places = p.data ? 2 * shape.keys - 1 : 0;
    for (int64_t h = 0; h < shape.heads; h++)
      zero_rows(head_of(dp, shape, 0, h), dp.row_stride, places, shape.channels);
    return;
  }
  thread_local Scratch scratch, part_scratch, place_scratch;
  const auto& kernels = cpu::kernels<float>();
  // Backward only reads what forward wrote.
  const Inputs inputs{shape, q, k, v, position_q, p, scale, dropout, const_cast<float*>(normal), Keys(shape, mask)};
  const int64_t heads = shape.heads, chunks = count_chunks(shape), part = shape.keys * shape.channels;
  const int64_t size = kernels.attention_scratch(shape.keys, shape.channels, true, p.data);
  float* memory = scratch.get<float>(size * threads);
  // With one chunk the sums over queries go to dk and dv themselves, else beside them: [head, dk or dv, chunk].
  float* parts = chunks > 1 ? part_scratch.get<float>(shape.batch * heads * 2 * chunks * part) : nullptr;
  // All sequences share p. Those of a group, which one task takes, add to one sum, so that a large batch does not need
  // one each: [head, group, chunk].
  const int64_t groups = p.data ? std::min(shape.batch, (kTasks + heads - 1) / heads) : shape.batch;
  const int64_t places = 2 * shape.keys - 1, place_part = places * shape.channels;
  float* place_parts = p.data ? place_scratch.get<float>(heads * groups * chunks * place_part) : nullptr;
  parallel_for(threads, groups * heads * chunks, [&](int64_t task, int slot) {
    const int64_t chunk = task % chunks, h = task / chunks % heads, group = task / chunks / heads;
    const int64_t begin = shape.queries * chunk / chunks, end = shape.queries * (chunk + 1) / chunks;
    AttentionGrad g{};
    if (p.data) {
      g.dp = place_parts + ((h * groups + group) * chunks + chunk) * place_part;
      std::fill_n(g.dp, place_part, 0.0f);
    }
    for (int64_t b = shape.batch * group / groups; b < shape.batch * (group + 1) / groups; b++) {
      const AttentionHead head = inputs.head(b, h);
      g.dy = head_of(dy, shape, b, h), g.dy_stride = dy.row_stride;
      g.dq = head_of(dq, shape, b, h), g.dq_stride = dq.row_stride;
      g.dk = head_of(dk, shape, b, h), g.dv = head_of(dv, shape, b, h), g.dk_stride = dk.row_stride;
      if (p.data) g.dposition_q = head_of(dposition_q, shape, b, h), g.dposition_q_stride = dposition_q.row_stride;
      if (parts) {
        g.dk = parts + ((b * heads + h) * 2 * chunks + chunk) * part;
        g.dv = g.dk + chunks * part;
        g.dk_stride = shape.channels;
      }
      if (head.keys && end > begin) {
        kernels.attention_backward(head, g, begin, end, memory + slot * size);
        continue;
      }
      zero_rows(g.dq + begin * g.dq_stride, g.dq_stride, end - begin, shape.channels);
      zero_rows(g.dk, g.dk_stride, shape.keys, shape.channels);
      zero_rows(g.dv, g.dk_stride, shape.keys, shape.channels);
      if (p.data)
        zero_rows(g.dposition_q + begin * g.dposition_q_stride, g.dposition_q_stride, end - begin, shape.channels);
    }
  });
  if (parts)
    parallel_for(threads, shape.batch * heads * 2, [&](int64_t task, int) {
      const auto& to = task % 2 ? dv : dk;
      float* head = head_of(to, shape, task / 2 / heads, task / 2 % heads);
      add_chunks(parts + task * chunks * part, chunks, shape.keys, shape.channels, head, to.row_stride);
    });
  if (place_parts)
    parallel_for(threads, heads, [&](int64_t h, int) {
      const int64_t count = groups * chunks;
      add_chunks(place_parts + h * count * place_part, count, places, shape.channels, head_of(dp, shape, 0, h),
                 dp.row_stride);
    });
}

}  // namespace sniper::cpu
