// The op in float32 and float64 without tensor cores: a warp a row, plain sums, no tiles, no atomics. Simple rather
// than quick; it serves gradcheck and small float32 models.
//
// The warp takes 32 partners of its row at a time: each lane scores one, then all lanes gather their share of the
// head's elements from each partner in turn. Hidden partners are left out, so that a NaN in them does no harm.
#pragma once

#include "../device/launch.h"
#include "../preprocess.cuh"

namespace bico::cuda {

constexpr int exact_threads = 128, exact_warps = exact_threads / 32;

struct ExactWork {
  Backward problem;                                               // forward: only what Forward has
  const void *q_plus, *q_minus, *k_plus, *k_minus;                // [B, H, S, columns], rotated
  const void* delta;                                              // [B, Hq, S]
  void *grad_q_plus, *grad_q_minus, *grad_k_plus, *grad_k_minus;  // [B, H, S, columns]
  int64_t columns;
};

// Gradients of the frames lie as rows.
struct RowOrder {
  int64_t columns;

  BICO_DEVICE int64_t head(int64_t index, int64_t length) const { return index * length * columns; }
  BICO_DEVICE int64_t element(int64_t position, int d) const { return position * columns + d; }
};

template <typename T>
BICO_DEVICE T warp_sum(T x) {
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

template <typename T>
BICO_DEVICE T warp_largest(T x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const T other = shuffle_xor(x, mask);
    if (other > x) x = other;
  }
  return x;
}

template <typename T>
BICO_DEVICE T dot(const T* a, const T* b, int64_t count) {
  T sum = 0;
  for (int64_t d = 0; d < count; ++d) sum += a[d] * b[d];
  return sum;
}

// A lane's share of a row: elements lane, lane + 32, ...
template <typename T>
struct Share {
  static constexpr int parts = 8;  // D is at most 256
  T x[parts];

  BICO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < parts; ++i) x[i] = 0;
  }

  BICO_DEVICE void scale(T factor) {
#pragma unroll
    for (int i = 0; i < parts; ++i) x[i] *= factor;
  }

  BICO_DEVICE void add(T weight, const T* row, int64_t count) {
#pragma unroll
    for (int i = 0; i < parts; ++i) {
      const int d = thread_index() % 32 + 32 * i;
      if (d < count) x[i] += weight * row[d];
    }
  }

  BICO_DEVICE void store(T* row, int64_t count) const {
#pragma unroll
    for (int i = 0; i < parts; ++i) {
      const int d = thread_index() % 32 + 32 * i;
      if (d < count) row[d] = x[i];
    }
  }
};

// The row of a warp.
struct ExactRow {
  int64_t batch, head, position;
  bool exists;

  BICO_DEVICE ExactRow(const Problem& p, int64_t heads) {
    const int64_t i = block_index() * exact_warps + thread_index() / 32;
    position = i % p.length;
    head = i / p.length % heads;
    batch = i / p.length / heads;
    exists = batch < p.batch;
  }
};

// Rows of q and k in both frames.
template <typename T>
struct ExactFrames {
  const T *plus, *minus;
  int64_t columns;

  // Of the pair of query m and key n.
  BICO_DEVICE const T* row(int64_t m, int64_t n, int64_t position) const {
    return (n <= m ? plus : minus) + position * columns;
  }
};

template <typename T>
BICO_DEVICE ExactFrames<T> exact_frames(const void* plus, const void* minus, int64_t columns, int64_t head,
                                        int64_t length) {
  const int64_t start = head * length * columns;
  return {static_cast<const T*>(plus) + start, static_cast<const T*>(minus) + start, columns};
}

BICO_DEVICE int32_t exact_span(const Problem& p, int64_t batch, int64_t position) {
  return p.span_ids ? p.span_ids[batch * p.span_batch_stride + position] : 0;
}

template <typename T>
BICO_KERNEL(exact_threads)
void exact_forward(BICO_ARGUMENT(ExactWork) w) {
  const Backward& p = w.problem;
  const ExactRow row(p, p.query_heads);
  if (!row.exists) return;
  const int64_t m = row.position, kv_head = row.head / (p.query_heads / p.kv_heads);
  const auto q = exact_frames<T>(w.q_plus, w.q_minus, w.columns, row.batch * p.query_heads + row.head, p.length);
  const auto k = exact_frames<T>(w.k_plus, w.k_minus, w.columns, row.batch * p.kv_heads + kv_head, p.length);
  const int32_t span = exact_span(p, row.batch, m);
  const Sequence sequence = sequence_of(p, m);

  Share<T> out;
  out.clear();
  T top = -INFINITY, total = 0;
  for (int64_t first = sequence.begin; first < sequence.end; first += 32) {
    const int64_t n = first + thread_index() % 32;
    const bool seen = n < sequence.end && visible(span, exact_span(p, row.batch, n), m, n);
    const uint32_t all_seen = ballot(seen);
    if (!all_seen) continue;
    const T score = seen ? dot(q.row(m, n, m), k.row(m, n, n), p.head_dim) * T(p.scale) : -INFINITY;
    const T largest = warp_largest(score), new_top = largest > top ? largest : top;
    const T offset = new_top == -INFINITY ? T(0) : new_top;
    const T correction = exp(top - offset), weight = seen ? exp(score - offset) : T(0);
    top = new_top;
    total = total * correction + warp_sum(weight);
    out.scale(correction);
    for (int lane = 0; lane < 32; ++lane) {
      if (!(all_seen >> lane & 1)) continue;
      out.add(shuffle(weight, lane), p.v.row<T>(row.batch, kv_head, first + lane), p.head_dim);
    }
  }
  out.scale(total == 0 ? T(0) : 1 / total);
  out.store(p.out.row<T>(row.batch, row.head, m), p.head_dim);
  if (thread_index() % 32 == 0) *p.lse.row<T>(row.batch, row.head, m) = total == 0 ? T(-INFINITY) : top + log(total);
}

