// Matrices, and how they are carved out of one block of memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vectors.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// Row-major.
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t stride = 0;

  T* row(int64_t r) const { return data + r * stride; }
  Matrix from(int64_t r, int64_t column = 0) const { return {data + r * stride + column, stride}; }
};

// With no block it only counts, so that one function gives both the size and the layout.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(reinterpret_cast<uintptr_t>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    const uintptr_t at = memory_ + used_;
    used_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__
    // A gap that nobody may touch, so that running over the end of an array shows.
    if (memory_ != 0) {
      __asan_unpoison_memory_region(reinterpret_cast<void*>(at), memory_ + used_ - at);
      __asan_poison_memory_region(reinterpret_cast<void*>(memory_ + used_), 64);
    }
    used_ += 64;
#endif
    return reinterpret_cast<T*>(at);
  }
  template <typename T>
  Matrix<T> matrix(int64_t rows, int64_t columns) {
    return {take<T>(rows * columns), columns};
  }
  size_t used() const { return used_; }

 private:
  uintptr_t memory_;
  size_t used_ = 0;
};

// Of what a struct carves in its constructor, Layout(problem, sizes..., carver).
template <typename Layout, typename Problem, typename... Sizes>
size_t bytes_of(const Problem& p, Sizes... sizes) {
  Carver memory(nullptr);
  Layout(p, sizes..., memory);
  return memory.used();
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
