// SPDX-License-Identifier: Apache-2.0
// The masks of all stages, by one threshold with a fixed cap or by a cap that follows the sparsity.
#include "mask_stages.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/parallel.h"

namespace sniper {
namespace {

using cpu::parallel_for;

constexpr int64_t kChunk = 1 << 16;
constexpr uint32_t kNoSign = 0x7fffffff, kInfinity = 0x7f800000;

// One stretch of a layer, what a thread works on at a time.
struct Piece {
  int64_t layer, begin, end;
};

std::vector<Piece> pieces_of(const Scores& scores) {
  std::vector<Piece> pieces;
  for (int64_t layer = 0; layer < scores.layers; layer++) {
    for (int64_t i = scores.offsets[layer]; i < scores.offsets[layer + 1]; i += kChunk) {
      pieces.push_back({layer, i, std::min(scores.offsets[layer + 1], i + kChunk)});
    }
  }
  return pieces;
}

// Returns how many are above.
int64_t mask_above(const float* values, int64_t n, float threshold, uint8_t* mask) {
  for (int64_t i = 0; i < n; i++) mask[i] = values[i] > threshold;
  uint32_t active = 0;
  for (int64_t i = 0; i < n; i++) active += mask[i];
  return active;
}

int64_t count_ones(const uint8_t* mask, int64_t n) {
  int64_t active = 0;
  for (int64_t i = 0; i < n; i++) active += mask[i];
  return active;
}

bool too_sparse(int64_t active, int64_t n, double cap) {
  return n > 0 && 1 - static_cast<double>(active) / static_cast<double>(n) > cap;
}

// The layer's own mask at the cap, the same for every stage that needs one.
std::vector<uint8_t> capped_mask(const float* values, int64_t n, double cap, int threads) {
  std::vector<uint8_t> mask(n);
  const int64_t pruned = static_cast<int64_t>(cap * static_cast<double>(n));
  const int64_t k = std::min(n, pruned + 1);  // the product may round up to n
  float threshold;
  select_smallest(values, n, &k, 1, &threshold, threads);
  if (mask_above(values, n, threshold, mask.data()) == 0) fixed_choice(n, pruned, mask.data());
  return mask;
}

void cap_layer(const Scores& scores, int64_t layer, const FixedStages& stages, uint8_t* masks, int64_t* counts,
               int threads) {
  const int64_t total = scores.offsets[scores.layers], begin = scores.offsets[layer];
  const int64_t n = scores.offsets[layer + 1] - begin;
  std::vector<uint8_t> capped;
  for (int64_t stage = 0; stage < stages.count; stage++) {
    uint8_t* mask = masks + stage * total + begin;
    int64_t& active = counts[stage * scores.layers + layer];
    if (too_sparse(active, n, stages.cap)) {
      if (capped.empty()) capped = capped_mask(scores.values + begin, n, stages.cap, threads);
      std::copy(capped.begin(), capped.end(), mask);
    }
    // Thresholds nest by themselves; a random choice may not.
    if (!capped.empty() && stages.nested && stage > 0) {
      const uint8_t* before = mask - total;
      for (int64_t i = 0; i < n; i++) mask[i] |= before[i];
    }
    if (!capped.empty()) active = count_ones(mask, n);
  }
}

// Ascending; `other` is as long and holds rubbish afterwards. Digits of 11, 11 and 10 bits, the last one first.
void radix_sort(uint32_t* keys, uint32_t* other, int64_t n) {
  constexpr int kDigits = 3, kWidth = 11, kBins = 1 << kWidth;
  std::vector<int64_t> starts(kDigits * kBins);
  for (int64_t i = 0; i < n; i++) {
    for (int d = 0; d < kDigits; d++) starts[d * kBins + ((keys[i] >> (d * kWidth)) & (kBins - 1))]++;
  }
  uint32_t *from = keys, *to = other;
  for (int d = 0; d < kDigits; d++) {
    int64_t* next = starts.data() + d * kBins;
    std::exclusive_scan(next, next + kBins, next, int64_t{0});
    for (int64_t i = 0; i < n; i++) to[next[(from[i] >> (d * kWidth)) & (kBins - 1)]++] = from[i];
    std::swap(from, to);
  }
  std::copy(from, from + n, keys);
}

// The layer's values as bits, which are ordered as values >= 0 are, in ascending order. Returns how many are
// suspicious.
int64_t sort_layer(const float* values, int64_t n, uint32_t* sorted) {
  constexpr int64_t kFew = 4096;  // below, counting costs more than comparing
  std::memcpy(sorted, values, n * sizeof(float));
  int64_t suspects = 0;
  for (int64_t i = 0; i < n; i++) {
    suspects += sorted[i] >= kInfinity;
    sorted[i] &= kNoSign;
  }
  if (n < kFew) {
    std::sort(sorted, sorted + n);
  } else {
    std::unique_ptr<uint32_t[]> other(new uint32_t[n]);
    radix_sort(sorted, other.get(), n);
  }
  return suspects;
}

// The sorted values of all layers.
class Sorted {
 public:
  Sorted(const Scores& scores, int threads) : offsets_(scores.offsets), keys_(new uint32_t[size(scores)]) {
    parallel_for(threads, scores.layers, [&](int64_t layer, int) {
      const int64_t begin = scores.offsets[layer];
      suspects_ += sort_layer(scores.values + begin, scores.offsets[layer + 1] - begin, keys_.get() + begin);
    });
  }

  int64_t suspects() const { return suspects_; }
  uint32_t at(int64_t layer, int64_t i) const { return keys_[offsets_[layer] + i]; }
  int64_t below(int64_t layer, uint32_t key) const {
    return std::lower_bound(begin(layer), end(layer), key) - begin(layer);
  }
  int64_t up_to(int64_t layer, uint32_t key) const {
    return std::upper_bound(begin(layer), end(layer), key) - begin(layer);
  }

