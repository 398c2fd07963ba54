// Sums over queries, for the gradients of a tile of keys: C [keys, D] += W^T X, with weights W [T, keys], a panel, and
// X [T, D], the rows of a tile of queries.
#pragma once

#include "panels.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// One such sum. W is read sideways, so that nothing needs to be transposed. Tile registers cannot be loaded sideways:
// AMX has a specialization (amx_product.h).
template <typename A>
class KeySum {
 public:
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  using Summand = Panel<A>;  // X in the order `depth`; {data, rows of a full tile}

  KeySum() = default;
  KeySum(Arena& arena, int64_t tile_rows, int64_t padded) : sum_(take_matrix<T>(arena, tile_rows, padded)) {}

  // rows [count, padded] -> X.
  static void pack(Matrix<Operand> rows, int64_t count, int64_t padded, Panel<A> /* scratch */, Summand to) {
    rows_to_depth<A>(rows, count, padded, to);
  }

  // Adds the rows [begin, end) of X to the keys [key, key + count), where `key` is a multiple of a panel's columns. The
  // first summand overwrites what is there.
  void add(Panel<A> w, Summand x, int64_t begin, int64_t end, int64_t key, int64_t count, int64_t head_dim,
           bool first) const {
    for (int64_t done = 0; done < count; done += panel_columns<A>) {
      const Matrix<Operand> left = {w.at(begin, key + done), A::group};
      const Product<A> product = {
          std::min(count - done, panel_columns<A>), head_dim, end - begin, left, x, begin, 0, sum_.from(key + done)};
      first ? vector_product<A, Left::sideways, false>(product) : vector_product<A, Left::sideways, true>(product);
    }
  }

  // The sum of one key: its first element, and the stride between elements.
  T* key(int64_t key) const { return sum_.row(key); }
  int64_t stride() const { return 1; }

  // The sums of `count` keys, [count, padded].
  Matrix<T> rows(int64_t /* count */) const { return sum_; }

 private:
  Matrix<T> sum_;
};

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
