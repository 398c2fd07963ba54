// Scores of one tile of queries against one tile of keys: the split triangle and the visibility rule meet here.
#pragma once

#include <cmath>

#include "operands.h"

namespace bico::cpu {

// One pair of tiles, with everything the rules say about it.
struct TilePair {
  const Tile* queries;
  const Tile* keys;
  TileView view;
  Side side;
  bool plain, mirrored;  // which frames have visible pairs

  TilePair(const Problem& p, const Tile& q, const Tile& k)
      : queries(&q), keys(&k), view(tile_view(q.rows, k.rows)), side(bico::side(q.rows, k.rows)) {
    mirrored = p.mirror && side != Side::below && has_context(k.rows);
    plain = !mirrored || side == Side::on_diagonal;
  }
};

// seen[r * tile_rows + c] of a mixed tile. False beyond the last key.
struct SeenTile {
  bool seen[tile_rows * tile_rows];

  void fill(const Problem& p, const TilePair& pair) {
    const int32_t* span_ids = p.span_ids + pair.queries->batch * p.span_batch_stride;
    const Rows &queries = pair.queries->rows, &keys = pair.keys->rows;
    for (int64_t r = 0; r < queries.count; ++r) {
      const int64_t m = queries.begin + r;
      bool* row = seen + r * tile_rows;
      for (int64_t c = 0; c < keys.count; ++c) {
        const int64_t n = keys.begin + c;
        row[c] = visible(span_ids[m], span_ids[n], m, n);
      }
      for (int64_t c = keys.count; c < tile_rows; ++c) row[c] = false;
    }
  }
};

template <typename T>
int64_t score_columns(const TilePair& pair) {
  return round_up(pair.keys->rows.count, column_step<T>);
}

// values[r * tile_rows + c] for c < score_columns, -inf where the query does not see the key. `seen` is filled where
// the tile is mixed; `other` is scratch of the same size.
template <typename T>
void compute_scores(const Problem& p, const TilePair& pair, const T* const query_rows[frames],
                    const T* const key_columns[frames], T* values, T* other, SeenTile& seen) {
  const int64_t padded = padded_head_dim<T>(p), columns = score_columns<T>(pair);
  const Rows &queries = pair.queries->rows, &keys = pair.keys->rows;
  const auto product_in = [&](int frame, T* into) {
    multiply<T>(queries.count, columns, padded, {query_rows[frame], padded, 1}, key_columns[frame], tile_rows, into,
                tile_rows);
  };
  product_in(pair.plain ? 0 : 1, values);
  if (pair.plain && pair.mirrored) {
    product_in(1, other);
    for (int64_t r = 0; r < queries.count; ++r) {
      const int64_t first_after = std::max<int64_t>(0, queries.begin + r + 1 - keys.begin);
      for (int64_t c = first_after; c < keys.count; ++c) values[r * tile_rows + c] = other[r * tile_rows + c];
    }
  }
  if (pair.view == TileView::mixed) seen.fill(p, pair);
  for (int64_t r = 0; r < queries.count; ++r) {
    T* row = values + r * tile_rows;
    const bool* row_seen = seen.seen + r * tile_rows;
    if (pair.view == TileView::mixed) {
      for (int64_t c = 0; c < columns; ++c) row[c] = row_seen[c] ? row[c] : -T(INFINITY);
    } else {
      for (int64_t c = keys.count; c < columns; ++c) row[c] = -T(INFINITY);
    }
  }
}

// accumulate() for a B whose rows k hold infinities or NaN: a pair (r, k) that is not seen adds nothing, where the
// plain product would add 0 * NaN. `seen` has the strides of A.
template <typename T>
void accumulate_seen(int64_t rows, int64_t columns, int64_t depth, Left<T> a, const bool* seen, const T* b, T* c) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t at = r * a.row_stride + k * a.depth_stride;
      if (!seen[at]) continue;
      for (int64_t i = 0; i < columns; ++i) c[r * columns + i] += a.data[at] * b[k * columns + i];
    }
  }
}

}  // namespace bico::cpu
