// Forward on tensor cores: a block takes a tile of queries of one head through the keys it sees, in two sweeps
// (visits.h), with one running softmax. Queries are rotated as they are loaded, once a sweep; keys were rotated before.
//
// K and V have a buffer each: V comes while Q K^T is computed, the next K while P V is.
#pragma once

#include "launch.h"
#include "prepare.cuh"
#include "products.h"

namespace bico::cuda {

template <int D>
struct ForwardTiles {
  static constexpr int warps = 4, threads = 32 * warps;
  static constexpr int warp_queries = D <= 128 ? 32 : 16;  // 32 x 256 sums would not fit the registers
  static constexpr int queries = warps * warp_queries;
  static constexpr int keys = D == 64 ? 128 : 64;
};

struct ForwardWork {
  Forward problem;
  const void *k_plus, *k_minus;  // [B, Hkv, S, columns], rotated
  Heads v;                       // of the problem, or a copy whose rows can be copied by 16 bytes
  const Extent* extents;
  bool q_aligned, out_aligned;
};

template <typename T, int D>
struct ForwardShared {
  using Tiles = ForwardTiles<D>;
  using Queries = SharedTile<T, Tiles::queries, D>;
  using Keys = SharedTile<T, Tiles::keys, D>;
  static constexpr int bytes = Queries::bytes + 2 * Keys::bytes + Tiles::queries * int(sizeof(Token)) + Tiles::keys * 4;
  static_assert(bytes <= shared_limit, "a tile of queries, one of keys and one of values must fit");

  Queries q;
  Keys k, v;
  Token* tokens;   // of the queries
  int32_t* flags;  // of values that are not finite

  BICO_DEVICE explicit ForwardShared(unsigned char* memory)
      : q{reinterpret_cast<T*>(memory)},
        k{reinterpret_cast<T*>(memory + Queries::bytes)},
        v{reinterpret_cast<T*>(memory + Queries::bytes + Keys::bytes)},
        tokens(reinterpret_cast<Token*>(memory + Queries::bytes + 2 * Keys::bytes)),
        flags(reinterpret_cast<int32_t*>(tokens + Tiles::queries)) {}
};

// A tile of keys on the queries' way.
struct KeyVisit {
  Frame frame;
  int tile;
  TileView view;
};

template <int keys>
struct KeyVisits {
  const Host& host;
  const Spans& spans;
  int64_t length;

  BICO_DEVICE Rows rows(int tile) const {
    const int64_t left = length - int64_t(tile) * keys;
    return spans.rows(tile * keys, left < keys ? left : keys);
  }

  BICO_DEVICE TileView seen_by(const Rows& queries, Frame frame, const Rows& guests) const {
    return within_sequences(view(frame, queries, guests, guests.count == keys), host, guests);
  }

  // Step on to the next tile that is not hidden; false at the end.
  BICO_DEVICE bool next(KeyVisit& visit) const {
    for (;;) {
      ++visit.tile;
      const Range range = visit.frame == Frame::plus ? earlier(host, keys) : later(host, keys);
      if (visit.tile >= range.end) {
        if (visit.frame == Frame::minus) return false;
        visit = {Frame::minus, later(host, keys).begin - 1, TileView::hidden};
        continue;
      }
      visit.view = seen_by(host.rows, visit.frame, rows(visit.tile));
      if (visit.view != TileView::hidden) return true;
    }
  }

  BICO_DEVICE KeyVisit before_first() const { return {Frame::plus, earlier(host, keys).begin - 1, TileView::hidden}; }
};

// Rotate queries [begin, ...) into shared memory. `sign` is that of the scale, so that scores times |scale| remain.
template <Frame frame, int threads, typename T, int rows, int columns>
BICO_DEVICE void load_queries(const SharedTile<T, rows, columns>& tile, const Problem& p, bool aligned, int64_t batch,
                              int64_t head, int begin, float sign) {
  constexpr int chunks = columns / vector_elements;
  for (int i = thread_index(); i < rows * chunks; i += threads) {
    const int row = i / chunks, c = i % chunks;
    Vector v = {};
    if (begin + row < p.length) {
      const T* from = p.q.row<T>(batch, head, begin + row);
      const Chunk<float> x = rotated_chunk<frame>(p, from, aligned, batch, begin + row, c * vector_elements);
#pragma unroll
      for (int e = 0; e < vector_elements; e += 2) v.word[e / 2] = pack<T>(sign * x.x[e], sign * x.x[e + 1]);
    }
    store_shared(reinterpret_cast<Vector*>(tile.chunk(row, c)), v);
  }
}

// The running softmax of the rows of a warp's sums: scores become weights relative to the largest score so far.
template <int M>
struct Softmax {
  float top[M][2], total[M][2];  // of the rows g and g + 8; total is of this lane's columns alone until `finish`

