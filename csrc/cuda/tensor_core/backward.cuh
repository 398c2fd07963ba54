// Backward on tensor cores. A block takes one tile of keys of one kv head through the queries that see them, of every
// query head of the group or of a part of them, in two sweeps (tile_schedule.h). With P the weights and
// dS = P (dO V^T - delta), the accumulators of dV = P^T dO and dK = dS^T Q stay in registers; dQ = dS K is added to
// global memory. The gradients of rotated q and k are written in float32, separately for each frame; postprocess.cuh
// rotates them back.
#pragma once

#include "../device/launch.h"
#include "backward_tiles.h"
#include "mma.h"
#include "query_schedule.h"

namespace bico::cuda {

struct BackwardWork {
  Backward problem;
  PerFrame<const void*> q, k;  // [B, H, S, columns], rotated
  Heads v, grad_out;           // of the problem, or copies whose rows can be copied by 16 bytes
  const float* delta;          // [B, Hq, S]
  PerFrame<float*> grad_q;     // begin as 0; in AccumulatorOrder, as are grad_k and grad_v
  PerFrame<float*> grad_k;     // of each part of a group
  float* grad_v;               // the same; null if blocks take whole groups: then they write the problem's
  int32_t* ticket;             // null, or 0: add to grad_q in one order
  int32_t* semaphores;  // [2 frames, B, Hq, tiles of queries], all 0: 1 + the tile of keys that added last to grad_q
  PerFrame<RowFlags> bad_queries, bad_keys;  // of q or grad_out, and of k
  RowFlags overflowing;                      // of queries: see compute_delta
  const Extent* extents;
  int heads;   // query heads that a block takes: a whole group, or a part of one
  int stages;  // of Q in shared memory, 1 or 2
  bool grad_v_aligned;
};

template <typename T, int D>
struct BackwardShared {
  using Tiles = BackwardTiles<D>;

  SharedTile<T, Tiles::keys, D> k, v;
  SharedTile<T, Tiles::queries, D> grad_out;
  SharedTile<T, Tiles::queries, Tiles::keys> weights, score_grads;
  Token tokens[Tiles::keys];
  uint64_t context, unseen;  // a bit for each key; unseen: see unseen_keys
  int32_t ticket;
  Place place;
  SharedTile<T, Tiles::queries, D> q[2];  // at the end: with one stage the second is not there

  static constexpr int bytes(int stages) { return int(sizeof(BackwardShared)) - (2 - stages) * int(sizeof(q[0])); }
};

// Keys of a tile that no query sees: a bit for each, or none if some key of the tile belongs to a causal span.
//
// Instead of hiding them in each tile of queries, the block clears their rows of K and V, once, and those of dK and dV
// at the end. In between they have a score of 0 and a weight for it, but dQ = dS K takes nothing from them, as long as
// the weight and its gradient are finite; tiles with a query for which they may not be (`overflowing`) hide the keys.
template <int size>
BICO_DEVICE uint64_t unseen_keys(const TileRows& keys, uint64_t context) {
  return keys.max_span > 0 ? 0 : ~context << (64 - size) >> (64 - size);
}

// One tile of keys. A warp's accumulators are `half` of the product in the first dimension, `right` in the second.
template <typename T, int D>
struct BackwardBlock {
  using Tiles = BackwardTiles<D>;
  using Order = AccumulatorOrder<D>;
  using Schedule = QuerySchedule<Tiles::queries, Tiles::keys>;
  static constexpr int half_rows = Tiles::queries / 2, half_columns = D / 2;
  using Pairs = Accumulators<half_rows / 16, half_rows / 8>;        // half of the queries and half of the keys
  using Gradient = Accumulators<half_rows / 16, half_columns / 8>;  // half of the rows and half of the columns

  const BackwardWork& w;
  BackwardShared<T, D>& shared;

