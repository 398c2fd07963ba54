// The op in one element type, instantiated in a source file for each.
#pragma once

#include "attention.h"
#include "device/numbers.h"

namespace bico::cuda {

// Return the bytes of workspace; with null for `workspace` that is all they do.
template <typename T>
int64_t forward_in(const Forward& problem, void* workspace, Stream stream);
template <typename T>
int64_t backward_in(const Backward& problem, bool deterministic, void* workspace, Stream stream);

}  // namespace bico::cuda
