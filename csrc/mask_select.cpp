// SPDX-License-Identifier: Apache-2.0
// Which values stay: thresholds by radix selection, the cap of each layer, and the masks of all stages.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "mask_update.h"

namespace sniper {
namespace {

using cpu::parallel_for;

// Values >= 0 are ordered as their bits are. Three digits without the sign: 11 + 11 + 9 bits.
constexpr int kBins = 2048, kSecondShift = 9, kFirstShift = 20, kLastBins = 512;
constexpr uint32_t kNoSign = 0x7fffffff;
constexpr int64_t kChunk = 1 << 16;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float value_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// One histogram for each group of values; `count(begin, end, bins)` counts a stretch into a thread's own histograms.
template <typename Count>
std::vector<uint32_t> histograms(int64_t n, int64_t bins, int threads, const Count& count) {
  std::vector<uint32_t> all(bins * threads);
  parallel_for(threads, (n + kChunk - 1) / kChunk, [&](int64_t chunk, int slot) {
    count(chunk * kChunk, std::min(n, (chunk + 1) * kChunk), all.data() + slot * bins);
  });
  for (int slot = 1; slot < threads; slot++) {
    for (int64_t i = 0; i < bins; i++) all[i] += all[slot * bins + i];
  }
  all.resize(bins);
  return all;
}

// By the first 12 bits, the sign among them.
std::vector<uint32_t> first_histogram(const float* values, int64_t n, int threads) {
  constexpr int kWays = 4;  // neighbours often share a bin: increments of one counter would wait for each other
  const auto ways = histograms(n, 2 * kBins * kWays, threads, [&](int64_t begin, int64_t end, uint32_t* bins) {
    for (int64_t i = begin; i < end; i++) bins[(bits_of(values[i]) >> kFirstShift) * kWays + i % kWays]++;
  });
  std::vector<uint32_t> sums(2 * kBins);
  for (size_t i = 0; i < ways.size(); i++) sums[i / kWays] += ways[i];
  return sums;
}

// A rank on its way down the digits.
struct Search {
  int64_t left;     // its rank among the values that share the prefix
  uint32_t prefix;  // the digits that are known
  int group;        // of the values with this prefix
};

// Finds each search's next digit, and numbers the distinct prefixes: next[group * bins + digit] is the new group + 1,
// or 0 where nobody looks.
std::vector<uint16_t> descend(std::vector<Search>& searches, const std::vector<uint32_t>& counts, int bins) {
  std::vector<uint16_t> next(counts.size());
  uint16_t groups = 0;
  for (auto& search : searches) {
    if (search.left == 0) continue;
    const size_t start = static_cast<size_t>(search.group) * bins;
    int digit = 0;
    while (digit < bins - 1 && search.left > counts[start + digit]) search.left -= counts[start + digit++];
    search.prefix = search.prefix * bins + digit;
    if (!next[start + digit]) next[start + digit] = ++groups;
    search.group = next[start + digit] - 1;
  }
  return next;
}

// Those values, in no order, whose first digit is looked for: `total` of them.
std::unique_ptr<float[]> gather(const float* values, int64_t n, const std::vector<uint16_t>& wanted, int64_t total,
                                int threads) {
  std::unique_ptr<float[]> found(new float[total]), near(new float[kChunk * threads]);
  std::atomic<int64_t> used{0};
  parallel_for(threads, (n + kChunk - 1) / kChunk, [&](int64_t chunk, int slot) {
    float* own = near.get() + slot * kChunk;
    int64_t count = 0;
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); i++) {
      own[count] = values[i];  // written always and counted if wanted: no branch to guess wrong
      count += wanted[(bits_of(values[i]) & kNoSign) >> kFirstShift] != 0;
    }
    std::copy(own, own + count, found.get() + used.fetch_add(count));
  });
  return found;
}

int group_count(const std::vector<Search>& searches) {
  int most = 0;
  for (const auto& search : searches) most = std::max(most, search.group + 1);
  return most;
}

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
  const int64_t pruned = most_pruned(cap, n), rank = std::min(n, pruned + 1);  // the product may round up to n
  float threshold;
  select_smallest(values, n, &rank, 1, &threshold, threads);
  if (mask_above(values, n, threshold, mask.data()) == 0) fixed_choice(n, pruned, mask.data());
  return mask;
}

