// Scores of one strip of queries against one tile of keys: the split triangle and the visibility rule meet here.
#pragma once

#include "products/panels.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// Queries of a tile that are worked on together: their scores stay in the first-level cache, and on the diagonal only
// the strip's own [32, 32] block is computed in both frames.
constexpr int64_t strip_rows = 32;

// A strip of queries and a tile of keys, with everything the rules say about them. The keys [0, plain_end) have
// visible pairs in frame 0, [mirrored_begin, end) in frame 1; the two overlap where the diagonal crosses.
struct Block {
  Rows queries, keys;
  TileView view;
  int64_t first_query;  // of the strip, in its tile
  int64_t plain_end, mirrored_begin, end;

  Block(const Problem& p, const Rows& query_tile, const Rows& key_tile, int64_t strip)
      : queries(query_tile), keys(key_tile), view(tile_view(query_tile, key_tile)), first_query(strip) {
    queries.begin += strip;
    queries.count = std::min(strip_rows, query_tile.count - strip);
    const Side side = bico::side(query_tile, key_tile);
    const bool context = has_context(key_tile);
    const int64_t diagonal_end = std::min(keys.count, strip + queries.count);
    plain_end = mirrored_begin = end = keys.count;
    if (side == Side::above && p.mirror) plain_end = mirrored_begin = 0;
    if (side == Side::on_diagonal && !context) plain_end = mirrored_begin = end = diagonal_end;
    if (side == Side::on_diagonal && context && p.mirror) plain_end = diagonal_end, mirrored_begin = strip;
  }

  // In which frame the strip's query r sees key c.
  int frame(const Problem& p, int64_t r, int64_t c) const {
    return p.mirror && keys.begin + c > queries.begin + r ? 1 : 0;
  }
  bool plain() const { return plain_end > 0; }
  bool mirrored() const { return mirrored_begin < end; }
};

template <typename A>
int64_t score_columns(const Block& block) {
  return round_up(block.end, column_step<A>);
}

// -inf where the pair (query r of the strip, key c) is not visible.
template <typename T>
void hide_unseen(const Problem& p, int64_t batch, const Block& block, Matrix<T> scores) {
  const int32_t* span_ids = p.span_ids + batch * p.span_batch_stride;
  const int32_t* key_spans = span_ids + block.keys.begin;
  for (int64_t r = 0; r < block.queries.count; ++r) {
    const int64_t m = block.queries.begin + r;
    const int32_t span_m = span_ids[m], end = int32_t(block.end);
    const auto m_in_tile = int32_t(std::clamp<int64_t>(m - block.keys.begin, -1, block.keys.count));
    T* row = scores.row(r);
    for (int32_t c = 0; c < end; ++c) {
      row[c] = visible(span_m, key_spans[c], m_in_tile, c) ? row[c] : -T(INFINITY);
    }
  }
}

// scores [strip, score_columns], -inf where the query does not see the key. `other` is scratch of [strip, strip].
template <typename A>
void compute_scores(const Problem& p, int64_t batch, const Block& block,
                    const Matrix<typename A::Operand> query_rows[frames], const Panel<A> key_columns[frames],
                    Matrix<typename A::Scalar> scores, Matrix<typename A::Scalar> other) {
  using T = typename A::Scalar;
  const auto product_in = [&](int frame, int64_t begin, int64_t end, Matrix<T> into) {
    if (begin >= end) return;
    const auto rows = query_rows[frame].from(block.first_query);
    multiply<A>({block.queries.count, round_up(end - begin, column_step<A>), p.head_dim, rows, key_columns[frame], 0,
                 begin, into});
  };
  product_in(0, 0, block.plain_end, scores);
  if (block.mirrored() && block.plain_end > block.mirrored_begin) {  // the diagonal crosses [mirrored_begin, plain_end)
    product_in(1, block.mirrored_begin, block.plain_end, other);
    for (int64_t r = 0; r < block.queries.count; ++r) {
      T* row = scores.row(r) + block.mirrored_begin;
      for (int64_t c = 0; c < block.plain_end - block.mirrored_begin; ++c) {
        row[c] = block.mirrored_begin + c > block.first_query + r ? other.row(r)[c] : row[c];
      }
    }
  }
  const int64_t mirrored_only = std::max(block.mirrored_begin, block.plain_end);
  product_in(1, mirrored_only, block.end, scores.from(0, mirrored_only));

  if (block.view == TileView::mixed) hide_unseen(p, batch, block, scores);
  for (int64_t r = 0; r < block.queries.count; ++r) {
    for (int64_t c = block.end; c < score_columns<A>(block); ++c) scores.row(r)[c] = -T(INFINITY);
  }
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
