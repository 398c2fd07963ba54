// Forward on tensor cores. A block takes one tile of queries of one head through the keys that it sees, in two sweeps
// (tile_schedule.h) with one running softmax. Queries and keys were rotated before (preprocess.cuh).
//
// K and V have two buffers each: while one tile is computed, the next one arrives.
#pragma once

#include "../device/launch.h"
#include "../preprocess.cuh"
#include "shared_tile.h"
#include "softmax.h"
#include "tile_schedule.h"

namespace bico::cuda {

template <int D>
struct ForwardTiles {
  static constexpr int warps = 4, threads = 32 * warps;
  static constexpr int warp_queries = D <= 128 ? 32 : 16;  // 32 x 256 accumulators would not fit the registers
  static constexpr int queries = warps * warp_queries;
  static constexpr int keys = D > 128 ? 32 : 64;  // 64 spilled beside the accumulators of 256 columns
  // Steps of Q K^T that are unrolled. At D = 128 all 8 spilled on sm_120.
  static constexpr int steps = D == 128 && architecture >= 120 ? 4 : D / 16;
};

struct ForwardWork {
  Forward problem;
  PerFrame<const void*> q, k;  // [B, H, S, columns], rotated; q with the sign of the scale, k in slots
  Heads v;                     // in slots
  RowFlags bad_values;
  Slots slots;
  bool out_aligned;
  float factor;  // > 0: scores times it are exponents of 2
};

// A visit of a tile of keys.
struct KeyVisit {
  Frame frame;
  int tile;
  TileView view;  // of this warp's queries
  bool flagged;   // some value is not finite
};

// Where a warp is in the schedule: at the next tile of the lookahead, or at the end where none is left.
struct KeyCursor {
  Frame frame;
  Lookahead ahead;

  BICO_DEVICE bool at_end() const { return ahead.left == 0; }
  BICO_DEVICE KeyVisit visit() const {
    const int tile = ahead.tile();
    return {frame, tile, ahead.view(tile), ahead.is_flagged(tile)};
  }
};

// Where the rows of the block's heads begin. In shared memory, because computing these addresses for each tile took a
// tenth of its instructions.
template <typename T>
struct HeadRows {
  PerFrame<const T*> k;
  const T* v;
};

template <typename T, int D>
struct ForwardShared {
  using Tiles = ForwardTiles<D>;

  SharedTile<T, Tiles::queries, D> q;
  SharedTile<T, Tiles::keys, D> k[2], v[2];
  Token tokens[Tiles::queries];  // of the queries
  Place place;
  HeadRows<T> heads;
  TileRows warp_rows[Tiles::warps];
};

// The tiles of keys that a block visits.
template <int keys>
struct KeySchedule {
  const Problem& problem;
  const Slots& slots;
  const Place& place;
  const TileRows* warp_rows;
  RowFlags nonfinite_values;

  BICO_DEVICE BlockTile block_tile() const { return load_shared(&place.tile); }
  // Loaded anew at each use, rather than kept in registers.
  BICO_DEVICE Spans spans() const { return spans_of(problem, slots, load_shared(&place.batch)); }

  BICO_DEVICE Range range(Frame frame) const { return visited_in(place, frame); }

  BICO_DEVICE KeyTile keys_of(int tile) const { return spans().keys(tile * keys, keys, load_shared(&place.slots)); }

  // One bit for each key of a tile: its value is not finite.
  BICO_DEVICE uint64_t bad_values(int tile) const {
    const int64_t head = int64_t(load_shared(&place.batch)) * int(problem.kv_heads) + load_shared(&place.kv_head);
    return nonfinite_values.of_tile<keys>(head, problem.length, tile * keys);
  }

  BICO_DEVICE TileSight sight(Frame frame, int tile) const {
    const BlockTile block = block_tile();
    const KeyTile visited = keys_of(tile);
    const TileRows own = load_shared(warp_rows + warp_index());
    const auto view = [&](const TileRows& queries) {
      return within_reach(tile_view_in(frame, queries, visited.rows, visited.count == keys), block, visited.rows);
    };
    return {view(block.rows) != TileView::nothing, own.count <= 0 ? TileView::nothing : view(own),
            bad_values(tile) != 0};
  }

  // Of the pairs of this warp's queries.
  BICO_DEVICE bool splits_by_side(const KeyVisit& visit) const {
    const TileRows visited = keys_of(visit.tile).rows;
    return all_in_reach(block_tile(), visited) &&
           split_by_side(visit.frame, load_shared(warp_rows + warp_index()), visited);
  }

  BICO_DEVICE KeyCursor first() const { return after({Frame::plus, Lookahead::before(range(Frame::plus))}); }

