// Scores of one strip of queries against one tile of keys: the split triangle and the visibility rule meet here.
#pragma once

#include "products/panels.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// Queries of a tile that are worked on together: their scores stay in the first-level cache, and on the diagonal only
// the strip's own [32, 32] block is computed in both frames.
constexpr int64_t strip_rows = 32;
constexpr int64_t most_tile_rows = 128;

// A strip of queries and a tile of keys, with everything the rules say about them. The keys [0, plus_end) have visible
// pairs in the plus frame, [minus_begin, end) in the minus frame; the two overlap where the diagonal crosses.
struct Block {
  Rows queries, keys;
  TileView view;
  int64_t first_query;  // of the strip, in its tile
  int64_t plus_end, minus_begin, end;

  Block(const Problem& p, const Rows& query_tile, const Rows& key_tile, int64_t strip)
      : queries(query_tile), keys(key_tile), view(tile_view(query_tile, key_tile, p.window)), first_query(strip) {
    queries.begin += strip;
    queries.count = std::min(strip_rows, query_tile.count - strip);
    const Side side = bico::side(query_tile, key_tile);
    const bool ahead = sees_later(query_tile, key_tile);
    const int64_t diagonal_end = std::min(keys.count, strip + queries.count);
    plus_end = minus_begin = end = keys.count;
    if (side == Side::above && p.mirror) plus_end = minus_begin = 0;
    if (side == Side::on_diagonal && !ahead) plus_end = minus_begin = end = diagonal_end;
    if (side == Side::on_diagonal && ahead && p.mirror) plus_end = diagonal_end, minus_begin = strip;
  }

  // In which frame the strip's query r sees key c.
  Frame frame(const Problem& p, int64_t r, int64_t c) const {
    return p.mirror ? frame_of(queries.begin + r, keys.begin + c) : Frame::plus;
  }
  bool has_plus() const { return plus_end > 0; }
  bool has_minus() const { return minus_begin < end; }
};

template <typename A>
int64_t score_columns(const Block& block) {
  return round_up(block.end, column_step<A>);
}

// -inf where the query at row m of the tile of keys, which may lie outside the tile, does not see a key by its span.
template <typename T>
void hide_by_spans(int32_t span_m, const int32_t* key_spans, int64_t m, int64_t columns, T* row) {
  const int64_t m_in_tile = std::clamp<int64_t>(m, -1, columns);
  for (int32_t c = 0; c < int32_t(columns); ++c) {
    row[c] = visible(span_m, key_spans[c], int32_t(m_in_tile), c) ? row[c] : -T(INFINITY);
  }
}

// -inf where a key is outside the window of the query at row m of the tile of keys.
template <typename T>
void hide_beyond(int64_t window, int64_t m, const Block& block, T* row) {
  const int64_t begin = m >= window ? std::min(m - window + 1, block.end) : 0;
  const int64_t end = block.end - m > window ? std::max<int64_t>(m + window, 0) : block.end;
  std::fill(row, row + begin, -T(INFINITY));
  std::fill(row + end, row + block.end, -T(INFINITY));
}

// -inf where the pair (query r of the strip, key c) is not visible.
template <typename A, typename T>
void hide_unseen(const Problem& p, int64_t batch, const Block& block, Matrix<T> scores) {
  const int32_t* spans = p.spans(batch);
  // In whole vectors: the columns beyond the tile are keys that nobody sees.
  const int64_t columns = score_columns<A>(block);
  int32_t key_spans[most_tile_rows];
  if (spans != nullptr) {
    std::fill(std::copy_n(spans + block.keys.begin, block.end, key_spans), key_spans + columns, -1);
  }
  for (int64_t r = 0; r < block.queries.count; ++r) {
    const int64_t m = block.queries.begin + r;
    T* row = scores.row(r);
    if (spans != nullptr) hide_by_spans(spans[m], key_spans, m - block.keys.begin, columns, row);
    if (!all_in_window(block.queries, block.keys, p.window)) hide_beyond(p.window, m - block.keys.begin, block, row);
  }
}

// scores [strip, score_columns], -inf where the query does not see the key. `minus_scores` is scratch [strip, strip].
template <typename A>
void compute_scores(const Problem& p, int64_t batch, const Block& block,
                    const PerFrame<Matrix<typename A::Operand>>& query_rows, const PerFrame<Panel<A>>& key_columns,
                    Matrix<typename A::Scalar> scores, Matrix<typename A::Scalar> minus_scores) {
  using T = typename A::Scalar;
  const auto product_in = [&](Frame frame, int64_t begin, int64_t end, Matrix<T> into) {
    if (begin >= end) return;
    const auto rows = query_rows[frame].from(block.first_query);
    multiply<A>({block.queries.count, round_up(end - begin, column_step<A>), p.head_dim, rows, key_columns[frame], 0,
                 begin, into});
  };
  product_in(Frame::plus, 0, block.plus_end, scores);
  if (block.has_minus() && block.plus_end > block.minus_begin) {  // the diagonal crosses [minus_begin, plus_end)
    product_in(Frame::minus, block.minus_begin, block.plus_end, minus_scores);
    for (int64_t r = 0; r < block.queries.count; ++r) {
      T* row = scores.row(r) + block.minus_begin;
      for (int64_t c = 0; c < block.plus_end - block.minus_begin; ++c) {
        row[c] = in_minus_frame(block.first_query + r, block.minus_begin + c) ? minus_scores.row(r)[c] : row[c];
      }
    }
  }
  const int64_t minus_only = std::max(block.minus_begin, block.plus_end);
  product_in(Frame::minus, minus_only, block.end, scores.from(0, minus_only));

  if (block.view != TileView::everything) hide_unseen<A>(p, batch, block, scores);
  for (int64_t r = 0; r < block.queries.count; ++r) {
    for (int64_t c = block.end; c < score_columns<A>(block); ++c) scores.row(r)[c] = -T(INFINITY);
  }
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
