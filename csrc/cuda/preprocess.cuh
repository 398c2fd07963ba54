// What runs before the attention kernels: extents of span ids, and heads rotated into both frames.
#pragma once

#include "../rotation.h"
#include "tile_schedule.h"

namespace bico::cuda {

constexpr int prepare_threads = 128;

// extents [B, ceil(S / granule)]; a warp a granule.
BICO_KERNEL(prepare_threads) void summarise_spans(BICO_ARGUMENT(Problem) p, Extent* extents) {
  const int64_t granules = (p.length + granule - 1) / granule;
  const int64_t i = block_index() * (prepare_threads / 32) + thread_index() / 32;
  if (i >= p.batch * granules) return;
  const int64_t row = i % granules * granule + thread_index() % 32;
  // Rows beyond the end count as the last one.
  const int32_t* ids = p.span_ids + i / granules * p.span_batch_stride;
  int32_t low = ids[row < p.length ? row : p.length - 1], high = low;
  for (int mask = 1; mask < 32; mask *= 2) {
    const int32_t other_low = shuffle_xor(low, mask), other_high = shuffle_xor(high, mask);
    if (other_low < low) low = other_low;
    if (other_high > high) high = other_high;
  }
  if (thread_index() % 32 == 0) extents[i] = {low, high};
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
};

// Chunk of a row of q or k in one frame.
template <typename T>
BICO_DEVICE Chunk<Compute<T>> rotated_chunk(Frame frame, const Problem& p, const T* row, bool aligned, int64_t batch,
                                            int64_t position, int begin) {
  using C = Compute<T>;
  const int head_dim = p.head_dim, width = p.rotary.width;
  Chunk<C> own = read_chunk(row, begin, head_dim, aligned);
  if (begin >= width) return own;
  const RotaryTable& table = p.rotary;
  const C* cos_row =
      static_cast<const C*>(table.cos) + batch * table.cos_batch_stride + position * table.cos_row_stride;
  const C* sin_row =
      static_cast<const C*>(table.sin) + batch * table.sin_batch_stride + position * table.sin_row_stride;
  const Chunk<C> cos = read_chunk(cos_row, begin, width, aligned), sin = read_chunk(sin_row, begin, width, aligned);
  const bool interleaved = table.interleaved;
  const int half = width / 2;
  Chunk<C> partner = own;  // of interleaved pairs both elements are here, as a chunk begins at an even one
  if (!interleaved && aligned) partner = read_chunk(row, begin < half ? begin + half : begin - half, width, true);
  Chunk<C> turned = own;
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
      turned.x[e] = first ? pair.x() : pair.y();
    } else {
      turned.x[e] = first ? pair.mirrored_x() : pair.mirrored_y();
    }
  }
  return turned;
}

template <typename T>
BICO_DEVICE void write_chunk(T* to, const Chunk<Compute<T>>& chunk) {
  if constexpr (sizeof(T) == 2) {
    Vector v;
#pragma unroll
    for (int e = 0; e < vector_elements; e += 2) v.word[e / 2] = pack<T>(chunk.x[e], chunk.x[e + 1]);
    *reinterpret_cast<Vector*>(to) = v;
  } else {
#pragma unroll
    for (int e = 0; e < vector_elements; ++e) to[e] = chunk.x[e];
  }
}

// plus, minus: [B, H, S, columns], 0 from D on; minus may be null. `turn` false copies the heads as they are.
template <typename T, bool turn>
BICO_KERNEL(prepare_threads)
void rotate_heads(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(Source) source, T* plus, T* minus, int columns) {
  const int chunks = columns / vector_elements;
  const int64_t i = block_index() * prepare_threads + thread_index();
  const int64_t row = i / chunks;  // of B H S
  if (row >= p.batch * source.count * p.length) return;
  const int begin = i % chunks * vector_elements;
  const int64_t position = row % p.length, head = row / p.length % source.count, batch = row / p.length / source.count;
  const T* from = source.heads.template row<T>(batch, head, position);
  const int64_t to = row * columns + begin;
  if constexpr (turn) {
    write_chunk(plus + to, rotated_chunk(Frame::plus, p, from, source.aligned, batch, position, begin));
    if (minus) write_chunk(minus + to, rotated_chunk(Frame::minus, p, from, source.aligned, batch, position, begin));
  } else {
    write_chunk(plus + to, read_chunk(from, begin, int(p.head_dim), source.aligned));
  }
}

}  // namespace bico::cuda
