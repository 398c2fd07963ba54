// Backward on tensor cores: a block takes a tile of keys of one kv head through the queries that see them, of every
// query head of the group, in two sweeps (visits.h). With P the weights and dS = P (dO V^T - delta), the sums dV = P^T
// dO and dK = dS^T Q stay in registers; dQ = dS K is added to global memory. Gradients of rotated q and k leave in
// float32, a frame each, for finish.cuh.
#pragma once

#include "launch.h"
#include "products.h"
#include "visits.h"

namespace bico::cuda {

template <int D>
struct BackwardTiles {
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
  static constexpr int bytes =
      tile_bytes + Tiles::keys * int(sizeof(Token)) + (Tiles::keys + 2 * Tiles::queries + 1) * int(sizeof(int32_t));
  static_assert(bytes <= shared_limit, "K, V, two stages of Q, dO, P and dS must fit");

  Keys k, v;
  Queries q[2], grad_out;
  Pairs weights, grad_scores;
  Token* tokens;                                           // of the keys
  int32_t *key_flags, *query_flags, *grad_flags, *ticket;  // flags of rows that are not finite

  BICO_DEVICE explicit BackwardShared(unsigned char* memory)
      : k{reinterpret_cast<T*>(memory)},
        v{reinterpret_cast<T*>(memory + Keys::bytes)},
        q{{reinterpret_cast<T*>(memory + 2 * Keys::bytes)},
          {reinterpret_cast<T*>(memory + 2 * Keys::bytes + Queries::bytes)}},
        grad_out{reinterpret_cast<T*>(memory + 2 * Keys::bytes + 2 * Queries::bytes)},
        weights{reinterpret_cast<T*>(memory + 2 * Keys::bytes + 3 * Queries::bytes)},
        grad_scores{reinterpret_cast<T*>(memory + 2 * Keys::bytes + 3 * Queries::bytes + Pairs::bytes)},
        tokens(reinterpret_cast<Token*>(memory + tile_bytes)),
        key_flags(reinterpret_cast<int32_t*>(tokens + Tiles::keys)),
        query_flags(key_flags + Tiles::keys),
        grad_flags(query_flags + Tiles::queries),
        ticket(grad_flags + Tiles::queries) {}
};

// Rows of tile `tile` of `size`.
BICO_DEVICE Rows tile_rows(const Spans& spans, int64_t length, int tile, int size) {
  const int64_t left = length - int64_t(tile) * size;
  return spans.rows(tile * size, left < size ? left : size);
}

// A tile of queries on the keys' way, of one of the heads of their group.
struct QueryVisit {
  int head, tile;  // head within the group
  TileView view;
};

template <int queries, int keys>
struct QueryVisits {
  const Problem& problem;
  const Host& host;
  const Spans& spans;
  Frame frame;

  BICO_DEVICE Range range() const { return frame == Frame::plus ? later(host, queries) : earlier(host, queries); }

  BICO_DEVICE TileView seen_by(int tile, const Host& keys_host) const {
    const Rows guests = tile_rows(spans, problem.length, tile, queries);
    return within_sequences(view(frame, guests, keys_host.rows, keys_host.rows.count == keys), keys_host, guests);
  }

  BICO_DEVICE bool next(QueryVisit& visit) const {
    const int group = problem.query_heads / problem.kv_heads;
    for (;;) {
      ++visit.tile;
      if (visit.tile >= range().end) {
        if (++visit.head >= group) return false;
        visit.tile = range().begin - 1;
        continue;
      }
      visit.view = seen_by(visit.tile, host);
      if (visit.view != TileView::hidden) return true;
    }
  }

  BICO_DEVICE QueryVisit before_first() const { return {0, range().begin - 1, TileView::hidden}; }

