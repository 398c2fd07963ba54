// Products of one warp with tensor cores: m16n8k16 with float32 accumulators.
//
// Of a 16 x 8 block of accumulators, lane 4 g + t holds rows g and g + 8 and columns 2 t and 2 t + 1.
#pragma once

#include "shared_tile.h"

namespace bico::cuda {

// Read anew at each call: see thread_index_here.
BICO_DEVICE unsigned lane_index() {
  return thread_index_here() % 32;
}

BICO_DEVICE int warp_index() {
  return unsigned(thread_index()) / 32;
}

// Accumulators of 16 M rows and 8 N columns, spread over the lanes of a warp.
template <int row_blocks, int column_blocks>
struct Accumulators {
  static constexpr int M = row_blocks, N = column_blocks;
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

  // Where x[i][j][r] of a lane is.
  static BICO_DEVICE int row(int i, int r, unsigned lane) { return 16 * i + int(lane / 4) + 8 * (r / 2); }
  static BICO_DEVICE int column(int j, int r, unsigned lane) { return 8 * j + int(lane % 4) * 2 + r % 2; }
};

// One bit for each of a lane's elements of Accumulators<M, N>: element (i, j, r) is bit 2 j + r % 2 of row (i, r / 2).
// Tests are evaluated in a loop that is not unrolled: unrolled, their operands took the registers of the accumulators.
template <int M, int N>
struct Bits {
  static_assert(2 * N <= 32, "a row's bits must fit a word");
  uint32_t row[M][2];

  BICO_DEVICE bool operator()(int i, int j, int r) const { return row[i][r / 2] >> (2 * j + r % 2) & 1; }

  template <class Test>
  static BICO_DEVICE uint32_t of_columns(const Test& test) {
    const unsigned lane = lane_index();
    uint32_t bits = 0;
#pragma unroll 1
    for (int b = 0; b < 2 * N; ++b) bits |= uint32_t(test(Accumulators<M, N>::column(b / 2, b, lane))) << b;
    return bits;
  }

  // By row and column.
  template <class Test>
  BICO_DEVICE void fill_pairs(const Test& test) {
    const unsigned lane = lane_index();
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int y = Accumulators<M, N>::row(i, 2 * h, lane);
        row[i][h] = of_columns([&](int x) { return test(y, x); });
      }
    }
  }

  // By row: all columns but those of inside(row), from its begin up to its end.
  template <class Inside>
  BICO_DEVICE void fill_outside(const Inside& inside) {
    static_assert(2 * N < 32, "shifts must be shorter than a word");
    const unsigned lane = lane_index();
    const auto before = [lane](int column) {
      int x = column - Accumulators<M, N>::column(0, 0, lane);
      x = x < 0 ? 0 : x > 8 * N ? 8 * N : x;
      return (1u << (x / 8 * 2 + (x % 8 < 2 ? x % 8 : 2))) - 1;
    };
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto columns = inside(Accumulators<M, N>::row(i, 2 * h, lane));
        row[i][h] = ~before(columns.end) | before(columns.begin);
      }
    }
  }
};

// Accumulators become `value` where `test` of their indices i, j and r holds.
template <int M, int N, class Test>
BICO_DEVICE void set_where(Accumulators<M, N>& c, const Test& test, float value) {
#pragma unroll
  for (int i = 0; i < M; ++i) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (test(i, j, r)) c.x[i][j][r] = value;
      }
    }
  }
}

// How an operand lies in shared memory. K-major: the elements to sum over lie beside each other, in each row of the
// left operand and in each column of the right one. MN-major: the rows of the left operand, or the columns of the right
// one, lie beside each other.
enum class Stored { k_major, mn_major };

// What a lane reads of an operand with ldmatrix: left_address and right_address are where it begins, and load_operand
// goes on from there. `begin` is the operand's first row (left) or column (right) in the tile.

template <Stored stored, class Tile>
BICO_DEVICE SharedAddress left_address(Tile& tile, int begin, unsigned lane) {
  const unsigned within = lane % 8, second = lane / 8 % 2, fourth = lane / 16;
  if constexpr (stored == Stored::k_major) return tile.address(begin + within + 8 * second, fourth);
  return tile.address(within + 8 * fourth, second);
}

