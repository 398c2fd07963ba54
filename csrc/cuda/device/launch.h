// Launching kernels, and the memory that they may have.
#pragma once

#include "../attention.h"

namespace bico::cuda {

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // of each multiprocessor
};

}  // namespace bico::cuda

#ifdef __CUDACC__
#include "launch.cuh"
#else
#include <emulator/device/launch.h>
#endif

namespace bico::cuda {

// What a block may take on every device from sm_80 on: 99 KiB on sm_86, 89 and 120, more on the others.
constexpr int shared_limit = 99 * 1024;

}  // namespace bico::cuda
