// What runs before the attention kernels: the slots of keys, heads rotated into both frames, copies of heads in slots
// or whose rows are not aligned, and delta for the backward.
#pragma once

#include "device/launch.h"
#include "memory.h"
#include "nonfinite.h"
#include "pairs.h"

namespace bico::cuda {

constexpr int preprocess_threads = 128;

// The smallest and largest of a warp's span ids.
BICO_DEVICE SpanRange range_of_warp(int32_t span) {
  SpanRange range = {span, span};
  for (int mask = 1; mask < 32; mask *= 2) {
    const int32_t low = shuffle_xor(range.min, mask), high = shuffle_xor(range.max, mask);
    if (low < range.min) range.min = low;
    if (high > range.max) range.max = high;
  }
  return range;
}

constexpr int number_threads = 1024;

// Writes the slots. A block takes a batch entry, in pieces of 1024 rows.
BICO_KERNEL(number_threads) void number_keys(BICO_ARGUMENT(Problem) p, Slots slots) {
  constexpr int warps = number_threads / 32;
  const int length = p.length, batch = block_index(), warp = thread_index() / 32, lane = thread_index() % 32;
  const Slots own = slots.of(batch, length);
  const int32_t* ids = p.spans(batch);
  int32_t* kept_of_warps = reinterpret_cast<int32_t*>(shared_memory());
  int kept = 0;  // before the piece
  for (int begin = 0; begin < length; begin += number_threads) {
    const int row = begin + thread_index();
    const int32_t span = ids[row < length ? row : length - 1];  // rows beyond the end count as the last one
    const uint32_t bits = ballot(row < length && span >= 0);
    sync_threads();  // the counts of the piece before were read
    if (lane == 0) store_shared(kept_of_warps + warp, count_bits(bits));
    sync_threads();
    int before = 0, in_piece = 0;
    for (int i = 0; i < warps; ++i) {
      if (i == warp) before = kept + in_piece;
      in_piece += load_shared(kept_of_warps + i);
    }
    kept += in_piece;
    const SpanRange range = range_of_warp(span);
    if (row >= length) continue;
    if (lane == 0) {
      own.of_rows[row / granule] = range;
      own.kept[row / granule] = {bits, before};
    }
    const int slot = before + count_bits(bits & ((1u << lane) - 1));
    own.rows[span >= 0 ? slot : length - 1 - (row - slot)] = row;
  }
  if (thread_index() == 0) own.kept[divide_up(length, granule)] = {0, kept};
  sync_threads();
  for (int begin = warp * granule; begin < kept; begin += number_threads) {
    const int slot = begin + lane < kept ? begin + lane : kept - 1, row = own.rows[slot];
    const SpanRange range = range_of_warp(ids[row]);
    const int last_row = shuffle(row, 31);
    if (lane == 0) own.of_slots[begin / granule] = {row, last_row, range.min, range.max};
  }
}

// Eight neighbouring elements of a head.
template <typename C>
struct Chunk {
  C x[vector_elements];
};

// Neighbouring elements that begin at a multiple of 16 bytes, or of their size if it is smaller.
template <int count, typename T>
BICO_DEVICE void read_run(Compute<T> (&to)[count], const T* from) {
  constexpr int bytes = count * sizeof(T), size = bytes < 16 ? bytes : 16, each = size / sizeof(T);
  struct alignas(size) Words {
    uint32_t word[size / 4];
  };
  struct Elements {
    T e[each];
  };
#pragma unroll
  for (int i = 0; i < count / each; ++i) {
    const Words loaded = reinterpret_cast<const Words*>(from)[i];
    const Elements elements = __builtin_bit_cast(Elements, loaded);
#pragma unroll
    for (int e = 0; e < each; ++e) to[i * each + e] = widen(elements.e[e]);
  }
}

// Columns [begin, begin + 8) of a row of `count` elements; 0 beyond. `aligned`: its runs may be read at once.
template <typename T>
BICO_DEVICE Chunk<Compute<T>> read_chunk(const T* row, const PairedColumns& columns, int begin, int count,
                                         bool aligned) {
  constexpr int pairs = vector_elements / 2;
  Chunk<Compute<T>> chunk;
  if (!aligned || begin + vector_elements > count) {
#pragma unroll
    for (int e = 0; e < vector_elements; ++e) {
      const int i = columns.in_head(begin + e);
      chunk.x[e] = i < count ? widen(row[i]) : Compute<T>(0);
    }
  } else if (begin < 2 * columns.half) {
    Compute<T> first[pairs], second[pairs];
    read_run(first, row + begin / 2);
    read_run(second, row + begin / 2 + columns.half);
#pragma unroll
    for (int e = 0; e < pairs; ++e) {
      chunk.x[2 * e] = first[e];
      chunk.x[2 * e + 1] = second[e];
    }
  } else {
    read_run(chunk.x, row + begin);
  }
  return chunk;
}

// Where a kernel takes heads from.
struct Source {
  Heads heads;
  int64_t count;         // of heads
  bool aligned;          // as read_chunk needs it
  bool negated = false;  // the heads are multiplied by -1
};

// How the pairs of a chunk turn: (x, y) becomes (x cos - y sin, y cos + x sin) in the plus frame, and with -sin in the
// minus frame. Beyond the rotated part cos is 1, and nothing else is added, not even 0 times the neighbour: it may be
// infinite.
template <typename C>
struct Turn {
  static constexpr int pairs = vector_elements / 2;
  C cos[pairs], sin[pairs];
  int rotated;  // pairs
};

template <typename C>
BICO_DEVICE Turn<C> read_turn(const RotaryTable& rotary, const Source& source, int batch, int position, int begin) {
  const int width = rotary.width;
  const PairedColumns columns = PairedColumns::of(rotary);
  const C sign = source.negated ? -1 : 1;
  const auto cos = read_chunk(rotary.cos_row<C>(batch, position), columns, begin, width, source.aligned);
  const auto sin = read_chunk(rotary.sin_row<C>(batch, position), columns, begin, width, source.aligned);
  Turn<C> turn;
  turn.rotated = (width - begin) / 2;
#pragma unroll
  for (int pair = 0; pair < turn.pairs; ++pair) {  // the table holds equal values for both elements
    turn.cos[pair] = sign * (pair < turn.rotated ? cos.x[2 * pair] : C(1));
    turn.sin[pair] = sign * sin.x[2 * pair];
  }
  return turn;
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
// either may be null. Rows are slots, if the heads lie in slots.
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

// Heads that a thread rotates by the same part of the table, of which it reads at least twice the bytes of a head in 16
// bits.
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

// The heads in each frame, with PairedColumns, 0 from D on, in slots if there are any. Without `rotate` they go to
// to.plus as they are.
template <typename T, bool rotate>
BICO_KERNEL(preprocess_threads)
void rotate_heads(BICO_ARGUMENT(Problem) p, BICO_ARGUMENT(Source) source, BICO_ARGUMENT(Slots) slots,
                  PerFrame<FrameOfHeads<T>> to, int columns) {
  using C = Compute<T>;
  const int count = source.count, head_dim = p.head_dim;
  const RowPiece at = RowPiece::here(divide_up(count, heads_of_thread), p.length, columns / vector_elements);
  if (!at.exists) return;
  const int begin = at.piece * vector_elements, slot = at.position;
  const Spans spans = spans_of(p, slots, at.batch);
  const int position = spans.row_of(slot);
  const PairedColumns pairs = rotate ? PairedColumns::of(p.rotary) : PairedColumns();
  Turn<C> turn;
  if constexpr (rotate) turn = read_turn<C>(p.rotary, source, at.batch, position, begin);
#pragma unroll 1
  for (int i = 0; i < heads_of_thread; ++i) {
    const int head = at.group * heads_of_thread + i;
    if (head >= count) break;
    const int64_t index = int64_t(at.batch) * count + head;
    const T* from = source.heads.template row<T>(at.batch, head, position);
    const Chunk<C> own = read_chunk(from, pairs, begin, head_dim, source.aligned);
    if constexpr (!rotate) {
      to.plus.take(own, index, p.length, slot, columns, begin);
    } else {
      Chunk<C> plus, minus;
#pragma unroll
      for (int pair = 0; pair < turn.pairs; ++pair) {
        const C x = own.x[2 * pair], y = own.x[2 * pair + 1], cos = turn.cos[pair], sin = turn.sin[pair];
        const C of_y = pair < turn.rotated ? y * sin : C(0), of_x = pair < turn.rotated ? x * sin : C(0);
        plus.x[2 * pair] = x * cos - of_y;
        plus.x[2 * pair + 1] = y * cos + of_x;
        minus.x[2 * pair] = x * cos + of_y;
        minus.x[2 * pair + 1] = y * cos - of_x;
      }
      to.plus.take(plus, index, p.length, slot, columns, begin);
      if (p.mirror) to.minus.take(minus, index, p.length, slot, columns, begin);
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
// power of 2, sum one row. In 16 bits rows of grad_out that are not finite are flagged in both frames.
template <typename T>
BICO_KERNEL(preprocess_threads)
void compute_delta(BICO_ARGUMENT(Backward) p, bool aligned, int lanes, Compute<T>* delta,
                   PerFrame<RowFlags> nonfinite) {
  using C = Compute<T>;
  const int head_dim = p.head_dim;
  const RowPiece at = RowPiece::here(p.query_heads, p.length, lanes);
  const int64_t index = int64_t(at.batch) * p.query_heads + at.group;
  const int begin = at.piece * vector_elements, m = at.position;
  C sum = 0;
  if (at.exists) {
    const Chunk<C> out = read_chunk(p.out.row<T>(at.batch, at.group, m), {}, begin, head_dim, aligned);
    const Chunk<C> grad = read_chunk(p.grad_out.row<T>(at.batch, at.group, m), {}, begin, head_dim, aligned);
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
}

inline Slots take_slots(Arena& arena, const Problem& p) {
  if (!p.span_ids) return {};
  const int64_t granules = divide_up(p.length, granule);
  return {arena.take<SpanRange>(p.batch * granules), arena.take<SlotRange>(p.batch * granules),
          arena.take<KeptRows>(p.batch * (granules + 1)), arena.take<int32_t>(p.batch * p.length)};
}

inline void launch_number_keys(const Slots& slots, const Problem& p, Stream stream) {
  if (!slots.rows) return;
  launch("number_keys", number_keys, p.batch, number_threads, number_threads / 32 * int(sizeof(int32_t)), stream, p,
         slots);
}

template <typename T, bool rotate>
void launch_rotate_heads(const char* name, const Problem& p, const Source& source, const Slots& slots, int64_t columns,
                         const PerFrame<FrameOfHeads<T>>& to, Stream stream) {
  const int64_t groups = divide_up(source.count, heads_of_thread);
  launch(name, rotate_heads<T, rotate>, RowPiece::blocks(groups, p.batch, p.length, columns / vector_elements),
         preprocess_threads, 0, stream, p, source, slots, to, int(columns));
}

// Heads rotated into both frames, with PairedColumns; one copy serves as both where the problem does not mirror.
template <typename T>
struct RotatedHeads {
  PerFrame<T*> frames;

  RotatedHeads(Arena& arena, const Problem& p, int64_t heads, int64_t columns) {
    const int64_t count = p.batch * heads * p.length * columns;
    frames.plus = arena.take<T>(count);
    frames.minus = p.mirror ? arena.take<T>(count) : frames.plus;
  }

  void launch_rotate(const Problem& p, const Heads& heads, int64_t count, int64_t columns, Stream stream,
                     const Slots& slots = {}, const PerFrame<RowFlags>& nonfinite = {}, bool negated = false) const {
    const bool aligned = aligned_rows(heads, sizeof(T)) && aligned_rotation(p.rotary, sizeof(Compute<T>));
    const Source source = {heads, count, aligned, negated};
    launch_rotate_heads<T, true>("rotate_heads", p, source, slots, columns,
                                 {{frames.plus, nonfinite.plus}, {frames.minus, nonfinite.minus}}, stream);
  }
};

// The heads, or a copy of them that lies in slots or whose rows can be copied by 16 bytes.
template <typename T>
struct CopyableHeads {
  Heads heads;
  T* copy = nullptr;

  CopyableHeads(Arena& arena, const Problem& p, const Heads& given, int64_t count, int64_t columns,
                bool in_slots = false)
      : heads(given) {
    if (!in_slots && aligned_rows(given, sizeof(T))) return;
    copy = arena.take<T>(p.batch * count * p.length * columns);
    heads = {copy, count * p.length * columns, p.length * columns, columns};
  }

  // Copies, if need be, and flags rows that are not finite, if asked to.
  void launch_copy(const Problem& p, const Heads& given, int64_t count, int64_t columns, Stream stream,
                   const Slots& slots = {}, const RowFlags& nonfinite = {}) const {
    if (!copy && !nonfinite.words) return;
    const Source source = {given, count, aligned_rows(given, sizeof(T))};
    launch_rotate_heads<T, false>("copy_heads", p, source, slots, columns, {{copy, nonfinite}, {}}, stream);
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
void launch_compute_delta(const Backward& p, Compute<T>* delta, Stream stream,
                          const PerFrame<RowFlags>& nonfinite = {}) {
  int lanes = 1;
  while (lanes * vector_elements < p.head_dim) lanes *= 2;
  const bool aligned = aligned_rows(p.out, sizeof(T)) && aligned_rows(p.grad_out, sizeof(T));
  launch("compute_delta", compute_delta<T>, RowPiece::blocks(p.query_heads, p.batch, p.length, lanes),
         preprocess_threads, 0, stream, p, aligned, lanes, delta, nonfinite);
}

}  // namespace bico::cuda
