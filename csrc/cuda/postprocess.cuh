// Around the backward kernels: delta before, and the gradients of rotated q and k turned back after.
#pragma once

#include "../rotation.h"
#include "device/launch.h"
#include "preprocess.cuh"

namespace bico::cuda {

// delta [B, Hq, S] = rowsum(out * grad_out) - grad_lse: what every score of the row loses. A warp a row.
template <typename T>
BICO_KERNEL(prepare_threads)
void sum_rows(BICO_ARGUMENT(Backward) p, Compute<T>* delta) {
  using C = Compute<T>;
  const int64_t i = block_index() * (prepare_threads / 32) + thread_index() / 32;
  if (i >= p.batch * p.query_heads * p.length) return;
  const int64_t m = i % p.length, head = i / p.length % p.query_heads, batch = i / p.length / p.query_heads;
  const T *out = p.out.row<T>(batch, head, m), *grad = p.grad_out.row<T>(batch, head, m);
  C sum = 0;
  for (int d = thread_index() % 32; d < p.head_dim; d += 32) sum += widen(out[d]) * widen(grad[d]);
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_index() % 32 == 0) delta[i] = p.grad_lse.data ? sum - *p.grad_lse.row<C>(batch, head, m) : sum;
}

// The gradient of q or k from those of its two frames: R(m)^T plus + R'(m)^T minus, times the scale.
template <typename C>
struct FramesOf {
  const C *plus, *minus;
  Heads to;
  int64_t heads;
};

template <typename T, class Order>
BICO_KERNEL(prepare_threads)
void turn_back(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(FramesOf<Compute<T>>) frames, Order order) {
  using C = Compute<T>;
  const int head_dim = p.head_dim, width = p.rotary.width, pairs = (head_dim + 1) / 2;
  const int64_t i = block_index() * prepare_threads + thread_index(), row = i / pairs;
  if (row >= p.batch * frames.heads * p.length) return;
  const int64_t position = row % p.length, index = row / p.length, batch = index / frames.heads;
  const int pair = i % pairs;
  const bool turning = pair < width / 2, split = turning && !p.rotary.interleaved;
  const int x = split ? pair : 2 * pair, y = split ? pair + width / 2 : 2 * pair + 1;
  const int64_t start = order.head(index, p.length);
  const auto at = [&](const C* frame, int d) {
    return d < head_dim ? frame[start + order.element(position, d)] : C(0);
  };

  C plus_x = at(frames.plus, x), plus_y = at(frames.plus, y), minus_x = at(frames.minus, x),
    minus_y = at(frames.minus, y);
  C grad_x = plus_x + minus_x, grad_y = plus_y + minus_y;
  if (turning) {
    const RotaryTable& table = p.rotary;
    const C* cos = static_cast<const C*>(table.cos) + batch * table.cos_batch_stride + position * table.cos_row_stride;
    const C* sin = static_cast<const C*>(table.sin) + batch * table.sin_batch_stride + position * table.sin_row_stride;
    if (!p.mirror) {  // both sweeps were in the one frame
      plus_x = grad_x;
      plus_y = grad_y;
      minus_x = minus_y = 0;
    }
    // A frame's transpose is the other frame.
    const auto from_plus = rotate_pair(plus_x, plus_y, cos[x], sin[x], cos[y], sin[y]);
    const auto from_minus = rotate_pair(minus_x, minus_y, cos[x], sin[x], cos[y], sin[y]);
    grad_x = from_plus.mirrored_x() + from_minus.x();
    grad_y = from_plus.mirrored_y() + from_minus.y();
  }
  T* to = frames.to.template row<T>(batch, index % frames.heads, position);
  const C scale = p.scale;
  to[x] = narrow<T>(scale * grad_x);
  if (y < head_dim) to[y] = narrow<T>(scale * grad_y);
}

}  // namespace bico::cuda
