// The tile schedule: which tiles a block visits, in which frame, and which pairs of a visited tile are seen.
//
// The plus frame scores keys up to the query, the minus frame later keys. So attention is two sweeps, each as causal
// attention is: one over the keys up to the query in the plus frame, then one over the later keys in the minus frame.
// Both sweeps visit the tiles on the diagonal. A forward block stays at a tile of queries and visits tiles of keys, a
// backward block stays at a tile of keys and visits tiles of queries.
#pragma once

#include "../sequences.h"

namespace bico::cuda {

// A row of a tile, as the test of a pair needs it.
struct Token {
  Reach reach;
  int32_t span;
};

// Whether query m sees key n in this frame.
BICO_DEVICE bool sees(Frame frame, int m, int32_t span_m, int n, int32_t span_n, bool in_reach) {
  return in_reach && frame_of(m, n) == frame && visible(span_m, span_n, m, n);
}

// The tile of a block: queries in the forward, keys in the backward.
struct BlockTile {
  TileRows rows;
  Reach first, last;  // of its first and last row
};

BICO_DEVICE BlockTile block_tile(const Problem& p, const Spans& spans, int begin, int size) {
  const int left = int(p.length) - begin, count = left < size ? left : size;
  return {spans.rows(begin, count), reach_of(p, begin), reach_of(p, begin + count - 1)};
}

// Every row of the block's tile reaches every row of a visited tile.
BICO_DEVICE bool all_in_reach(const BlockTile& tile, const TileRows& visited) {
  return visited.begin >= tile.last.begin && visited.last() < tile.first.end;
}

// `view` of the block's tile and a visited tile, as it is within the reach of the block's tile.
BICO_DEVICE TileView within_reach(TileView view, const BlockTile& tile, const TileRows& visited) {
  if (visited.last() < tile.first.begin || visited.begin >= tile.last.end) return TileView::nothing;
  return all_in_reach(tile, visited) || view == TileView::nothing ? view : TileView::by_pair;
}

// Where `all`, every pair of a tile is seen that belongs to the frame and whose key has its bit set, and no other. That
// holds on nearly every diagonal: with placeholders, with causal span ids, and without span ids.
struct SplitBySide {
  bool all;
  uint64_t keys;
};

// `keys`: rows of a tile of `size`, all in reach of all queries.
template <int size>
BICO_DEVICE SplitBySide split_by_side(Frame frame, const Spans& spans, const TileRows& queries, const TileRows& keys) {
  const TileView view = tile_view(queries, keys, frame == Frame::plus ? Side::below : Side::above);
  if (view == TileView::by_key) return {true, spans.context<size>(keys.begin)};
  return {view == TileView::everything, keys.count < 64 ? (uint64_t(1) << keys.count) - 1 : ~uint64_t(0)};
}

// Where a block works. It lies in shared memory: every thread knows it, but has no registers for it between two uses.
struct Place {
  BlockTile tile;
  int batch, head, kv_head;  // backward: head is the first query head of the block
};

// Tiles [begin, end) of `size` rows that hold what the block tile reaches, up to the block tile or from it on.
struct Range {
  int begin, end;
};

BICO_DEVICE Range earlier(const BlockTile& tile, int size) {
  return {tile.first.begin / size, tile.rows.last() / size + 1};
}

BICO_DEVICE Range later(const BlockTile& tile, int size) {
  return {tile.rows.begin / size, (tile.last.end - 1) / size + 1};
}

BICO_DEVICE TileRows tile_rows(const Spans& spans, int length, int tile, int size) {
  const int left = length - tile * size;
  return spans.rows(tile * size, left < size ? left : size);
}

// What is seen of a tile: whether the block visits it, the view of the rows that the asking warp has of the block's,
// and whether some row of the tile is flagged.
struct TileSight {
  bool visited;
  TileView view;
  bool flagged;
};

// Tiles [begin, begin + 32), which the lanes of a warp look at all at once: one after the other, each tile would cost a
// chain of dependent loads. All warps of a block visit the same tiles.
struct Lookahead {
  static constexpr int size = 32;

  int begin;                     // a multiple of the size
  uint32_t left;                 // a bit for each tile that is still to be visited
  uint32_t low_view, high_view;  // the two bits of the tiles' views
  uint32_t flagged;

  // Before all tiles of a range.
  static BICO_DEVICE Lookahead before(const Range& range) { return {range.begin / size * size - size, 0, 0, 0, 0}; }

  // The lookahead after this one.
  template <class SightOf>
  BICO_DEVICE Lookahead next(const Range& range, const SightOf& sight_of) const {
    const int tile = begin + size + thread_index() % 32;
    TileSight sight = {false, TileView::nothing, false};
    if (range.begin <= tile && tile < range.end) sight = sight_of(tile);
    return {begin + size, ballot(sight.visited), ballot(int(sight.view) & 1), ballot(int(sight.view) & 2),
            ballot(sight.flagged)};
  }

  BICO_DEVICE bool is_last(const Range& range) const { return begin + size >= range.end; }

  BICO_DEVICE TileView view(int tile) const {
    return TileView((low_view >> (tile - begin) & 1) | (high_view >> (tile - begin) & 1) << 1);
  }

  BICO_DEVICE bool is_flagged(int tile) const { return flagged >> (tile - begin) & 1; }

  // The next tile to visit; there must be one.
  BICO_DEVICE int take() {
    const int tile = begin + lowest_bit(left);
    left &= left - 1;
    return tile;
  }
};

}  // namespace bico::cuda
