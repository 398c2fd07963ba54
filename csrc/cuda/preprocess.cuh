// What runs before the attention kernels: summaries of span ids, heads rotated into both frames, copies of heads whose
// rows are not aligned, and delta for the backward.
#pragma once

#include "device/launch.h"
#include "memory.h"
#include "nonfinite.h"

namespace bico::cuda {

constexpr int preprocess_threads = 128;

// extents [B, ceil(S / granule)]. One warp reads one granule.
BICO_KERNEL(preprocess_threads) void summarise_spans(BICO_ARGUMENT(Problem) p, Extent* extents) {
  const int64_t granules = divide_up(p.length, granule);
  const int64_t i = block_index() * (preprocess_threads / 32) + thread_index() / 32;
  if (i >= p.batch * granules) return;
  const int64_t row = i % granules * granule + thread_index() % 32;
  const int32_t* ids = p.spans(i / granules);
  const uint32_t context = ballot(row < p.length && is_context(ids[row]));
  // Rows beyond the end count as the last one.
  int32_t low = ids[row < p.length ? row : p.length - 1], high = low;
  for (int mask = 1; mask < 32; mask *= 2) {
    const int32_t other_low = shuffle_xor(low, mask), other_high = shuffle_xor(high, mask);
    if (other_low < low) low = other_low;
    if (other_high > high) high = other_high;
  }
  if (thread_index() % 32 == 0) extents[i] = {low, high, context};
}

// Eight neighbouring elements of a head.
template <typename C>
struct Chunk {
  C x[vector_elements];
};

// Elements [begin, begin + 8) of a row of `count`; 0 beyond. `aligned`: the chunk begins at a multiple of 16 bytes.
template <typename T>
BICO_DEVICE Chunk<Compute<T>> read_chunk(const T* row, int begin, int count, bool aligned) {
  Chunk<Compute<T>> chunk;
  if (aligned && begin + vector_elements <= count) {
    constexpr int vectors = vector_elements * sizeof(T) / sizeof(Vector), each = sizeof(Vector) / sizeof(T);
    struct Elements {
      T e[each];
    };
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      const Vector loaded = reinterpret_cast<const Vector*>(row + begin)[i];
      const Elements elements = __builtin_bit_cast(Elements, loaded);
#pragma unroll
      for (int e = 0; e < each; ++e) chunk.x[i * each + e] = widen(elements.e[e]);
    }
  } else {
#pragma unroll
    for (int e = 0; e < vector_elements; ++e) {
      chunk.x[e] = begin + e < count ? widen(row[begin + e]) : Compute<T>(0);
    }
  }
  return chunk;
}

// Where a kernel takes heads from, and whether whole chunks may be read: rows, and the halves of their rotated part,
// begin at multiples of 16 bytes.
struct Source {
  Heads heads;
  int64_t count;  // of heads
  bool aligned;
  bool negated = false;  // the heads are multiplied by -1
};

// How a chunk turns: an element x with the partner y becomes x cos + y sin in the plus frame, x cos - y sin in the
// minus frame. The signs of sin are those of the places in a pair; beyond the rotated part, cos is 1 and sin 0.
// All are turned around for heads that are `negated`.
template <typename C>
struct Turn {
  Chunk<C> cos, sin;
};

template <typename C>
BICO_DEVICE Turn<C> read_turn(const RotaryTable& rotary, bool aligned, bool negated, int batch, int position,
                              int begin) {
  const int width = rotary.width;
  Turn<C> turn = {read_chunk(rotary.cos_row<C>(batch, position), begin, width, aligned),
                  read_chunk(rotary.sin_row<C>(batch, position), begin, width, aligned)};
#pragma unroll
  for (int e = 0; e < vector_elements; ++e) {
    const int i = begin + e;
    const bool first = rotary.interleaved ? e % 2 == 0 : i < width / 2;
    if (i >= width) turn.cos.x[e] = 1;
    if (negated) turn.cos.x[e] = -turn.cos.x[e];
    if (first != negated) turn.sin.x[e] = -turn.sin.x[e];
  }
  return turn;
}