 private:
  static int64_t size(const Scores& scores) { return scores.offsets[scores.layers]; }
  const uint32_t* begin(int64_t layer) const { return keys_.get() + offsets_[layer]; }
  const uint32_t* end(int64_t layer) const { return keys_.get() + offsets_[layer + 1]; }

  const int64_t* offsets_;
  std::unique_ptr<uint32_t[]> keys_;
  std::atomic<int64_t> suspects_{0};
};

// How many of each layer go at a stage: of the values that caps[l] lets go, the `wanted` smallest. Where several layers
// have values equal to the last of them, the first layer's go.
std::vector<int64_t> share(const Sorted& sorted, const std::vector<int64_t>& caps, int64_t wanted) {
  const auto layers = static_cast<int64_t>(caps.size());
  const auto candidates_up_to = [&](uint32_t key) {
    int64_t count = 0;
    for (int64_t l = 0; l < layers; l++) count += std::min(caps[l], sorted.up_to(l, key));
    return count;
  };
  uint32_t low = 0, threshold = kNoSign;  // the smallest key with enough candidates up to it, or the largest there is
  while (low < threshold) {
    const uint32_t middle = low + (threshold - low) / 2;
    if (candidates_up_to(middle) >= wanted) {
      threshold = middle;
    } else {
      low = middle + 1;
    }
  }
  std::vector<int64_t> pruned(layers);
  for (int64_t l = 0; l < layers; l++) wanted -= pruned[l] = std::min(caps[l], sorted.below(l, threshold));
  for (int64_t l = 0; l < layers; l++) {
    const int64_t equal = std::min(caps[l], sorted.up_to(l, threshold)) - pruned[l];
    pruned[l] += std::min(wanted, equal);
    wanted -= std::min(wanted, equal);
  }
  return pruned;
}

// What stays of one layer: values above the threshold, and the last `ties` of those equal to it.
struct Boundary {
  float threshold;
  int64_t ties;
};

Boundary boundary(const Sorted& sorted, int64_t layer, int64_t pruned) {
  if (pruned == 0) return {-1, 0};
  const uint32_t key = sorted.at(layer, pruned - 1);
  Boundary found;
  std::memcpy(&found.threshold, &key, sizeof key);
  found.ties = sorted.up_to(layer, key) - pruned;
  return found;
}

void keep_last_ties(const float* values, int64_t n, const Boundary& boundary, uint8_t* mask) {
  int64_t ties = boundary.ties;
  for (int64_t i = n; ties > 0 && i-- > 0;) {
    if (values[i] == boundary.threshold) mask[i] = 1, ties--;
  }
}

}  // namespace

int64_t fixed_masks(const Scores& scores, const FixedStages& stages, uint8_t* masks, int64_t* counts, int threads) {
  const int64_t n = scores.offsets[scores.layers], layers = scores.layers;
  std::vector<float> thresholds(stages.count);
  const int64_t suspects = select_smallest(scores.values, n, stages.pruned, stages.count, thresholds.data(), threads);
  const auto pieces = pieces_of(scores);
  std::vector<std::atomic<int64_t>> active(stages.count * layers);
  parallel_for(threads, pieces.size(), [&](int64_t i, int) {
    const auto [layer, begin, end] = pieces[i];
    for (int64_t stage = 0; stage < stages.count; stage++) {
      active[stage * layers + layer] +=
          mask_above(scores.values + begin, end - begin, thresholds[stage], masks + stage * n + begin);
    }
  });
  std::copy(active.begin(), active.end(), counts);
  for (int64_t layer = 0; layer < layers; layer++) cap_layer(scores, layer, stages, masks, counts, threads);
  return suspects;
}

int64_t following_masks(const Scores& scores, const FollowingStages& stages, uint8_t* masks, int64_t* counts,
                        int threads) {
  const int64_t n = scores.offsets[scores.layers], layers = scores.layers;
  const Sorted sorted(scores, threads);
  std::vector<Boundary> boundaries(stages.count * layers);
  std::vector<int64_t> pruned(layers), caps(layers);
  for (int64_t l = 0; l < layers; l++) pruned[l] = scores.offsets[l + 1] - scores.offsets[l];
  for (int64_t stage = 0; stage < stages.count; stage++) {
    // What has stayed once, stays: rounding must not prune it again.
    for (int64_t l = 0; l < layers; l++) caps[l] = std::min(stages.caps[stage * layers + l], pruned[l]);
    pruned = share(sorted, caps, stages.pruned[stage]);
    for (int64_t l = 0; l < layers; l++) {
      boundaries[stage * layers + l] = boundary(sorted, l, pruned[l]);
      counts[stage * layers + l] = scores.offsets[l + 1] - scores.offsets[l] - pruned[l];
    }
  }
  const auto pieces = pieces_of(scores);
  parallel_for(threads, pieces.size(), [&](int64_t i, int) {
    const auto [layer, begin, end] = pieces[i];
    for (int64_t stage = 0; stage < stages.count; stage++) {
      const float threshold = boundaries[stage * layers + layer].threshold;
      mask_above(scores.values + begin, end - begin, threshold, masks + stage * n + begin);
    }
  });
  parallel_for(threads, stages.count * layers, [&](int64_t i, int) {
    const int64_t begin = scores.offsets[i % layers], size = scores.offsets[i % layers + 1] - begin;
    keep_last_ties(scores.values + begin, size, boundaries[i], masks + i / layers * n + begin);
  });
  return sorted.suspects();
}

}  // namespace sniper
