// The op in one element type. Each type is instantiated in a source file of its own.
#pragma once

#include "attention.h"
#include "device/numbers.h"

namespace bico::cuda {

// Both return the bytes of workspace that they need; with null for `workspace` they do nothing else.
template <typename T>
int64_t forward_in(const Forward& problem, void* workspace, Stream stream);
template <typename T>
int64_t backward_in(const Backward& problem, bool deterministic, void* workspace, Stream stream);

}  // namespace bico::cuda
