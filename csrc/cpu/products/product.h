// The tile product, the operation that the hardware is built for:
//
//   multiply:    C  = A B        C [rows, columns] of scalars, row-major
//   accumulate:  C += A B        A [rows, depth] of operands, row-major; B [depth, columns], a panel
//
// Columns and depth may be rounded up (column_step, depth_step): A or B is zero there, C is written. Each element of C
// adds its products in ascending depth, so results do not depend on how rows and columns are split.
#pragma once

#include "../../rounding.h"
#include "arithmetic.h"
#include "matrix.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

template <typename A>
constexpr int64_t panel_columns = 2 * lanes<typename A::Scalar>;
template <typename A>
constexpr int64_t column_step = A::depth_step > lanes<typename A::Scalar> ? A::depth_step : lanes<typename A::Scalar>;

// B, in the order in which products read it: blocks of panel_columns; in a block, groups of depth; in a group, for
// each column its `group` operands side by side.
template <typename A>
struct Panel {
  static Panel take(Arena& arena, int64_t depth, int64_t columns) {
    return {arena.take<typename A::Operand>(depth * columns), depth};
  }

  typename A::Operand* data = nullptr;
  int64_t depth = 0;  // capacity

  // depth_at: a multiple of the group; column: a multiple of the vector.
  typename A::Operand* at(int64_t depth_at, int64_t column) const {
    const int64_t block = column / panel_columns<A>, within = column % panel_columns<A>;
    return data + (block * depth + depth_at) * panel_columns<A> + within * A::group;
  }
  typename A::Operand& element(int64_t depth_at, int64_t column) const {
    const int64_t group_start = depth_at / A::group * A::group, lane = column % lanes<typename A::Scalar>;
    return at(group_start, column - lane)[lane * A::group + depth_at % A::group];
  }
};

template <typename A>
struct Product {
  int64_t rows, columns, depth;
  Matrix<typename A::Operand> a;
  Panel<A> b;
  int64_t b_depth, b_column;  // where in the panel B begins
  Matrix<typename A::Scalar> c;
};

// [R, 1 or 2 vectors] of C in registers. 12 rows keep 24 accumulators, 2 vectors of B and 1 of A in AVX-512's 32
// registers; AVX2's 16 have room for 6. 6 x 4, 8 x 3 and 14 x 2 gave the same rate to 1 %.
#ifdef __AVX512F__
constexpr int most_rows = 12;
#else
constexpr int most_rows = 6;
#endif

// How A lies: row-major, or sideways, as columns of a panel whose rows are the depth.
enum class Left { rows, sideways };

template <typename A, Left left, int R, int C, bool accumulated>
void product_block(int64_t depth, const typename A::Operand* a, int64_t a_stride, const typename A::Operand* b,
                   typename A::Scalar* c, int64_t c_stride) {
  using T = typename A::Scalar;
  Vector<T> accumulators[R][C] = {};
  for (int64_t k = 0; k < depth; k += A::group) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < C; ++j) {
        const auto* at = left == Left::rows ? a + r * a_stride + k : a + r * A::group + k * panel_columns<A>;
        accumulators[r][j] =
            A::multiply_add(accumulators[r][j], at, b + k * panel_columns<A> + j * lanes<T> * A::group);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < C; ++j) {
      T* to = c + r * c_stride + j * lanes<T>;
      store(to, accumulated ? load(to) + accumulators[r][j] : accumulators[r][j]);
    }
  }
}

template <typename A, Left left, int C, bool accumulated, int R = most_rows>
void product_rows(int64_t rows, int64_t depth, const typename A::Operand* a, int64_t a_stride,
                  const typename A::Operand* b, typename A::Scalar* c, int64_t c_stride) {
  if constexpr (R > 1) {
    if (rows < R) return product_rows<A, left, C, accumulated, R - 1>(rows, depth, a, a_stride, b, c, c_stride);
  }
  product_block<A, left, R, C, accumulated>(depth, a, a_stride, b, c, c_stride);
}

template <typename A, Left left, bool accumulated>
void vector_product(const Product<A>& x) {
  constexpr int64_t step = lanes<typename A::Scalar>;
  const int64_t depth = round_up(x.depth, A::depth_step), columns = round_up(x.columns, step);
  const int64_t row_blocks = (x.rows + most_rows - 1) / most_rows;  // of nearly equal height
  for (int64_t column = 0; column < columns;) {
    const bool two = columns - column >= 2 * step && (x.b_column + column) % panel_columns<A> == 0;
    const auto* b = x.b.at(x.b_depth, x.b_column + column);
    for (int64_t block = 0; block < row_blocks; ++block) {
      const int64_t row = x.rows * block / row_blocks, rows = x.rows * (block + 1) / row_blocks - row;
      const auto run = two ? product_rows<A, left, 2, accumulated> : product_rows<A, left, 1, accumulated>;
      run(rows, depth, x.a.row(row), x.a.stride, b, x.c.row(row) + column, x.c.stride);
    }
    column += two ? 2 * step : step;
  }
}

template <typename A>
void multiply(const Product<A>& x) {
  vector_product<A, Left::rows, false>(x);
}
template <typename A>
void accumulate(const Product<A>& x) {
  vector_product<A, Left::rows, true>(x);
}

// Adds a product to a sum, or makes it the first summand.
template <typename A>
void add_product(const Product<A>& x, bool first) {
  first ? multiply<A>(x) : accumulate<A>(x);
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
