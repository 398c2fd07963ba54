// Launching kernels on the CPU: they have run when launch returns.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "../machine/machine.h"

namespace bico::cuda {

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
            void* stream, const Arguments&... arguments) {
  constexpr int reserved = 1024;  // by the hardware, of each block
  emulator::Device& device = emulator::device;
  if (shared_bytes + reserved > device.shared_bytes) {
    throw emulator::Violation("kernel " + std::string(name) + " takes " + std::to_string(shared_bytes) + " and " +
                              std::to_string(reserved) + " bytes of shared memory, but a multiprocessor has " +
                              std::to_string(device.shared_bytes));
  }
  device.largest_launch = std::max(device.largest_launch, shared_bytes);
  emulator::run(*static_cast<const emulator::Options*>(stream), name, blocks, threads, shared_bytes,
                [&] { kernel(arguments...); });
}

inline DeviceLimits device_limits() {
  return {emulator::device.multiprocessors, emulator::device.shared_bytes};
}

inline void fill_with_zeros(void* memory, int64_t bytes, void*) {
  std::memset(memory, 0, bytes);
}

}  // namespace bico::cuda
