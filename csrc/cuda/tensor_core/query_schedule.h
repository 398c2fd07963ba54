// The tiles of queries that a block of the backward visits.
#pragma once

#include "../nonfinite.h"
#include "tile_schedule.h"

namespace bico::cuda {

// A visit of a tile of queries.
struct QueryVisit {
  int head;  // among those of the block
  int tile;
  TileView view;
  bool flagged;  // some row of q or grad_out is not finite
};

// Where a warp is in the schedule: at the next tile of the lookahead, or at the end where none is left.
struct QueryCursor {
  int head;
  Lookahead ahead;

  BICO_DEVICE bool at_end() const { return ahead.left == 0; }
  BICO_DEVICE QueryVisit visit() const {
    const int tile = ahead.tile();
    return {head, tile, ahead.view(tile), ahead.is_flagged(tile)};
  }
};

// The tiles of queries that a block visits in one frame.
template <int queries, int keys>
struct QuerySchedule {
  const Problem& problem;
  const Slots& slots;
  const Place& place;
  Frame frame;
  RowFlags nonfinite_queries, nonfinite_keys;
  int heads;

  BICO_DEVICE BlockTile block_tile() const { return load_shared(&place.tile); }
  BICO_DEVICE Spans spans() const { return spans_of(problem, slots, load_shared(&place.batch)); }

  BICO_DEVICE Range range() const { return visited_in(place, frame); }

  // What a tile of queries sees of a tile of keys; `full`: it has all its keys.
  BICO_DEVICE TileView view_of(int tile, const BlockTile& key_tile, bool full) const {
    const TileRows visited = tile_rows(spans(), tile, queries);
    return within_reach(tile_view_in(frame, visited, key_tile.rows, full), key_tile, visited);
  }

  BICO_DEVICE bool splits_by_side(int tile) const {
    const TileRows visited = tile_rows(spans(), tile, queries);
    const BlockTile key_tile = block_tile();
    return all_in_reach(key_tile, visited) && split_by_side(frame, visited, key_tile.rows);
  }

  // One bit for each query of a tile of a head: its row of q or grad_out is not finite.
  BICO_DEVICE uint64_t bad_queries(int head, int tile) const {
    const int64_t index =
        int64_t(load_shared(&place.batch)) * int(problem.query_heads) + load_shared(&place.head) + head;
    return nonfinite_queries.of_tile<queries>(index, problem.length, tile * queries);
  }

  // One bit for each key of the block's tile: it is not finite.
  BICO_DEVICE uint64_t bad_keys() const {
    const int64_t index = int64_t(load_shared(&place.batch)) * int(problem.kv_heads) + load_shared(&place.kv_head);
    return nonfinite_keys.of_tile<keys>(index, problem.length, load_shared(&place.key_tile) * keys);
  }

  BICO_DEVICE TileSight sight(int head, int tile) const {
    const TileView view = view_of(tile, block_tile(), load_shared(&place.keys) == keys);
    return {view != TileView::nothing, view, bad_queries(head, tile) != 0};
  }

  BICO_DEVICE QueryCursor first() const { return after({0, Lookahead::before(range())}); }

  // Of the same head or the next one: the queries of all heads see the same keys. All lanes of a warp call.
  BICO_DEVICE QueryCursor after(QueryCursor cursor) const {
    cursor.ahead.advance();
    while (cursor.ahead.left == 0) {
      if (cursor.ahead.is_last(range())) {
        if (cursor.head + 1 == heads) break;
        ++cursor.head;
        cursor.ahead = Lookahead::before(range());
      }
      cursor.ahead = cursor.ahead.next(range(), [&](int tile) { return sight(cursor.head, tile); });
    }
    return cursor;
  }

  // 1 + the first tile of keys after `key_tile` that adds to grad_q of a tile of queries; 0 if there is none.
  BICO_DEVICE int semaphore_before(int query_tile, int key_tile) const {
    const int begin = query_tile * queries, length = int(problem.length);
    const int end_of_queries = begin + queries < length ? begin + queries : length;
    const int end_of_reach = reach_of(problem, end_of_queries - 1).end;  // the last query itself, if in no sequence
    const int end = frame == Frame::plus || end_of_reach < end_of_queries ? end_of_queries : end_of_reach;
    const int end_of_slots = load_shared(&place.slots);
    for (int tile = key_tile + 1; tile * keys < spans().slots_before(end); ++tile) {
      const KeyTile later = spans().keys(tile * keys, keys, end_of_slots);
      const bool full = later.count == keys;
      if (view_of(query_tile, bico::cuda::block_tile(problem, later.rows), full) != TileView::nothing) return tile + 1;
    }
    return 0;
  }
};

}  // namespace bico::cuda