// The partners of a chunk's elements; 0 beyond the rotated part.
template <typename T>
BICO_DEVICE Chunk<Compute<T>> read_partners(const RotaryTable& rotary, const T* row, bool aligned, int begin,
                                            const Chunk<Compute<T>>& own) {
  const int width = rotary.width, half = width / 2;
  if (begin < width && aligned && !rotary.interleaved) {
    return read_chunk(row, begin < half ? begin + half : begin - half, width, true);
  }
  Chunk<Compute<T>> partners;
#pragma unroll
  for (int e = 0; e < vector_elements; ++e) {
    const int i = begin + e;
    if (i >= width) {
      partners.x[e] = 0;
    } else if (rotary.interleaved) {
      partners.x[e] = own.x[e ^ 1];  // is here, as a chunk begins at an even element
    } else {
      partners.x[e] = widen(row[i < half ? i + half : i - half]);
    }
  }
  return partners;
}

template <typename T>
BICO_DEVICE Vector packed(const Chunk<float>& chunk) {
  Vector v;
#pragma unroll
  for (int e = 0; e < vector_elements; e += 2) v.word[e / 2] = pack<T>(chunk.x[e], chunk.x[e + 1]);
  return v;
}

template <typename T>
BICO_DEVICE void write_chunk(T* to, const Chunk<Compute<T>>& chunk) {
  if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<Vector*>(to) = packed<T>(chunk);
  } else {
#pragma unroll
    for (int e = 0; e < vector_elements; ++e) to[e] = chunk.x[e];
  }
}

// Where rotate_heads puts one frame of the heads, [B, H, S, columns], and flags their rows that are not finite there;
// either may be null.
template <typename T>
struct FrameOfHeads {
  T* heads = nullptr;
  RowFlags nonfinite = {};

  BICO_DEVICE void take(const Chunk<Compute<T>>& chunk, int64_t head, int64_t length, int row, int columns,
                        int begin) const {
    if (heads) write_chunk(heads + (head * length + row) * columns + begin, chunk);
    if constexpr (sizeof(T) == 2) {
      if (nonfinite.words && has_nonfinite<T>(packed<T>(chunk))) nonfinite.set(head, length, row);
    }
  }
};

// Heads that a thread rotates by the same part of the table, which takes four times the bytes of a head in 16 bits.
constexpr int heads_of_thread = 4;

// The piece of a row that a thread takes: a block takes neighbouring rows of a head, or of a group of heads.
struct RowPiece {
  unsigned group, batch, position, piece;
  bool exists;

  // In 32 bits, because quotients in 64 bits took longer than the accesses to memory.
  static BICO_DEVICE RowPiece here(unsigned groups, unsigned length, unsigned pieces) {
    const unsigned block = unsigned(block_index()), thread = thread_index(), in_block = preprocess_threads / pieces;
    const unsigned blocks = (length + in_block - 1) / in_block, row = block % blocks * in_block + thread / pieces;
    return {block / blocks % groups, block / blocks / groups, row, thread % pieces,
            thread / pieces < in_block && row < length};
  }

  static int64_t blocks(int64_t groups, int64_t batch, int64_t length, int64_t pieces) {
    return batch * groups * divide_up(length, preprocess_threads / pieces);
  }
};

