// Who sees whom: the one rule, and what it says about whole tiles.
//
// Functions have internal linkage: objects compiled for different instruction sets include this, and the linker must
// not keep one instance for all (python_tests/test_instruction_sets.py looks for such instances). They are constexpr so
// that CUDA kernels may call them too.
#pragma once

#include <cstdint>

namespace bico {

// Key n is seen by query m of the same sequence: it is context (0), or the past of m's own span (> 0).
template <typename Index>
static constexpr bool visible(int32_t span_m, int32_t span_n, Index m, Index n) {
  return (span_n == 0) | ((span_n > 0) & (span_n == span_m) & (n <= m));  // no branches: it runs in vectors
}

// Rows [begin, begin + count) of one sequence with the smallest and largest span id among them.
template <typename Index>
struct RowsOf {
  Index begin = 0, count = 0;
  int32_t min_span = 0, max_span = 0;

  constexpr Index last() const { return begin + count - 1; }
};
using Rows = RowsOf<int64_t>;

// Where a tile of keys lies: every key at or before every query, every key after every query, or both kinds.
enum class Side { below, on_diagonal, above };

template <typename Index>
static constexpr Side side(const RowsOf<Index>& queries, const RowsOf<Index>& keys) {
  if (keys.last() <= queries.begin) return Side::below;
  return keys.begin > queries.last() ? Side::above : Side::on_diagonal;
}

// What the rule says about a tile: no pair is visible, every pair is, or each must be asked.
enum class TileView { hidden, whole, mixed };

template <typename Index>
static constexpr TileView tile_view(const RowsOf<Index>& queries, const RowsOf<Index>& keys) {
  if (keys.max_span < 0) return TileView::hidden;
  if (keys.min_span == 0 && keys.max_span == 0) return TileView::whole;
  if (keys.min_span > 0) {
    const bool spans_apart = keys.max_span < queries.min_span || keys.min_span > queries.max_span;
    if (spans_apart || side(queries, keys) == Side::above) return TileView::hidden;
    const bool one_span = keys.min_span == keys.max_span && queries.min_span == queries.max_span;
    if (one_span && side(queries, keys) == Side::below) return TileView::whole;
  }
  return TileView::mixed;
}

// Some key of the tile is seen by queries before it, so the mirrored frame is needed on the diagonal.
template <typename Index>
static constexpr bool has_context(const RowsOf<Index>& keys) {
  return keys.min_span <= 0 && keys.max_span >= 0;
}

}  // namespace bico