  // 1 + the last tile of keys before `key_tile` that adds to grad_q of a tile of queries; 0 if there is none.
  BICO_DEVICE int turn_before(int query_tile, int key_tile) const {
    for (int tile = key_tile - 1; tile >= 0; --tile) {
      if (seen_by(query_tile, host_of(problem, spans, tile * keys, keys)) != TileView::hidden) return tile + 1;
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
  const Spans& spans;
  const Host& host;
  int64_t batch, kv_head;
  int key_tile;

  BICO_DEVICE int half() const { return warp_index() % 2; }
  BICO_DEVICE int right() const { return warp_index() / 2; }
  BICO_DEVICE int64_t head(const QueryVisit& visit) const {
    return batch * w.problem.query_heads + kv_head * (w.problem.query_heads / w.problem.kv_heads) + visit.head;
  }

  BICO_DEVICE void copy_queries(const QueryVisit& visit, const void* q, int stage) const {
    const int64_t length = w.problem.length, first = int64_t(visit.tile) * Tiles::queries;
    const T* from = static_cast<const T*>(q) + (head(visit) * length + first) * D;
    copy_rows<Tiles::threads>(shared.q[stage], from, D, int(length - first), D);
    commit_copies();
  }

  BICO_DEVICE void copy_grad_out(const QueryVisit& visit) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(visit.tile) * Tiles::queries;
    const T* from = w.grad_out.row<T>(batch, head(visit) - batch * p.query_heads, first);
    copy_rows<Tiles::threads>(shared.grad_out, from, w.grad_out.row_stride, int(p.length - first), int(p.head_dim));
    commit_copies();
  }

  // Scores and dO V^T become weights and gradients of scores.
  template <bool masked>
  BICO_DEVICE void differentiate(Pairs& scores, Pairs& grads, const QueryVisit& visit, Frame frame) const {
    const Problem& p = w.problem;
    constexpr float log2_e = 1.44269504f;
    const float factor = float(p.scale) * log2_e;
    const int first_query = visit.tile * Tiles::queries, first_key = key_tile * Tiles::keys;
    const float* lse = w.problem.lse.row<float>(0, 0, 0) + head(visit) * p.length;
    const float* delta = w.delta + head(visit) * p.length;
#pragma unroll
    for (int i = 0; i < half_rows / 16; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = half() * half_rows + Pairs::row(i, 2 * h), m = first_query + row;
        // Of queries beyond the end all weights are 0.
        const float row_lse = m < p.length ? lse[m] * log2_e : INFINITY, row_delta = m < p.length ? delta[m] : 0.0f;
        const int32_t span = masked && m < p.length ? spans.at(m) : -1;
        const bool bad_row = masked && (load_shared(shared.query_flags + row) || load_shared(shared.grad_flags + row));
#pragma unroll
        for (int j = 0; j < half_rows / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& score = scores.x[i][j][2 * h + e];
            float& grad = grads.x[i][j][2 * h + e];
            float weight = exp2_approximate(score * factor - row_lse);
            grad = weight * (grad - row_delta);
            if constexpr (masked) {
              const int column = right() * half_rows + Pairs::column(j, e);
              const Token key = load_shared(shared.tokens + column);
              if (!sees(frame, m, span, first_key + column, key.span, key.sequence.holds(m))) {
                weight = grad = 0;
              } else if (bad_row || load_shared(shared.key_flags + column)) {
                weight = grad = NAN;
              }
            }
            score = weight;
          }
        }
      }
    }
  }

