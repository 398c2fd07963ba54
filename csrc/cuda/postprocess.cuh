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

// Rows that a block takes. In AccumulatorOrder rows r and r + 8 share 16 bytes on sm_90 and newer, so a block reads
// both.
constexpr int postprocess_rows = 16;

template <typename T, class Order>
BICO_KERNEL(postprocess_threads)
void rotate_back(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(FrameGradients<Compute<T>>) gradients, Order order) {
  using C = Compute<T>;
  const int head_dim = p.head_dim, width = p.rotary.width, pairs = (head_dim + 1) / 2, length = p.length;
  // In 32 bits, because quotients in 64 bits took longer than the accesses to memory.
  const unsigned blocks = divide_up(length, postprocess_rows), block = unsigned(block_index());
  const unsigned heads = gradients.heads, index = block / blocks, batch = index / heads, head = index % heads;
  const int64_t start = order.head(index, length);
  for (int i = thread_index(); i < postprocess_rows * pairs; i += postprocess_threads) {
    const int row = i / pairs, pair = i % pairs;
    const int position = int(block % blocks) * postprocess_rows + row % 2 * (postprocess_rows / 2) + row / 2;
    if (position >= length) continue;
    const bool rotated = pair < width / 2, split = rotated && !p.rotary.interleaved;
    const int x = split ? pair : 2 * pair, y = split ? pair + width / 2 : 2 * pair + 1;
    const auto at = [&](Frame frame, int d) {
      return d < head_dim ? gradients.frames[frame][start + order.element(position, d)] : C(0);
    };
    C plus_x = at(Frame::plus, x), plus_y = at(Frame::plus, y), minus_x = at(Frame::minus, x),
      minus_y = at(Frame::minus, y);
    C grad_x = plus_x + minus_x, grad_y = plus_y + minus_y;
    if (rotated) {
      // The table holds equal values for the two elements of a pair.
      const C cos = p.rotary.cos_row<C>(batch, position)[x], sin = p.rotary.sin_row<C>(batch, position)[x];
      if (!p.mirror) {  // both sweeps were in the plus frame
        plus_x = grad_x;
        plus_y = grad_y;
        minus_x = minus_y = 0;
      }
      // The transpose of a frame's rotation is the rotation of the other frame.
      const auto from_plus = rotate_pair(plus_x, plus_y, cos, sin, cos, sin);
      const auto from_minus = rotate_pair(minus_x, minus_y, cos, sin, cos, sin);
      grad_x = from_plus.minus_x() + from_minus.plus_x();
      grad_y = from_plus.minus_y() + from_minus.plus_y();
    }
    T* to = gradients.to.template row<T>(batch, head, position);
    const C scale = p.scale;
    to[x] = narrow<T>(scale * grad_x);
    if (y < head_dim) to[y] = narrow<T>(scale * grad_y);
  }
}

template <typename T, class Order>
void launch_rotate_back(const Problem& p, const PerFrame<Compute<T>*>& frames, const Heads& to, int64_t heads,
                        const Order& order, Stream stream) {
  const FrameGradients<Compute<T>> gradients = {{frames.plus, frames.minus}, to, heads};
  launch("rotate_back", rotate_back<T, Order>, p.batch * heads * divide_up(p.length, postprocess_rows),
         postprocess_threads, 0, stream, p, gradients, order);
}

}  // namespace bico::cuda
