// What runs before the attention kernels: summaries of span ids, heads rotated into both frames, copies of heads whose
// rows are not aligned, and delta for the backward.
#pragma once

#include "../rotation.h"
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

// A chunk of a row of q or k, rotated into one frame.
template <typename T>
BICO_DEVICE Chunk<Compute<T>> rotated_chunk(Frame frame, const Problem& p, const T* row, bool aligned, int64_t batch,
                                            int64_t position, int begin) {
  using C = Compute<T>;
  const int head_dim = p.head_dim, width = p.rotary.width;
  Chunk<C> own = read_chunk(row, begin, head_dim, aligned);
  if (begin >= width) return own;
  const C *cos_row = p.rotary.cos_row<C>(batch, position), *sin_row = p.rotary.sin_row<C>(batch, position);
  const Chunk<C> cos = read_chunk(cos_row, begin, width, aligned), sin = read_chunk(sin_row, begin, width, aligned);
  const bool interleaved = p.rotary.interleaved;
  const int half = width / 2;
  Chunk<C> partner = own;  // of interleaved pairs both elements are here, as a chunk begins at an even one
  if (!interleaved && aligned) partner = read_chunk(row, begin < half ? begin + half : begin - half, width, true);
  Chunk<C> rotated = own;
#pragma unroll
  for (int e = 0; e < vector_elements; ++e) {
    const int i = begin + e;
    if (i >= width) continue;
    const bool first = interleaved ? e % 2 == 0 : i < half;
    C other = interleaved ? own.x[e ^ 1] : partner.x[e];
    if (!interleaved && !aligned) other = widen(row[first ? i + half : i - half]);
    // The table holds equal values for the two elements of a pair.
    const auto pair =
        rotate_pair(first ? own.x[e] : other, first ? other : own.x[e], cos.x[e], sin.x[e], cos.x[e], sin.x[e]);
    if (frame == Frame::plus) {
      rotated.x[e] = first ? pair.plus_x() : pair.plus_y();
    } else {
      rotated.x[e] = first ? pair.minus_x() : pair.minus_y();
    }
  }
  return rotated;
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
  NonfiniteRows nonfinite = {};

  BICO_DEVICE void take(const Chunk<Compute<T>>& chunk, int64_t head, int64_t length, int row, int columns,
                        int begin) const {
    if (heads) write_chunk(heads + (head * length + row) * columns + begin, chunk);
    if constexpr (sizeof(T) == 2) {
      if (nonfinite.words && has_nonfinite<T>(packed<T>(chunk))) nonfinite.set(head, length, row);
    }
  }
};

// The heads in each frame, 0 from D on. Without `rotate` they go to to.plus as they are.
template <typename T, bool rotate>
BICO_KERNEL(preprocess_threads)
void rotate_heads(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(Source) source, PerFrame<FrameOfHeads<T>> to, int columns) {
  const int chunks = columns / vector_elements;
  const int64_t i = block_index() * preprocess_threads + thread_index();
  const int64_t row = i / chunks;  // of B H S
  if (row >= p.batch * source.count * p.length) return;
  const int begin = i % chunks * vector_elements;
  const int64_t position = row % p.length, index = row / p.length, batch = index / source.count;
  const T* from = source.heads.template row<T>(batch, index % source.count, position);
  if constexpr (rotate) {
    const auto rotate_into = [&](Frame frame) {
      Chunk<Compute<T>> chunk = rotated_chunk(frame, p, from, source.aligned, batch, position, begin);
#pragma unroll
      for (Compute<T>& x : chunk.x) x = source.negated ? -x : x;
      to[frame].take(chunk, index, p.length, position, columns, begin);
    };
    rotate_into(Frame::plus);
    if (p.mirror) rotate_into(Frame::minus);
  } else {
    to.plus.take(read_chunk(from, begin, int(p.head_dim), source.aligned), index, p.length, position, columns, begin);
  }
}

template <typename T>
BICO_DEVICE T warp_sum(T x) {
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// delta [B, Hq, S] = rowsum(out * grad_out) - grad_lse: what the gradient of every weight of the row loses. One warp
// sums one row. Rows of grad_out that are not finite are flagged in both frames, where there are flags.
template <typename T>
BICO_KERNEL(preprocess_threads)
void compute_delta(BICO_ARGUMENT(Backward) p, Compute<T>* delta, PerFrame<NonfiniteRows> nonfinite) {
  using C = Compute<T>;
  const int64_t i = block_index() * (preprocess_threads / 32) + thread_index() / 32;
  if (i >= p.batch * p.query_heads * p.length) return;
  const int64_t m = i % p.length, head = i / p.length % p.query_heads, batch = i / p.length / p.query_heads;
  const T *out = p.out.row<T>(batch, head, m), *grad = p.grad_out.row<T>(batch, head, m);
  C sum = 0;
  bool bad = false;
  for (int d = thread_index() % 32; d < p.head_dim; d += 32) {
    sum += widen(out[d]) * widen(grad[d]);
    if constexpr (sizeof(T) == 2) bad |= is_nonfinite(grad[d]);
  }
  sum = warp_sum(sum);
  if (thread_index() % 32 == 0) delta[i] = p.grad_lse.data ? sum - *p.grad_lse.row<C>(batch, head, m) : sum;
  if constexpr (sizeof(T) == 2) {
    if (ballot(bad) == 0 || thread_index() % 32 != 0) return;
    nonfinite.plus.set(i / p.length, p.length, m);
    nonfinite.minus.set(i / p.length, p.length, m);
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
  const int64_t threads = p.batch * source.count * p.length * (columns / vector_elements);
  launch(name, rotate_heads<T, rotate>, divide_up(threads, preprocess_threads), preprocess_threads, 0, stream, p,
         source, to, int(columns));
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
                     const PerFrame<NonfiniteRows>& nonfinite = {}, bool negated = false) const {
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
                   const NonfiniteRows& nonfinite = {}) const {
    if (!copy && !nonfinite.words) return;
    launch_rotate_heads<T, false>("copy_heads", p, {given, count, !copy}, columns, {{copy, nonfinite}, {}}, stream);
  }
};

// Flags of the rows of heads; part of what must begin as 0.
inline NonfiniteRows take_nonfinite(Arena& arena, const Problem& p, int64_t heads) {
  return {arena.take<uint32_t>(p.batch * heads * divide_up(p.length, granule))};
}

// One array serves both frames where the problem does not mirror.
inline PerFrame<NonfiniteRows> take_nonfinite_frames(Arena& arena, const Problem& p, int64_t heads) {
  const NonfiniteRows plus = take_nonfinite(arena, p, heads);
  return {plus, p.mirror ? take_nonfinite(arena, p, heads) : plus};
}

template <typename T>
void launch_compute_delta(const Backward& p, Compute<T>* delta, Stream stream,
                          const PerFrame<NonfiniteRows>& nonfinite = {}) {
  const int64_t rows = p.batch * p.query_heads * p.length;
  launch("compute_delta", compute_delta<T>, divide_up(rows, preprocess_threads / 32), preprocess_threads, 0, stream, p,
         delta, nonfinite);
}

}  // namespace bico::cuda
