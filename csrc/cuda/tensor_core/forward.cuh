// Forward on tensor cores. A block takes one tile of queries of one head through the keys that it sees, in two sweeps
// (tile_schedule.h) with one running softmax. Queries are rotated as they are loaded, once in each sweep; keys were
// rotated before (preprocess.cuh).
//
// K and V have one buffer each: V arrives while Q K^T is computed, the next K while P V is.
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
  static constexpr int keys = D >= 128 ? 32 : 64;  // 64 spilled beside the accumulators of 128 or more columns
};

struct ForwardWork {
  Forward problem;
  PerFrame<const void*> k;  // [B, Hkv, S, columns], rotated
  Heads v;                  // of the problem, or a copy whose rows can be copied by 16 bytes
  NonfiniteRows bad_values;
  const Extent* extents;
  bool q_aligned, out_aligned;
};

// A tile of keys to visit; at the end of the schedule, nothing is seen of it.
struct KeyVisit {
  Frame frame;
  int tile;
  TileView view;
  uint64_t context, bad_values;  // a bit for each key
};

template <typename T, int D>
struct ForwardShared {
  using Tiles = ForwardTiles<D>;

  SharedTile<T, Tiles::queries, D> q;
  SharedTile<T, Tiles::keys, D> k, v;
  Token tokens[Tiles::queries];  // of the queries
  Place place;
  TileRows warp_rows[Tiles::warps];
  KeyVisit visits[2];  // this one and the next, alternately
};

// The tiles of keys that a block visits.
template <int keys>
struct KeySchedule {
  const Problem& problem;
  const Extent* extents;
  const Place& place;

  BICO_DEVICE BlockTile block_tile() const { return load_shared(&place.tile); }
  // Loaded anew at each use, rather than kept in registers.
  BICO_DEVICE Spans spans() const { return spans_of(problem, extents, load_shared(&place.batch)); }

  // What the queries, some rows of the block's tile, see of a tile of keys.
  BICO_DEVICE TileView view_of(const TileRows& queries, Frame frame, int tile) const {
    const TileRows visited = tile_rows(spans(), problem.length, tile, keys);
    return within_sequences(tile_view_in(frame, queries, visited, visited.count == keys), block_tile(), visited);
  }

  // The first tile from `tile` on, in this frame or the next, of which something is seen. All lanes of a warp call.
  BICO_DEVICE KeyVisit from(Frame frame, int tile) const {
    const BlockTile queries = block_tile();
    const auto view = [&](int t) { return view_of(queries.rows, frame, t); };
    if (frame == Frame::plus) {
      const TileToVisit found = first_seen(tile, earlier(queries, keys).end, view);
      if (found.view != TileView::nothing) return {frame, found.tile, found.view, 0, 0};
      frame = Frame::minus;
      tile = later(queries, keys).begin;
    }
    const TileToVisit found = first_seen(tile, later(queries, keys).end, view);
    return {frame, found.tile, found.view, 0, 0};
  }

  BICO_DEVICE KeyVisit first() const { return from(Frame::plus, earlier(block_tile(), keys).begin); }
};

// Rotates queries [begin, ...) into shared memory, with the sign of the scale, so that scores times |scale| remain.
template <int threads, typename T, int rows, int columns>
BICO_DEVICE void load_queries(Frame frame, SharedTile<T, rows, columns>& tile, const Problem& p, bool aligned,
                              int64_t batch, int64_t head, int begin) {
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
  constexpr int chunks = columns / vector_elements;
#pragma unroll 1  // once in each sweep; registers matter more
  for (int i = thread_index(); i < rows * chunks; i += threads) {
    const int row = i / chunks, c = i % chunks;
    Vector v = {};
    if (begin + row < p.length) {
      const T* from = p.q.row<T>(batch, head, begin + row);
      const Chunk<float> x = rotated_chunk(frame, p, from, aligned, batch, begin + row, c * vector_elements);
#pragma unroll
      for (int e = 0; e < vector_elements; e += 2) v.word[e / 2] = pack<T>(sign * x.x[e], sign * x.x[e + 1]);
    }
    store_shared(reinterpret_cast<Vector*>(tile.chunk(row, c)), v);
  }
}

