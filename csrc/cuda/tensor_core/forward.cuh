// Forward on tensor cores: a block takes a tile of queries of one head through the keys it sees, in two sweeps
// (tile_schedule.h), with one running softmax. Queries are rotated as they are loaded, once a sweep; keys were rotated
// before.
//
// K and V have a buffer each: V comes while Q K^T is computed, the next K while P V is.
#pragma once

#include "../device/launch.h"
#include "../preprocess.cuh"
#include "products.h"

namespace bico::cuda {

template <int D>
struct ForwardTiles {
  static constexpr int warps = 4, threads = 32 * warps;
  static constexpr int warp_queries = D <= 128 ? 32 : 16;  // 32 x 256 sums would not fit the registers
  static constexpr int queries = warps * warp_queries;
  static constexpr int keys = D >= 128 ? 32 : 64;  // 64 spilled beside the sums of 128 or more columns
};

struct ForwardWork {
  Forward problem;
  const void *k_plus, *k_minus;  // [B, Hkv, S, columns], rotated
  Heads v;                       // of the problem, or a copy whose rows can be copied by 16 bytes
  const Extent* extents;
  bool q_aligned, out_aligned;
};

// A tile of keys on the queries' way; nothing is seen of it at the end of the way.
struct KeyVisit {
  Frame frame;
  int tile;
  Seen seen;
};

template <typename T, int D>
struct ForwardShared {
  using Tiles = ForwardTiles<D>;
  using Queries = SharedTile<T, Tiles::queries, D>;
  using Keys = SharedTile<T, Tiles::keys, D>;
  static constexpr int bytes = Queries::bytes + 2 * Keys::bytes + Tiles::queries * int(sizeof(Token)) +
                               Tiles::keys * int(sizeof(int32_t)) + int(sizeof(Place)) +
                               Tiles::warps * int(sizeof(TileRows)) + 2 * int(sizeof(KeyVisit));
  static_assert(bytes <= shared_limit, "a tile of queries, one of keys and one of values must fit");

  Queries q;
  Keys k, v;
  Token* tokens;   // of the queries
  int32_t* flags;  // of values that are not finite
  Place* place;
  TileRows* warp_rows;
  KeyVisit* visits;  // this one and the next, in turns

  BICO_DEVICE explicit ForwardShared(unsigned char* memory)
      : q{reinterpret_cast<T*>(memory)},
        k{reinterpret_cast<T*>(memory + Queries::bytes)},
        v{reinterpret_cast<T*>(memory + Queries::bytes + Keys::bytes)},
        tokens(reinterpret_cast<Token*>(memory + Queries::bytes + 2 * Keys::bytes)),
        flags(reinterpret_cast<int32_t*>(tokens + Tiles::queries)),
        place(reinterpret_cast<Place*>(flags + Tiles::keys)),
        warp_rows(reinterpret_cast<TileRows*>(place + 1)),
        visits(reinterpret_cast<KeyVisit*>(warp_rows + Tiles::warps)) {}
};

template <int keys>
struct KeyVisits {
  const Problem& problem;
  const Extent* extents;
  const Place* place;

  BICO_DEVICE Visitor visitor() const { return load_shared(&place->visitor); }
  // Anew at each use, rather than kept in registers.
  BICO_DEVICE Spans spans() const { return spans_of(problem, extents, load_shared(&place->batch)); }

  BICO_DEVICE Seen seen_by(const TileRows& queries, Frame frame, int tile) const {
    const TileRows guests = tile_rows(spans(), problem.length, tile, keys);
    return within_sequences(seen_in(frame, queries, guests, guests.count == keys), visitor(), guests);
  }

  // The first tile from `tile` on, in this frame or the next, of which something is seen. All lanes of a warp call.
  BICO_DEVICE KeyVisit from(Frame frame, int tile) const {
    const Visitor queries = visitor();
    const auto see = [&](int t) { return seen_by(queries.rows, frame, t); };
    if (frame == Frame::plus) {
      const Sight sight = first_seen(tile, earlier(queries, keys).end, see);
      if (sight.seen != Seen::nothing) return {frame, sight.tile, sight.seen};
      frame = Frame::minus;
      tile = later(queries, keys).begin;
    }
    const Sight sight = first_seen(tile, later(queries, keys).end, see);
    return {frame, sight.tile, sight.seen};
  }