// The heads in each frame, 0 from D on. Without `rotate` they go to to.plus as they are.
template <typename T, bool rotate>
BICO_KERNEL(preprocess_threads)
void rotate_heads(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(Source) source, PerFrame<FrameOfHeads<T>> to, int columns) {
  using C = Compute<T>;
  const int count = source.count, head_dim = p.head_dim;
  const RowPiece at = RowPiece::here(divide_up(count, heads_of_thread), p.length, columns / vector_elements);
  if (!at.exists) return;
  const int begin = at.piece * vector_elements, position = at.position;
  Turn<C> turn;
  if constexpr (rotate) turn = read_turn<C>(p.rotary, source.aligned, source.negated, at.batch, position, begin);
#pragma unroll 1
  for (int i = 0; i < heads_of_thread; ++i) {
    const int head = at.group * heads_of_thread + i;
    if (head >= count) break;
    const int64_t index = int64_t(at.batch) * count + head;
    const T* from = source.heads.template row<T>(at.batch, head, position);
    const Chunk<C> own = read_chunk(from, begin, head_dim, source.aligned);
    if constexpr (!rotate) {
      to.plus.take(own, index, p.length, position, columns, begin);
    } else {
      const Chunk<C> partners = read_partners(p.rotary, from, source.aligned, begin, own);
      Chunk<C> plus, minus;
#pragma unroll
      for (int e = 0; e < vector_elements; ++e) {
        const C x = own.x[e] * turn.cos.x[e], y = partners.x[e] * turn.sin.x[e];
        plus.x[e] = x + y;
        minus.x[e] = x - y;
      }
      to.plus.take(plus, index, p.length, position, columns, begin);
      if (p.mirror) to.minus.take(minus, index, p.length, position, columns, begin);
    }
  }
}

// Over `lanes` neighbours, a power of 2.
template <typename T>
BICO_DEVICE T warp_sum(T x, int lanes = 32) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// delta [B, Hq, S] = rowsum(out * grad_out) - grad_lse: what the gradient of every weight of the row loses. `lanes`, a
// power of 2, sum one row. In 16 bits rows of grad_out that are not finite are flagged in both frames, and in
// `overflowing` queries for which a score of 0 would have a weight, or a gradient, that might not be finite in T.
template <typename T>
BICO_KERNEL(preprocess_threads)
void compute_delta(BICO_ARGUMENT(Backward) p, bool aligned, int lanes, Compute<T>* delta, PerFrame<RowFlags> nonfinite,
                   RowFlags overflowing) {
  using C = Compute<T>;
  const int head_dim = p.head_dim;
  const RowPiece at = RowPiece::here(p.query_heads, p.length, lanes);
  const int64_t index = int64_t(at.batch) * p.query_heads + at.group;
  const int begin = at.piece * vector_elements, m = at.position;
  C sum = 0;
  if (at.exists) {
    const Chunk<C> out = read_chunk(p.out.row<T>(at.batch, at.group, m), begin, head_dim, aligned);
    const Chunk<C> grad = read_chunk(p.grad_out.row<T>(at.batch, at.group, m), begin, head_dim, aligned);
#pragma unroll
    for (int e = 0; e < vector_elements; ++e) sum += out.x[e] * grad.x[e];
    if constexpr (sizeof(T) == 2) {
      if (has_nonfinite<T>(packed<T>(grad))) {
        nonfinite.plus.set(index, p.length, m);
        nonfinite.minus.set(index, p.length, m);
      }
    }
  }
  sum = warp_sum(sum, lanes);
  if (!at.exists || at.piece != 0) return;
  if (p.grad_lse.data) sum -= *p.grad_lse.row<C>(at.batch, at.group, m);
  delta[index * p.length + m] = sum;
  if constexpr (sizeof(T) == 2) {
    const float weight = exp2_approximate(-*p.lse.row<float>(at.batch, at.group, m) * log2_e);
    constexpr float limit = T::largest / 2;
    const bool is_safe = weight < limit && weight * fabsf(sum) < limit;  // false for NaN
    if (!is_safe) overflowing.set(index, p.length, m);
  }
}

inline Extent* take_extents(Arena& arena, const Problem& p) {
  return p.span_ids ? arena.take<Extent>(p.batch * divide_up(p.length, granule)) : nullptr;
}

