// Launching kernels on the CPU: they have run when launch returns.
#pragma once

#include <cstring>

#include "../machine/machine.h"

namespace bico::cuda {

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
            void* stream, const Arguments&... arguments) {
  emulator::run(*static_cast<const emulator::Options*>(stream), name, blocks, threads, shared_bytes,
                [&] { kernel(arguments...); });
}

inline DeviceLimits device_limits() {
  return {emulator::device.multiprocessors};
}

inline void fill_with_zeros(void* memory, int64_t bytes, void*) {
  std::memset(memory, 0, bytes);
}

}  // namespace bico::cuda
