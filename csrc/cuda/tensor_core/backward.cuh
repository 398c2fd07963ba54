// Backward on tensor cores: a block takes a tile of keys of one kv head through the queries that see them, of every
// query head of the group, in two sweeps (tile_schedule.h). With P the weights and dS = P (dO V^T - delta), the sums dV
// = P^T dO and dK = dS^T Q stay in registers; dQ = dS K is added to global memory. Gradients of rotated q and k leave
// in float32, a frame each, for postprocess.cuh.
#pragma once

#include "../device/launch.h"
#include "../tile_schedule.h"
#include "products.h"

namespace bico::cuda {

template <int D>
struct BackwardTiles {
  static_assert(D % 32 == 0, "half of the columns, a warp's, must be a multiple of 16");
  static constexpr int warps = 4, threads = 32 * warps;  // two by two over every product
  static constexpr int queries = D <= 128 ? 64 : 32,
                       keys = queries;  // dK and dV take D keys / 64 registers of a thread
};

// Where a gradient tile of [rows, D] keeps its elements: in the order of the sums, so that a warp adds or stores 32
// neighbours at a time.
template <int D>
struct SumOrder {
  static constexpr int rows = BackwardTiles<D>::queries, threads = BackwardTiles<D>::threads;
  static constexpr int M = rows / 32, N = D / 16;  // of a warp's sums: half of the rows, half of the columns

  static constexpr int64_t offset(int i, int j, int r, int thread) { return ((i * N + j) * 4 + r) * threads + thread; }

  // First element of the tiles of a head of `length` rows, heads counted over the batch.
  static constexpr int64_t head(int64_t index, int64_t length) {
    return index * ((length + rows - 1) / rows) * rows * D;
  }

  static constexpr int64_t element(int64_t position, int d) {
    const int row = position % rows, half = row / (rows / 2), in_half = row % (rows / 2);
    const int right = d / (D / 2), in_right = d % (D / 2);
    const int thread = (half + 2 * right) * 32 + in_half % 8 * 4 + in_right % 8 / 2;
    return position / rows * rows * D + offset(in_half / 16, in_right / 8, in_half / 8 % 2 * 2 + in_right % 2, thread);
  }
};

struct BackwardWork {
  Backward problem;
  const void *q_plus, *q_minus, *k_plus, *k_minus;  // [B, H, S, columns], rotated
  Heads v, grad_out;                                // of the problem, or copies whose rows can be copied by 16 bytes
  const float* delta;                               // [B, Hq, S]
  float *grad_q_plus, *grad_q_minus;                // begin as 0; in SumOrder, as are the next
  float *grad_k_plus, *grad_k_minus;
  int32_t* ticket;  // null, or 0: sum in one order
  int32_t* turns;   // [2 frames, B, Hq, tiles of queries], all 0: keys whose turn at a tile's grad_q has passed
  const Extent* extents;
  bool grad_v_aligned;
};

template <typename T, int D>
struct BackwardShared {
  using Tiles = BackwardTiles<D>;
  using Keys = SharedTile<T, Tiles::keys, D>;
  using Queries = SharedTile<T, Tiles::queries, D>;
  using Pairs = SharedTile<T, Tiles::queries, Tiles::keys>;
  static constexpr int tile_bytes = 2 * Keys::bytes + 3 * Queries::bytes + 2 * Pairs::bytes;
  static constexpr int bytes = tile_bytes + Tiles::keys * int(sizeof(Token)) +
                               (Tiles::keys + 2 * Tiles::queries + 1) * int(sizeof(int32_t)) + int(sizeof(Place));
  static_assert(bytes <= shared_limit, "K, V, two stages of Q, dO, P and dS must fit");

  Keys k, v;
  Queries q, grad_out;  // q: the first of two stages
  Pairs weights, grad_scores;
  Token* tokens;                                  // of the keys
  int32_t *key_flags, *query_flags, *grad_flags;  // of rows that are not finite
  int32_t* ticket;
  Place* place;

