// What runs after the backward kernels: gradients of rotated q and k are rotated back, and gradients of parts are
// added.
#pragma once

#include "device/launch.h"
#include "memory.h"
#include "sequences.h"

namespace bico::cuda {

constexpr int postprocess_threads = 128;

// The gradient of q or k from those of its two frames, R(m)^T plus + R(-m)^T minus, times the scale. Each is the sum of
// a few parts. Order says where the frames keep an element: head(index, length) where a part of a head begins,
// element(position, d) within it, and from there row_step() to the element 8 rows below and column_step() to the next
// one of a pair of columns. The gradient of v is the sum of its parts in plus; minus is null. Positions are slots, if
// there are any.
template <typename C>
struct FrameGradients {
  PerFrame<const C*> frames;
  Slots slots;
  int64_t parts;
  Heads to;
  int64_t heads;
  bool pairs;  // two neighbours may be written at once
};

// Neighbouring columns of the rows r and r + 8, which is what a lane holds of the accumulators of one product on tensor
// cores. From sm_90 on they are 16 bytes of the frames.
template <typename C, int columns>
struct Patch {
  C x[2][columns];

  template <class Value>
  static BICO_DEVICE Patch of(const Value& value) {
    Patch patch;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int e = 0; e < columns; ++e) patch.x[r][e] = value(r, e);
    }
    return patch;
  }

  // `rows`, 1 or 2, exist.
  template <class Order>
  static BICO_DEVICE Patch read(const C* from, const Order& order, int rows) {
    if constexpr (columns == 2 && Order::patches_are_vectors) {
      return __builtin_bit_cast(Patch, *reinterpret_cast<const Vector*>(from));
    } else {
      return of([&](int r, int e) { return r < rows ? from[r * order.row_step() + e * order.column_step()] : C(0); });
    }
  }
};

// A patch of the gradients of both frames. Cos and sin meet their sum and their difference, because the transpose of a
// frame's rotation is the rotation of the other frame.
template <typename C, int columns>
struct FramePatch {
  Patch<C, columns> plus = {}, minus = {};

  template <class Order>
  static BICO_DEVICE FramePatch read(const PerFrame<const C*>& frames, int64_t offset, const Order& order, int rows) {
    using P = Patch<C, columns>;
    return {P::read(frames.plus + offset, order, rows),
            frames.minus ? P::read(frames.minus + offset, order, rows) : P()};
  }

  BICO_DEVICE void operator+=(const FramePatch& other) {
    using P = Patch<C, columns>;
    plus = P::of([&](int r, int e) { return plus.x[r][e] + other.plus.x[r][e]; });
    minus = P::of([&](int r, int e) { return minus.x[r][e] + other.minus.x[r][e]; });
  }

  BICO_DEVICE C sum(int r, int e) const { return plus.x[r][e] + minus.x[r][e]; }
  // Without mirror both sweeps were in the plus frame.
  BICO_DEVICE C difference(int r, int e, bool mirror) const {
    return mirror ? plus.x[r][e] - minus.x[r][e] : sum(r, e);
  }
};

// The second row is `second` elements after the first.
template <typename T, int columns>
BICO_DEVICE void write_patch(T* to, int64_t second, const Patch<Compute<T>, columns>& patch, int rows, int left,
                             bool pairs) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (r >= rows) break;
    T* row = to + r * second;
    if constexpr (sizeof(T) == 2 && columns == 2) {
      if (pairs && left >= 2) {
        *reinterpret_cast<uint32_t*>(row) = pack<T>(patch.x[r][0], patch.x[r][1]);
        continue;
      }
    }
#pragma unroll
    for (int e = 0; e < columns; ++e) {
      if (e < left) row[e] = narrow<T>(patch.x[r][e]);
    }
  }
}

// Heads that a thread rotates by the same part of the table, and rows that a block takes.
constexpr int heads_of_rotate_back = 4, rows_of_rotate_back = 16;

