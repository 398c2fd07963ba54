// The op in float32 and float64 on ordinary cores (SIMT): one warp computes one row, with no tensor cores, no tiles and
// no atomics. Simple rather than quick; it serves gradcheck and small float32 models.
//
// The warp takes 32 partners of its row at a time. Each lane scores one of them; then all lanes add their share of the
// head's elements, partner by partner. Hidden partners are left out, so that a NaN in them does no harm.
#pragma once

#include "../device/launch.h"
#include "../preprocess.cuh"

namespace bico::cuda {

constexpr int simt_threads = 128, simt_warps = simt_threads / 32;

struct SimtWork {
  Backward problem;                // forward: only what Forward has
  PerFrame<const void*> q, k;      // [B, H, S, columns], rotated
  const void* delta;               // [B, Hq, S]
  PerFrame<void*> grad_q, grad_k;  // [B, H, S, columns]
  int64_t columns;
};

// The gradients of each frame lie as rows.
struct RowOrder {
  static constexpr bool patches_are_vectors = false;
  int64_t columns;

  BICO_DEVICE int64_t row_step() const { return 8 * columns; }
  BICO_DEVICE int64_t column_step() const { return 1; }
  BICO_DEVICE int64_t head(int64_t index, int64_t length) const { return index * length * columns; }
  BICO_DEVICE int64_t element(int64_t position, int d) const { return position * columns + d; }
};

template <typename T>
BICO_DEVICE T warp_max(T x) {
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
struct SimtRow {
  int64_t batch, head, position;
  bool exists;

  BICO_DEVICE SimtRow(const Problem& p, int64_t heads) {
    const int64_t i = block_index() * simt_warps + thread_index() / 32;
    position = i % p.length;
    head = i / p.length % heads;
    batch = i / p.length / heads;
    exists = batch < p.batch;
  }
};

// The rows of one head of q or k in both frames.
template <typename T>
struct SimtHead {
  PerFrame<const T*> frames;
  int64_t columns;

  BICO_DEVICE const T* row(Frame frame, int64_t position) const { return frames[frame] + position * columns; }
};

template <typename T>
BICO_DEVICE SimtHead<T> simt_head(const PerFrame<const void*>& frames, int64_t columns, int64_t head, int64_t length) {
  const int64_t start = head * length * columns;
  return {{static_cast<const T*>(frames.plus) + start, static_cast<const T*>(frames.minus) + start}, columns};
}

BICO_DEVICE int32_t span_at(const Problem& p, int64_t batch, int64_t position) {
  return p.span_ids ? p.spans(batch)[position] : 0;
}

template <typename T>
BICO_KERNEL(simt_threads)
void simt_forward(BICO_ARGUMENT(SimtWork) w) {
  const Backward& p = w.problem;
  const SimtRow row(p, p.query_heads);
  if (!row.exists) return;
  const int64_t m = row.position, kv_head = row.head / (p.query_heads / p.kv_heads);
  const auto q = simt_head<T>(w.q, w.columns, row.batch * p.query_heads + row.head, p.length);
  const auto k = simt_head<T>(w.k, w.columns, row.batch * p.kv_heads + kv_head, p.length);
  const int32_t span = span_at(p, row.batch, m);
  const Reach reach = reach_of(p, m);

  Share<T> out;
  out.clear();
  T row_max = -INFINITY, row_sum = 0;
  for (int64_t first = reach.begin; first < reach.end; first += 32) {
    const int64_t n = first + thread_index() % 32;
    const bool seen = n < reach.end && visible(span, span_at(p, row.batch, n), m, n);
    const uint32_t all_seen = ballot(seen);
    if (!all_seen) continue;
    const Frame frame = frame_of(m, n);
    const T score = seen ? dot(q.row(frame, m), k.row(frame, n), p.head_dim) * T(p.scale) : -INFINITY;
    const T largest = warp_max(score), new_max = largest > row_max ? largest : row_max;
    const T offset = new_max == -INFINITY ? T(0) : new_max;
    const T correction = exp(row_max - offset), weight = seen ? exp(score - offset) : T(0);
    row_max = new_max;
    row_sum = row_sum * correction + warp_sum(weight);
    out.scale(correction);
    for (int lane = 0; lane < 32; ++lane) {
      if (!(all_seen >> lane & 1)) continue;
      out.add(shuffle(weight, lane), p.v.row<T>(row.batch, kv_head, first + lane), p.head_dim);
    }
  }
  out.scale(row_sum == 0 ? T(0) : 1 / row_sum);
  out.store(p.out.row<T>(row.batch, row.head, m), p.head_dim);
  if (thread_index() % 32 == 0)
    *p.lse.row<T>(row.batch, row.head, m) = row_sum == 0 ? T(-INFINITY) : row_max + log(row_sum);
}

// The weight of a visible pair and the gradient of its score.
template <typename T>
struct SimtPair {
  T weight, grad;
};

template <typename T>
BICO_DEVICE SimtPair<T> simt_pair(const SimtWork& w, int64_t batch, int64_t head, int64_t kv_head, const T* q,
                                  const T* k, int64_t m, int64_t n) {
  const Backward& p = w.problem;
  const int64_t at = (batch * p.query_heads + head) * p.length + m;
  const T weight = exp(dot(q, k, p.head_dim) * T(p.scale) - *p.lse.row<T>(batch, head, m));
  const T along = dot(p.grad_out.row<T>(batch, head, m), p.v.row<T>(batch, kv_head, n), p.head_dim);
  return {weight, weight * (along - static_cast<const T*>(w.delta)[at])};
}

// Gradients of one row of rotated q, separately for each frame.
template <typename T>
BICO_KERNEL(simt_threads)
void simt_backward_queries(BICO_ARGUMENT(SimtWork) w) {
  const Backward& p = w.problem;
  const SimtRow row(p, p.query_heads);
  if (!row.exists) return;
  const int64_t m = row.position, kv_head = row.head / (p.query_heads / p.kv_heads);
  const int64_t q_head = row.batch * p.query_heads + row.head;
  const auto q = simt_head<T>(w.q, w.columns, q_head, p.length);
  const auto k = simt_head<T>(w.k, w.columns, row.batch * p.kv_heads + kv_head, p.length);
  const int32_t span = span_at(p, row.batch, m);
  const Reach reach = reach_of(p, m);

  PerFrame<Share<T>> grad_q;
  grad_q.plus.clear();
  grad_q.minus.clear();
  for (int64_t first = reach.begin; first < reach.end; first += 32) {
    const int64_t n = first + thread_index() % 32;
    const bool seen = n < reach.end && visible(span, span_at(p, row.batch, n), m, n);
    const uint32_t all_seen = ballot(seen);
    if (!all_seen) continue;
    const Frame frame = frame_of(m, n);
    const T grad =
        seen ? simt_pair(w, row.batch, row.head, kv_head, q.row(frame, m), k.row(frame, n), m, n).grad : T(0);
    for (int lane = 0; lane < 32; ++lane) {
      if (!(all_seen >> lane & 1)) continue;
      const int64_t key = first + lane;
      const T of_key = shuffle(grad, lane);
      if (frame_of(m, key) == Frame::plus) {
        grad_q.plus.add(of_key, k.row(Frame::plus, key), p.head_dim);
      } else {
        grad_q.minus.add(of_key, k.row(Frame::minus, key), p.head_dim);
      }
    }
  }
  const int64_t to = (q_head * p.length + m) * w.columns;
  grad_q.plus.store(static_cast<T*>(w.grad_q.plus) + to, w.columns);  // 0 beyond the head dim
  grad_q.minus.store(static_cast<T*>(w.grad_q.minus) + to, w.columns);
}

// Gradients of one row of v, and of rotated k separately for each frame, over all query heads of the group.
template <typename T>
BICO_KERNEL(simt_threads)
void simt_backward_keys(BICO_ARGUMENT(SimtWork) w) {
  const Backward& p = w.problem;
  const SimtRow row(p, p.kv_heads);
  if (!row.exists) return;
  const int64_t n = row.position, group = p.query_heads / p.kv_heads;
  const int64_t k_head = row.batch * p.kv_heads + row.head;
  const auto k = simt_head<T>(w.k, w.columns, k_head, p.length);
  const int32_t span = span_at(p, row.batch, n);
  const Reach reach = reach_of(p, n);

  PerFrame<Share<T>> grad_k;
  Share<T> grad_v;
  grad_k.plus.clear();
  grad_k.minus.clear();
  grad_v.clear();
  for (int64_t head = row.head * group; head < (row.head + 1) * group; ++head) {
    const auto q = simt_head<T>(w.q, w.columns, row.batch * p.query_heads + head, p.length);
    for (int64_t first = reach.begin; first < reach.end; first += 32) {
      const int64_t m = first + thread_index() % 32;
      const bool seen = m < reach.end && visible(span_at(p, row.batch, m), span, m, n);
      const uint32_t all_seen = ballot(seen);
      if (!all_seen) continue;
      SimtPair<T> pair = {0, 0};
      const Frame frame = frame_of(m, n);
      if (seen) pair = simt_pair(w, row.batch, head, row.head, q.row(frame, m), k.row(frame, n), m, n);
      for (int lane = 0; lane < 32; ++lane) {
        if (!(all_seen >> lane & 1)) continue;
        const int64_t query = first + lane;
        grad_v.add(shuffle(pair.weight, lane), p.grad_out.row<T>(row.batch, head, query), p.head_dim);
        const T of_query = shuffle(pair.grad, lane);
        if (frame_of(query, n) == Frame::plus) {
          grad_k.plus.add(of_query, q.row(Frame::plus, query), p.head_dim);
        } else {
          grad_k.minus.add(of_query, q.row(Frame::minus, query), p.head_dim);
        }
      }
    }
  }
  const int64_t to = (k_head * p.length + n) * w.columns;
  grad_k.plus.store(static_cast<T*>(w.grad_k.plus) + to, w.columns);
  grad_k.minus.store(static_cast<T*>(w.grad_k.minus) + to, w.columns);
  grad_v.store(p.grad_v.row<T>(row.batch, row.head, n), p.head_dim);
}

}  // namespace bico::cuda