  BICO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < M; ++i) {
      top[i][0] = top[i][1] = -INFINITY;
      total[i][0] = total[i][1] = 0;
    }
  }

  // `factor` (> 0) turns scores into exponents of 2.
  template <int N, int C>
  BICO_DEVICE void update(Sums<M, N>& scores, Sums<M, C>& out, float factor) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = top[i][h];
#pragma unroll
        for (int j = 0; j < N; ++j) largest = fmaxf(largest, fmaxf(scores.x[i][j][2 * h], scores.x[i][j][2 * h + 1]));
        largest = fmaxf(largest, shuffle_xor(largest, 1));
        largest = fmaxf(largest, shuffle_xor(largest, 2));
        const float offset = largest == -INFINITY ? 0.0f : largest * factor;  // nothing seen yet: weights are 0
        const float correction = exp2_approximate(top[i][h] * factor - offset);
        top[i][h] = largest;
        float sum = total[i][h] * correction;
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = scores.x[i][j][2 * h + e];
            x = exp2_approximate(x * factor - offset);
            sum += x;
          }
        }
        total[i][h] = sum;
#pragma unroll
        for (int j = 0; j < C; ++j) {
          out.x[i][j][2 * h] *= correction;
          out.x[i][j][2 * h + 1] *= correction;
        }
      }
    }
  }

  // Divide by the totals; 0 for rows that saw nothing.
  template <int C>
  BICO_DEVICE void finish(Sums<M, C>& out) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        total[i][h] += shuffle_xor(total[i][h], 1);
        total[i][h] += shuffle_xor(total[i][h], 2);
        const float inverse = total[i][h] == 0 ? 0.0f : 1 / total[i][h];
#pragma unroll
        for (int j = 0; j < C; ++j) {
          out.x[i][j][2 * h] *= inverse;
          out.x[i][j][2 * h + 1] *= inverse;
        }
      }
    }
  }

  BICO_DEVICE float lse(int i, int h, float factor) const {
    constexpr float log_2 = 0.693147180559945f;
    return total[i][h] == 0 ? -INFINITY : top[i][h] * factor * log_2 + logf(total[i][h]);
  }
};

// Calls `change` with each of a warp's scores or weights, whether its pair is seen, and its key's row in the tile.
template <int M, int N, class Change>
BICO_DEVICE void for_each_pair(Sums<M, N>& sums, Frame frame, const Token* tokens, int first_query, int row_in_tile,
                               int first_key, const Spans& spans, int64_t length, const Change& change) {
#pragma unroll
  for (int i = 0; i < M; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_in_tile + Sums<M, N>::row(i, 2 * h);
      const Token token = load_shared(tokens + row);
#pragma unroll
      for (int j = 0; j < N; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = Sums<M, N>::column(j, e), n = first_key + column;
          const int32_t span = n < length ? spans.at(n) : -1;
          const bool seen = sees(frame, first_query + row, token.span, n, span, token.sequence.holds(n));
          change(sums.x[i][j][2 * h + e], seen, column);
        }
      }
    }
  }
}