template <Stored stored, class Tile>
BICO_DEVICE SharedAddress right_address(Tile& tile, int begin, unsigned lane) {
  const unsigned within = lane % 8, second = lane / 8 % 2, block = lane / 16;
  if constexpr (stored == Stored::k_major) return tile.address(begin + within + 8 * block, second);
  return tile.address(within + 8 * second, block);
}

// 16 rows of a left operand, or 16 columns of a right one, from the block of 8 with the even number `block` on, and 16
// elements of the sum from `k` on.
template <Stored stored, class Tile>
BICO_DEVICE void load_operand(uint32_t (&r)[4], SharedAddress address, int begin, int block, int k) {
  if constexpr (stored == Stored::k_major) {  // the address holds `begin`
    load_matrices(r, Tile::at(address, 8 * block, k / vector_elements));
  } else {
    load_matrices_transposed(r, Tile::at(address, k, begin / vector_elements + block));
  }
}

// c += left x right for one step of 16 elements.
template <Stored right_stored, typename T, class Right, int M, int N>
BICO_DEVICE void multiply_step(Accumulators<M, N>& c, const uint32_t (&a)[M][4], SharedAddress right, int begin,
                               int k) {
  static_assert(N % 2 == 0, "right operands come two blocks at a time");
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    uint32_t b[4];
    load_operand<right_stored, Right>(b, right, begin, j, k);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      multiply_add<T>(c.x[i][j], a[i], b[0], b[1]);
      multiply_add<T>(c.x[i][j + 1], a[i], b[2], b[3]);
    }
  }
}

// c += rows of `left` from `row` on x columns of `right` from `column` on, over `depth` elements, `steps` times 16 of
// them at once: more steps hide the latency of shared memory better and take more registers.
template <int depth, int steps, Stored left_stored, Stored right_stored, class Left, typename T, int rows, int columns,
          int M, int N>
BICO_DEVICE void multiply(Accumulators<M, N>& c, Left& left, int row, SharedTile<T, rows, columns>& right, int column) {
  const unsigned lane = lane_index();
  const SharedAddress of_left = left_address<left_stored>(left, row, lane);
  const SharedAddress of_right = right_address<right_stored>(right, column, lane);
#pragma unroll(steps)
  for (int k = 0; k < depth; k += 16) {
    uint32_t a[M][4];
#pragma unroll
    for (int i = 0; i < M; ++i) load_operand<left_stored, Left>(a[i], of_left, row, 2 * i, k);
    multiply_step<right_stored, T, SharedTile<T, rows, columns>>(c, a, of_right, column, k);
  }
}

// c += weights x all columns of `right`. Accumulators of one product lie as the left operand of the next one must.
template <typename T, int rows, int columns, int M, int N, int W>
BICO_DEVICE void multiply_weights(Accumulators<M, N>& c, const Accumulators<M, W>& weights,
                                  SharedTile<T, rows, columns>& right) {
  static_assert(8 * W == rows && 8 * N == columns, "a weight for each row");
  const SharedAddress of_right = right_address<Stored::mn_major>(right, 0, lane_index());
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
    multiply_step<Stored::mn_major, T, SharedTile<T, rows, columns>>(c, a, of_right, 0, 8 * k);
  }
}

// Rounds accumulators into a tile, two elements at a time.
template <typename T, int rows, int columns, int M, int N>
BICO_DEVICE void store_accumulators(SharedTile<T, rows, columns>& tile, const Accumulators<M, N>& c, int row,
                                    int column) {
  using Tile = SharedTile<T, rows, columns>;
  const unsigned lane = lane_index();
  const SharedAddress address = tile.address(row + Accumulators<M, N>::row(0, 0, lane), 0) +
                                Accumulators<M, N>::column(0, 0, lane) * unsigned(sizeof(T));
#pragma unroll
  for (int i = 0; i < M; ++i) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
#pragma unroll
      for (int r = 0; r < 4; r += 2) {
        const SharedAddress to = Tile::at(address, 16 * i + 4 * r, column / vector_elements + j);
        store_shared(to, pack<T>(c.x[i][j][r], c.x[i][j][r + 1]));
      }
    }
  }
}

}  // namespace bico::cuda
