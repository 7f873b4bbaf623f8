// SPDX-License-Identifier: Apache-2.0
// What one instruction set offers. The drivers in conv.cpp and dropout.cpp cut the work into tasks and call these.
// T is an element in memory: float, or uint16_t for bfloat16. Sums are float.
#pragma once

#include <cstdint>

namespace sniper::cpu {

constexpr int kMaxBlock = 128;
constexpr int kDepthwiseSlack = 128;  // numbers that kernels of a depthwise convolution may read behind a row

// One active block as a matrix product sees it: it reads row t + shift, `block` columns from `column`.
struct Entry {
  int32_t shift;
  int32_t column;
  bool fetch;  // whether no earlier block row has read those columns of the panel
};

// [batch, length, columns] with contiguous columns.
template <typename T>
struct Sequences {
  T* data;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t length;
};

// Tokens [begin, end) of one sequence.
struct Panel {
  int64_t batch;
  int64_t begin;
  int64_t end;
};

// Inverted dropout, off when threshold is 0: an element stays, times scale, if its 16-bit random word is
// >= threshold.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;
  float scale;
};

// y[b, t, r * block + j] = dropout(relu(bias + sum_p sum_i x[b, t + shift_p, column_p + i] * w_p[i, j])), p over the
// entries of block row r; with a gate, `gate > 0 ? sum * gate_scale : 0`, the gradient through a ReLU and dropout.
template <typename T>
struct Product {
  Sequences<const T> x;
  Sequences<T> y;
  const int32_t* crow;
  const Entry* entries;
  const T* packed;    // w_p at p * block * block, as `pack` wrote it
  const float* bias;  // may be null
  int64_t columns;    // of y
  int block;
  bool relu;
  Dropout dropout;
  Sequences<const T> gate;  // as y; its data may be null
  float gate_scale;
  bool past_caches;  // y is written to memory itself; its rows begin at cache lines
};

// What becomes of a gradient in an update.
enum class Gradient { kLeft, kScaled, kCleared };

// One update of Adam or AdamW, as `torch.optim.Adam` has it: its rates at this step, rounded once as torch rounds them.
struct AdamStep {
  float mean, decay;    // 1 - beta1; of the weight: added to the gradient, or decoupled what is left of the weight
  float beta2, square;  // and 1 - beta2
  float root, eps;      // sqrt(1 - beta2^step)
  float size;           // -lr / (1 - beta1^step)
  float scale;          // of the gradients
  Gradient gradient;
  bool amsgrad, decays, decoupled, maximize;
};

// Numbers of a parameter that all count: `rows` times n that lie together, `stride` apart.
struct Stretch {
  int64_t begin, n, rows, stride;
};

// Weight, gradient, moments and, for amsgrad, the largest second moment, in one memory order.
struct AdamTensors {
  float *w, *g, *m, *v, *largest;
};

// dw_p[i, j] (+)= sum over the panel's tokens t: dy[b, t, r * block + i] * x[b, t + shift_p, column_p + j], for entries
// p of one block row r, sorted by column, then shift. db[i] (+)= sum_t dy[b, t, r * block + i].
template <typename T>
struct WeightGrad {
  Sequences<const T> x;
  Sequences<const T> dy;
  const Entry* entries;
  float* const* dw;  // one pointer an entry
  float* db;         // may be null
  int64_t dw_stride;
  int64_t block_row;
  int count;
  int block;
  bool add;  // the sums are added to what dw holds, not written over it
};

// s = x + dropout(branch), or x without a branch, and y = (s - mean) * rstd * weight + bias, row by row; contiguous.
struct AddNorm {
  const float *x, *branch, *weight, *bias;  // branch may be null
  float *s, *y, *mean, *rstd;               // s is not written without a branch
  int64_t columns;
  float eps;
  Dropout dropout;
};

// dx = ds + the norm's gradient of dy, and dbranch = dropout(dx).
struct AddNormGrad {
  const float *dy, *ds, *s, *mean, *rstd, *weight;  // ds may be null
  float *dx, *dbranch;                              // dbranch may be null
  int64_t columns;
  Dropout dropout;
};

// z = (x - mean) * rstd * weight + bias and y = dropout(tanh(z)), the tanh if asked; rows lie contiguous.
struct BatchNorm {
  const float *x, *mean, *rstd, *weight, *bias;
  int64_t columns;
  bool tanh;
  Dropout dropout;
};

// One head of one sequence: rows of `channels` numbers. The keys that count are those that `key_rows` lists, ascending
// (null: the first `keys`); query t is row first_row + t of dropout's mask, which has all_keys columns. With p, which
// has 2 * all_keys - 1 rows, query t and key j score position_q[t] . p[all_keys - 1 - t + j] on top of q[t] . k[j].
struct AttentionHead {
  const float *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  const float *position_q, *p;  // may be null
  int64_t position_q_stride, p_stride;
  const int32_t* key_rows;
  int64_t keys, all_keys, channels;
  uint64_t first_row;
  float scale;
  Dropout dropout;
  float* normal;  // [queries, 2]: the highest score and 1 / sum of e^(score - highest)
};

struct AttentionGrad {
  const float* dy;
  int64_t dy_stride;
  float *dq, *dk, *dv;
  int64_t dq_stride, dk_stride;  // dk's is dv's too
  float *dposition_q, *dp;       // dp is contiguous, and added to
  int64_t dposition_q_stride;
};