// The weight of a visible pair and the gradient of its score.
template <typename T>
struct ExactPair {
  T weight, grad;
};

template <typename T>
BICO_DEVICE ExactPair<T> exact_pair(const ExactWork& w, int64_t batch, int64_t head, int64_t kv_head, const T* q,
                                    const T* k, int64_t m, int64_t n) {
  const Backward& p = w.problem;
  const int64_t at = (batch * p.query_heads + head) * p.length + m;
  const T weight = exp(dot(q, k, p.head_dim) * T(p.scale) - *p.lse.row<T>(batch, head, m));
  const T along = dot(p.grad_out.row<T>(batch, head, m), p.v.row<T>(batch, kv_head, n), p.head_dim);
  return {weight, weight * (along - static_cast<const T*>(w.delta)[at])};
}

// Gradients of a row of rotated q, a frame each.
template <typename T>
BICO_KERNEL(exact_threads)
void exact_backward_queries(BICO_ARGUMENT(ExactWork) w) {
  const Backward& p = w.problem;
  const ExactRow row(p, p.query_heads);
  if (!row.exists) return;
  const int64_t m = row.position, kv_head = row.head / (p.query_heads / p.kv_heads);
  const int64_t q_head = row.batch * p.query_heads + row.head;
  const auto q = exact_frames<T>(w.q_plus, w.q_minus, w.columns, q_head, p.length);
  const auto k = exact_frames<T>(w.k_plus, w.k_minus, w.columns, row.batch * p.kv_heads + kv_head, p.length);
  const int32_t span = exact_span(p, row.batch, m);
  const Sequence sequence = sequence_of(p, m);

  Share<T> plus, minus;
  plus.clear();
  minus.clear();
  for (int64_t first = sequence.begin; first < sequence.end; first += 32) {
    const int64_t n = first + thread_index() % 32;
    const bool seen = n < sequence.end && visible(span, exact_span(p, row.batch, n), m, n);
    const uint32_t all_seen = ballot(seen);
    if (!all_seen) continue;
    const T grad = seen ? exact_pair(w, row.batch, row.head, kv_head, q.row(m, n, m), k.row(m, n, n), m, n).grad : T(0);
    for (int lane = 0; lane < 32; ++lane) {
      if (!(all_seen >> lane & 1)) continue;
      const int64_t key = first + lane;
      const T of_key = shuffle(grad, lane);
      if (key <= m) {
        plus.add(of_key, k.row(m, key, key), p.head_dim);
      } else {
        minus.add(of_key, k.row(m, key, key), p.head_dim);
      }
    }
  }
  const int64_t to = (q_head * p.length + m) * w.columns;
  plus.store(static_cast<T*>(w.grad_q_plus) + to, p.head_dim);
  minus.store(static_cast<T*>(w.grad_q_minus) + to, p.head_dim);
}

// Gradients of a row of v, and of rotated k, a frame each, over all query heads of the group.
template <typename T>
BICO_KERNEL(exact_threads)
void exact_backward_keys(BICO_ARGUMENT(ExactWork) w) {
  const Backward& p = w.problem;
  const ExactRow row(p, p.kv_heads);
  if (!row.exists) return;
  const int64_t n = row.position, group = p.query_heads / p.kv_heads;
  const int64_t k_head = row.batch * p.kv_heads + row.head;
  const auto k = exact_frames<T>(w.k_plus, w.k_minus, w.columns, k_head, p.length);
  const int32_t span = exact_span(p, row.batch, n);
  const Sequence sequence = sequence_of(p, n);

  Share<T> plus, minus, grad_v;
  plus.clear();
  minus.clear();
  grad_v.clear();
  for (int64_t head = row.head * group; head < (row.head + 1) * group; ++head) {
    const auto q = exact_frames<T>(w.q_plus, w.q_minus, w.columns, row.batch * p.query_heads + head, p.length);
    for (int64_t first = sequence.begin; first < sequence.end; first += 32) {
      const int64_t m = first + thread_index() % 32;
      const bool seen = m < sequence.end && visible(exact_span(p, row.batch, m), span, m, n);
      const uint32_t all_seen = ballot(seen);
      if (!all_seen) continue;
      ExactPair<T> pair = {0, 0};
      if (seen) pair = exact_pair(w, row.batch, head, row.head, q.row(m, n, m), k.row(m, n, n), m, n);
      for (int lane = 0; lane < 32; ++lane) {
        if (!(all_seen >> lane & 1)) continue;
        const int64_t query = first + lane;
        grad_v.add(shuffle(pair.weight, lane), p.grad_out.row<T>(row.batch, head, query), p.head_dim);
        const T of_query = shuffle(pair.grad, lane);
        if (n <= query) {
          plus.add(of_query, q.row(query, n, query), p.head_dim);
        } else {
          minus.add(of_query, q.row(query, n, query), p.head_dim);
        }
      }
    }
  }
  const int64_t to = (k_head * p.length + n) * w.columns;
  plus.store(static_cast<T*>(w.grad_k_plus) + to, p.head_dim);
  minus.store(static_cast<T*>(w.grad_k_minus) + to, p.head_dim);
  grad_v.store(p.grad_v.row<T>(row.batch, row.head, n), p.head_dim);
}

}  // namespace bico::cuda