  // All lanes of a warp call.
  BICO_DEVICE KeyCursor after(KeyCursor cursor) const {
    cursor.ahead.advance();
    while (cursor.ahead.left == 0) {
      if (cursor.ahead.is_last(range(cursor.frame))) {
        if (cursor.frame == Frame::minus) break;
        cursor.frame = Frame::minus;
        cursor.ahead = Lookahead::before(range(cursor.frame));
      }
      cursor.ahead = cursor.ahead.next(range(cursor.frame), [&](int tile) { return sight(cursor.frame, tile); });
    }
    return cursor;
  }
};

template <typename T, int D>
struct ForwardBlock {
  using Tiles = ForwardTiles<D>;
  static constexpr int M = Tiles::warp_queries / 16, N = Tiles::keys / 8;

  const ForwardWork& w;
  ForwardShared<T, D>& shared;
  const KeySchedule<Tiles::keys>& schedule;

  BICO_DEVICE Place place() const { return load_shared(&shared.place); }
  BICO_DEVICE int begin() const { return load_shared(&shared.place.tile.rows.begin); }
  BICO_DEVICE int slots() const { return load_shared(&shared.place.slots); }

  // Begins to copy Q.
  BICO_DEVICE void copy_queries(Frame frame) const {
    const Problem& p = w.problem;
    const int64_t head = place().batch * p.query_heads + place().head;
    const T* q = static_cast<const T*>(w.q[frame]) + (head * p.length + begin()) * D;
    copy_rows<Tiles::threads>(shared.q, q, D, int(p.length) - begin(), D);
    commit_copies();
  }

  // Begins to copy K and V.
  BICO_DEVICE void copy_tiles(const KeyCursor& at, int stage) const {
    const int64_t first = int64_t(at.ahead.tile()) * Tiles::keys;
    const int left = int(w.problem.length - first);
    const T* k = load_shared(&shared.heads.k[at.frame]);
    const T* v = load_shared(&shared.heads.v);
    copy_rows<Tiles::threads>(shared.k[stage], k + first * D, D, left, D);
    copy_rows<Tiles::threads>(shared.v[stage], v + first * w.v.row_stride, w.v.row_stride, left,
                              int(w.problem.head_dim));
    commit_copies();
  }

  // Rows within the tiles.
  BICO_DEVICE bool is_seen(const KeyVisit& visit, int query, int key) const {
    const int slot = visit.tile * Tiles::keys + key;
    if (slot >= slots()) return false;
    const Token token = load_shared(shared.tokens + query);
    const Spans spans = schedule.spans();
    const int n = spans.row_of(slot);
    return sees(visit.frame, begin() + query, token.span, n, spans.at(n), token.reach.holds(n));
  }

  // Hidden scores become -inf.
  BICO_DEVICE void hide(Accumulators<M, N>& scores, const KeyVisit& visit, int in_tile) const {
    Bits<M, N> hidden;
    const int first = visit.tile * Tiles::keys, end = slots();
    if (visit.view == TileView::by_key) {
      hidden.fill_outside([&](int) { return Range{0, end - first}; });
    } else if (schedule.splits_by_side(visit)) {
      const Spans spans = schedule.spans();
      const int begin_of_warp = begin() + in_tile;
      hidden.fill_outside([&](int row) { return side_of(visit.frame, spans, begin_of_warp + row, first, end); });
    } else {
      hidden.fill_pairs([&](int query, int key) { return !is_seen(visit, in_tile + query, key); });
    }
    set_where(scores, hidden, -INFINITY);
  }

  // The outputs of queries that see a value that is not finite become NaN, and remain so.
  BICO_DEVICE void poison(Accumulators<M, D / 8>& out, const KeyVisit& visit, int in_tile) const {
    const unsigned lane = lane_index();
    const uint64_t bad_values = schedule.bad_values(visit.tile);
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int query = in_tile + Accumulators<M, N>::row(i, 2 * h, lane);
        const auto bad = [&](int key) { return bad_values >> key & 1 && is_seen(visit, query, key); };
        uint32_t columns = Bits<M, N>::of_columns(bad);
        columns |= shuffle_xor(columns, 1);
        columns |= shuffle_xor(columns, 2);
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
          if (columns != 0) out.x[i][j][2 * h] = out.x[i][j][2 * h + 1] = NAN;
        }
      }
    }
  }
};

