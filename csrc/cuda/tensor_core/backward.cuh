// Backward on tensor cores. A block takes one tile of keys of one kv head through the queries that see them, of every
// query head of the group or of a part of them, in two sweeps (tile_schedule.h). With P the weights and
// dS = P (dO V^T - delta), the accumulators of dV = P^T dO and dK = dS^T Q stay in registers, where dK is turned from
// frame to frame (turn.h); dQ = dS K is added to global memory in float32, separately for each frame, and
// postprocess.cuh rotates it back.
#pragma once

#include "../device/launch.h"
#include "backward_tiles.h"
#include "mma.h"
#include "query_schedule.h"
#include "turn.h"

namespace bico::cuda {

struct BackwardWork {
  Backward problem;
  PerFrame<const void*> q, k;  // [B, H, S, columns], rotated; k in slots
  Heads v, grad_out;           // v in slots; grad_out of the problem, or a copy whose rows can be copied by 16 bytes
  const float* delta;          // [B, Hq, S]
  PerFrame<float*> grad_q;     // begin as 0; in AccumulatorOrder, as are grad_k and grad_v
  float *grad_k, *grad_v;      // of each part of a group, in slots; null if blocks take whole groups
  int32_t* ticket;             // null, or 0: add to grad_q in one order
  int32_t* semaphores;  // [2 frames, B, Hq, tiles of queries], all 0: 1 + the tile of keys that added last to grad_q
  PerFrame<RowFlags> bad_queries, bad_keys;  // of q or grad_out, and of k
  Slots slots;
  int heads;   // query heads that a block takes: a whole group, or a part of one
  int stages;  // of Q in shared memory, 1 or 2
  bool grad_k_aligned, grad_v_aligned;
};

template <typename T, int D>
struct BackwardShared {
  using Tiles = BackwardTiles<D>;

  SharedTile<T, Tiles::keys, D> k, v;
  SharedTile<T, Tiles::queries, D> grad_out;
  SharedTile<T, Tiles::queries, Tiles::keys> weights, score_grads;
  Token tokens[Tiles::keys];
  uint64_t bad_keys;  // a bit for each key that is not finite in the frame
  int32_t ticket;
  Place place;
  SharedTile<T, Tiles::queries, D> q[2];  // at the end: with one stage the second is not there

  static constexpr int bytes(int stages) { return int(sizeof(BackwardShared)) - (2 - stages) * int(sizeof(q[0])); }
};

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
  BICO_DEVICE int key_tile() const { return load_shared(&shared.place.key_tile); }
  BICO_DEVICE int half() const { return thread_index_here() / 32 % 2; }
  BICO_DEVICE int right() const { return thread_index_here() / 64; }
  // Of one of the block's heads: its number in the batch entry, and counted over the batch.
  BICO_DEVICE int head(int in_block) const { return load_shared(&shared.place.head) + in_block; }
  BICO_DEVICE int64_t head_in_all(int in_block) const {
    return int64_t(batch()) * int(w.problem.query_heads) + head(in_block);
  }

  BICO_DEVICE int keys() const { return load_shared(&shared.place.keys); }
  BICO_DEVICE int64_t key_head() const { return int64_t(batch()) * int(w.problem.kv_heads) + kv_head(); }

  // Loaded anew at each use, rather than kept in registers.
  BICO_DEVICE Spans spans() const { return spans_of(w.problem, w.slots, batch()); }