template <typename T, int D>
BICO_KERNEL(ForwardTiles<D>::threads)
void forward_kernel(BICO_ARGUMENT(ForwardWork) w) {
  using Tiles = ForwardTiles<D>;
  constexpr int M = Tiles::warp_queries / 16, N = Tiles::keys / 8;
  const Forward& p = w.problem;
  const ForwardShared<T, D> shared(shared_memory());

  // Later tiles first: under causal span ids they are the longest.
  const int64_t tiles = (p.length + Tiles::queries - 1) / Tiles::queries;
  const int begin = int(tiles - 1 - block_index() % tiles) * Tiles::queries;
  const int64_t head = block_index() / tiles % p.query_heads, batch = block_index() / tiles / p.query_heads;
  const int64_t kv_head = head / (p.query_heads / p.kv_heads);
  const int64_t granules = (p.length + granule - 1) / granule;
  const Spans spans = {p.span_ids ? p.span_ids + batch * p.span_batch_stride : nullptr, w.extents + batch * granules};

  const Host host = host_of(p, spans, begin, Tiles::queries);
  const KeyVisits<Tiles::keys> visits = {host, spans, p.length};
  const int in_tile = warp_index() * Tiles::warp_queries;  // this warp's first query
  const int64_t left = p.length - (begin + in_tile);
  const Rows warp_rows = spans.rows(begin + in_tile, left < Tiles::warp_queries ? left : Tiles::warp_queries);

  const float factor = fmaxf(fabsf(float(p.scale)) * 1.44269504f, 1e-30f);  // a scale of 0 must not meet infinity
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
  const T* const k[2] = {static_cast<const T*>(w.k_plus) + (batch * p.kv_heads + kv_head) * p.length * D,
                         static_cast<const T*>(w.k_minus) + (batch * p.kv_heads + kv_head) * p.length * D};
  const T* const v = w.v.row<T>(batch, kv_head, 0);

  const auto load_frame = [&](Frame frame) {
    if (frame == Frame::plus || !p.mirror) {
      load_queries<Frame::plus, Tiles::threads>(shared.q, p, w.q_aligned, batch, head, begin, sign);
    } else {
      load_queries<Frame::minus, Tiles::threads>(shared.q, p, w.q_aligned, batch, head, begin, sign);
    }
  };
  const auto copy_keys = [&](const KeyVisit& visit) {
    const int64_t first = int64_t(visit.tile) * Tiles::keys;
    copy_rows<Tiles::threads>(shared.k, (visit.frame == Frame::plus ? k[0] : k[1]) + first * D, D,
                              int(p.length - first), D);
    commit_copies();
  };
  const auto copy_values = [&](const KeyVisit& visit) {
    const int64_t first = int64_t(visit.tile) * Tiles::keys;
    copy_rows<Tiles::threads>(shared.v, v + first * w.v.row_stride, w.v.row_stride, int(p.length - first),
                              int(p.head_dim));
    commit_copies();
  };

  for (int row = thread_index(); row < Tiles::queries; row += Tiles::threads) {
    const int m = begin + row;
    store_shared(shared.tokens + row, Token{sequence_of(p, m), m < p.length ? spans.at(m) : -1});
  }
  Sums<M, D / 8> out;
  out.clear();
  Softmax<M> softmax;
  softmax.clear();

  KeyVisit visit = visits.before_first();
  bool more = visits.next(visit);
  if (more) {
    copy_keys(visit);
    load_frame(visit.frame);
  }
  while (more) {
    const KeyVisit now = visit;
    const int first_key = now.tile * Tiles::keys;
    const TileView seen =
        warp_rows.count <= 0 ? TileView::hidden : visits.seen_by(warp_rows, now.frame, visits.rows(now.tile));

    wait_copies<0>();
    sync_threads();  // K and Q are there, V is free
    copy_values(now);
    Sums<M, N> scores;
    scores.clear();
    if (seen != TileView::hidden) {
      multiply<D, Stored::along_sum, Stored::along_sum>(scores, shared.q, in_tile, shared.k, 0);
    }

    wait_copies<0>();
    sync_threads();  // V is there, K and Q are free
    const bool bad = now.view == TileView::mixed && clear_nonfinite_rows<Tiles::threads>(shared.v, shared.flags);
    more = visits.next(visit);
    if (more) {
      copy_keys(visit);
      if (visit.frame != now.frame) load_frame(visit.frame);
    }
    if (seen == TileView::hidden) continue;
    const auto each = [&](const auto& change) {
      for_each_pair(scores, now.frame, shared.tokens, begin, in_tile, first_key, spans, p.length, change);
    };
    if (seen == TileView::mixed) {
      each([](float& score, bool visible, int) {
        if (!visible) score = -INFINITY;
      });
    }
    softmax.update(scores, out, factor);
    if (bad) {
      each([&](float& weight, bool visible, int key) {
        if (visible && load_shared(shared.flags + key)) weight = NAN;
      });
    }
    multiply_weights(out, scores, shared.v);
  }

  softmax.finish(out);
  store_sums(shared.q, out, in_tile, 0);  // a warp's own rows, which no other warp reads
  if (lane_index() % 4 == 0) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int m = begin + in_tile + Sums<M, N>::row(i, 2 * h);
        if (m < p.length) *p.lse.row<float>(batch, head, m) = softmax.lse(i, h, factor);
      }
    }
  }
  sync_threads();
  write_rows<Tiles::threads>(shared.q, p.out.row<T>(batch, head, begin), p.out.row_stride, int(p.length - begin),
                             int(p.head_dim), w.out_aligned);
}

template <typename T, int D>
void launch_forward(const ForwardWork& work, Stream stream) {
  using Tiles = ForwardTiles<D>;
  const Forward& p = work.problem;
  const int64_t tiles = (p.length + Tiles::queries - 1) / Tiles::queries;
  launch("forward", forward_kernel<T, D>, tiles * p.query_heads * p.batch, Tiles::threads, ForwardShared<T, D>::bytes,
         stream, work);
}

}  // namespace bico::cuda
