// Packs q, k, v and the output gradient into the operands of the tile product: rotated once, padded with zeros to what
// products round up to.
//
// A tile of rows [T, D] is packed in one or more of three orders:
//   rows     [T, D]  A of a sum over D
//   columns  [D, T]  panel, B of a sum over D
//   depth    [T, D]  panel, B of a sum over the rows
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../../visibility.h"
#include "product.h"
#include "rotary.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

constexpr int64_t padding = 32;  // of the head dim
constexpr int64_t most_head_dim = 256;

inline int64_t padded_head_dim(const Problem& p) {
  return round_up(p.head_dim, padding);
}

// The rows of a tile that are packed: they are columns of a product, or its depth.
template <typename A>
int64_t padded_rows(int64_t count) {
  return round_up(count, column_step<A>);
}

template <typename Operand>
bool is_finite(Operand x) {
  return widen(x) - widen(x) == 0;
}

// Narrows rows of scalars [0, padded) to operands, and remembers whether all of them are finite: a large float can
// round to infinity.
template <typename A>
class Narrow {
 public:
  using T = typename A::Scalar;

  // Two vectors.
  void store(typename A::Operand* to, Vector<T> x, Vector<T> next) {
    A::store_row(to, x, next);
    note(x), note(next);
  }
  // A row, padded to a multiple of two vectors.
  void row(const T* from, int64_t padded, typename A::Operand* to) {
    for (int64_t i = 0; i < padded; i += 2 * lanes<T>) store(to + i, load(from + i), load(from + i + lanes<T>));
  }
  bool finite() const { return !any<T>(largest_ >= std::bit_cast<Bit>(A::finite_below)); }

 private:
  using Bit = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  void note(Vector<T> x) {
    const Bits<T> size = (Bits<T>)x & std::numeric_limits<Bit>::max();
    largest_ = size > largest_ ? size : largest_;
  }
  Bits<T> largest_ = {};  // magnitudes as integers, which have the same order; NaN is above infinity
};

template <typename A>
void zero_padding(int64_t count, int64_t padded, Matrix<typename A::Operand> rows) {
  for (int64_t r = count; r < padded_rows<A>(count); ++r) std::fill_n(rows.row(r), padded, typename A::Operand{});
}

// Rows of x to pack: scaled, and rotated by all `width` columns of the table or, if it is 0, by none, in one frame or
// both.
template <typename A>
struct PackJob {
  const Problem& p;
  const Heads& x;
  const Load& loads;
  typename A::Scalar scale;
  int64_t width;
  bool mirror;
  const PerFrame<Matrix<typename A::Operand>>& rows;
};

// Rows that consist of pairs of vectors go from the tensor to operands at once. By way of arrays, as below, a row took
// 64 cycles instead of 23 (bfloat16 pairs, D = 64, both frames).
template <typename A, typename Element>
bool pack_by_vectors(const PackJob<A>& job) {
  using T = typename A::Scalar;
  constexpr int64_t lane = lanes<T>, step = 2 * lane;
  const auto& [p, x, loads, scale, width, mirror, rows] = job;
  const auto& [batch, head, tile] = loads.now;
  Narrow<A> narrow;
  for (int64_t r = 0; r < tile.count; ++r) {
    prefetch_row(p, x, loads.ahead, r);
    const auto* from = x.template row<const Element>(batch, head, tile.begin + r);
    const auto at = [from, factor = scale](int64_t i) { return load_elements(from + i) * factor; };
    const Rotation<T> rotation(p, batch, tile.begin + r);
    typename A::Operand *plus = rows.plus.row(r), *minus = rows.minus.row(r);
    if (rotation.interleaved) {
      for (int64_t i = 0; i < width; i += step) {
        const auto now = rotation.rotated_interleaved(at(i), i);
        const auto next = rotation.rotated_interleaved(at(i + lane), i + lane);
        narrow.store(plus + i, now.plus_x(), next.plus_x());
        if (mirror) narrow.store(minus + i, now.minus_x(), next.minus_x());
      }
    } else {
      for (int64_t i = 0, j = width / 2; j < width; i += step, j += step) {
        const auto now = rotation.rotated(at(i), at(j), i, j);
        const auto next = rotation.rotated(at(i + lane), at(j + lane), i + lane, j + lane);
        narrow.store(plus + i, now.plus_x(), next.plus_x());
        narrow.store(plus + j, now.plus_y(), next.plus_y());
        if (!mirror) continue;
        narrow.store(minus + i, now.minus_x(), next.minus_x());
        narrow.store(minus + j, now.minus_y(), next.minus_y());
      }
    }
    for (int64_t i = width; i < p.head_dim; i += step) {
      const Vector<T> now = at(i), next = at(i + lane);
      narrow.store(plus + i, now, next);
      if (mirror) narrow.store(minus + i, now, next);
    }
  }
  return narrow.finite();
}

