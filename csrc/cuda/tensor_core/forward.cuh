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
};

struct ForwardWork {
  Forward problem;
  PerFrame<const void*> q, k;  // [B, H, S, columns], rotated; q with the sign of the scale
  Heads v;                     // of the problem, or a copy whose rows can be copied by 16 bytes
  RowFlags bad_values;
  const Extent* extents;
  bool out_aligned;
  float factor;  // > 0: scores times it are exponents of 2
};

// A tile of keys to visit, none at the end of the schedule.
struct KeyVisit {
  static constexpr int none = -1;

  Frame frame;
  Lookahead ahead;
  int tile;
  TileView view;  // of this warp's queries
  bool flagged;   // some value is not finite
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
  const Extent* extents;
  const Place& place;
  const TileRows* warp_rows;
  RowFlags nonfinite_values;

  BICO_DEVICE BlockTile block_tile() const { return load_shared(&place.tile); }
  // Loaded anew at each use, rather than kept in registers.
  BICO_DEVICE Spans spans() const { return spans_of(problem, extents, load_shared(&place.batch)); }

  BICO_DEVICE Range range(Frame frame) const {
    return frame == Frame::plus ? earlier(block_tile(), keys) : later(block_tile(), keys);
  }

  // One bit for each key of a tile: its value is not finite.
  BICO_DEVICE uint64_t bad_values(int tile) const {
    const int64_t head = int64_t(load_shared(&place.batch)) * int(problem.kv_heads) + load_shared(&place.kv_head);
    return nonfinite_values.of_tile<keys>(head, problem.length, tile * keys);
  }

  BICO_DEVICE TileSight sight(Frame frame, int tile) const {
    const BlockTile block = block_tile();
    const TileRows visited = tile_rows(spans(), problem.length, tile, keys),
                   own = load_shared(warp_rows + warp_index());
    const auto view = [&](const TileRows& queries) {
      return within_reach(tile_view_in(frame, queries, visited, visited.count == keys), block, visited);
    };
    return {view(block.rows) != TileView::nothing, own.count <= 0 ? TileView::nothing : view(own),
            bad_values(tile) != 0};
  }

  // Of the pairs of this warp's queries.
  BICO_DEVICE SplitBySide split(const KeyVisit& visit) const {
    const TileRows visited = tile_rows(spans(), problem.length, visit.tile, keys);
    if (!all_in_reach(block_tile(), visited)) return {false, 0};
    return split_by_side<keys>(visit.frame, spans(), load_shared(warp_rows + warp_index()), visited);
  }

  BICO_DEVICE KeyVisit first() const {
    return after({Frame::plus, Lookahead::before(range(Frame::plus)), KeyVisit::none, TileView::nothing, false});
  }

  // All lanes of a warp call.
  BICO_DEVICE KeyVisit after(KeyVisit visit) const {
    while (visit.ahead.left == 0) {
      if (visit.ahead.is_last(range(visit.frame))) {
        if (visit.frame == Frame::minus) return {visit.frame, visit.ahead, KeyVisit::none, TileView::nothing, false};
        visit.frame = Frame::minus;
        visit.ahead = Lookahead::before(range(visit.frame));
      }
      visit.ahead = visit.ahead.next(range(visit.frame), [&](int tile) { return sight(visit.frame, tile); });
    }
    visit.tile = visit.ahead.take();
    visit.view = visit.ahead.view(visit.tile);
    visit.flagged = visit.ahead.is_flagged(visit.tile);
    return visit;
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

  // Begins to copy Q.
  BICO_DEVICE void copy_queries(Frame frame) const {
    const Problem& p = w.problem;
    const int64_t head = place().batch * p.query_heads + place().head;
    const T* q = static_cast<const T*>(w.q[frame]) + (head * p.length + begin()) * D;
    copy_rows<Tiles::threads>(shared.q, q, D, int(p.length) - begin(), D);
    commit_copies();
  }

  // Begins to copy K and V.
  BICO_DEVICE void copy_tiles(const KeyVisit& visit, int stage) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(visit.tile) * Tiles::keys;
    const T* k = load_shared(&shared.heads.k[visit.frame]);
    const T* v = load_shared(&shared.heads.v);
    copy_rows<Tiles::threads>(shared.k[stage], k + first * D, D, int(p.length - first), D);
    copy_rows<Tiles::threads>(shared.v[stage], v + first * w.v.row_stride, w.v.row_stride, int(p.length - first),
                              int(p.head_dim));
    commit_copies();
  }

  // One bit for each key of the tile: it is context.
  BICO_DEVICE uint64_t context(const KeyVisit& visit) const {
    return schedule.spans().template context<Tiles::keys>(visit.tile * Tiles::keys);
  }

  // Rows within the tiles.
  BICO_DEVICE int32_t key_span(const KeyVisit& visit, int key) const {
    const int n = visit.tile * Tiles::keys + key;
    return n < w.problem.length ? schedule.spans().at(n) : -1;
  }

  BICO_DEVICE bool is_seen(const KeyVisit& visit, int query, int key) const {
    const Token token = load_shared(shared.tokens + query);
    const int n = visit.tile * Tiles::keys + key;
    return sees(visit.frame, begin() + query, token.span, n, key_span(visit, key), token.reach.holds(n));
  }

