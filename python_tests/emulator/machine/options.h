// How a kernel is run on the CPU.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace bico::emulator {

class BankCounts;

enum class Schedule { round_robin, random };  // which of the threads that can run goes on
enum class Copies { at_issue, at_wait };      // when the data of an asynchronous copy arrives

struct Options {
  Schedule schedule = Schedule::round_robin;
  Copies copies = Copies::at_issue;
  uint64_t seed = 0;
  BankCounts* banks = nullptr;  // where to count, which takes time
};

// What is launched on. A small device by default, so that small problems fill it.
struct Device {
  int multiprocessors = 2;
  int shared_bytes = 228 * 1024;  // of each multiprocessor
  int largest_launch = 0;         // bytes of shared memory that a block of it has taken
};
inline Device device;

// What a kernel must not do, found while it ran.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace bico::emulator