inline void launch_summarise_spans(Extent* extents, const Problem& p, Stream stream) {
  if (!extents) return;
  const int64_t warps = p.batch * divide_up(p.length, granule);
  launch("summarise_spans", summarise_spans, divide_up(warps, preprocess_threads / 32), preprocess_threads, 0, stream,
         p, extents);
}

template <typename T, bool rotate>
void launch_rotate_heads(const char* name, const Problem& p, const Source& source, int64_t columns,
                         const PerFrame<FrameOfHeads<T>>& to, Stream stream) {
  const int64_t groups = divide_up(source.count, heads_of_thread);
  launch(name, rotate_heads<T, rotate>, RowPiece::blocks(groups, p.batch, p.length, columns / vector_elements),
         preprocess_threads, 0, stream, p, source, to, int(columns));
}

// Heads rotated into both frames; one copy serves as both where the problem does not mirror.
template <typename T>
struct RotatedHeads {
  PerFrame<T*> frames;

  RotatedHeads(Arena& arena, const Problem& p, int64_t heads, int64_t columns) {
    const int64_t count = p.batch * heads * p.length * columns;
    frames.plus = arena.take<T>(count);
    frames.minus = p.mirror ? arena.take<T>(count) : frames.plus;
  }

  void launch_rotate(const Problem& p, const Heads& heads, int64_t count, int64_t columns, Stream stream,
                     const PerFrame<RowFlags>& nonfinite = {}, bool negated = false) const {
    const bool aligned = aligned_rows(heads, sizeof(T)) && aligned_rotation(p.rotary, sizeof(Compute<T>));
    const Source source = {heads, count, aligned, negated};
    launch_rotate_heads<T, true>("rotate_heads", p, source, columns,
                                 {{frames.plus, nonfinite.plus}, {frames.minus, nonfinite.minus}}, stream);
  }
};

// The heads, or a copy of them whose rows can be copied by 16 bytes.
template <typename T>
struct CopyableHeads {
  Heads heads;
  T* copy = nullptr;

  CopyableHeads(Arena& arena, const Problem& p, const Heads& given, int64_t count, int64_t columns) : heads(given) {
    if (aligned_rows(given, sizeof(T))) return;
    copy = arena.take<T>(p.batch * count * p.length * columns);
    heads = {copy, count * p.length * columns, p.length * columns, columns};
  }

  // Copies, if need be, and flags rows that are not finite, if asked to.
  void launch_copy(const Problem& p, const Heads& given, int64_t count, int64_t columns, Stream stream,
                   const RowFlags& nonfinite = {}) const {
    if (!copy && !nonfinite.words) return;
    launch_rotate_heads<T, false>("copy_heads", p, {given, count, !copy}, columns, {{copy, nonfinite}, {}}, stream);
  }
};

// Flags of the rows of heads; part of what must begin as 0.
inline RowFlags take_flags(Arena& arena, const Problem& p, int64_t heads) {
  return {arena.take<uint32_t>(p.batch * heads * divide_up(p.length, granule))};
}

// One array serves both frames where the problem does not mirror.
inline PerFrame<RowFlags> take_flags_of_frames(Arena& arena, const Problem& p, int64_t heads) {
  const RowFlags plus = take_flags(arena, p, heads);
  return {plus, p.mirror ? take_flags(arena, p, heads) : plus};
}

template <typename T>
void launch_compute_delta(const Backward& p, Compute<T>* delta, Stream stream, const PerFrame<RowFlags>& nonfinite = {},
                          const RowFlags& overflowing = {}) {
  int lanes = 1;
  while (lanes * vector_elements < p.head_dim) lanes *= 2;
  const bool aligned = aligned_rows(p.out, sizeof(T)) && aligned_rows(p.grad_out, sizeof(T));
  launch("compute_delta", compute_delta<T>, RowPiece::blocks(p.query_heads, p.batch, p.length, lanes),
         preprocess_threads, 0, stream, p, aligned, lanes, delta, nonfinite, overflowing);
}

}  // namespace bico::cuda