  BICO_DEVICE int batch() const { return load_shared(&shared.place.batch); }
  BICO_DEVICE int kv_head() const { return load_shared(&shared.place.kv_head); }
  BICO_DEVICE int key_tile() const { return load_shared(&shared.place.tile.rows.begin) / Tiles::keys; }
  BICO_DEVICE int half() const { return thread_index_here() / 32 % 2; }
  BICO_DEVICE int right() const { return thread_index_here() / 64; }
  // Of the visited queries, in their batch entry, and counted over the batch.
  BICO_DEVICE int head(const QueryVisit& visit) const { return load_shared(&shared.place.head) + visit.head; }
  BICO_DEVICE int64_t head_in_all(const QueryVisit& visit) const {
    return int64_t(batch()) * int(w.problem.query_heads) + head(visit);
  }

  BICO_DEVICE int64_t key_head() const { return int64_t(batch()) * int(w.problem.kv_heads) + kv_head(); }

  // Loaded anew at each use, rather than kept in registers.
  BICO_DEVICE Spans spans() const { return spans_of(w.problem, w.extents, batch()); }

  BICO_DEVICE void copy_keys(Frame frame) const {
    const int64_t length = w.problem.length, first = int64_t(key_tile()) * Tiles::keys;
    const T* from = static_cast<const T*>(w.k[frame]);
    copy_rows<Tiles::threads>(shared.k, from + (key_head() * length + first) * D, D, int(length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_queries(const QueryVisit& visit, Frame frame, int stage) const {
    const int64_t length = w.problem.length, first = int64_t(visit.tile) * Tiles::queries;
    const T* from = static_cast<const T*>(w.q[frame]) + (head_in_all(visit) * length + first) * D;
    copy_rows<Tiles::threads>(shared.q[stage], from, D, int(length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_grad_out(const QueryVisit& visit) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(visit.tile) * Tiles::queries;
    const T* from = w.grad_out.row<T>(batch(), head(visit), first);
    copy_rows<Tiles::threads>(shared.grad_out, from, w.grad_out.row_stride, int(p.length - first), int(p.head_dim));
    commit_copies();
  }

  // What differentiate needs of the rows of a lane. Loaded after both products: earlier, these registers cost more than
  // the wait (5.96 instead of 6.02 ms for a backward at D = 128, S = 4096 on an H200), and spilled on sm_120.
  struct RowTerms {
    float lse[Pairs::M][2], delta[Pairs::M][2];
  };

  BICO_DEVICE RowTerms row_terms(const QueryVisit& visit) const {
    const Problem& p = w.problem;
    const unsigned lane = lane_index();
    const int first_query = visit.tile * Tiles::queries + half() * half_rows;
    const float* lse = w.problem.lse.row<float>(0, 0, 0) + head_in_all(visit) * p.length;
    const float* delta = w.delta + head_in_all(visit) * p.length;
    RowTerms terms;
#pragma unroll
    for (int i = 0; i < Pairs::M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int m = first_query + Pairs::row(i, 2 * h, lane);
        // Of queries beyond the end all weights are 0.
        terms.lse[i][h] = m < p.length ? lse[m] : INFINITY;
        terms.delta[i][h] = m < p.length ? delta[m] : 0.0f;
      }
    }
    return terms;
  }

  // Turns scores and dO V^T into weights and gradients of scores.
  BICO_DEVICE void differentiate(Pairs& scores, Pairs& grads, const RowTerms& terms) const {
    const float factor = float(w.problem.scale) * log2_e;
#pragma unroll
    for (int i = 0; i < Pairs::M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float row_lse = terms.lse[i][h] * log2_e;
#pragma unroll
        for (int j = 0; j < Pairs::N; ++j) {
#pragma unroll
          for (int r = 2 * h; r < 2 * h + 2; ++r) {
            scores.x[i][j][r] = exp2_approximate(scores.x[i][j][r] * factor - row_lse);
            grads.x[i][j][r] = scores.x[i][j][r] * (grads.x[i][j][r] - terms.delta[i][h]);
          }
        }
      }
    }
  }

  // Sets a lane's weights and gradients of scores where `test` holds, of rows within the tiles.
  template <class Test>
  BICO_DEVICE void set(Pairs& weights, Pairs& grads, float value, const Test& test) const {
    const int row = half() * half_rows, column = right() * half_rows;
    Bits<Pairs::M, Pairs::N> bits;
    bits.fill_pairs([&](int query, int key) { return test(row + query, column + key); });
    set_where(weights, bits, value);
    set_where(grads, bits, value);
  }

  // Hidden pairs count for nothing; visible ones of which a row is not finite are NaN.
  BICO_DEVICE void hide(Pairs& weights, Pairs& grads, const QueryVisit& visit, const Schedule& schedule,
                        uint64_t bad_queries, uint64_t bad_keys) const {
    const auto is_seen = [&](int query, int key) {
      const Token token = load_shared(shared.tokens + key);
      const int m = visit.tile * Tiles::queries + query, n = key_tile() * Tiles::keys + key;
      const int32_t span = m < w.problem.length ? spans().at(m) : -1;
      return sees(schedule.frame, m, span, n, token.span, token.reach.holds(m));
    };
    const auto hide_others = [&](uint64_t keys) {
      const uint64_t hidden = ~keys >> right() * half_rows;
      set_columns(weights, hidden, 0);
      set_columns(grads, hidden, 0);
    };
    if (visit.view == TileView::by_key) {
      hide_others(load_shared(&shared.context));
    } else if (visit.view == TileView::by_pair) {
      if (const SplitBySide split = schedule.split(visit.tile); split.all) {
        hide_others(split.keys);
        const int row = half() * half_rows, column = right() * half_rows;
        const int diagonal = visit.tile * Tiles::queries + row - (key_tile() * Tiles::keys + column);
        set_side(weights, diagonal, schedule.frame == Frame::plus, 0);
        set_side(grads, diagonal, schedule.frame == Frame::plus, 0);
      } else {
        set(weights, grads, 0, [&](int query, int key) { return !is_seen(query, key); });
      }
    }
    if ((bad_queries | bad_keys) == 0) return;
    set(weights, grads, NAN,
        [&](int query, int key) { return ((bad_queries >> query | bad_keys >> key) & 1) && is_seen(query, key); });
  }

  // Of the tile of queries, counted over heads and batch.
  BICO_DEVICE int64_t query_tile(const QueryVisit& visit) const {
    return head_in_all(visit) * divide_up(w.problem.length, Tiles::queries) + visit.tile;
  }

  // The semaphore of a tile's grad_q.
  BICO_DEVICE int32_t* semaphore(const QueryVisit& visit, Frame frame) const {
    const int64_t tiles = w.problem.batch * w.problem.query_heads * divide_up(w.problem.length, Tiles::queries);
    return w.semaphores + (frame == Frame::plus ? 0 : tiles) + query_tile(visit);
  }

  // dQ = dS K, in parts: all of it at once, beside dK and dV, spilled at D = 128.
  BICO_DEVICE void add_to_grad_q(const QueryVisit& visit, Frame frame) const {
    constexpr int N = Order::N % 4 == 0 ? Order::N / 2 : 2, parts = Order::N / N;
    // The thread's own first element: what follows adds constants, which the instructions hold.
    float* to = w.grad_q[frame] + query_tile(visit) * Tiles::queries * D + Order::offset(0, 0, 0, thread_index());
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      Accumulators<Order::M, N> grad_q;
      grad_q.clear();
      multiply<Tiles::keys, Tiles::grad_q_steps, Stored::k_major, Stored::mn_major>(
          grad_q, shared.score_grads, half() * half_rows, shared.k, right() * half_columns + part * 8 * N);
#pragma unroll
      for (int i = 0; i < Order::M; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if constexpr (atomic_add_width == 4) {
            atomic_add(to + Order::offset(i, part * N + j, 0, 0), grad_q.x[i][j]);
          } else {
#pragma unroll
            for (int r = 0; r < 4; ++r) atomic_add(to + Order::offset(i, part * N + j, r, 0), grad_q.x[i][j][r]);
          }
        }
      }
    }
  }

  // The gradient of the block's keys or values, in AccumulatorOrder.
  BICO_DEVICE void store_gradient(float* gradients, const Gradient& gradient) const {
    const int64_t first_head = int64_t(batch()) * int(w.problem.query_heads) + load_shared(&shared.place.head);
    const int64_t tile = first_head / w.heads * divide_up(w.problem.length, Tiles::keys) + key_tile();
    float* to = gradients + tile * Tiles::keys * D + Order::offset(0, 0, 0, thread_index());
#pragma unroll
    for (int i = 0; i < Order::M; ++i) {
#pragma unroll
      for (int j = 0; j < Order::N; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) to[Order::offset(i, j, r, 0)] = gradient.x[i][j][r];
      }
    }
  }

