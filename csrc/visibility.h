// The rules of a pair of a query and a key, and what they say about whole tiles: which key a query sees, and in which
// rotary frame the pair is scored.
//
// Functions have internal linkage: objects compiled for different instruction sets include this, and the linker must
// not keep one instance for all (python_tests/csrc/test_instruction_sets.py looks for such instances). They are
// constexpr so that CUDA kernels may call them too.
#pragma once

#include <cstdint>

namespace bico {

// The span id of context that is read causally: as a query, such a token sees no later key. bico_ext/ops/reference.py
// has the same number.
constexpr int32_t causal_context = INT32_MAX;

// A context key is visible to every query of its sequence, except to earlier queries that are causal context.
static constexpr bool is_context(int32_t span_n) {
  return (span_n == 0) | (span_n == causal_context);
}

// Query m sees key n of the same sequence and within the window: the key is context, which causal context sees up to
// itself only, or it is the past of m's own span (> 0). No branches, and one test less by `own`: it runs in vectors.
template <typename Index>
static constexpr bool visible(int32_t span_m, int32_t span_n, Index m, Index n) {
  const int32_t own = span_m > 0 ? span_m : 0;  // past context is visible anyway
  const bool past = n <= m, looks_ahead = span_m != causal_context;
  return (is_context(span_n) & (past | looks_ahead)) | ((span_n == own) & past);
}

// The distance between query m and key n is below the window.
template <typename Index>
static constexpr bool in_window(Index m, Index n, Index window) {
  return (m < n ? n - m : m - n) < window;
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

// Some query may see a key after it, in the minus frame: some key may be context, and some query not causal context.
template <typename Index>
static constexpr bool sees_later(const RowsOf<Index>& queries, const RowsOf<Index>& keys) {
  const bool some_context = (keys.min_span <= 0 && keys.max_span >= 0) || keys.max_span == causal_context;
  return some_context && queries.min_span != causal_context;
}

// What a tile of queries sees of a tile of keys: nothing, everything, the context keys alone (the same keys for every
// query), or what the rules say about each pair. Denoising hides placeholders and nothing else, so on the CPU nearly
// all of its tiles are `by_key`; the CUDA kernels leave placeholders out of the tiles (csrc/cuda/sequences.h).
enum class TileView { nothing, everything, by_key, by_pair };

template <typename Index>
static constexpr TileView tile_view(const RowsOf<Index>& queries, const RowsOf<Index>& keys, Side where) {
  if (keys.max_span < 0 || (where == Side::above && !sees_later(queries, keys))) return TileView::nothing;
  const bool one_key_span = keys.min_span == keys.max_span;
  if (where == Side::below || queries.max_span != causal_context) {  // each query sees all the context among the keys
    if (one_key_span && is_context(keys.max_span)) return TileView::everything;
    if (keys.max_span == 0) return TileView::by_key;
  }
  if (keys.min_span > 0 && keys.max_span != causal_context) {  // no context
    if (keys.max_span < queries.min_span || keys.min_span > queries.max_span) return TileView::nothing;
    if (one_key_span && queries.min_span == queries.max_span && where == Side::below) return TileView::everything;
  }
  return TileView::by_pair;
}

// Every query is within the window of every key.
template <typename Index>
static constexpr bool all_in_window(const RowsOf<Index>& queries, const RowsOf<Index>& keys, Index window) {
  return in_window(queries.begin, keys.last(), window) && in_window(queries.last(), keys.begin, window);
}

// `view` of two tiles, as it is within the window.
template <typename Index>
static constexpr TileView within_window(TileView view, const RowsOf<Index>& queries, const RowsOf<Index>& keys,
                                        Index window) {
  if (view == TileView::nothing || all_in_window(queries, keys, window)) return view;
  const Side where = side(queries, keys);
  const bool some_in_window = where == Side::below   ? in_window(queries.begin, keys.last(), window)
                              : where == Side::above ? in_window(queries.last(), keys.begin, window)
                                                     : true;
  return some_in_window ? TileView::by_pair : TileView::nothing;
}

template <typename Index>
static constexpr TileView tile_view(const RowsOf<Index>& queries, const RowsOf<Index>& keys, Index window) {
  return within_window(tile_view(queries, keys, side(queries, keys)), queries, keys, window);
}

// The same of the pairs in one frame alone. `keys_full`: the tile of keys is not cut off by the end of the tensor.
template <typename Index>
static constexpr TileView tile_view_in(Frame frame, const RowsOf<Index>& queries, const RowsOf<Index>& keys,
                                       bool keys_full) {
  const Side where = side(queries, keys);
  if (where == (frame == Frame::plus ? Side::above : Side::below)) return TileView::nothing;
  if (frame == Frame::minus && !sees_later(queries, keys)) return TileView::nothing;
  const TileView view = tile_view(queries, keys, where);
  if (view == TileView::nothing) return TileView::nothing;
  if (where == Side::on_diagonal) return TileView::by_pair;
  if (view != TileView::everything || keys_full) return view;
  return is_context(keys.max_span) ? TileView::by_key : TileView::by_pair;
}

}  // namespace bico