  BICO_DEVICE void add_to_grad_q(const Gradient& sums, const QueryVisit& visit, Frame frame, int turn) const {
    const int64_t length = w.problem.length, tiles = (length + Tiles::queries - 1) / Tiles::queries;
    const int64_t tile = head(visit) * tiles + visit.tile;
    float* to = (frame == Frame::plus ? w.grad_q_plus : w.grad_q_minus) + tile * Tiles::queries * D;
    int32_t* at_turn = w.turns + (frame == Frame::plus ? 0 : w.problem.batch * w.problem.query_heads * tiles) + tile;
    if (w.ticket) {
      if (thread_index() == 0) wait_for_turn(at_turn, turn);
      sync_threads();
    }
#pragma unroll
    for (int i = 0; i < Order::M; ++i) {
#pragma unroll
      for (int j = 0; j < Order::N; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) atomic_add(to + Order::offset(i, j, r, thread_index()), sums.x[i][j][r]);
      }
    }
    if (w.ticket) {
      sync_threads();
      if (thread_index() == 0) pass_turn(at_turn, key_tile + 1);
    }
  }

  // All queries that see the keys in one frame. grad_v gathers over both sweeps.
  BICO_DEVICE void sweep(Frame frame, Gradient& grad_v) const {
    const Problem& p = w.problem;
    const QueryVisits<Tiles::queries, Tiles::keys> visits = {p, host, spans, frame};
    const void* q = frame == Frame::plus ? w.q_plus : w.q_minus;
    const int64_t first_key = int64_t(key_tile) * Tiles::keys, key_head = batch * p.kv_heads + kv_head;
    const T* k = static_cast<const T*>(frame == Frame::plus ? w.k_plus : w.k_minus);
    Gradient grad_k;
    grad_k.clear();

    QueryVisit visit = visits.before_first();
    bool more = visits.next(visit);
    int stage = 0;
    bool bad_keys = false;
    if (more) {
      copy_rows<Tiles::threads>(shared.k, k + (key_head * p.length + first_key) * D, D, int(p.length - first_key), D);
      copy_queries(visit, q, stage);
      copy_grad_out(visit);
      wait_copies<0>();
      sync_threads();
      bad_keys = clear_nonfinite_rows<Tiles::threads>(shared.k, shared.key_flags);
    }
    while (more) {
      const QueryVisit now = visit;
      const bool masked = now.view == TileView::mixed || bad_keys;
      if (masked) {
        clear_nonfinite_rows<Tiles::threads>(shared.q[stage], shared.query_flags);
        clear_nonfinite_rows<Tiles::threads>(shared.grad_out, shared.grad_flags);
      }
      more = visits.next(visit);
      if (more) copy_queries(visit, q, 1 - stage);

      Pairs scores, grads;
      scores.clear();
      grads.clear();
      multiply<D, Stored::along_sum, Stored::along_sum>(scores, shared.q[stage], half() * half_rows, shared.k,
                                                        right() * half_rows);
      multiply<D, Stored::along_sum, Stored::along_sum>(grads, shared.grad_out, half() * half_rows, shared.v,
                                                        right() * half_rows);
      if (masked) {
        differentiate<true>(scores, grads, now, frame);
      } else {
        differentiate<false>(scores, grads, now, frame);
      }
      store_sums(shared.weights, scores, half() * half_rows, right() * half_rows);
      store_sums(shared.grad_scores, grads, half() * half_rows, right() * half_rows);
      sync_threads();  // P and dS are there

      multiply<Tiles::queries, Stored::across_sum, Stored::across_sum>(grad_v, shared.weights, half() * half_rows,
                                                                       shared.grad_out, right() * half_columns);
      sync_threads();  // dO is free
      if (more) copy_grad_out(visit);
      {
        Gradient grad_q;
        grad_q.clear();
        multiply<Tiles::keys, Stored::along_sum, Stored::across_sum>(grad_q, shared.grad_scores, half() * half_rows,
                                                                     shared.k, right() * half_columns);
        add_to_grad_q(grad_q, now, frame, w.ticket ? visits.turn_before(now.tile, key_tile) : 0);
      }
      multiply<Tiles::queries, Stored::across_sum, Stored::across_sum>(grad_k, shared.grad_scores, half() * half_rows,
                                                                       shared.q[stage], right() * half_columns);
      stage = 1 - stage;
      wait_copies<0>();
      sync_threads();  // the next Q and dO are there; P, dS, this Q and, at the end, K are free
    }

    const int64_t tiles = (p.length + Tiles::keys - 1) / Tiles::keys;
    float* to =
        (frame == Frame::plus ? w.grad_k_plus : w.grad_k_minus) + (key_head * tiles + key_tile) * Tiles::keys * D;
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
  const int64_t tiles = (p.length + Tiles::keys - 1) / Tiles::keys, granules = (p.length + granule - 1) / granule;
  const int key_tile = index % tiles, begin = key_tile * Tiles::keys;
  const int64_t kv_head = index / tiles % p.kv_heads, batch = index / tiles / p.kv_heads;
  const Spans spans = {p.span_ids ? p.span_ids + batch * p.span_batch_stride : nullptr, w.extents + batch * granules};
  const Host host = host_of(p, spans, begin, Tiles::keys);
  const Block block = {w, shared, spans, host, batch, kv_head, key_tile};

  for (int row = thread_index(); row < Tiles::keys; row += Tiles::threads) {
    const int n = begin + row;
    store_shared(shared.tokens + row, Token{sequence_of(p, n), n < p.length ? spans.at(n) : -1});
  }
  copy_rows<Tiles::threads>(shared.v, w.v.row<T>(batch, kv_head, begin), w.v.row_stride, int(p.length - begin),
                            int(p.head_dim));
  commit_copies();
  typename Block::Gradient grad_v;
  grad_v.clear();
  block.sweep(Frame::plus, grad_v);
  block.sweep(Frame::minus, grad_v);

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
