// The tile schedule: which tiles a block visits, in which frame, and which pairs of a visited tile are seen.
//
// The plus frame scores keys up to the query, the minus frame later keys. So attention is two sweeps, each as causal
// attention is: one over the keys up to the query in the plus frame, then one over the later keys in the minus frame.
// Both sweeps visit the tiles on the diagonal. A forward block stays at a tile of queries and visits tiles of keys, a
// backward block stays at a tile of keys and visits tiles of queries.
//
// Tiles of keys are tiles of slots (Slots). What is said of their rows holds for the rows of the keys in them.
#pragma once

#include "../sequences.h"

namespace bico::cuda {

// A row of a tile, as the test of a pair needs it.
struct Token {
  Reach reach;
  int32_t span;
};

// Of a row that may be beyond the end.
BICO_DEVICE Token token_of(const Problem& p, const Spans& spans, int row) {
  return {reach_of(p, row), row < p.length ? spans.at(row) : -1};
}

// Whether query m sees key n in this frame.
BICO_DEVICE bool sees(Frame frame, int m, int32_t span_m, int n, int32_t span_n, bool in_reach) {
  return in_reach && frame_of(m, n) == frame && visible(span_m, span_n, m, n);
}

// The tile of a block: queries in the forward, keys in the backward.
struct BlockTile {
  TileRows rows;
  Reach first, last;  // of its first and last row
};

BICO_DEVICE BlockTile block_tile(const Problem& p, const TileRows& rows) {
  return {rows, reach_of(p, rows.begin), reach_of(p, rows.last())};
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

// Every pair of a tile is seen that belongs to the frame, and no other. That holds on nearly every diagonal: without
// span ids, with causal ones, and in denoising. The keys are in reach of all queries.
BICO_DEVICE bool split_by_side(Frame frame, const TileRows& queries, const TileRows& keys) {
  return tile_view(queries, keys, frame == Frame::plus ? Side::below : Side::above) == TileView::everything;
}

// From begin up to, but without, end.
struct Range {
  int begin, end;
};

// The tiles that hold rows or slots [begin, end).
BICO_DEVICE Range tiles_of(int begin, int end, int size) {
  return {begin / size, (end + size - 1) / size};
}

// The slots of a split tile that query `row` sees in the frame, counted from slot `first`; there are none from `end`
// on.
BICO_DEVICE Range side_of(Frame frame, const Spans& spans, int row, int first, int end) {
  const int after = spans.slots_before(row < spans.length ? row + 1 : spans.length);
  return frame == Frame::plus ? Range{0, (after < end ? after : end) - first} : Range{after - first, end - first};
}

// Where a block works. It lies in shared memory: every thread knows it, but has no registers for it between two uses.
struct Place {
  BlockTile tile;
  PerFrame<Range> visited;     // the tiles that hold what the block's tile reaches: up to it, and from it on
  int slots;                   // of the batch entry, without placeholders
  int batch, head, kv_head;    // backward: head is the first query head of the block
  int key_tile = 0, keys = 0;  // backward: the block's tile, and how many keys it has
};

// The tiles to visit in a frame. A choice of two values: a choice of their address cost 17 instructions in each tile of
// the forward at D = 64.
BICO_DEVICE Range visited_in(const Place& place, Frame frame) {
  return frame == Frame::plus ? load_shared(&place.visited.plus) : load_shared(&place.visited.minus);
}

BICO_DEVICE TileRows tile_rows(const Spans& spans, int tile, int size) {
  const int left = spans.length - tile * size;
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

  // The next tile to visit; some must be left.
  BICO_DEVICE int tile() const { return begin + lowest_bit(left); }
  // To the tile after it, if any are left.
  BICO_DEVICE void advance() { left &= left - 1; }
};

}  // namespace bico::cuda
