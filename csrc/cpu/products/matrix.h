// Matrices, and the arena that they are cut from.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../arena.h"
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

struct HostMemory {
  static constexpr int64_t alignment = 64;
#ifdef __SANITIZE_ADDRESS__
  // A gap that nobody may touch, so that running over the end of an array shows.
  static constexpr int64_t gap = 64;
  static void guard(uintptr_t array, uintptr_t end) {
    __asan_unpoison_memory_region(reinterpret_cast<void*>(array), end - array);
    __asan_poison_memory_region(reinterpret_cast<void*>(end), gap);
  }
#else
  static constexpr int64_t gap = 0;
  static void guard(uintptr_t, uintptr_t) {}
#endif
};
using Arena = bico::Arena<HostMemory>;

template <typename T>
Matrix<T> take_matrix(Arena& arena, int64_t rows, int64_t columns) {
  return {arena.take<T>(rows * columns), columns};
}

// The bytes of what a struct takes in its constructor, Layout(problem, sizes..., arena).
template <typename Layout, typename Problem, typename... Sizes>
size_t bytes_of(const Problem& p, Sizes... sizes) {
  Arena arena(nullptr);
  Layout(p, sizes..., arena);
  return size_t(arena.bytes());
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
