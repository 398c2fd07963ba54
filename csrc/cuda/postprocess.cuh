// What runs after the backward kernels: gradients of rotated heads are rotated back, and gradients of parts are added.
#pragma once

#include "device/launch.h"
#include "memory.h"
#include "pairs.h"
#include "sequences.h"

namespace bico::cuda {

constexpr int postprocess_threads = 128;

// The gradient of heads from those of their two frames: (R(m)^T plus + R(-m)^T minus) times the scale. Order says where
// gradients in the workspace keep an element: head(index, length) where a head begins, element(row, column) within it,
// and from there row_step() to the element 8 rows below and column_step() to the next one of a pair.
template <typename C>
struct FrameGradients {
  PerFrame<const C*> frames;
  Heads to;
  int64_t heads;
  bool aligned;  // two neighbours may be written at once
};

// Two neighbouring columns of the rows r and r + 8, which is what a lane holds of the accumulators of one product on
// tensor cores. From sm_90 on they are 16 bytes of the frames.
template <typename C>
struct Patch {
  C x[2][2];

  template <class Value>
  static BICO_DEVICE Patch of(const Value& value) {
    return {{{value(0, 0), value(0, 1)}, {value(1, 0), value(1, 1)}}};
  }

  // `rows`, 1 or 2, exist.
  template <class Order>
  static BICO_DEVICE Patch read(const C* from, const Order& order, int rows) {
    if constexpr (Order::patches_are_vectors) {
      return __builtin_bit_cast(Patch, *reinterpret_cast<const Vector*>(from));
    } else {
      return of([&](int r, int e) { return r < rows ? from[r * order.row_step() + e * order.column_step()] : C(0); });
    }
  }
};

// A patch of the gradients of both frames. Cos and sin meet their sum and their difference, because the transpose of a
// frame's rotation is the rotation of the other frame.
template <typename C>
struct FramePatch {
  using P = Patch<C>;
  P plus, minus;

  template <class Order>
  static BICO_DEVICE FramePatch read(const PerFrame<const C*>& frames, int64_t offset, const Order& order, int rows) {
    return {P::read(frames.plus + offset, order, rows), P::read(frames.minus + offset, order, rows)};
  }

  BICO_DEVICE C sum(int r, int e) const { return plus.x[r][e] + minus.x[r][e]; }
  // Without mirror both sweeps were in the plus frame.
  BICO_DEVICE C difference(int r, int e, bool mirror) const {
    return mirror ? plus.x[r][e] - minus.x[r][e] : sum(r, e);
  }
};

// The elements i and j of two rows, eight rows apart, of which `rows` exist.
template <typename T>
BICO_DEVICE void write_patch(T* to, int64_t row_stride, const Patch<Compute<T>>& patch, int rows, int i, int j,
                             int count, bool aligned) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (r >= rows) break;
    T* row = to + r * 8 * row_stride;
    if constexpr (sizeof(T) == 2) {
      if (aligned && i % 2 == 0 && j == i + 1 && j < count) {
        *reinterpret_cast<uint32_t*>(row + i) = pack<T>(patch.x[r][0], patch.x[r][1]);
        continue;
      }
    }
    if (i < count) row[i] = narrow<T>(patch.x[r][0]);
    if (j < count) row[j] = narrow<T>(patch.x[r][1]);
  }
}

// Heads that a thread rotates by the same part of the table, and rows that a block takes.
constexpr int heads_of_rotate_back = 4, rows_of_rotate_back = 16;

