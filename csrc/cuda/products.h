// Products of a warp with tensor cores: m16n8k16, float32 sums.
//
// In a fragment lane 4 g + t holds, of the sums, rows g and g + 8 and columns 2 t and 2 t + 1 of a block of 16 x 8.
#pragma once

#include "shared_tile.h"

namespace bico::cuda {

BICO_DEVICE int lane_index() {
  return thread_index() % 32;
}

BICO_DEVICE int warp_index() {
  return thread_index() / 32;
}

// Sums of 16 M rows and 8 N columns, spread over the lanes of a warp.
template <int M, int N>
struct Sums {
  float x[M][N][4];

  BICO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) x[i][j][r] = 0;
      }
    }
  }

  // Where this lane's x[i][j][r] is.
  static BICO_DEVICE int row(int i, int r) { return 16 * i + lane_index() / 4 + 8 * (r / 2); }
  static BICO_DEVICE int column(int j, int r) { return 8 * j + lane_index() % 4 * 2 + r % 2; }
};

// How an operand lies in shared memory: by its own rows (of the left operand) or columns (of the right one), each with
// the elements to sum over beside each other, or the other way round.
enum class Stored { along_sum, across_sum };

// 16 rows from `row` on and 16 elements of the sum from `k` on.
template <Stored stored, class Tile>
BICO_DEVICE void load_left(uint32_t (&a)[4], const Tile& tile, int row, int k) {
  const int lane = lane_index(), within = lane % 8, second = lane / 8 % 2, fourth = lane / 16;
  if constexpr (stored == Stored::along_sum) {
    load_matrices(a, tile.chunk(row + within + 8 * second, k / vector_elements + fourth));
  } else {
    load_matrices_transposed(a, tile.chunk(k + within + 8 * fourth, row / vector_elements + second));
  }
}

// Two blocks of 8 columns from `column` on; of the second, where `pair` is false, a copy of the first.
template <Stored stored, class Tile>
BICO_DEVICE void load_right(uint32_t (&b)[4], const Tile& tile, int column, int k, bool pair) {
  const int lane = lane_index(), within = lane % 8, second = lane / 8 % 2, block = pair ? lane / 16 : 0;
  if constexpr (stored == Stored::along_sum) {
    load_matrices(b, tile.chunk(column + within + 8 * block, k / vector_elements + second));
  } else {
    load_matrices_transposed(b, tile.chunk(k + within + 8 * second, column / vector_elements + block));
  }
}

// sums += left x right for one step of 16 elements.
template <Stored right_stored, typename T, int rows, int columns, int M, int N>
BICO_DEVICE void multiply_step(Sums<M, N>& sums, const uint32_t (&a)[M][4], const SharedTile<T, rows, columns>& right,
                               int column, int k) {
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    uint32_t b[4];
    load_right<right_stored>(b, right, column + 8 * j, k, j + 1 < N);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      multiply_add<T>(sums.x[i][j], a[i], b[0], b[1]);
      if (j + 1 < N) multiply_add<T>(sums.x[i][j + 1], a[i], b[2], b[3]);
    }
  }
}

// sums += rows of `left` from `row` on x columns of `right` from `column` on, over `depth` elements.
template <int depth, Stored left_stored, Stored right_stored, class Left, typename T, int rows, int columns, int M,
          int N>
BICO_DEVICE void multiply(Sums<M, N>& sums, const Left& left, int row, const SharedTile<T, rows, columns>& right,
                          int column) {
#pragma unroll
  for (int k = 0; k < depth; k += 16) {
    uint32_t a[M][4];
#pragma unroll
    for (int i = 0; i < M; ++i) load_left<left_stored>(a[i], left, row + 16 * i, k);
    multiply_step<right_stored>(sums, a, right, column, k);
  }
}

// sums += weights x all columns of `right`. Sums of a product lie as the left operand of the next must.
template <typename T, int rows, int columns, int M, int N, int W>
BICO_DEVICE void multiply_weights(Sums<M, N>& sums, const Sums<M, W>& weights,
                                  const SharedTile<T, rows, columns>& right) {
  static_assert(8 * W == rows && 8 * N == columns, "a weight for each row");
#pragma unroll
  for (int k = 0; k < W; k += 2) {
    uint32_t a[M][4];
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float* pair = &weights.x[i][k + r / 2][r % 2 * 2];
        a[i][r] = pack<T>(pair[0], pair[1]);
      }
    }
    multiply_step<Stored::across_sum>(sums, a, right, 0, 8 * k);
  }
}

// Round the sums into a tile, two elements at a time.
template <typename T, int rows, int columns, int M, int N>
BICO_DEVICE void store_sums(const SharedTile<T, rows, columns>& tile, const Sums<M, N>& sums, int row, int column) {
#pragma unroll
  for (int i = 0; i < M; ++i) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
#pragma unroll
      for (int r = 0; r < 4; r += 2) {
        T* to = tile.element(row + Sums<M, N>::row(i, r), column + Sums<M, N>::column(j, r));
        store_shared(reinterpret_cast<uint32_t*>(to), pack<T>(sums.x[i][j][r], sums.x[i][j][r + 1]));
      }
    }
  }
}

}  // namespace bico::cuda
