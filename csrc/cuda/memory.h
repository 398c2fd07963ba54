// Which tensors the kernels may read and write 16 bytes at a time, and the arena of the workspace.
#pragma once

#include <cstdint>

#include "../arena.h"
#include "../attention.h"

namespace bico::cuda {

struct DeviceMemory {
  static constexpr int64_t alignment = 256, gap = 0;
  static void guard(uintptr_t, uintptr_t) {}
};
using Arena = bico::Arena<DeviceMemory>;

inline bool aligned_to_vectors(const void* pointer, int64_t stride_bytes = 0) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride_bytes % 16 == 0;
}

// Every row begins at a multiple of 16 bytes.
inline bool aligned_rows(const Heads& x, int64_t element_bytes) {
  const int64_t strides[] = {x.batch_stride, x.head_stride, x.row_stride};
  for (const int64_t stride : strides) {
    if (!aligned_to_vectors(x.data, stride * element_bytes)) return false;
  }
  return true;
}

// Runs of 8 elements of the rotary table, or of 4 where pairs are apart, begin at multiples of 16 bytes; and so they do
// in heads with aligned rows, or, of 4 elements in 16 bits, at multiples of 8 bytes.
inline bool aligned_rotation(const RotaryTable& table, int64_t element_bytes) {
  return aligned_to_vectors(table.cos, table.cos_batch_stride * element_bytes) &&
         aligned_to_vectors(table.sin, table.sin_batch_stride * element_bytes) &&
         table.cos_row_stride * element_bytes % 16 == 0 && table.sin_row_stride * element_bytes % 16 == 0 &&
         (table.interleaved || table.width % 8 == 0);
}

}  // namespace bico::cuda
