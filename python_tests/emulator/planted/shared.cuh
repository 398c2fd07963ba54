// What the kernels here have in common. Each has one planted bug where `broken`, which the emulator must find, and is
// correct otherwise. The two differ by one line.
//
// All are launched with one block. `in` holds the numbers 0 to 255, `out` NaN.
#pragma once

#include <cuda/device/instructions.h>

namespace bico::planted {

using namespace cuda;

constexpr int threads = 64;
constexpr int shared_bytes = 32 * threads;

BICO_DEVICE float* numbers() {
  return reinterpret_cast<float*>(shared_memory());
}

// A number of each thread, seen by all.
BICO_DEVICE float* numbers_of_all(float mine) {
  store_shared(numbers() + thread_index(), mine);
  sync_threads();
  return numbers();
}

// The 16 bytes number `index`, of two for each thread.
BICO_DEVICE float* chunk(int index) {
  return numbers() + 4 * index;
}

}  // namespace bico::planted
