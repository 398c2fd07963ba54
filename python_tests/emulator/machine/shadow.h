// What is known about each 2 bytes of a block's shared memory: which threads wrote and read them last, and when.
//
// "When" is a vector clock. Each thread counts its barriers. It also knows, for every other thread, the latest count
// whose work a chain of barriers has put before its own. Two accesses of different threads, one of them a write, are a
// race where no such chain orders them, whatever the schedule made of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bico::emulator {

class Clocks {
 public:
  explicit Clocks(int threads) : threads_(threads), times_(size_t(threads) * threads, 0) {
    for (int t = 0; t < threads; ++t) at(t, t) = 1;
  }

  uint32_t now(int thread) const { return times_[size_t(thread) * threads_ + thread]; }

  // Whether what `other` did at its time is before what `thread` does now.
  bool knows(int thread, int other, uint32_t time) const { return time <= times_[size_t(thread) * threads_ + other]; }

  // All of what these threads did before is before all that they do from now on.
  void join(const std::vector<int>& threads);

 private:
  uint32_t& at(int thread, int other) { return times_[size_t(thread) * threads_ + other]; }

  int threads_;
  std::vector<uint32_t> times_;
  std::vector<uint32_t> joined_;
};

class Shadow {
 public:
  Shadow(int64_t bytes, int threads) : warps_(threads / 32), cells_(bytes / 2), reads_(cells_.size() * warps_) {}

  // Each returns what is wrong, or nothing. Offsets and counts are in bytes; those that are odd cover whole cells.
  std::string read(int64_t offset, int64_t count, int thread, const Clocks& clocks);
  std::string write(int64_t offset, int64_t count, int thread, const Clocks& clocks);

  // A copy begins: nobody may look before its thread has waited for it.
  void begin_copy(int64_t offset, int64_t count) { set_copying(offset, count, true); }
  void end_copy(int64_t offset, int64_t count, int thread, const Clocks& clocks);

 private:
  struct Cell {
    int16_t writer = -1;
    bool copying = false;
    uint32_t time = 0;  // of the write
  };
  struct Read {                       // lanes of a warp pass all barriers together, so that their times are the same
    int16_t thread = -1, other = -1;  // the last lane, and another one at the same time
    uint32_t time = 0;
  };

  void set_copying(int64_t offset, int64_t count, bool copying);

  int warps_;
  std::vector<Cell> cells_;
  std::vector<Read> reads_;  // the last ones of each warp
};

}  // namespace bico::emulator