  // Hidden scores become -inf.
  BICO_DEVICE void hide(Accumulators<M, N>& scores, const KeyVisit& visit, uint64_t context, int in_tile) const {
    if (visit.view == TileView::by_key) return set_columns(scores, ~context, -INFINITY);
    if (const SplitBySide split = schedule.split(visit); split.all) {
      set_columns(scores, ~split.keys, -INFINITY);
      const int diagonal = begin() + in_tile - visit.tile * Tiles::keys;
      return set_side(scores, diagonal, visit.frame == Frame::plus, -INFINITY);
    }
    Bits<M, N> hidden;
    hidden.fill_pairs([&](int query, int key) { return !is_seen(visit, in_tile + query, key); });
    set_where(scores, hidden, -INFINITY);
  }

  // Bit 2 i + h: among this lane's columns of row (i, h) of the accumulators is a visible value whose bit is set.
  BICO_DEVICE uint32_t poisoned(const KeyVisit& visit, uint64_t bad_values, int in_tile) const {
    const unsigned lane = lane_index();
    uint32_t rows = 0;
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const int query = in_tile + Accumulators<M, N>::row(i / 2, i % 2 * 2, lane);
      const auto bad = [&](int key) { return bad_values >> key & 1 && is_seen(visit, query, key); };
      if (Bits<M, N>::of_columns(bad) != 0) rows |= 1u << i;
    }
    return rows;
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
  const KeySchedule<Tiles::keys> schedule = {p, w.extents, shared.place, shared.warp_rows, w.bad_values};
  const Block block = {w, shared, schedule};

  {
    // Later tiles first: under causal span ids they are the longest.
    const int64_t tiles = divide_up(p.length, Tiles::queries);
    const int begin = int(tiles - 1 - block_index() % tiles) * Tiles::queries;
    const int head = block_index() / tiles % p.query_heads, batch = block_index() / tiles / p.query_heads;
    const Spans spans = spans_of(p, w.extents, batch);
    for (int row = thread_index(); row < Tiles::queries; row += Tiles::threads) {
      const int m = begin + row;
      store_shared(shared.tokens + row, Token{reach_of(p, m), m < p.length ? spans.at(m) : -1});
    }
    if (thread_index() < Tiles::warps) {
      const int first = begin + thread_index() * Tiles::warp_queries, left = int(p.length) - first;
      store_shared(shared.warp_rows + thread_index(),
                   spans.rows(first, left < Tiles::warp_queries ? left : Tiles::warp_queries));
    }
    if (thread_index() == 0) {
      const int kv_head = head / int(p.query_heads / p.kv_heads);
      store_shared(&shared.place, Place{block_tile(p, spans, begin, Tiles::queries), batch, head, kv_head});
      const int64_t before = (int64_t(batch) * p.kv_heads + kv_head) * p.length * D;
      store_shared(&shared.heads,
                   HeadRows<T>{{static_cast<const T*>(w.k.plus) + before, static_cast<const T*>(w.k.minus) + before},
                               w.v.row<T>(batch, kv_head, 0)});
    }
    sync_threads();
  }

  const int in_tile = warp_index() * Tiles::warp_queries;  // this warp's first query
  Accumulators<M, D / 8> out;
  out.clear();
  Softmax<M> softmax;
  softmax.clear();
  uint32_t poisoned = 0;

  KeyVisit visit = schedule.first();
  Frame frame = visit.frame;  // of the queries in shared memory
  if (visit.tile != KeyVisit::none) {
    block.copy_queries(frame);
    block.copy_tiles(visit, 0);
  }
  for (int stage = 0; visit.tile != KeyVisit::none; stage = 1 - stage) {
    const KeyVisit next = schedule.after(visit);
    const uint64_t context = visit.view == TileView::by_key ? block.context(visit) : 0;
    const uint64_t bad = visit.flagged ? schedule.bad_values(visit.tile) : 0;
    wait_copies<0>();
    sync_threads();  // K and V are there; Q and the buffers of the tile before are free
    const bool other_frame = visit.frame != frame;
    if (other_frame) {
      frame = visit.frame;
      block.copy_queries(frame);
      wait_copies<0>();
    }
    if (next.tile != KeyVisit::none) block.copy_tiles(next, 1 - stage);
    if (bad != 0) clear_rows<Tiles::threads>(shared.v[stage], bad);
    if (other_frame || bad != 0) sync_threads();
    if (visit.view != TileView::nothing) {
      Accumulators<M, N> scores;
      scores.clear();
      multiply<D, D / 16, Stored::k_major, Stored::k_major>(scores, shared.q, in_tile, shared.k[stage], 0);
      // Opaque, or the compiler makes one jump table of all questions about the view, which a full tile waits for.
      if (opaque(unsigned(visit.view)) != unsigned(TileView::everything)) block.hide(scores, visit, context, in_tile);
      if (bad != 0) poisoned |= block.poisoned(visit, bad, in_tile);
      softmax.update(scores, out, w.factor);
      multiply_weights(out, scores, shared.v[stage]);
    }
    visit = next;
  }

  softmax.normalise(out, poisoned);
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
                             int(p.length) - begin, int(p.head_dim), w.out_aligned);
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