// A block takes 16 rows of a few heads, a thread two neighbouring patches, so that it has two neighbours to write
// wherever a head keeps them. Eight neighbouring threads take neighbouring patches of the same two rows, so that what
// they write fills sectors of memory.
template <typename T, class Order>
BICO_KERNEL(postprocess_threads)
void rotate_back(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(FrameGradients<Compute<T>>) gradients, Order order) {
  using C = Compute<T>;
  using P = Patch<C>;
  using FP = FramePatch<C>;
  const int head_dim = p.head_dim, width = p.rotary.width, length = p.length;
  // In 32 bits, because quotients in 64 bits took longer than the accesses to memory.
  const unsigned heads = gradients.heads, groups = divide_up(heads, heads_of_rotate_back);
  const unsigned blocks = divide_up(length, rows_of_rotate_back), block = unsigned(block_index());
  const unsigned batch = block / blocks / groups, first_head = block / blocks % groups * heads_of_rotate_back;
  const PairedColumns columns = PairedColumns::of(p.rotary);
  for (int i = thread_index(); i / 64 * 32 < head_dim; i += postprocess_threads) {  // 8 threads for 8 pairs of rows
    const int column = i / 64 * 32 + i % 8 * 4, row = int(block % blocks) * rows_of_rotate_back + i / 8 % 8;
    if (column >= head_dim || row >= length) continue;
    const int rows = row + 8 < length ? 2 : 1;
    // The cos or sin of both patches; the table holds equal values for the two elements of a pair.
    const auto rotation = [&](const C* table, int64_t row_stride, C beyond) {
      return P::of([&](int r, int patch) {
        const int of_patch = column + 2 * patch;
        const bool exists = r < rows && of_patch < width;
        return C(p.scale) * (exists ? table[r * 8 * row_stride + columns.in_head(of_patch)] : beyond);
      });
    };
    const P cos = rotation(p.rotary.cos_row<C>(batch, row), p.rotary.cos_row_stride, 1);
    const P sin = rotation(p.rotary.sin_row<C>(batch, row), p.rotary.sin_row_stride, 0);
    const auto rotated_back = [&](const FP& frames, int patch) {
      return P::of([&](int r, int e) {
        // Beyond the rotated part, 0 times it would not do: it may be infinite.
        const C other = column + 2 * patch < width ? frames.difference(r, 1 - e, p.mirror) : C(0);
        return cos.x[r][patch] * frames.sum(r, e) + sin.x[r][patch] * (e == 0 ? other : -other);
      });
    };
    const bool apart = column < 2 * columns.half;  // a head keeps the elements of the first pair apart
    const int places[] = {columns.in_head(column), columns.in_head(column + (apart ? 2 : 1)),
                          columns.in_head(column + (apart ? 1 : 2)), columns.in_head(column + 3)};
    const int64_t first = order.element(row, column), second = order.element(row, column + 2);
#pragma unroll 1
    for (unsigned head = first_head; head < first_head + heads_of_rotate_back && head < heads; ++head) {
      const int64_t start = order.head(int64_t(batch) * heads + head, length);
      const FP of_first = FP::read(gradients.frames, start + first, order, rows);
      const FP of_second = FP::read(gradients.frames, start + second, order, rows);
      const P x = rotated_back(of_first, 0), y = rotated_back(of_second, 1);
      const auto low = P::of([&](int r, int e) { return e == 0 ? x.x[r][0] : apart ? y.x[r][0] : x.x[r][1]; });
      const auto high = P::of([&](int r, int e) { return e == 1 ? y.x[r][1] : apart ? x.x[r][1] : y.x[r][0]; });
      T* to = gradients.to.template row<T>(batch, head, row);
      const int64_t stride = gradients.to.row_stride;
      write_patch(to, stride, low, rows, places[0], places[1], head_dim, gradients.aligned);
      write_patch(to, stride, high, rows, places[2], places[3], head_dim, gradients.aligned);
    }
  }
}

template <typename T, class Order>
void launch_rotate_back(const Problem& p, const PerFrame<const Compute<T>*>& frames, const Heads& to, int64_t heads,
                        const Order& order, Stream stream) {
  const FrameGradients<Compute<T>> gradients = {frames, to, heads, aligned_rows(to, sizeof(T))};
  const int64_t blocks = p.batch * divide_up(heads, heads_of_rotate_back) * divide_up(p.length, rows_of_rotate_back);
  launch("rotate_back", rotate_back<T, Order>, blocks, postprocess_threads, 0, stream, p, gradients, order);
}

// The gradient of k or v as the sum of those of the parts of a group, which lie in slots, each like a head. A block
// takes a row. There are few rows: groups are split only where blocks of the backward are fewer than a GPU runs at a
// time.
template <typename T, class Order>
BICO_KERNEL(postprocess_threads)
void add_parts(BICO_ARGUMENT(Problem) p, const float* gradients, int parts, PairedColumns columns,
               BICO_ARGUMENT(Slots) slots, BICO_ARGUMENT(Heads) to, Order order) {
  const unsigned length = p.length, kv_heads = p.kv_heads, block = unsigned(block_index());
  const unsigned slot = block % length, head = block / length, batch = head / kv_heads;
  T* row = to.row<T>(batch, head % kv_heads, spans_of(p, slots, batch).row_of(slot));
  for (int column = thread_index(); column < int(p.head_dim); column += postprocess_threads) {
    const float* element = gradients + order.element(slot, column);
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += element[order.head(int64_t(head) * parts + part, length)];
    row[columns.in_head(column)] = narrow<T>(sum);
  }
}

template <typename T, class Order>
void launch_add_parts(const Problem& p, const float* gradients, int parts, const PairedColumns& columns,
                      const Slots& slots, const Heads& to, const Order& order, Stream stream) {
  launch("add_parts", add_parts<T, Order>, p.batch * p.kv_heads * p.length, postprocess_threads, 0, stream, p,
         gradients, parts, columns, slots, to, order);
}

}  // namespace bico::cuda