void cap_layer(const Scores& scores, int64_t layer, const Stages& stages, uint8_t* masks, int64_t* counts,
               int threads) {
  const int64_t n = scores.size(layer), total = scores.offsets[scores.layers], begin = scores.offsets[layer];
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

// Python's random.Random(0): MT19937 seeded with the array {0}.
class PythonRandom {
 public:
  PythonRandom() {
    state_[0] = 19650218;
    for (int i = 1; i < kSize; i++) state_[i] = 1812433253u * mixed(i - 1, 30) + i;
    int i = 1;
    for (int k = 0; k < kSize; k++) {
      state_[i] ^= mixed(i - 1, 30) * 1664525u;
      if (++i == kSize) state_[0] = state_[kSize - 1], i = 1;
    }
    for (int k = 0; k < kSize - 1; k++) {
      state_[i] = (state_[i] ^ (mixed(i - 1, 30) * 1566083941u)) - i;
      if (++i == kSize) state_[0] = state_[kSize - 1], i = 1;
    }
    state_[0] = 0x80000000u;
  }

  // Uniform in [0, n), 0 < n < 2^32, as Random._randbelow draws it.
  uint32_t below(uint32_t n) {
    int zeros = 0;
    while (!(n << zeros >> 31)) zeros++;
    uint32_t drawn;
    while ((drawn = next() >> zeros) >= n) continue;
    return drawn;
  }

 private:
  static constexpr int kSize = 624, kMiddle = 397;

  uint32_t mixed(int i, int shift) const { return state_[i] ^ (state_[i] >> shift); }

  uint32_t next() {
    if (used_ == kSize) refill();
    uint32_t y = state_[used_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }

  void refill() {
    for (int i = 0; i < kSize; i++) {
      const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kSize] & kNoSign);
      state_[i] = state_[(i + kMiddle) % kSize] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    used_ = 0;
  }

  uint32_t state_[kSize];
  int used_ = kSize;
};

}  // namespace

int64_t select_smallest(const float* values, int64_t n, const int64_t* ranks, int64_t count, float* found,
                        int threads) {
  threads = static_cast<int>(std::clamp<int64_t>((n + kChunk - 1) / kChunk, 1, threads));
  std::vector<Search> searches;
  for (int64_t i = 0; i < count; i++) searches.push_back({ranks[i], 0, 0});

  auto counts = first_histogram(values, n, threads);
  int64_t suspects = 0;
  for (size_t i = 0x7f8; i < counts.size(); i++) suspects += counts[i];
  for (int i = 0; i < kBins; i++) counts[i] += counts[kBins + i];  // -0 belongs to 0
  counts.resize(kBins);
  const auto second = descend(searches, counts, kBins);
  int64_t total = 0;
  for (int i = 0; i < kBins; i++) total += second[i] ? counts[i] : 0;
  const auto candidates = gather(values, n, second, total, threads);
  values = candidates.get();

  counts = histograms(total, group_count(searches) * kBins, threads, [&](int64_t begin, int64_t end, uint32_t* bins) {
    for (int64_t i = begin; i < end; i++) {
      const uint32_t bits = bits_of(values[i]) & kNoSign;
      bins[(second[bits >> kFirstShift] - 1) * kBins + (bits >> kSecondShift) % kBins]++;
    }
  });
  const auto third = descend(searches, counts, kBins);

  counts =
      histograms(total, group_count(searches) * kLastBins, threads, [&](int64_t begin, int64_t end, uint32_t* bins) {
        for (int64_t i = begin; i < end; i++) {
          const uint32_t bits = bits_of(values[i]) & kNoSign;
          const int group = third[(second[bits >> kFirstShift] - 1) * kBins + (bits >> kSecondShift) % kBins];
          if (group) bins[(group - 1) * kLastBins + bits % kLastBins]++;
        }
      });
  descend(searches, counts, kLastBins);
  for (int64_t i = 0; i < count; i++) found[i] = ranks[i] == 0 ? -1 : value_of(searches[i].prefix);
  return suspects;
}

int64_t plan_masks(const Scores& scores, const Stages& stages, uint8_t* masks, int64_t* counts, int threads) {
  const int64_t n = scores.offsets[scores.layers], layers = scores.layers;
  std::vector<float> thresholds(stages.count);
  const int64_t suspects = select_smallest(scores.values, n, stages.ranks, stages.count, thresholds.data(), threads);
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

void fixed_choice(int64_t n, int64_t pruned, uint8_t* keep) {
  std::fill(keep, keep + pruned, uint8_t{0});
  std::fill(keep + pruned, keep + n, uint8_t{1});
  PythonRandom random;
  for (int64_t i = n - 1; i > 0; i--) std::swap(keep[i], keep[random.below(static_cast<uint32_t>(i + 1))]);
}

}  // namespace sniper
