// The tiles of queries that a block of the backward visits.
#pragma once

#include "../nonfinite.h"
#include "tile_schedule.h"

namespace bico::cuda {

// A tile of queries to visit, of one of the heads of the block; at the end of the schedule, it sees nothing.
struct QueryVisit {
  int head;  // among those of the block
  Lookahead ahead;
  int tile;
  TileView view;
  bool flagged;  // some row of q or grad_out is not finite, or its weights may overflow
};

// The tiles of queries that a block visits in one frame.
template <int queries, int keys>
struct QuerySchedule {
  const Problem& problem;
  const Extent* extents;
  const Place& place;
  Frame frame;
  RowFlags nonfinite_queries, overflowing;
  int heads;

  BICO_DEVICE BlockTile block_tile() const { return load_shared(&place.tile); }
  BICO_DEVICE Spans spans() const { return spans_of(problem, extents, load_shared(&place.batch)); }

  BICO_DEVICE Range range() const {
    return frame == Frame::plus ? later(block_tile(), queries) : earlier(block_tile(), queries);
  }

  // What a tile of queries sees of a tile of keys.
  BICO_DEVICE TileView view_of(int tile, const BlockTile& key_tile) const {
    const TileRows visited = tile_rows(spans(), problem.length, tile, queries);
    const TileView view = tile_view_in(frame, visited, key_tile.rows, key_tile.rows.count == keys);
    return within_reach(view, key_tile, visited);
  }

  BICO_DEVICE SplitBySide split(int tile) const {
    const TileRows visited = tile_rows(spans(), problem.length, tile, queries);
    const BlockTile key_tile = block_tile();
    if (!all_in_reach(key_tile, visited)) return {false, 0};
    return split_by_side<keys>(frame, spans(), visited, key_tile.rows);
  }

  // One bit for each query of a tile of a head: it is flagged.
  BICO_DEVICE uint64_t flags(const RowFlags& rows, int head, int tile) const {
    const int64_t index =
        int64_t(load_shared(&place.batch)) * int(problem.query_heads) + load_shared(&place.head) + head;
    return rows.of_tile<queries>(index, problem.length, tile * queries);
  }

  // Of each query whether its row of q or grad_out is not finite.
  BICO_DEVICE uint64_t bad_queries(int head, int tile) const { return flags(nonfinite_queries, head, tile); }

  BICO_DEVICE QueryVisit first() const { return after({0, Lookahead::before(range()), 0, TileView::nothing, false}); }

  // Of the same head or the next one: the queries of all heads see the same keys. All lanes of a warp call.
  BICO_DEVICE QueryVisit after(QueryVisit visit) const {
    while (visit.ahead.left == 0) {
      if (visit.ahead.is_last(range())) {
        if (visit.head + 1 == heads) {
          return {visit.head, visit.ahead, 0, TileView::nothing, false};
        }
        ++visit.head;
        visit.ahead = Lookahead::before(range());
      }
      visit.ahead = visit.ahead.next(range(), [&](int tile) {
        const TileView view = view_of(tile, block_tile());
        const uint64_t flagged = bad_queries(visit.head, tile) | flags(overflowing, visit.head, tile);
        return TileSight{view != TileView::nothing, view, flagged != 0};
      });
    }
    visit.tile = visit.ahead.take();
    visit.view = visit.ahead.view(visit.tile);
    visit.flagged = visit.ahead.is_flagged(visit.tile);
    return visit;
  }

  // 1 + the first tile of keys after `key_tile` that adds to grad_q of a tile of queries; 0 if there is none.
  BICO_DEVICE int semaphore_before(int query_tile, int key_tile) const {
    const int begin = query_tile * queries, length = int(problem.length);
    const int last_query = (begin + queries < length ? begin + queries : length) - 1;
    const int last_key = frame == Frame::plus ? last_query : reach_of(problem, last_query).end - 1;
    for (int tile = key_tile + 1; tile <= last_key / keys; ++tile) {
      const BlockTile later = bico::cuda::block_tile(problem, spans(), tile * keys, keys);
      if (view_of(query_tile, later) != TileView::nothing) return tile + 1;
    }
    return 0;
  }
};

}  // namespace bico::cuda
