// How one block of memory is cut into arrays: on the CPU scratch and packed operands, on CUDA the workspace of a call.
#pragma once

#include <cstdint>

#include "rounding.h"

namespace bico {

// Hands out one array after another. Without a block it only counts, so that the same code gives the size and the
// layout. `Memory` has the `alignment` of arrays, the `gap` after each of them in bytes, and `guard(array, end)`, which
// is called for each array that is handed out.
//
// Objects compiled for different instruction sets share no instance of this: each has a `Memory` of its own.
template <class Memory>
class Arena {
 public:
  explicit Arena(void* block) : block_(reinterpret_cast<uintptr_t>(block)) {}

  bool counts_only() const { return block_ == 0; }
  int64_t bytes() const { return bytes_; }

  template <typename T>
  T* take(int64_t count) {
    const uintptr_t array = block_ + uintptr_t(bytes_);
    bytes_ += round_up(count * int64_t(sizeof(T)), Memory::alignment);
    if (!counts_only()) Memory::guard(array, block_ + uintptr_t(bytes_));
    bytes_ += Memory::gap;
    return counts_only() ? nullptr : reinterpret_cast<T*>(array);
  }

 private:
  uintptr_t block_;
  int64_t bytes_ = 0;
};

}  // namespace bico
