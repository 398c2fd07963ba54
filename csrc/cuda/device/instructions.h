// The instructions that kernels are written with. The same kernels are compiled with either set: the real instructions,
// or those of the emulator, which run on a CPU and check what they are asked. Only the emulated build of
// python_tests/emulator has an include directory in which <emulator/...> is found.
#pragma once

#ifdef __CUDACC__
#include "ptx.cuh"
#else
#include <emulator/device/instructions.h>
#endif