// Any rows.
template <typename A, typename Element>
bool pack_by_arrays(const PackJob<A>& job) {
  using T = typename A::Scalar;
  const auto& [p, x, loads, scale, width, mirror, rows] = job;
  const auto& [batch, head, tile] = loads.now;
  alignas(64) T row[most_head_dim], plus_row[most_head_dim], minus_row[most_head_dim];
  const int64_t padded = padded_head_dim(p);
  std::fill_n(plus_row, padded, T(0));
  std::fill_n(minus_row, padded, T(0));
  Narrow<A> narrow;
  for (int64_t r = 0; r < tile.count; ++r) {
    prefetch_row(p, x, loads.ahead, r);
    load_elements(x.template row<const Element>(batch, head, tile.begin + r), p.head_dim, padded, scale, row);
    if (width == 0) {
      narrow.row(row, padded, rows.plus.row(r));
      if (mirror) narrow.row(row, padded, rows.minus.row(r));
      continue;
    }
    Rotation<T>(p, batch, tile.begin + r).rotate(row, p.head_dim, {plus_row, mirror ? minus_row : nullptr});
    narrow.row(plus_row, padded, rows.plus.row(r));
    if (mirror) narrow.row(minus_row, padded, rows.minus.row(r));
  }
  return narrow.finite();
}

// Returns whether all operands are finite.
template <typename A>
bool pack_rows(const PackJob<A>& job) {
  const auto& [p, x, loads, scale, width, mirror, rows] = job;
  constexpr int64_t step = 2 * lanes<typename A::Scalar>;
  const int64_t padded = padded_head_dim(p);
  const bool by_vectors = p.head_dim == padded && (p.rotary.interleaved ? width : width / 2) % step == 0;
  for (const Frame frame : every_frame) {
    if (needs(frame, mirror)) zero_padding<A>(loads.now.rows.count, padded, rows[frame]);
  }
  return with_element<typename A::Scalar>(p.dtype, [&]<typename Element>(Element) {
    return by_vectors ? pack_by_vectors<A, Element>(job) : pack_by_arrays<A, Element>(job);
  });
}

// Rows of q or k, in each frame that is needed.
template <typename A>
bool pack_rotated(const Problem& p, const Heads& x, const Load& loads, double scale, bool mirror,
                  const PerFrame<Matrix<typename A::Operand>>& rows) {
  return pack_rows<A>({p, x, loads, typename A::Scalar(scale), p.rotary.width, mirror, rows});
}

// Rows of v or the output gradient.
template <typename A>
bool pack_unrotated(const Problem& p, const Heads& x, const Load& loads, Matrix<typename A::Operand> rows) {
  return pack_rows<A>({p, x, loads, 1, 0, false, {rows, {}}});
}

// A group of operands as one number, for moves only.
template <typename A>
using Word = typename A::Scalar;

// [rows, columns] words to [columns, rows] words; both multiples of the vector. In register blocks: element by element
// it took a third of a forward on sequences of 28 tokens.
template <typename T>
void transpose_words(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int step = lanes<T>;
  for (int64_t r = 0; r < rows; r += step) {
    for (int64_t c = 0; c < columns; c += step) {
      Vector<T> block[step];
      for (int i = 0; i < step; ++i) block[i] = load(from + (r + i) * from_stride + c);
      transpose_block<T>(block);
      for (int i = 0; i < step; ++i) store(to + (c + i) * to_stride + r, block[i]);
    }
  }
}

// rows [count, padded] -> columns, a panel [padded, count].
template <typename A>
void rows_to_columns(Matrix<typename A::Operand> rows, int64_t count, int64_t padded, Panel<A> columns) {
  using W = Word<A>;
  for (int64_t r = 0; r < padded_rows<A>(count); r += lanes<W>) {
    transpose_words<W>(lanes<W>, padded / A::group, reinterpret_cast<const W*>(rows.row(r)), rows.stride / A::group,
                       reinterpret_cast<W*>(columns.at(0, r)), panel_columns<A>);
  }
}

// rows [count, padded] -> depth, a panel [count, padded].
template <typename A>
void rows_to_depth(Matrix<typename A::Operand> rows, int64_t count, int64_t padded, Panel<A> depth) {
  using Operand = typename A::Operand;
  for (int64_t r = 0; r < padded_rows<A>(count); r += A::group) {
    for (int64_t d = 0; d < padded; d += lanes<typename A::Scalar>) {
      const Operand* group[A::group];
      for (int i = 0; i < A::group; ++i) group[i] = rows.row(r + i) + d;
      A::interleave(group, depth.at(r, d));
    }
  }
}

// rows with zeros in the place of infinities and NaN, in `copy`: what a sum over the rows takes. A hidden pair has
// weight 0, yet 0 * NaN is NaN; nonfinite.h adds what was left out, to those who see it.
template <typename A>
Matrix<typename A::Operand> finite_part(Matrix<typename A::Operand> rows, int64_t count, int64_t padded,
                                        Matrix<typename A::Operand> copy) {
  for (int64_t r = 0; r < padded_rows<A>(count); ++r) {
    for (int64_t d = 0; d < padded; ++d) {
      copy.row(r)[d] = is_finite(rows.row(r)[d]) ? rows.row(r)[d] : typename A::Operand{};
    }
  }
  return copy;
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