template <typename T, int D>
struct ForwardBlock {
  using Tiles = ForwardTiles<D>;
  static constexpr int M = Tiles::warp_queries / 16, N = Tiles::keys / 8;

  const ForwardWork& w;
  ForwardShared<T, D>& shared;
  const KeySchedule<Tiles::keys>& schedule;

  BICO_DEVICE Place place() const { return load_shared(&shared.place); }
  BICO_DEVICE int begin() const { return load_shared(&shared.place.tile.rows.begin); }

  BICO_DEVICE void copy_keys(const KeyVisit& visit) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(visit.tile) * Tiles::keys, head = place().batch * p.kv_heads + place().kv_head;
    const T* k = static_cast<const T*>(w.k[visit.frame]);
    copy_rows<Tiles::threads>(shared.k, k + (head * p.length + first) * D, D, int(p.length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_values(const KeyVisit& visit) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(visit.tile) * Tiles::keys;
    copy_rows<Tiles::threads>(shared.v, w.v.row<T>(place().batch, place().kv_head, first), w.v.row_stride,
                              int(p.length - first), int(p.head_dim));
    commit_copies();
  }

  BICO_DEVICE void add_bits(KeyVisit& visit) const {
    const Problem& p = w.problem;
    const int begin = visit.tile * Tiles::keys;
    if (visit.view == TileView::nothing) return;
    visit.context = schedule.spans().template context<Tiles::keys>(begin);
    visit.bad_values =
        w.bad_values.of_tile<Tiles::keys>(int64_t(place().batch) * int(p.kv_heads) + place().kv_head, p.length, begin);
  }

  // Rows within the tiles.
  BICO_DEVICE int32_t key_span(const KeyVisit& visit, int key) const {
    const int n = visit.tile * Tiles::keys + key;
    return n < w.problem.length ? schedule.spans().at(n) : -1;
  }

  BICO_DEVICE bool is_seen(const KeyVisit& visit, int query, int key) const {
    const Token token = load_shared(shared.tokens + query);
    const int n = visit.tile * Tiles::keys + key;
    return sees(visit.frame, begin() + query, token.span, n, key_span(visit, key), token.sequence.holds(n));
  }

  // Hidden scores become -inf.
  BICO_DEVICE void hide(Accumulators<M, N>& scores, const KeyVisit& visit, TileView view, int in_tile) const {
    if (view == TileView::by_key) return set_columns(scores, ~visit.context, -INFINITY);
    Bits<M, N> hidden;
    hidden.fill_pairs([&](int query, int key) { return !is_seen(visit, in_tile + query, key); });
    set_where(scores, hidden, -INFINITY);
  }

  // Bit 2 i + h: among this lane's columns of row (i, h) of the accumulators is a visible value that is not finite.
  BICO_DEVICE uint32_t poisoned(const KeyVisit& visit, int in_tile) const {
    const unsigned lane = lane_index();
    uint32_t rows = 0;
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const int query = in_tile + Accumulators<M, N>::row(i / 2, i % 2 * 2, lane);
      const auto bad = [&](int key) { return visit.bad_values >> key & 1 && is_seen(visit, query, key); };
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
  const KeySchedule<Tiles::keys> schedule = {p, w.extents, shared.place};
  const Block block = {w, shared, schedule};

  {
    // Later tiles first: under causal span ids they are the longest.
    const int64_t tiles = divide_up(p.length, Tiles::queries);
    const int begin = int(tiles - 1 - block_index() % tiles) * Tiles::queries;
    const int head = block_index() / tiles % p.query_heads, batch = block_index() / tiles / p.query_heads;
    const Spans spans = spans_of(p, w.extents, batch);
    for (int row = thread_index(); row < Tiles::queries; row += Tiles::threads) {
      const int m = begin + row;
      store_shared(shared.tokens + row, Token{sequence_of(p, m), m < p.length ? spans.at(m) : -1});
    }
    if (thread_index() < Tiles::warps) {
      const int first = begin + thread_index() * Tiles::warp_queries, left = int(p.length) - first;
      store_shared(shared.warp_rows + thread_index(),
                   spans.rows(first, left < Tiles::warp_queries ? left : Tiles::warp_queries));
    }
    if (thread_index() == 0) {
      const int kv_head = head / int(p.query_heads / p.kv_heads);
      store_shared(&shared.place, Place{block_tile(p, spans, begin, Tiles::queries), batch, head, kv_head});
    }
    sync_threads();
    if (warp_index() == 0) {
      KeyVisit visit = schedule.first();
      block.add_bits(visit);
      if (thread_index() == 0) store_shared(shared.visits, visit);
    }
    sync_threads();
  }

  const int in_tile = warp_index() * Tiles::warp_queries;              // this warp's first query
  const float factor = fmaxf(fabsf(float(p.scale)) * log2_e, 1e-30f);  // a scale of 0 must not meet infinity
  Accumulators<M, D / 8> out;
  out.clear();
  Softmax<M> softmax;
  softmax.clear();
  uint32_t poisoned = 0;

  KeyVisit visit = load_shared(shared.visits);
  if (visit.view != TileView::nothing) block.copy_keys(visit);
  bool loaded = false;
  for (int step = 0; visit.view != TileView::nothing; step = 1 - step) {
    if (!loaded) {
      const Frame frame = p.mirror ? visit.frame : Frame::plus;
      load_queries<Tiles::threads>(frame, shared.q, p, w.q_aligned, block.place().batch, block.place().head,
                                   block.begin());
    }
    const TileRows warp_rows = load_shared(shared.warp_rows + warp_index());
    const TileView view =
        warp_rows.count <= 0 ? TileView::nothing : schedule.view_of(warp_rows, visit.frame, visit.tile);

    wait_copies<0>();
    sync_threads();  // K and Q are there, V is free
    block.copy_values(visit);
    if (warp_index() == 0) {
      KeyVisit next = schedule.from(visit.frame, visit.tile + 1);
      block.add_bits(next);
      if (thread_index() == 0) store_shared(shared.visits + 1 - step, next);
    }
    Accumulators<M, N> scores;
    scores.clear();
    if (view != TileView::nothing) {
      multiply<D, Stored::k_major, Stored::k_major>(scores, shared.q, in_tile, shared.k, 0);
    }

    wait_copies<0>();
    sync_threads();  // V is there, K and Q are free
    visit = load_shared(shared.visits + step);
    const bool bad = visit.view != TileView::everything && visit.bad_values != 0;
    if (bad) {
      clear_rows<Tiles::threads>(shared.v, visit.bad_values);
      sync_threads();
    }
    const KeyVisit next = load_shared(shared.visits + 1 - step);
    if (next.view != TileView::nothing) block.copy_keys(next);
    loaded = next.frame == visit.frame;
    if (view != TileView::nothing) {
      if (view != TileView::everything) block.hide(scores, visit, view, in_tile);
      if (bad) poisoned |= block.poisoned(visit, in_tile);
      softmax.update(scores, out, factor);
      multiply_weights(out, scores, shared.v);
    }
    visit = load_shared(shared.visits + 1 - step);
  }

  softmax.normalise(out, poisoned);
  store_accumulators(shared.q, out, in_tile, 0);  // a warp's own rows, which no other warp reads
  const unsigned lane = lane_index();
  const Place place = block.place();
  const int begin = place.tile.rows.begin;
  if (lane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int m = begin + in_tile + Accumulators<M, N>::row(i, 2 * h, lane);
        if (m < p.length) *p.lse.row<float>(place.batch, place.head, m) = softmax.lse(i, h, factor);
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
  static_assert(shared_bytes <= shared_limit, "a tile of queries, one of keys and one of values must fit");
  const Forward& p = work.problem;
  const int64_t tiles = divide_up(p.length, Tiles::queries);
  launch("forward", forward_kernel<T, D>, tiles * p.query_heads * p.batch, Tiles::threads, shared_bytes, stream, work);
}

}  // namespace bico::cuda