  BICO_DEVICE explicit BackwardShared(unsigned char* memory)
      : k{reinterpret_cast<T*>(memory)},
        v{reinterpret_cast<T*>(memory + Keys::bytes)},
        q{reinterpret_cast<T*>(memory + 2 * Keys::bytes)},
        grad_out{reinterpret_cast<T*>(memory + 2 * Keys::bytes + 2 * Queries::bytes)},
        weights{reinterpret_cast<T*>(memory + 2 * Keys::bytes + 3 * Queries::bytes)},
        grad_scores{reinterpret_cast<T*>(memory + 2 * Keys::bytes + 3 * Queries::bytes + Pairs::bytes)},
        tokens(reinterpret_cast<Token*>(memory + tile_bytes)),
        key_flags(reinterpret_cast<int32_t*>(tokens + Tiles::keys)),
        query_flags(key_flags + Tiles::keys),
        grad_flags(query_flags + Tiles::queries),
        ticket(grad_flags + Tiles::queries),
        place(reinterpret_cast<Place*>(ticket + 1)) {}

  BICO_DEVICE Queries queries(int stage) const { return {q.data + stage * (Tiles::queries * D)}; }
};

// A tile of queries on the keys' way, of one of the heads of their group; it sees nothing at the end of the way.
struct QueryVisit {
  int head, tile;  // head within the group
  Seen seen;
};

template <int queries, int keys>
struct QueryVisits {
  const Problem& problem;
  const Extent* extents;
  const Place* place;
  Frame frame;

  BICO_DEVICE Visitor visitor() const { return load_shared(&place->visitor); }
  BICO_DEVICE Spans spans() const { return spans_of(problem, extents, load_shared(&place->batch)); }

  BICO_DEVICE Range range() const {
    return frame == Frame::plus ? later(visitor(), queries) : earlier(visitor(), queries);
  }

  BICO_DEVICE Seen seen_by(int tile, const Visitor& key_tile) const {
    const TileRows guests = tile_rows(spans(), problem.length, tile, queries);
    return within_sequences(seen_in(frame, guests, key_tile.rows, key_tile.rows.count == keys), key_tile, guests);
  }

  // The first tile from `tile` on, of this head or the next ones of the group, that sees something. All lanes call.
  BICO_DEVICE QueryVisit from(int head, int tile) const {
    const int group = problem.query_heads / problem.kv_heads;
    const Sight sight = first_seen(tile, range().end, [&](int t) { return seen_by(t, visitor()); });
    if (sight.seen != Seen::nothing || head + 1 == group) return {head, sight.tile, sight.seen};
    // What one head's queries see, those of the others see.
    const int again = range().begin;
    const Sight first = first_seen(again, range().end, [&](int t) { return seen_by(t, visitor()); });
    return {head + 1, first.tile, first.seen};
  }

  BICO_DEVICE QueryVisit first() const { return from(0, range().begin); }

  // 1 + the last tile of keys before `key_tile` that adds to grad_q of a tile of queries; 0 if there is none.
  BICO_DEVICE int turn_before(int query_tile, int key_tile) const {
    const int begin = query_tile * queries;
    const int first = frame == Frame::minus ? begin / keys : sequence_of(problem, begin).begin / keys;
    for (int tile = key_tile - 1; tile >= first; --tile) {
      if (seen_by(query_tile, visitor_of(problem, spans(), tile * keys, keys)) != Seen::nothing) return tile + 1;
    }
    return 0;
  }
};

// One tile of keys. Rows of sums: `half` of the warp in the first dimension, `right` in the second.
template <typename T, int D>
struct BackwardBlock {
  using Tiles = BackwardTiles<D>;
  using Order = SumOrder<D>;
  static constexpr int half_rows = Tiles::queries / 2, half_columns = D / 2;
  using Pairs = Sums<half_rows / 16, half_rows / 8>;        // half of the queries and half of the keys
  using Gradient = Sums<half_rows / 16, half_columns / 8>;  // half of the rows and half of the columns

  const BackwardWork& w;
  const BackwardShared<T, D>& shared;

  BICO_DEVICE int batch() const { return load_shared(&shared.place->batch); }
  BICO_DEVICE int kv_head() const { return load_shared(&shared.place->kv_head); }
  BICO_DEVICE int key_tile() const { return load_shared(&shared.place->visitor.rows.begin) / Tiles::keys; }
  BICO_DEVICE int half() const { return thread_index_here() / 32 % 2; }
  BICO_DEVICE int right() const { return thread_index_here() / 64; }
  // Of the visited queries, in their batch entry, and counted over the batch.
  BICO_DEVICE int head(const QueryVisit& visit) const { return load_shared(&shared.place->head) + visit.head; }
  BICO_DEVICE int64_t head_in_all(const QueryVisit& visit) const {
    return int64_t(batch()) * int(w.problem.query_heads) + head(visit);
  }