  BICO_DEVICE KeyVisit first() const { return from(Frame::plus, earlier(visitor(), keys).begin); }
};

// Rotate queries [begin, ...) into shared memory, with the sign of the scale, so that scores times |scale| remain.
template <int threads, typename T, int rows, int columns>
BICO_DEVICE void load_queries(Frame frame, const SharedTile<T, rows, columns>& tile, const Problem& p, bool aligned,
                              int64_t batch, int64_t head, int begin) {
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
  constexpr int chunks = columns / vector_elements;
#pragma unroll 1  // once a sweep; registers matter more
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
        const float base = largest == -INFINITY ? 0.0f : largest;  // nothing seen yet: weights are 0
        const float offset = base * factor;
        // The difference first: of top * factor - offset, fused, the rounding of offset would remain, and grow with
        // every tile.
        const float correction = exp2_approximate((top[i][h] - base) * factor);
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

  // Divide by the totals; 0 for rows that saw nothing, NaN for those whose bit is set in any of the row's lanes.
  template <int C>
  BICO_DEVICE void finish(Sums<M, C>& out, uint32_t poisoned) {
    poisoned |= shuffle_xor(poisoned, 1);
    poisoned |= shuffle_xor(poisoned, 2);
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        total[i][h] += shuffle_xor(total[i][h], 1);
        total[i][h] += shuffle_xor(total[i][h], 2);
        const float inverse = poisoned >> (2 * i + h) & 1 ? NAN : total[i][h] == 0 ? 0.0f : 1 / total[i][h];
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

template <typename T, int D>
struct ForwardBlock {
  using Tiles = ForwardTiles<D>;
  static constexpr int M = Tiles::warp_queries / 16, N = Tiles::keys / 8;

  const ForwardWork& w;
  const ForwardShared<T, D>& shared;
  const KeyVisits<Tiles::keys>& visits;

  BICO_DEVICE Place place() const { return load_shared(shared.place); }
  BICO_DEVICE int begin() const { return load_shared(&shared.place->visitor.rows.begin); }

  BICO_DEVICE void copy_keys(const KeyVisit& visit) const {
    const Problem& p = w.problem;
    const int64_t first = int64_t(visit.tile) * Tiles::keys, head = place().batch * p.kv_heads + place().kv_head;
    const T* k = static_cast<const T*>(visit.frame == Frame::plus ? w.k_plus : w.k_minus);
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

  // Rows within the tiles.
  BICO_DEVICE int32_t key_span(const KeyVisit& visit, int key) const {
    const int n = visit.tile * Tiles::keys + key;
    return n < w.problem.length ? visits.spans().at(n) : -1;
  }

  BICO_DEVICE bool is_seen(const KeyVisit& visit, int query, int key) const {
    const Token token = load_shared(shared.tokens + query);
    const int n = visit.tile * Tiles::keys + key;
    return sees(visit.frame, begin() + query, token.span, n, key_span(visit, key), token.sequence.holds(n));
  }

  // Hidden scores become -inf.
  BICO_DEVICE void hide(Sums<M, N>& scores, const KeyVisit& visit, Seen seen, int in_tile) const {
    Bits<M, N> hidden;
    if (seen == Seen::by_key) {
      hidden.fill_columns([&](int key) { return key_span(visit, key) != 0; });
    } else {
      hidden.fill_pairs([&](int query, int key) { return !is_seen(visit, in_tile + query, key); });
    }
    set_where(scores, hidden, -INFINITY);
  }

  // Bit 2 i + h: this lane's columns of rows (i, h) of the sums hold a visible value that is flagged.
  BICO_DEVICE uint32_t poisoned(const KeyVisit& visit, int in_tile) const {
    const unsigned lane = lane_index();
    uint32_t rows = 0;
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const int query = in_tile + Sums<M, N>::row(i / 2, i % 2 * 2, lane);
      const auto bad = [&](int key) { return load_shared(shared.flags + key) && is_seen(visit, query, key); };
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
  const ForwardShared<T, D> shared(shared_memory());
  const KeyVisits<Tiles::keys> visits = {p, w.extents, shared.place};
  const Block block = {w, shared, visits};

  {
    // Later tiles first: under causal span ids they are the longest.
    const int64_t tiles = (p.length + Tiles::queries - 1) / Tiles::queries;
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
      store_shared(shared.place, Place{visitor_of(p, spans, begin, Tiles::queries), batch, head, kv_head});
    }
    sync_threads();
    if (warp_index() == 0) {
      const KeyVisit visit = visits.first();
      if (thread_index() == 0) store_shared(shared.visits, visit);
    }
    sync_threads();
  }

  const int in_tile = warp_index() * Tiles::warp_queries;              // this warp's first query
  const float factor = fmaxf(fabsf(float(p.scale)) * log2_e, 1e-30f);  // a scale of 0 must not meet infinity
  Sums<M, D / 8> out;
  out.clear();
  Softmax<M> softmax;
  softmax.clear();
  uint32_t poisoned = 0;

  KeyVisit visit = load_shared(shared.visits);
  if (visit.seen != Seen::nothing) block.copy_keys(visit);
  bool loaded = false;
  for (int step = 0; visit.seen != Seen::nothing; step = 1 - step) {
    if (!loaded) {
      const Frame frame = p.mirror ? visit.frame : Frame::plus;
      load_queries<Tiles::threads>(frame, shared.q, p, w.q_aligned, block.place().batch, block.place().head,
                                   block.begin());
    }
    const TileRows warp_rows = load_shared(shared.warp_rows + warp_index());
    const Seen seen = warp_rows.count <= 0 ? Seen::nothing : visits.seen_by(warp_rows, visit.frame, visit.tile);

    wait_copies<0>();
    sync_threads();  // K and Q are there, V is free
    block.copy_values(visit);
    if (warp_index() == 0) {
      const KeyVisit next = visits.from(visit.frame, visit.tile + 1);
      if (thread_index() == 0) store_shared(shared.visits + 1 - step, next);
    }
    Sums<M, N> scores;
    scores.clear();
    if (seen != Seen::nothing) {
      multiply<D, Stored::along_sum, Stored::along_sum>(scores, shared.q, in_tile, shared.k, 0);
    }

    wait_copies<0>();
    sync_threads();  // V is there, K and Q are free
    visit = load_shared(shared.visits + step);
    const bool bad =
        visit.seen != Seen::everything && sync_threads_or(clear_nonfinite_rows<Tiles::threads>(shared.v, shared.flags));
    const KeyVisit next = load_shared(shared.visits + 1 - step);
    if (next.seen != Seen::nothing) block.copy_keys(next);
    loaded = next.frame == visit.frame;
    if (seen != Seen::nothing) {
      if (seen != Seen::everything) block.hide(scores, visit, seen, in_tile);
      if (bad) poisoned |= block.poisoned(visit, in_tile);
      softmax.update(scores, out, factor);
      multiply_weights(out, scores, shared.v);
    }
    visit = load_shared(shared.visits + 1 - step);
  }

  softmax.finish(out, poisoned);
  store_sums(shared.q, out, in_tile, 0);  // a warp's own rows, which no other warp reads
  const unsigned lane = lane_index();
  const Place place = block.place();
  const int begin = place.visitor.rows.begin;
  if (lane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int m = begin + in_tile + Sums<M, N>::row(i, 2 * h, lane);
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
  const Forward& p = work.problem;
  const int64_t tiles = (p.length + Tiles::queries - 1) / Tiles::queries;
  launch("forward", forward_kernel<T, D>, tiles * p.query_heads * p.batch, Tiles::threads, ForwardShared<T, D>::bytes,
         stream, work);
}

}  // namespace bico::cuda