// Outputs and taps that winograd.inc takes at once, and the points at which they are multiplied; bit p of a tap:
// whether its weights count at point p.
constexpr int kQuad = 4, kTapsAtOnce = 3, kPoints = 6;
constexpr unsigned kPointsOfTap[kTapsAtOnce] = {0b011111, 0b011110, 0b111110};

// One panel's product in the sums at all points, a chunk of the inputs at a time.
struct Winograd {
  Product<float> out;      // its crow and entries are not read, nor its x
  const int32_t* begin;    // [chunks, rows, points] and the end: the entries of a chunk's row at a point
  const int32_t* sources;  // of an entry: which block of a chunk's inputs it reads; its weights are those of `out`
  int64_t rows, chunks, quads;
};

struct WinogradKernels {
  // Inputs at all points: u [columns / block][points][quads][block], from six rows on `row` for each quad.
  void (*spread)(const Sequences<const float>& x, int64_t batch, int64_t row, int64_t quads, int64_t column,
                 int64_t columns, int block, float* u);
  // n weights of three taps (null: zeros) at the points that are not null.
  void (*weights)(const float* const (&taps)[kTapsAtOnce], int64_t n, float* const (&points)[kPoints]);
  // Adds a chunk of inputs to the sums m [block / strip][points][quads][strip] of a block row, and writes the row of
  // outputs behind the last; with one chunk m holds one strip.
  void (*row)(const Winograd&, int64_t chunk, int64_t block_row, const Panel&, const float* u, float* m);
  // As `wgrad` below; `first_shift` is that of tap 0. Between panels `sums` holds the sums so far, points * block *
  // block for each input block and three taps; `packed` has room for 2 * points * quads * block.
  void (*wgrad)(const WeightGrad<float>&, int64_t first_shift, const Panel&, const Panel* next, bool accumulate,
                float* sums, float* packed);
};

template <typename T>
struct Kernels {
  // Tokens of a register tile: panels of `product` should be multiples of it.
  int (*tile_rows)(int block);
  // Copies a block w[j, i] (transpose) or w[i, j] into the order in which `product` streams w_p[i, j].
  void (*pack)(const T* w, int64_t stride, int block, bool transpose, T* packed);
  void (*product)(const Product<T>&, int64_t block_row, const Panel&);
  // `scratch` holds wgrad_scratch(tokens of a panel, block, entries) bytes, aligned to a cache line, and between panels
  // the sums so far. `next` is the panel that the same thread takes next, or null: then dw is written.
  void (*wgrad)(const WeightGrad<T>&, const Panel&, const Panel* next, bool accumulate, void* scratch);
  int64_t (*wgrad_scratch)(int64_t tokens, int block, int entries);
  int64_t wgrad_tokens;  // of a panel, about
  // y = dropout(x) on rows [begin, end) of a contiguous [rows, columns]; y may be x.
  void (*dropout)(const T* x, T* y, int64_t columns, int64_t begin, int64_t end, const Dropout&);
  // dx = y > 0 ? dy * scale : 0, elements [begin, end).
  void (*relu_backward)(const T* dy, const T* y, T* dx, int64_t begin, int64_t end, float scale);
  // Rows [begin, end) of y, and of `normal`. `memory` holds attention_scratch(keys, ...) floats, aligned to a cache
  // line.
  void (*attention)(const AttentionHead&, int64_t begin, int64_t end, float* y, int64_t y_stride, float* memory);
  // dq of queries [begin, end), and dk and dv as their sums over those.
  void (*attention_backward)(const AttentionHead&, const AttentionGrad&, int64_t begin, int64_t end, float* memory);
  int64_t (*attention_scratch)(int64_t keys, int64_t channels, bool backward, bool positions);
  // Rows [begin, end). Backward adds to `sums` [2, columns], the gradients of weight and bias.
  void (*add_norm)(const AddNorm&, int64_t begin, int64_t end);
  void (*add_norm_backward)(const AddNormGrad&, int64_t begin, int64_t end, float* sums);
  // Rows [begin, end), as batch_norm.h has them; `moments` and `sums` are [2, columns], the latter added to.
  void (*batch_moments)(const float* x, int64_t columns, int64_t begin, int64_t end, float* moments);
  void (*batch_norm)(const BatchNorm&, int64_t begin, int64_t end, float* y);
  void (*batch_norm_gradient)(const BatchNorm&, const float* dy, int64_t begin, int64_t end, float* dz, float* sums);
  void (*batch_norm_input)(const BatchNorm&, const float* shares, int64_t begin, int64_t end, float* dz);
  void (*adam)(const AdamStep&, const AdamTensors&, const Stretch*, int64_t count);
  double (*sum_squares)(const float* g, const Stretch*, int64_t count);
  // One channel of one sequence, as depthwise.h has it; rows are padded, with kDepthwiseSlack zeros behind them.
  void (*depthwise)(const float* x, const float* w, int64_t taps, float bias, float* y, int64_t n);
  void (*depthwise_weight)(const float* x, const float* dy, int64_t n, int64_t taps, float* dw);
  const WinogradKernels* winograd;  // null for bfloat16, whose sums are made of rounded inputs
};

// All but the first only in builds for x86-64.
extern const Kernels<float> kPortableF32;
extern const Kernels<float> kAvx2F32;
extern const Kernels<float> kAvx512F32;
extern const Kernels<uint16_t> kAvx512Bf16;

}  // namespace sniper::cpu
