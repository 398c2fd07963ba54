#include "banks.h"

#include <algorithm>

namespace bico::emulator {
namespace {

constexpr int lanes = 32, banks = 32, word_bytes = 4;

}  // namespace

BankCost& BankCost::operator+=(const BankCost& other) {
  requests += other.requests;
  wavefronts += other.wavefronts;
  fewest += other.fewest;
  return *this;
}

void BankCounts::add(const std::string& kernel, const BankCosts& costs) {
  const std::lock_guard lock(mutex_);
  BankCosts& sum = costs_[kernel];
  for (size_t kind = 0; kind < costs.size(); ++kind) sum[kind] += costs[kind];
}

BankCounts::Table BankCounts::table() const {
  const std::lock_guard lock(mutex_);
  Table table;
  for (const auto& [kernel, costs] : costs_) {
    for (size_t kind = 0; kind < costs.size(); ++kind) {
      const auto& [requests, wavefronts, fewest] = costs[kind];
      if (requests > 0) table[kernel][access_names[kind]] = {requests, wavefronts, fewest};
    }
  }
  return table;
}

Banks::Banks(int threads) : warps_(threads / lanes) {}

void Banks::record(Access kind, const void* site, int thread, int64_t offset, int64_t bytes, int64_t alignment) {
  const int piece = int(std::min<int64_t>(alignment, 16)), lane = thread % lanes;
  Warp& warp = warps_[thread / lanes];
  Offsets nobody;
  nobody.fill(-1);
  int& time = warp.times[{site, lane}];
  for (int64_t at = offset; at < offset + bytes; at += piece) {
    warp.requests.try_emplace({site, time++, kind, piece}, nobody).first->second[lane] = at;
  }
}

void Banks::settle(int warp) {
  for (const auto& [request, offsets] : warps_[warp].requests) {
    const auto& [site, time, kind, bytes] = request;
    costs_[size_t(kind)] += cost(offsets, bytes);
  }
  warps_[warp] = {};
}

BankCost Banks::cost(const Offsets& offsets, int bytes) {
  const int together = bytes <= word_bytes ? lanes : banks * word_bytes / bytes;
  BankCost cost = {1, 0, 0};
  for (int first = 0; first < lanes; first += together) {
    std::vector<int64_t> words;
    for (int lane = first; lane < first + together; ++lane) {
      if (offsets[lane] < 0) continue;
      for (int64_t byte = 0; byte < bytes; byte += word_bytes) words.push_back((offsets[lane] + byte) / word_bytes);
    }
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int of_bank[banks] = {};
    for (const int64_t word : words) ++of_bank[word % banks];
    cost.wavefronts += *std::max_element(of_bank, of_bank + banks);
    ++cost.fewest;
  }
  return cost;
}

}  // namespace bico::emulator
