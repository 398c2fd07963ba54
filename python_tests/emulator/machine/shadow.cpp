#include "shadow.h"

#include <algorithm>

namespace bico::emulator {

void Clocks::join(const std::vector<int>& threads) {
  joined_.assign(threads_, 0);
  for (const int thread : threads) {
    const uint32_t* times = &times_[size_t(thread) * threads_];
    for (int t = 0; t < threads_; ++t) joined_[t] = std::max(joined_[t], times[t]);
  }
  for (const int thread : threads) {
    std::copy(joined_.begin(), joined_.end(), &at(thread, 0));
    ++at(thread, thread);
  }
}

std::string Shadow::read(int64_t offset, int64_t count, int thread, const Clocks& clocks) {
  for (int64_t c = offset / 2; c < (offset + count + 1) / 2; ++c) {
    const Cell& cell = cells_[c];
    if (cell.copying) return "reads what is still being copied: its thread has not waited for the copy";
    if (cell.writer < 0) return "reads shared memory that was never written";
    if (cell.writer != thread && !clocks.knows(thread, cell.writer, cell.time)) {
      return "reads what thread " + std::to_string(cell.writer) + " wrote, with no barrier between";
    }
    Read& last = reads_[c * warps_ + thread / 32];
    const uint32_t now = clocks.now(thread);
    if (last.time != now) {
      last.other = -1;
    } else if (last.thread != thread) {
      last.other = last.thread;
    }
    last.thread = thread;
    last.time = now;
  }
  return "";
}

std::string Shadow::write(int64_t offset, int64_t count, int thread, const Clocks& clocks) {
  for (int64_t c = offset / 2; c < (offset + count + 1) / 2; ++c) {
    Cell& cell = cells_[c];
    if (cell.copying) return "writes where a copy is still under way";
    if (cell.writer >= 0 && cell.writer != thread && !clocks.knows(thread, cell.writer, cell.time)) {
      return "writes where thread " + std::to_string(cell.writer) + " wrote, with no barrier between";
    }
    for (int warp = 0; warp < warps_; ++warp) {
      Read& read = reads_[c * warps_ + warp];
      for (const int reader : {read.thread, read.other}) {
        if (reader >= 0 && reader != thread && !clocks.knows(thread, reader, read.time)) {
          return "writes what thread " + std::to_string(reader) + " reads, with no barrier between";
        }
      }
      read = {};
    }
    cell.writer = thread;
    cell.time = clocks.now(thread);
  }
  return "";
}

void Shadow::set_copying(int64_t offset, int64_t count, bool copying) {
  for (int64_t c = offset / 2; c < (offset + count + 1) / 2; ++c) cells_[c].copying = copying;
}

void Shadow::end_copy(int64_t offset, int64_t count, int thread, const Clocks& clocks) {
  set_copying(offset, count, false);
  for (int64_t c = offset / 2; c < (offset + count + 1) / 2; ++c) cells_[c].time = clocks.now(thread);
}

}  // namespace bico::emulator