template <typename T, int D>
BICO_KERNEL(ForwardTiles<D>::threads)
void forward_kernel(BICO_ARGUMENT(ForwardWork) w) {
  using Tiles = ForwardTiles<D>;
  using Block = ForwardBlock<T, D>;
  constexpr int M = Block::M, N = Block::N;
  const Forward& p = w.problem;
  ForwardShared<T, D>& shared = *reinterpret_cast<ForwardShared<T, D>*>(shared_memory());
  const KeySchedule<Tiles::keys> schedule = {p, w.slots, shared.place, shared.warp_rows, w.bad_values};
  const Block block = {w, shared, schedule};

  {
    // Later tiles first: under causal span ids they are the longest.
    const int64_t tiles = divide_up(p.length, Tiles::queries);
    const int begin = int(tiles - 1 - block_index() % tiles) * Tiles::queries;
    const int head = block_index() / tiles % p.query_heads, batch = block_index() / tiles / p.query_heads;
    const Spans spans = spans_of(p, w.slots, batch);
    for (int row = thread_index(); row < Tiles::queries; row += Tiles::threads) {
      store_shared(shared.tokens + row, token_of(p, spans, begin + row));
    }
    if (thread_index() < Tiles::warps) {
      const int first = begin + thread_index() * Tiles::warp_queries, left = int(p.length) - first;
      store_shared(shared.warp_rows + thread_index(),
                   spans.rows(first, left < Tiles::warp_queries ? left : Tiles::warp_queries));
    }
    if (thread_index() == 0) {
      const int kv_head = head / int(p.query_heads / p.kv_heads);
      const BlockTile tile = block_tile(p, tile_rows(spans, begin / Tiles::queries, Tiles::queries));
      const auto before = [&](int row) { return spans.slots_before(row); };
      store_shared(&shared.place, Place{tile,
                                        {tiles_of(before(tile.first.begin), before(tile.rows.last() + 1), Tiles::keys),
                                         tiles_of(before(tile.rows.begin), before(tile.last.end), Tiles::keys)},
                                        before(spans.length),
                                        batch,
                                        head,
                                        kv_head});
      const int64_t of_k = (int64_t(batch) * p.kv_heads + kv_head) * p.length * D;
      store_shared(&shared.heads,
                   HeadRows<T>{{static_cast<const T*>(w.k.plus) + of_k, static_cast<const T*>(w.k.minus) + of_k},
                               w.v.row<T>(batch, kv_head, 0)});
    }
    sync_threads();
  }

  const int in_tile = warp_index() * Tiles::warp_queries;  // this warp's first query
  Accumulators<M, D / 8> out;
  out.clear();
  Softmax<M> softmax;
  softmax.clear();

  KeyCursor cursor = schedule.first();
  Frame frame = cursor.frame;  // of the queries in shared memory
  if (!cursor.at_end()) {
    block.copy_queries(frame);
    block.copy_tiles(cursor, 0);
  }
  for (int stage = 0; !cursor.at_end(); stage = 1 - stage) {
    const KeyVisit visit = cursor.visit();
    cursor = schedule.after(cursor);
    wait_copies<0>();
    sync_threads();  // K and V are there; Q and the buffers of the tile before are free
    const bool other_frame = visit.frame != frame;
    if (other_frame) {
      frame = visit.frame;
      block.copy_queries(frame);
      wait_copies<0>();
    }
    if (!cursor.at_end()) block.copy_tiles(cursor, 1 - stage);
    if (visit.flagged) clear_rows<Tiles::threads>(shared.v[stage], schedule.bad_values(visit.tile));
    if (other_frame || visit.flagged) sync_threads();
    if (visit.view != TileView::nothing) {
      Accumulators<M, N> scores;
      scores.clear();
      multiply<D, Tiles::steps, Stored::k_major, Stored::k_major>(scores, shared.q, in_tile, shared.k[stage], 0);
      // Opaque, or the compiler makes one jump table of all questions about the view, which a full tile waits for.
      if (opaque(unsigned(visit.view)) != unsigned(TileView::everything)) block.hide(scores, visit, in_tile);
      if (visit.flagged) block.poison(out, visit, in_tile);
      softmax.update(scores, out, w.factor);
      multiply_weights(out, scores, shared.v[stage]);
    }
  }

  softmax.normalise(out);
  sync_warp();  // Q is free: these are a warp's own rows, which no other warp reads
  store_accumulators(shared.q, out, in_tile, 0);
  const unsigned lane = lane_index();
  const Place place = block.place();
  const int begin = place.tile.rows.begin;
  if (lane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int m = begin + in_tile + Accumulators<M, N>::row(i, 2 * h, lane);
        if (m < p.length) *p.lse.row<float>(place.batch, place.head, m) = softmax.lse(i, h, w.factor);
      }
    }
  }
  sync_threads();
  write_rows<Tiles::threads>(shared.q, p.out.row<T>(place.batch, place.head, begin), p.out.row_stride,
                             int(p.length) - begin, int(p.head_dim), w.out_aligned, [](int row) { return row; });
}

template <typename T, int D>
void launch_forward(const ForwardWork& work, Stream stream) {
  using Tiles = ForwardTiles<D>;
  constexpr int shared_bytes = sizeof(ForwardShared<T, D>);
  static_assert(shared_bytes <= shared_limit, "a tile of queries, two of keys and two of values must fit");
  const Forward& p = work.problem;
  const int64_t tiles = divide_up(p.length, Tiles::queries);
  launch("forward", forward_kernel<T, D>, tiles * p.query_heads * p.batch, Tiles::threads, shared_bytes, stream, work);
}

}  // namespace bico::cuda
