// The tile product, the one operation that an instruction set replaces.
//
//   multiply:   C[r, c]  = sum_k A[r, k] B[k, c]
//   accumulate: C[r, c] += sum_k A[r, k] B[k, c]
//
// A has any strides (so A or its transpose), B and C are row-major with unit stride, and `columns` is a multiple of
// column_step<T>. Each C element adds its products in ascending k: results do not depend on how work is split.
#pragma once

#include <cstdint>

#include "vectors.h"

namespace bico::cpu {

template <typename T>
constexpr int64_t column_step = 2 * lanes<T>;

template <typename T>
struct Left {
  const T* data;
  int64_t row_stride, depth_stride;
};

// [R x 2 vectors] of C in registers. 6 rows keep 12 accumulators, 2 vectors of B and 1 of A in AVX2's 16 registers.
template <typename T, int R, bool accumulate>
void product_block(int64_t depth, Left<T> a, const T* b, int64_t b_stride, T* c, int64_t c_stride) {
  using V = Vector<T>;
  V left[R], right[R];
  for (int r = 0; r < R; ++r) {
    left[r] = accumulate ? load(c + r * c_stride) : V{};
    right[r] = accumulate ? load(c + r * c_stride + lanes<T>) : V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const V b0 = load(b + k * b_stride), b1 = load(b + k * b_stride + lanes<T>);
    for (int r = 0; r < R; ++r) {
      const T factor = a.data[r * a.row_stride + k * a.depth_stride];
      left[r] += factor * b0;
      right[r] += factor * b1;
    }
  }
  for (int r = 0; r < R; ++r) {
    store(c + r * c_stride, left[r]);
    store(c + r * c_stride + lanes<T>, right[r]);
  }
}

template <typename T, bool accumulate>
void product(int64_t rows, int64_t columns, int64_t depth, Left<T> a, const T* b, int64_t b_stride, T* c,
             int64_t c_stride) {
  for (int64_t column = 0; column < columns; column += column_step<T>) {
    for (int64_t row = 0; row < rows; row += 6) {
      const Left<T> a_block = {a.data + row * a.row_stride, a.row_stride, a.depth_stride};
      T* c_block = c + row * c_stride + column;
      auto block = product_block<T, 6, accumulate>;
      switch (rows - row) {
        case 1: block = product_block<T, 1, accumulate>; break;
        case 2: block = product_block<T, 2, accumulate>; break;
        case 3: block = product_block<T, 3, accumulate>; break;
        case 4: block = product_block<T, 4, accumulate>; break;
        case 5: block = product_block<T, 5, accumulate>; break;
      }
      block(depth, a_block, b + column, b_stride, c_block, c_stride);
    }
  }
}

template <typename T>
void multiply(int64_t rows, int64_t columns, int64_t depth, Left<T> a, const T* b, int64_t b_stride, T* c,
              int64_t c_stride) {
  product<T, false>(rows, columns, depth, a, b, b_stride, c, c_stride);
}

template <typename T>
void accumulate(int64_t rows, int64_t columns, int64_t depth, Left<T> a, const T* b, int64_t b_stride, T* c,
                int64_t c_stride) {
  product<T, true>(rows, columns, depth, a, b, b_stride, c, c_stride);
}

}  // namespace bico::cpu