// A block takes 16 rows of a few heads, a thread a patch of `columns` and the patch of their partners: two columns, or
// one where the halves of a head begin at an odd column. Eight neighbouring threads take neighbouring patches of the
// same two rows, so that their columns, 16 but for odd halves, fill sectors of memory.
template <typename T, class Order, int columns>
BICO_KERNEL(postprocess_threads)
void rotate_back(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(FrameGradients<Compute<T>>) gradients, Order order) {
  using C = Compute<T>;
  using P = Patch<C, columns>;
  using FP = FramePatch<C, columns>;
  const bool rotates = gradients.frames.minus;
  const int head_dim = p.head_dim, width = rotates ? p.rotary.width : 0, length = p.length, parts = gradients.parts;
  // In 32 bits, because quotients in 64 bits took longer than the accesses to memory.
  const unsigned heads = gradients.heads, groups = divide_up(heads, heads_of_rotate_back);
  const unsigned blocks = divide_up(length, rows_of_rotate_back), block = unsigned(block_index());
  const Spans spans = spans_of(p, gradients.slots, block / blocks / groups);
  const unsigned batch = block / blocks / groups, first_head = block / blocks % groups * heads_of_rotate_back;
  // The partner of column d is d + half, or, interleaved, its neighbour in the patch.
  const int half = p.rotary.interleaved ? 0 : width / 2, patches = divide_up(head_dim, columns) - half / columns;
  for (int i = thread_index(); i / 64 * 8 < patches; i += postprocess_threads) {  // 8 patches of 8 pairs of rows
    const int patch = i / 64 * 8 + i % 8, position = int(block % blocks) * rows_of_rotate_back + i / 8 % 8;
    if (patch >= patches || position >= length) continue;
    const int rows = position + 8 < length ? 2 : 1;
    const int row = spans.row_of(position), apart = rows == 2 ? spans.row_of(position + 8) - row : 0;
    const int d = patch * columns < half ? patch * columns : patch * columns + half;
    const bool has_partners = d < half;
    // Beyond the rotated part cos is 1 and sin 0. The table holds equal values for the two elements of a pair.
    const auto rotation = [&](const C* table, int64_t row_stride, C beyond) {
      return P::of(
          [&](int r, int e) { return r < rows && d + e < width ? table[r * apart * row_stride + d + e] : beyond; });
    };
    const P cos = rotation(p.rotary.cos_row<C>(batch, row), p.rotary.cos_row_stride, 1);
    const P sin = rotation(p.rotary.sin_row<C>(batch, row), p.rotary.sin_row_stride, 0);
    const int64_t own = order.element(position, d), partners = order.element(position, has_partners ? d + half : d);
    const C scale = rotates ? p.scale : 1.0;
#pragma unroll 1
    for (unsigned head = first_head; head < first_head + heads_of_rotate_back && head < heads; ++head) {
      FP x, y;
#pragma unroll 1
      for (int part = 0; part < parts; ++part) {
        const int64_t start = order.head((int64_t(batch) * heads + head) * parts + part, length);
        // Both before the sums, or the second would wait for the first.
        const FP more_x = FP::read(gradients.frames, start + own, order, rows);
        const FP more_y = has_partners ? FP::read(gradients.frames, start + partners, order, rows) : FP();
        x += more_x;
        y += more_y;
      }
      const P grad_x = P::of([&](int r, int e) {
        // Interleaved, the partner is in the same patch. Beyond the rotated part, 0 times it would not do: it may be
        // infinite.
        const C neighbour = d < width ? x.difference(r, columns - 1 - e, p.mirror) : C(0);
        const C partner = has_partners ? y.difference(r, e, p.mirror) : e == 0 ? neighbour : -neighbour;
        return scale * (cos.x[r][e] * x.sum(r, e) + sin.x[r][e] * partner);
      });
      T* to = gradients.to.template row<T>(batch, head, row);
      const int64_t second = apart * gradients.to.row_stride;
      write_patch(to + d, second, grad_x, rows, head_dim - d, gradients.pairs);
      if (!has_partners) continue;
      const P grad_y = P::of([&](int r, int e) {
        return scale * (cos.x[r][e] * y.sum(r, e) - sin.x[r][e] * x.difference(r, e, p.mirror));
      });
      write_patch(to + d + half, second, grad_y, rows, head_dim - d - half, gradients.pairs);
    }
  }
}

template <typename T, class Order>
void launch_rotate_back(const Problem& p, const PerFrame<const Compute<T>*>& frames, const Heads& to, int64_t heads,
                        int64_t parts, const Order& order, Stream stream, const Slots& slots = {}) {
  const FrameGradients<Compute<T>> gradients = {frames, slots, parts, to, heads, aligned_rows(to, sizeof(T))};
  const int64_t blocks = p.batch * divide_up(heads, heads_of_rotate_back) * divide_up(p.length, rows_of_rotate_back);
  const bool odd_halves = !p.rotary.interleaved && p.rotary.width / 2 % 2 != 0;
  launch("rotate_back", odd_halves ? rotate_back<T, Order, 1> : rotate_back<T, Order, 2>, blocks, postprocess_threads,
         0, stream, p, gradients, order);
}

}  // namespace bico::cuda
