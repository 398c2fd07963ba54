// The rules of a pair of a query and a key, and what they say about whole tiles: which key a query sees, and in which
// rotary frame the pair is scored.
//
// Functions have internal linkage: objects compiled for different instruction sets include this, and the linker must
// not keep one instance for all (python_tests/csrc/test_instruction_sets.py looks for such instances). They are
// constexpr so that CUDA kernels may call them too.
#pragma once

#include <cstdint>

namespace bico {

// A context key is visible to every query of its sequence.
static constexpr bool is_context(int32_t span_n) {
  return span_n == 0;
}

// Query m sees key n of the same sequence: the key is context, or the past of m's own span (> 0).
template <typename Index>
static constexpr bool visible(int32_t span_m, int32_t span_n, Index m, Index n) {
  return is_context(span_n) | ((span_n > 0) & (span_n == span_m) & (n <= m));  // no branches: it runs in vectors
}

// The two rotations of a row at position t. In the plus frame it is rotated by R(t): this frame scores keys up to the
// query. In the minus frame it is rotated by R(-t): this frame scores later keys, if the problem mirrors.
enum class Frame { plus, minus };
constexpr Frame every_frame[] = {Frame::plus, Frame::minus};

// The pair of query m and key n belongs to the minus frame. Positions are numbers or vectors of them.
template <typename M, typename N>
static constexpr auto in_minus_frame(M m, N n) {
  return n > m;
}

template <typename Index>
static constexpr Frame frame_of(Index m, Index n) {
  return in_minus_frame(m, n) ? Frame::minus : Frame::plus;
}

// Without `mirror` the plus frame serves all keys.
static constexpr bool needs(Frame frame, bool mirror) {
  return frame == Frame::plus || mirror;
}

// One value for each frame. Chosen by a condition rather than an index: an index would put it into local memory on
// CUDA.
template <typename T>
struct PerFrame {
  T plus, minus;

  constexpr T& operator[](Frame frame) { return frame == Frame::plus ? plus : minus; }
  constexpr const T& operator[](Frame frame) const { return frame == Frame::plus ? plus : minus; }
};

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

// Some key of the tile may be context, which queries before it see in the minus frame.
template <typename Index>
static constexpr bool has_context(const RowsOf<Index>& keys) {
  return keys.min_span <= 0 && keys.max_span >= 0;
}

// What a tile of queries sees of a tile of keys: nothing, everything, the context keys alone (the same keys for every
// query), or what the rules say about each pair. Denoising hides placeholders and nothing else, so nearly all of its
// tiles are `by_key`.
enum class TileView { nothing, everything, by_key, by_pair };

template <typename Index>
static constexpr TileView tile_view(const RowsOf<Index>& queries, const RowsOf<Index>& keys) {
  if (keys.max_span < 0) return TileView::nothing;
  if (keys.max_span == 0) return keys.min_span == 0 ? TileView::everything : TileView::by_key;
  if (keys.min_span > 0) {
    const bool spans_apart = keys.max_span < queries.min_span || keys.min_span > queries.max_span;
    if (spans_apart || side(queries, keys) == Side::above) return TileView::nothing;
    const bool one_span = keys.min_span == keys.max_span && queries.min_span == queries.max_span;
    if (one_span && side(queries, keys) == Side::below) return TileView::everything;
  }
  return TileView::by_pair;
}

// The same of the pairs in one frame alone. `keys_full`: the tile of keys is not cut off by the end of the tensor.
template <typename Index>
static constexpr TileView tile_view_in(Frame frame, const RowsOf<Index>& queries, const RowsOf<Index>& keys,
                                       bool keys_full) {
  const Side where = side(queries, keys);
  if (where == (frame == Frame::plus ? Side::above : Side::below)) return TileView::nothing;
  if (frame == Frame::minus && !has_context(keys)) return TileView::nothing;
  const TileView view = tile_view(queries, keys);
  if (view == TileView::nothing) return TileView::nothing;
  if (where == Side::on_diagonal) return TileView::by_pair;
  if (view == TileView::everything && !keys_full) return keys.max_span == 0 ? TileView::by_key : TileView::by_pair;
  return view;
}

}  // namespace bico
