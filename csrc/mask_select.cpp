// SPDX-License-Identifier: Apache-2.0
// Order statistics by radix selection: values are counted by their leading digits, and only those that share the digits
// found so far are looked at again.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/parallel.h"
#include "mask_stages.h"

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

// A wanted order statistic on its way down the digits.
struct Search {
  int64_t left;     // its place among the values that share the prefix
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

}  // namespace

int64_t select_smallest(const float* values, int64_t n, const int64_t* k, int64_t count, float* found, int threads) {
  threads = static_cast<int>(std::clamp<int64_t>((n + kChunk - 1) / kChunk, 1, threads));
  std::vector<Search> searches;
  for (int64_t i = 0; i < count; i++) searches.push_back({k[i], 0, 0});

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
  for (int64_t i = 0; i < count; i++) found[i] = k[i] == 0 ? -1 : value_of(searches[i].prefix);
  return suspects;
}

}  // namespace sniper