  BICO_DEVICE int64_t key_head() const { return int64_t(batch()) * int(w.problem.kv_heads) + kv_head(); }

  // Anew at each use, rather than kept in registers.
  BICO_DEVICE Spans spans() const { return spans_of(w.problem, w.extents, batch()); }

  BICO_DEVICE void copy_keys(Frame frame) const {
    const int64_t length = w.problem.length, first = int64_t(key_tile()) * Tiles::keys;
    const T* from = static_cast<const T*>(frame == Frame::plus ? w.k_plus : w.k_minus);
    copy_rows<Tiles::threads>(shared.k, from + (key_head() * length + first) * D, D, int(length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_queries(const QueryVisit& visit, Frame frame, int stage) const {
    const void* q = frame == Frame::plus ? w.q_plus : w.q_minus;
    const int64_t length = w.problem.length, first = int64_t(visit.tile) * Tiles::queries;
    const T* from = static_cast<const T*>(q) + (head_in_all(visit) * length + first) * D;
    copy_rows<Tiles::threads>(shared.queries(stage), from, D, int(length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_grad_out(const QueryVisit& visit) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(visit.tile) * Tiles::queries;
    const T* from = w.grad_out.row<T>(batch(), head(visit), first);
    copy_rows<Tiles::threads>(shared.grad_out, from, w.grad_out.row_stride, int(p.length - first), int(p.head_dim));
    commit_copies();
  }

  // Scores and dO V^T become weights and gradients of scores.
  BICO_DEVICE void differentiate(Pairs& scores, Pairs& grads, const QueryVisit& visit) const {
    const Problem& p = w.problem;
    const float factor = float(p.scale) * log2_e;
    const unsigned lane = lane_index();
    const int first_query = visit.tile * Tiles::queries + half() * half_rows;
    const float* lse = w.problem.lse.row<float>(0, 0, 0) + head_in_all(visit) * p.length;
    const float* delta = w.delta + head_in_all(visit) * p.length;
#pragma unroll
    for (int i = 0; i < Pairs::M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int m = first_query + Pairs::row(i, 2 * h, lane);
        // Of queries beyond the end all weights are 0.
        const float row_lse = m < p.length ? lse[m] * log2_e : INFINITY, row_delta = m < p.length ? delta[m] : 0.0f;
#pragma unroll
        for (int j = 0; j < Pairs::N; ++j) {
#pragma unroll
          for (int r = 2 * h; r < 2 * h + 2; ++r) {
            scores.x[i][j][r] = exp2_approximate(scores.x[i][j][r] * factor - row_lse);
            grads.x[i][j][r] = scores.x[i][j][r] * (grads.x[i][j][r] - row_delta);
          }
        }
      }
    }
  }

  // Set a lane's weights and gradients of scores where `test` holds, of rows within the tiles.
  template <class Test>
  BICO_DEVICE void set(Pairs& weights, Pairs& grads, float value, const Test& test) const {
    const int row = half() * half_rows, column = right() * half_rows;
    Bits<Pairs::M, Pairs::N> bits;
    bits.fill_pairs([&](int query, int key) { return test(row + query, column + key); });
    set_where(weights, bits, value);
    set_where(grads, bits, value);
  }

  // Hidden pairs count for nothing; visible ones of which a row is flagged are NaN.
  BICO_DEVICE void hide(Pairs& weights, Pairs& grads, const QueryVisit& visit, Frame frame, bool bad) const {
    const auto is_seen = [&](int query, int key) {
      const Token token = load_shared(shared.tokens + key);
      const int m = visit.tile * Tiles::queries + query, n = key_tile() * Tiles::keys + key;
      const int32_t span = m < w.problem.length ? spans().at(m) : -1;
      return sees(frame, m, span, n, token.span, token.sequence.holds(m));
    };
    if (visit.seen == Seen::by_key) {
      const int column = right() * half_rows;
      Bits<Pairs::M, Pairs::N> hidden;
      hidden.fill_columns([&](int key) { return load_shared(&shared.tokens[column + key].span) != 0; });
      set_where(weights, hidden, 0);
      set_where(grads, hidden, 0);
    } else if (visit.seen == Seen::by_pair) {
      set(weights, grads, 0, [&](int query, int key) { return !is_seen(query, key); });
    }
    if (!bad) return;
    set(weights, grads, NAN, [&](int query, int key) {
      const bool flagged = load_shared(shared.query_flags + query) || load_shared(shared.grad_flags + query) ||
                           load_shared(shared.key_flags + key);
      return flagged && is_seen(query, key);
    });
  }

  // Of the tile of queries, counted over heads and batch.
  BICO_DEVICE int64_t query_tile(const QueryVisit& visit) const {
    return head_in_all(visit) * ((w.problem.length + Tiles::queries - 1) / Tiles::queries) + visit.tile;
  }

  // The counter of turns at a tile's grad_q.
  BICO_DEVICE int32_t* turns(const QueryVisit& visit, Frame frame) const {
    const int64_t tiles =
        w.problem.batch * w.problem.query_heads * ((w.problem.length + Tiles::queries - 1) / Tiles::queries);
    return w.turns + (frame == Frame::plus ? 0 : tiles) + query_tile(visit);
  }

  // dQ = dS K, in parts: all of it at once, beside dK and dV, spilled at D = 128.
  BICO_DEVICE void add_to_grad_q(const QueryVisit& visit, Frame frame) const {
    constexpr int N = Order::N % 4 == 0 ? Order::N / 2 : 2, parts = Order::N / N;
    float* to = (frame == Frame::plus ? w.grad_q_plus : w.grad_q_minus) + query_tile(visit) * Tiles::queries * D;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      Sums<Order::M, N> sums;
      sums.clear();
      multiply<Tiles::keys, Stored::along_sum, Stored::across_sum>(sums, shared.grad_scores, half() * half_rows,
                                                                   shared.k, right() * half_columns + part * 8 * N);
#pragma unroll
      for (int i = 0; i < Order::M; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            atomic_add(to + Order::offset(i, part * N + j, r, thread_index()), sums.x[i][j][r]);
          }
        }
      }
    }
  }

  // All queries that see the keys in one frame. grad_v gathers over both sweeps.
  BICO_DEVICE void sweep(Frame frame, Gradient& grad_v) const {
    const Problem& p = w.problem;
    const QueryVisits<Tiles::queries, Tiles::keys> visits = {p, w.extents, shared.place, frame};
    Gradient grad_k;
    grad_k.clear();

    QueryVisit visit = visits.first();
    int stage = 0;
    bool bad_keys = false;
    if (visit.seen != Seen::nothing) {
      copy_keys(frame);
      copy_queries(visit, frame, stage);
      copy_grad_out(visit);
      wait_copies<0>();
      sync_threads();
      bad_keys = sync_threads_or(clear_nonfinite_rows<Tiles::threads>(shared.k, shared.key_flags));
    }
    while (visit.seen != Seen::nothing) {
      const QueryVisit now = visit;
      const bool masked = now.seen != Seen::everything || bad_keys;
      bool bad = bad_keys;
      if (masked) {
        const bool bad_query = clear_nonfinite_rows<Tiles::threads>(shared.queries(stage), shared.query_flags);
        const bool bad_grad = clear_nonfinite_rows<Tiles::threads>(shared.grad_out, shared.grad_flags);
        bad |= sync_threads_or(bad_query || bad_grad);
      }
      Pairs scores, grads;
      scores.clear();
      grads.clear();
      multiply<D, Stored::along_sum, Stored::along_sum>(scores, shared.queries(stage), half() * half_rows, shared.k,
                                                        right() * half_rows);
      multiply<D, Stored::along_sum, Stored::along_sum>(grads, shared.grad_out, half() * half_rows, shared.v,
                                                        right() * half_rows);
      differentiate(scores, grads, now);
      if (masked) hide(scores, grads, now, frame, bad);
      store_sums(shared.weights, scores, half() * half_rows, right() * half_rows);
      store_sums(shared.grad_scores, grads, half() * half_rows, right() * half_rows);
      sync_threads();  // P and dS are there
      visit = visits.from(visit.head, visit.tile + 1);
      if (visit.seen != Seen::nothing) copy_queries(visit, frame, 1 - stage);
      multiply<Tiles::queries, Stored::across_sum, Stored::across_sum>(grad_v, shared.weights, half() * half_rows,
                                                                       shared.grad_out, right() * half_columns);
      if (w.ticket && thread_index() == 0) wait_for_turn(turns(now, frame), visits.turn_before(now.tile, key_tile()));
      sync_threads();  // dO is free, and it is our turn
      if (visit.seen != Seen::nothing) copy_grad_out(visit);
      add_to_grad_q(now, frame);
      multiply<Tiles::queries, Stored::across_sum, Stored::across_sum>(grad_k, shared.grad_scores, half() * half_rows,
                                                                       shared.queries(stage), right() * half_columns);
      stage = 1 - stage;
      wait_copies<0>();
      sync_threads();  // the next Q and dO are there; P, dS, this Q and, at the end, K are free
      if (w.ticket && thread_index() == 0) pass_turn(turns(now, frame), key_tile() + 1);
    }

    const int64_t tiles = (p.length + Tiles::keys - 1) / Tiles::keys;
    float* to =
        (frame == Frame::plus ? w.grad_k_plus : w.grad_k_minus) + (key_head() * tiles + key_tile()) * Tiles::keys * D;
#pragma unroll
    for (int i = 0; i < Order::M; ++i) {
#pragma unroll
      for (int j = 0; j < Order::N; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) to[Order::offset(i, j, r, thread_index())] = grad_k.x[i][j][r];
      }
    }
  }
};

template <typename T, int D>
BICO_KERNEL(BackwardTiles<D>::threads)
void backward_kernel(BICO_ARGUMENT(BackwardWork) w) {
  using Tiles = BackwardTiles<D>;
  using Block = BackwardBlock<T, D>;
  const Backward& p = w.problem;
  const BackwardShared<T, D> shared(shared_memory());

  // Blocks that wait for each other take tickets: a block waits only for tickets before its own, which are running.
  int64_t index = block_index();
  if (w.ticket) {
    if (thread_index() == 0) store_shared(shared.ticket, take_ticket(w.ticket));
    sync_threads();
    index = load_shared(shared.ticket);
  }
  const int64_t tiles = (p.length + Tiles::keys - 1) / Tiles::keys;
  const int key_tile = index % tiles, begin = key_tile * Tiles::keys;
  const int kv_head = index / tiles % p.kv_heads, batch = index / tiles / p.kv_heads;
  const Spans spans = spans_of(p, w.extents, batch);
  if (thread_index() == 0) {
    const int head = kv_head * int(p.query_heads / p.kv_heads);
    store_shared(shared.place, Place{visitor_of(p, spans, begin, Tiles::keys), batch, head, kv_head});
  }
  const Block block = {w, shared};

  for (int row = thread_index(); row < Tiles::keys; row += Tiles::threads) {
    const int n = begin + row;
    store_shared(shared.tokens + row, Token{sequence_of(p, n), n < p.length ? spans.at(n) : -1});
  }
  copy_rows<Tiles::threads>(shared.v, w.v.row<T>(batch, kv_head, begin), w.v.row_stride, int(p.length - begin),
                            int(p.head_dim));
  commit_copies();
  typename Block::Gradient grad_v;
  grad_v.clear();
  sync_threads();
#pragma unroll 1
  for (int i = 0; i < 2; ++i) block.sweep(i == 0 ? Frame::plus : Frame::minus, grad_v);

  wait_copies<0>();
  sync_threads();
  store_sums(shared.v, grad_v, block.half() * Block::half_rows, block.right() * Block::half_columns);
  sync_threads();
  write_rows<Tiles::threads>(shared.v, p.grad_v.row<T>(batch, kv_head, begin), p.grad_v.row_stride,
                             int(p.length - begin), int(p.head_dim), w.grad_v_aligned);
}

template <typename T, int D>
void launch_backward(const BackwardWork& work, Stream stream) {
  using Tiles = BackwardTiles<D>;
  const Backward& p = work.problem;
  const int64_t tiles = (p.length + Tiles::keys - 1) / Tiles::keys;
  launch("backward", backward_kernel<T, D>, tiles * p.kv_heads * p.batch, Tiles::threads, BackwardShared<T, D>::bytes,
         stream, work);
}

}  // namespace bico::cuda