  // The gradients of unseen keys; see unseen_keys.
  BICO_DEVICE void clear_unseen(Gradient& gradient) const {
    const uint64_t unseen = load_shared(&shared.unseen);
    if (unseen != 0) set_rows(gradient, unseen >> half() * half_rows, 0);
  }

  // Visits all queries that see the keys in one frame. grad_v accumulates over both sweeps.
  BICO_DEVICE void sweep(Frame frame, Gradient& grad_v) const {
    const Problem& p = w.problem;
    const Schedule schedule = {p, w.extents, shared.place, frame, w.bad_queries[frame], w.overflowing, w.heads};
    Gradient grad_k;
    grad_k.clear();

    QueryVisit visit = schedule.first();
    int stage = 0;
    const uint64_t bad_keys = w.bad_keys[frame].of_tile<Tiles::keys>(key_head(), p.length, key_tile() * Tiles::keys) &
                              ~load_shared(&shared.unseen);
    if (visit.view != TileView::nothing) {
      copy_keys(frame);
      copy_queries(visit, frame, stage);
      copy_grad_out(visit);
      wait_copies<0>();
      sync_threads();
      if (const uint64_t unseen = load_shared(&shared.unseen); (bad_keys | unseen) != 0) {
        clear_rows<Tiles::threads>(shared.k, bad_keys | unseen);
        clear_rows<Tiles::threads>(shared.v, unseen);
        sync_threads();
      }
    }
    while (visit.view != TileView::nothing) {
      const QueryVisit now = visit;
      const bool cleared = now.view == TileView::by_key && !now.flagged && load_shared(&shared.unseen) != 0;
      const bool masked = (now.view != TileView::everything && !cleared) || bad_keys != 0;
      const uint64_t bad_queries = masked && now.flagged ? schedule.bad_queries(now.head, now.tile) : 0;
      if (bad_queries != 0) {
        clear_rows<Tiles::threads>(shared.q[stage], bad_queries);
        clear_rows<Tiles::threads>(shared.grad_out, bad_queries);
        sync_threads();
      }
      Pairs scores, grads;
      scores.clear();
      grads.clear();
      multiply<D, Tiles::steps, Stored::k_major, Stored::k_major>(scores, shared.q[stage], half() * half_rows, shared.k,
                                                                  right() * half_rows);
      multiply<D, Tiles::steps, Stored::k_major, Stored::k_major>(grads, shared.grad_out, half() * half_rows, shared.v,
                                                                  right() * half_rows);
      differentiate(scores, grads, row_terms(now));
      if (masked) hide(scores, grads, now, schedule, bad_queries, bad_keys);
      store_accumulators(shared.weights, scores, half() * half_rows, right() * half_rows);
      store_accumulators(shared.score_grads, grads, half() * half_rows, right() * half_rows);
      sync_threads();  // P and dS are there
      visit = schedule.after(visit);
      if (visit.view != TileView::nothing && w.stages == 2) copy_queries(visit, frame, 1 - stage);
      multiply<Tiles::queries, Tiles::steps, Stored::mn_major, Stored::mn_major>(
          grad_v, shared.weights, half() * half_rows, shared.grad_out, right() * half_columns);
      if (w.ticket && thread_index() == 0) {
        wait_for_semaphore(semaphore(now, frame), schedule.semaphore_before(now.tile, key_tile()));
      }
      sync_threads();  // dO is free, and the tiles of keys that add before ours have added
      if (visit.view != TileView::nothing) copy_grad_out(visit);
      multiply<Tiles::queries, Tiles::steps, Stored::mn_major, Stored::mn_major>(
          grad_k, shared.score_grads, half() * half_rows, shared.q[stage], right() * half_columns);
      if (visit.view != TileView::nothing && w.stages == 1) {
        sync_threads();  // this Q is free
        copy_queries(visit, frame, stage);
      }
      add_to_grad_q(now, frame);  // while the copies are under way
      stage = w.stages - 1 - stage;
      wait_copies<0>();
      sync_threads();  // the next Q and dO are there; P, dS, this Q and, at the end, K are free
      if (w.ticket && thread_index() == 0) set_semaphore(semaphore(now, frame), key_tile() + 1);
    }

    clear_unseen(grad_k);
    store_gradient(w.grad_k[frame], grad_k);
  }
};

template <typename T, int D>
BICO_KERNEL(BackwardTiles<D>::threads)
void backward_kernel(BICO_ARGUMENT(BackwardWork) w) {
  using Tiles = BackwardTiles<D>;
  using Block = BackwardBlock<T, D>;
  const Backward& p = w.problem;
  BackwardShared<T, D>& shared = *reinterpret_cast<BackwardShared<T, D>*>(shared_memory());

  // Blocks that add in order take tickets: a block waits only for blocks with earlier tickets, which are running. The
  // last tile of keys adds first, in both frames. All blocks begin at their diagonal and visit one tile of queries
  // after the other, the plus frame's up to the end and then the minus frame's from the beginning. So a block comes to
  // each of them when the block of the next tile of keys has just left it, and hardly ever waits.
  int64_t index = block_index();
  const int64_t tiles = divide_up(p.length, Tiles::keys);
  int key_tile = index % tiles;
  if (w.ticket) {
    if (thread_index() == 0) store_shared(&shared.ticket, take_ticket(w.ticket));
    sync_threads();
    index = load_shared(&shared.ticket);
    key_tile = tiles - 1 - index % tiles;
  }
  const int begin = key_tile * Tiles::keys;
  const int64_t parts = p.query_heads / w.heads;  // of the query heads, over all groups
  const int head = index / tiles % parts * w.heads, batch = index / tiles / parts;
  const int kv_head = head / int(p.query_heads / p.kv_heads);
  const Spans spans = spans_of(p, w.extents, batch);
  if (thread_index() == 0) {
    const BlockTile tile = block_tile(p, spans, begin, Tiles::keys);
    const uint64_t context = spans.context<Tiles::keys>(begin);
    store_shared(&shared.place, Place{tile, batch, head, kv_head});
    store_shared(&shared.context, context);
    store_shared(&shared.unseen, unseen_keys<Tiles::keys>(tile.rows, context));
  }
  const Block block = {w, shared};

  for (int row = thread_index(); row < Tiles::keys; row += Tiles::threads) {
    const int n = begin + row;
    store_shared(shared.tokens + row, Token{reach_of(p, n), n < p.length ? spans.at(n) : -1});
  }
  copy_rows<Tiles::threads>(shared.v, w.v.row<T>(batch, kv_head, begin), w.v.row_stride, int(p.length - begin),
                            int(p.head_dim));
  commit_copies();
  typename Block::Gradient grad_v;
  grad_v.clear();
  sync_threads();
#pragma unroll 1
  for (int i = 0; i < 2; ++i) block.sweep(i == 0 ? Frame::plus : Frame::minus, grad_v);  // one sweep's code for both

  block.clear_unseen(grad_v);
  wait_copies<0>();
  if (w.grad_v) return block.store_gradient(w.grad_v, grad_v);
  sync_threads();
  store_accumulators(shared.v, grad_v, block.half() * Block::half_rows, block.right() * Block::half_columns);
  sync_threads();
  write_rows<Tiles::threads>(shared.v, p.grad_v.row<T>(batch, kv_head, begin), p.grad_v.row_stride,
                             int(p.length - begin), int(p.head_dim), w.grad_v_aligned);
}

template <typename T, int D>
void launch_backward(const BackwardWork& work, Stream stream) {
  using Tiles = BackwardTiles<D>;
  using Shared = BackwardShared<T, D>;
  static_assert(Shared::bytes(2) <= shared_limit, "K, V, two stages of Q, dO, P and dS must fit");
  const Backward& p = work.problem;
  const int64_t blocks = p.batch * p.query_heads / work.heads * divide_up(p.length, Tiles::keys);
  launch("backward", backward_kernel<T, D>, blocks, Tiles::threads, Shared::bytes(work.stages), stream, work);
}

}  // namespace bico::cuda
