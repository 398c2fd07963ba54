// Split-triangle RoPE attention as plain pointers, strides and sizes; nothing here knows torch.
//
// Letters, here and in every kernel: B batch, Hq query heads, Hkv key/value heads, S length, D head dim,
// R rotary width; m is a query, n a key. Strides count elements. Functions are constexpr so that CUDA kernels may call
// them too (nvcc --expt-relaxed-constexpr).
#pragma once

#include <cstdint>

namespace bico {

enum class DType { float64, float32, bfloat16, float16 };

// [B, H, S, D] with a contiguous last dimension.
struct Heads {
  void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0;

  template <typename T>
  constexpr T* row(int64_t batch, int64_t head, int64_t position) const {
    return static_cast<T*>(data) + batch * batch_stride + head * head_stride + position * row_stride;
  }
};

// [B, Hq, S], contiguous.
struct RowStatistics {
  void* data = nullptr;
  int64_t heads = 0, length = 0;

  template <typename T>
  constexpr T* row(int64_t batch, int64_t head, int64_t position) const {
    return static_cast<T*>(data) + (batch * heads + head) * length + position;
  }
};

// cos and sin, each [1 or B, S, R]: float64 for float64 problems, else float32. batch_stride is 0 for one table.
struct RotaryTable {
  const void* cos = nullptr;
  const void* sin = nullptr;
  int64_t cos_batch_stride = 0, cos_row_stride = 0, sin_batch_stride = 0, sin_row_stride = 0;
  int64_t width = 0;         // R
  bool interleaved = false;  // pairs (2i, 2i+1), GLM; else (i, i+R/2), Llama

  template <typename T>
  constexpr const T* cos_row(int64_t batch, int64_t position) const {
    return static_cast<const T*>(cos) + batch * cos_batch_stride + position * cos_row_stride;
  }
  template <typename T>
  constexpr const T* sin_row(int64_t batch, int64_t position) const {
    return static_cast<const T*>(sin) + batch * sin_batch_stride + position * sin_row_stride;
  }
};

struct Problem {
  DType dtype = DType::float32;
  int64_t batch = 0, query_heads = 0, kv_heads = 0, length = 0, head_dim = 0;
  Heads q, k, v;
  RotaryTable rotary;
  const int32_t* span_ids = nullptr;  // [B, S] with unit stride along S; null: all context
  int64_t span_batch_stride = 0;
  const int32_t* cu_seqlens = nullptr;  // [sequences + 1], B = 1; null: each batch entry is one sequence
  int64_t sequences = 0;
  int64_t window = INT64_MAX;  // a query sees no key at this distance or farther
  double scale = 1.0;
  bool mirror = true;  // keys after the query are scored in the minus frame (visibility.h)

  // The span ids of one batch entry, or null.
  constexpr const int32_t* spans(int64_t batch_entry) const {
    return span_ids ? span_ids + batch_entry * span_batch_stride : nullptr;
  }
};

struct Forward : Problem {
  Heads out;          // dtype
  RowStatistics lse;  // float64 for float64 problems, else float32; -inf where a query sees nothing
};

struct Backward : Problem {
  Heads out, grad_out, grad_q, grad_k, grad_v;  // dtype
  RowStatistics lse, grad_lse;                  // as Forward::lse; grad_lse.data may be null: zero
};

}  // namespace bico
