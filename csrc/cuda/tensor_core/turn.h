// Gradients of rotated keys, turned from frame to frame while they are accumulators.
//
// A pair (x, y) of a head is the complex number x + iy. With z = cos + i sin, its rotation in the plus frame is a
// product with z, and in the minus frame one with conj(z). The transpose of each is the other. So with the gradients G+
// and G- of keys rotated into the two frames, the gradient of the keys is conj(z) G+ + z G- = z (conj(z) / z G+ + G-):
// one product turns the accumulators from the plus frame to the minus frame, where the sums go on, and another one
// turns them back.
#pragma once

#include "../pairs.h"
#include "../sequences.h"
#include "mma.h"

namespace bico::cuda {

struct Complex {
  float re, im;
};

// conj(z) / z, for |z| from 1e-15 to 1e19. Below, it does not matter: the product with z that follows is about 0.
BICO_DEVICE Complex turn_to_minus(const Complex& z) {
  const float square = z.re * z.re + z.im * z.im;
  const float factor = reciprocal_approximate(square < 1e-30f ? 1e-30f : square);
  return {(z.re * z.re - z.im * z.im) * factor, -2 * z.re * z.im * factor};
}

// Multiplies each pair of columns of accumulators by factor(z); beyond the rotated part z is 1. Their rows are slots
// from `slot` on, and their columns PairedColumns from `column` on.
template <int M, int N, class Factor>
BICO_DEVICE void turn(Accumulators<M, N>& c, int slot, int column, const Spans& spans, const RotaryTable& table,
                      int batch, const Factor& factor) {
#pragma unroll
  for (int i = 0; i < M; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const unsigned lane = lane_index();
      const int own = slot + Accumulators<M, N>::row(i, 2 * h, lane);
      const int row = own < spans.length ? spans.row_of(own) : 0;
      // The lane's first pair, where the table keeps it, and the way to the next one there.
      const int first = column + Accumulators<M, N>::column(0, 0, lane), left = int(table.width) - first;
      const int in_table = table.interleaved ? first : first / 2, step = table.interleaved ? 8 : 4;
      // Opaque, or the compiler computes each address from its beginning: 7 instructions for a load instead of 3.
      const float* cos = opaque(table.cos_row<float>(batch, row) + in_table);
      const float* sin = opaque(table.sin_row<float>(batch, row) + in_table);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const bool rotated = 8 * j < left;
        Complex z = {1, 0};
        if (rotated) z = {cos[j * step], sin[j * step]};
        const Complex by = factor(z);
        float &x = c.x[i][j][2 * h], &y = c.x[i][j][2 * h + 1];
        // Beyond the rotated part, 0 times the neighbour would not do: it may be infinite.
        const float of_x = rotated ? x * by.im : 0, of_y = rotated ? y * by.im : 0;
        x = x * by.re - of_y;
        y = y * by.re + of_x;
      }
    }
  }
}

// Rounds accumulators in PairedColumns into a tile as a head keeps them.
template <typename T, int rows, int tile_columns, int M, int N>
BICO_DEVICE void store_pairs(SharedTile<T, rows, tile_columns>& tile, const Accumulators<M, N>& c, int row, int column,
                             const PairedColumns& columns) {
  const unsigned lane = lane_index();
#pragma unroll
  for (int j = 0; j < N; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const unsigned to = columns.in_head(column + Accumulators<M, N>::column(j, e, lane));
      T* first = tile.chunk(row + Accumulators<M, N>::row(0, 0, lane), to / vector_elements) + to % vector_elements;
#pragma unroll
      for (int i = 0; i < M; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {  // eight rows below, chunks are swizzled alike
          store_shared(first + (16 * i + 8 * h) * tile_columns, narrow<T>(c.x[i][j][2 * h + e]));
        }
      }
    }
  }
}

}  // namespace bico::cuda
