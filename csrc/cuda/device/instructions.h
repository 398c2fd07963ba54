// What kernels ask of their processor. The same kernels are compiled with either set: real instructions, or the
// emulator's, which run on a CPU and check what they are asked.
#pragma once

#ifdef __CUDACC__
#include "ptx.cuh"
#else
#include <emulator/device/instructions.h>
#endif
