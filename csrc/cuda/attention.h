// What the torch glue and the emulator call: the whole op on a device, as kernels queued on a stream.
#pragma once

#include <cstdint>
#include <string>

#include "../attention.h"

namespace bico::cuda {

// A cudaStream_t; under the emulator a bico::emulator::Options*.
using Stream = void*;

// Workspaces are device memory of that many bytes, aligned to 256, needed until the kernels have run.
int64_t forward_workspace(const Forward& problem);
int64_t backward_workspace(const Backward& problem);

// Both queue the kernels and return. Gradients of q are summed by atomic additions, in any order unless
// `deterministic`.
void attention_forward(const Forward& problem, void* workspace, Stream stream);
void attention_backward(const Backward& problem, bool deterministic, void* workspace, Stream stream);

// Why this build cannot run on a device, as a sentence; empty if it can.
std::string missing_support(int device);

}  // namespace bico::cuda