  BICO_DEVICE void copy_keys(Frame frame) const {
    const int64_t length = w.problem.length, first = int64_t(key_tile()) * Tiles::keys;
    const T* from = static_cast<const T*>(w.k[frame]);
    copy_rows<Tiles::threads>(shared.k, from + (key_head() * length + first) * D, D, int(length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_queries(const QueryCursor& at, Frame frame, int stage) const {
    const int64_t length = w.problem.length, first = int64_t(at.ahead.tile()) * Tiles::queries;
    const T* from = static_cast<const T*>(w.q[frame]) + (head_in_all(at.head) * length + first) * D;
    copy_rows<Tiles::threads>(shared.q[stage], from, D, int(length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_grad_out(const QueryCursor& at) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(at.ahead.tile()) * Tiles::queries;
    const T* from = w.grad_out.row<T>(batch(), head(at.head), first);
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
    const float* lse = w.problem.lse.row<float>(0, 0, 0) + head_in_all(visit.head) * p.length;
    const float* delta = w.delta + head_in_all(visit.head) * p.length;
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
                        uint64_t bad_queries) const {
    const auto is_seen = [&](int query, int key) {
      const Token token = load_shared(shared.tokens + key);
      const Spans spans = this->spans();
      const int m = visit.tile * Tiles::queries + query, slot = key_tile() * Tiles::keys + key;
      if (m >= spans.length || slot >= spans.length) return false;
      return sees(schedule.frame, m, spans.at(m), spans.row_of(slot), token.span, token.reach.holds(m));
    };
    if (visit.view != TileView::everything) {
      Bits<Pairs::M, Pairs::N> hidden;
      const int row = half() * half_rows, column = right() * half_rows;
      if (visit.view == TileView::by_key) {
        hidden.fill_outside([&](int) { return Range{0, keys() - column}; });
      } else if (schedule.splits_by_side(visit.tile)) {
        const Spans spans = this->spans();
        const int begin = visit.tile * Tiles::queries + row, first = key_tile() * Tiles::keys, end = first + keys();
        hidden.fill_outside(
            [&](int query) { return side_of(schedule.frame, spans, begin + query, first + column, end); });
      } else {
        hidden.fill_pairs([&](int query, int key) { return !is_seen(row + query, column + key); });
      }
      set_where(weights, hidden, 0);
      set_where(grads, hidden, 0);
    }
    const uint64_t bad_keys = load_shared(&shared.bad_keys);
    if ((bad_queries | bad_keys) == 0) return;
    set(weights, grads, NAN,
        [&](int query, int key) { return ((bad_queries >> query | bad_keys >> key) & 1) && is_seen(query, key); });
  }

  // Of the tile of queries, counted over heads and batch.
  BICO_DEVICE int64_t query_tile(const QueryVisit& visit) const {
    return head_in_all(visit.head) * divide_up(w.problem.length, Tiles::queries) + visit.tile;
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

  // Multiplies dK, pair by pair, by factor(z) (turn.h).
  template <class Factor>
  BICO_DEVICE void turn_grad_k(Gradient& grad_k, const Factor& factor) const {
    turn(grad_k, key_tile() * Tiles::keys + half() * half_rows, right() * half_columns, spans(), w.problem.rotary,
         batch(), factor);
  }

  // The gradient of the block's keys or values, in AccumulatorOrder.
  BICO_DEVICE void store_gradient(float* gradients, const Gradient& gradient) const {
    const int64_t first_head = head_in_all(0);
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

  // Writes a tile of the block's keys or values.
  template <class Tile>
  BICO_DEVICE void write_keys(const Heads& to, Tile& tile, bool aligned) const {
    const Spans spans = this->spans();
    const int first = key_tile() * Tiles::keys;
    write_rows<Tiles::threads>(tile, to.row<T>(batch(), kv_head(), 0), to.row_stride, spans.length - first,
                               int(w.problem.head_dim), aligned, [&](int row) { return spans.row_of(first + row); });
  }

  // Visits all queries that see the keys in one frame.
  BICO_DEVICE void sweep(Frame frame, Gradient& grad_k, Gradient& grad_v) const {
    const Schedule schedule = {w.problem,         w.slots, shared.place, frame, w.bad_queries[frame],
                               w.bad_keys[frame], w.heads};
    QueryCursor cursor = schedule.first();
    int stage = 0;
    if (!cursor.at_end()) {
      if (thread_index() == 0) store_shared(&shared.bad_keys, schedule.bad_keys());
      copy_keys(frame);
      copy_queries(cursor, frame, stage);
      copy_grad_out(cursor);
      wait_copies<0>();
      sync_threads();
      if (const uint64_t bad_keys = load_shared(&shared.bad_keys); bad_keys != 0) {
        clear_rows<Tiles::threads>(shared.k, bad_keys);
        sync_threads();
      }
    }
    while (!cursor.at_end()) {
      const QueryVisit now = cursor.visit();
      const bool masked = now.view != TileView::everything || load_shared(&shared.bad_keys) != 0;
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
      if (masked) hide(scores, grads, now, schedule, bad_queries);
      store_accumulators(shared.weights, scores, half() * half_rows, right() * half_rows);
      store_accumulators(shared.score_grads, grads, half() * half_rows, right() * half_rows);
      sync_threads();  // P and dS are there
      cursor = schedule.after(cursor);
      if (!cursor.at_end() && w.stages == 2) copy_queries(cursor, frame, 1 - stage);
      multiply<Tiles::queries, Tiles::steps, Stored::mn_major, Stored::mn_major>(
          grad_v, shared.weights, half() * half_rows, shared.grad_out, right() * half_columns);
      if (w.ticket && thread_index() == 0) {
        wait_for_semaphore(semaphore(now, frame), schedule.semaphore_before(now.tile, key_tile()));
      }
      sync_threads();  // dO is free, and the tiles of keys that add before ours have added
      if (!cursor.at_end()) copy_grad_out(cursor);
      multiply<Tiles::queries, Tiles::steps, Stored::mn_major, Stored::mn_major>(
          grad_k, shared.score_grads, half() * half_rows, shared.q[stage], right() * half_columns);
      if (!cursor.at_end() && w.stages == 1) {
        sync_threads();  // this Q is free
        copy_queries(cursor, frame, stage);
      }
      add_to_grad_q(now, frame);  // while the copies are under way
      stage = w.stages - 1 - stage;
      wait_copies<0>();
      sync_threads();  // the next Q and dO are there; P, dS, this Q and, at the end, K are free
      if (w.ticket && thread_index() == 0) set_semaphore(semaphore(now, frame), key_tile() + 1);
    }
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
  const Spans spans = spans_of(p, w.slots, batch);
  const int slots = spans.slots_before(spans.length);
  if (thread_index() == 0) {
    const KeyTile keys = spans.keys(begin, Tiles::keys, slots);
    const BlockTile tile = block_tile(p, keys.rows);
    const PerFrame<Range> visited = {tiles_of(tile.rows.begin, tile.last.end, Tiles::queries),
                                     tiles_of(tile.first.begin, tile.rows.last() + 1, Tiles::queries)};
    constexpr Range none = {0, 0};
    store_shared(&shared.place, Place{tile, keys.count > 0 ? visited : PerFrame<Range>{none, none}, slots, batch, head,
                                      kv_head, key_tile, keys.count});
  }
  const Block block = {w, shared};

  for (int row = thread_index(); row < Tiles::keys; row += Tiles::threads) {
    const int slot = begin + row;
    store_shared(shared.tokens + row, token_of(p, spans, slot < slots ? spans.row_of(slot) : spans.length));
  }
  copy_rows<Tiles::threads>(shared.v, w.v.row<T>(batch, kv_head, begin), w.v.row_stride, int(p.length - begin),
                            int(p.head_dim));
  commit_copies();
  typename Block::Gradient grad_k, grad_v;
  grad_k.clear();
  grad_v.clear();
  sync_threads();
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {  // one sweep's code for both
    if (i == 1 && p.mirror) block.turn_grad_k(grad_k, turn_to_minus);
    block.sweep(i == 0 ? Frame::plus : Frame::minus, grad_k, grad_v);
  }
  const float scale = p.scale, of_im = p.mirror ? scale : -scale;
  block.turn_grad_k(grad_k, [&](const Complex& z) { return Complex{z.re * scale, z.im * of_im}; });

  wait_copies<0>();
  if (w.grad_k) {
    block.store_gradient(w.grad_k, grad_k);
    return block.store_gradient(w.grad_v, grad_v);
  }
  sync_threads();
  const int row = block.half() * Block::half_rows, column = block.right() * Block::half_columns;
  store_pairs(shared.k, grad_k, row, column, PairedColumns::of(p.rotary));
  store_accumulators(shared.v, grad_v, row, column);
  sync_threads();
  block.write_keys(p.grad_k, shared.k, w.grad_k_aligned);
  block.write_keys(p.grad_v, shared.v, w.grad_v_aligned);
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
