// Device memory between the kernels of one call.
#pragma once

#include <cstdint>

#include "../attention.h"

namespace bico::cuda {

// Hands out pieces of one block of memory. Without a block it only counts.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  bool counts_only() const { return memory_ == nullptr; }
  int64_t bytes() const { return used_; }

  template <typename T>
  T* take(int64_t count) {
    char* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }

 private:
  char* memory_;
  int64_t used_ = 0;
};

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

// Chunks of 8 elements of the rotary table, and the partners of 8 elements of a head, begin at multiples of 16 bytes.
inline bool aligned_rotation(const RotaryTable& table, int64_t element_bytes) {
  return aligned_to_vectors(table.cos, table.cos_batch_stride * element_bytes) &&
         aligned_to_vectors(table.sin, table.sin_batch_stride * element_bytes) &&
         table.cos_row_stride * element_bytes % 16 == 0 && table.sin_row_stride * element_bytes % 16 == 0 &&
         (table.interleaved || table.width % 16 == 0);
}

}  // namespace bico::cuda
