// The tiles of the backward on tensor cores, and how gradients in float32 lie in the workspace.
#pragma once

#include <cstdint>

#include "../../rounding.h"
#include "../device/instructions.h"

namespace bico::cuda {

template <int D>
struct BackwardTiles {
  static_assert(D % 32 == 0, "half of the columns, a warp's, must be a multiple of 16");
  static constexpr int warps = 4, threads = 32 * warps;  // two by two over every product
  // Steps of a product that are unrolled. From D = 128 on, 4 of dQ spilled, and on sm_100 and 120 4 of others, too.
  static constexpr int grad_q_steps = D < 128 ? 4 : 2, steps = architecture < 100 ? 4 : grad_q_steps;
  static constexpr int queries = D <= 128 ? 64 : 32,
                       keys = queries;  // dK and dV take D keys / 64 registers of a thread
};

// Where a gradient tile of [rows, D] keeps its elements: in the order of the accumulators, so that a warp adds or
// stores neighbours: 32, or 128 where one instruction adds four numbers.
template <int D>
struct AccumulatorOrder {
  static constexpr int rows = BackwardTiles<D>::queries, threads = BackwardTiles<D>::threads;
  static constexpr int M = rows / 32, N = D / 16;  // of a warp's accumulators: half of the rows, half of the columns

  static constexpr int64_t offset(int i, int j, int r, int thread) {
    constexpr int width = atomic_add_width;
    return int64_t((i * N + j) * 4 + r / width * width) * threads + thread * width + r % width;
  }

  // First element of the tiles of a head of `length` rows, heads counted over the batch.
  static constexpr int64_t head(int64_t index, int64_t length) { return index * divide_up(length, rows) * rows * D; }

  // Of an even column, 16 bytes with those that row_step and column_step lead to.
  static constexpr bool patches_are_vectors = atomic_add_width == 4;
  static constexpr int64_t row_step() { return offset(0, 0, 2, 0); }
  static constexpr int64_t column_step() { return offset(0, 0, 1, 0); }

  static constexpr int64_t element(int64_t position, int d) {
    const int row = position % rows, half = row / (rows / 2), in_half = row % (rows / 2);
    const int right = d / (D / 2), in_right = d % (D / 2);
    const int thread = (half + 2 * right) * 32 + in_half % 8 * 4 + in_right % 8 / 2;
    return position / rows * rows * D + offset(in_half / 16, in_right / 8, in_half / 8 % 2 * 2 + in_right % 2, thread);
  }
};

}  // namespace bico::cuda
