// What runs after the backward kernels: the gradients of rotated q and k, rotated back and added.
#pragma once

#include "../rotation.h"
#include "../rounding.h"
#include "../visibility.h"
#include "device/instructions.h"
#include "device/launch.h"

namespace bico::cuda {

constexpr int postprocess_threads = 128;

// The gradient of q or k from those of its two frames: R(m)^T plus + R(-m)^T minus, times the scale. Order says where
// the frames keep an element: head(index, length) where a head begins, element(position, d) within it.
template <typename C>
struct FrameGradients {
  PerFrame<const C*> frames;
  Heads to;
  int64_t heads;
};

template <typename T, class Order>
BICO_KERNEL(postprocess_threads)
void rotate_back(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(FrameGradients<Compute<T>>) gradients, Order order) {
  using C = Compute<T>;
  const int head_dim = p.head_dim, width = p.rotary.width, pairs = (head_dim + 1) / 2;
  const int64_t i = block_index() * postprocess_threads + thread_index(), row = i / pairs;
  if (row >= p.batch * gradients.heads * p.length) return;
  const int64_t position = row % p.length, index = row / p.length, batch = index / gradients.heads;
  const int pair = i % pairs;
  const bool rotated = pair < width / 2, split = rotated && !p.rotary.interleaved;
  const int x = split ? pair : 2 * pair, y = split ? pair + width / 2 : 2 * pair + 1;
  const int64_t start = order.head(index, p.length);
  const auto at = [&](Frame frame, int d) {
    return d < head_dim ? gradients.frames[frame][start + order.element(position, d)] : C(0);
  };

  C plus_x = at(Frame::plus, x), plus_y = at(Frame::plus, y), minus_x = at(Frame::minus, x),
    minus_y = at(Frame::minus, y);
  C grad_x = plus_x + minus_x, grad_y = plus_y + minus_y;
  if (rotated) {
    const C *cos = p.rotary.cos_row<C>(batch, position), *sin = p.rotary.sin_row<C>(batch, position);
    if (!p.mirror) {  // both sweeps were in the plus frame
      plus_x = grad_x;
      plus_y = grad_y;
      minus_x = minus_y = 0;
    }
    // The transpose of a frame's rotation is the rotation of the other frame.
    const auto from_plus = rotate_pair(plus_x, plus_y, cos[x], sin[x], cos[y], sin[y]);
    const auto from_minus = rotate_pair(minus_x, minus_y, cos[x], sin[x], cos[y], sin[y]);
    grad_x = from_plus.minus_x() + from_minus.plus_x();
    grad_y = from_plus.minus_y() + from_minus.plus_y();
  }
  T* to = gradients.to.template row<T>(batch, index % gradients.heads, position);
  const C scale = p.scale;
  to[x] = narrow<T>(scale * grad_x);
  if (y < head_dim) to[y] = narrow<T>(scale * grad_y);
}

template <typename T, class Order>
void launch_rotate_back(const Problem& p, const PerFrame<Compute<T>*>& frames, const Heads& to, int64_t heads,
                        const Order& order, Stream stream) {
  const FrameGradients<Compute<T>> gradients = {{frames.plus, frames.minus}, to, heads};
  const int64_t threads = p.batch * heads * p.length * divide_up(p.head_dim, 2);
  launch("rotate_back", rotate_back<T, Order>, divide_up(threads, postprocess_threads), postprocess_threads, 0, stream,
         p, gradients, order);
}

}  // namespace bico::cuda
