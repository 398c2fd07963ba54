// Packs q, k, v and the output gradient for the tile product: in compute precision, rotated once, head dim padded
// with zeros to a multiple of the column step.
//
// Frame 0 is turned by R(t), frame 1 by R'(t) = R(-t), for keys after the query.
#pragma once

#include "../rotation.h"
#include "element.h"
#include "tiles.h"

namespace bico::cpu {

constexpr int frames = 2;

template <typename T>
int64_t padded_head_dim(const Problem& p) {
  return round_up(p.head_dim, column_step<T>);
}

// The rotation at one position, from the table of its batch entry.
template <typename T>
void rotate_at(const Problem& p, int64_t batch, int64_t position, const T* x, int frame, T* rotated) {
  const RotaryTable& r = p.rotary;
  const T* cos = static_cast<const T*>(r.cos) + batch * r.cos_batch_stride + position * r.cos_row_stride;
  const T* sin = static_cast<const T*>(r.sin) + batch * r.sin_batch_stride + position * r.sin_row_stride;
  rotate(x, cos, sin, frame == 0 ? T(1) : T(-1), r.width, p.head_dim, r.interleaved, rotated);
}

// to[0, padded) = scale * from[0, count), then zeros.
template <typename Element, typename T = Compute<Element>>
void load_row(const Element* __restrict from, int64_t count, int64_t padded, T scale, T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]) * scale;
  for (int64_t i = count; i < padded; ++i) to[i] = 0;
}

template <typename T>
bool all_finite(const T* row, int64_t count) {
  int infinite = 0;
  for (int64_t i = 0; i < count; ++i) infinite |= row[i] - row[i] != 0;
  return infinite == 0;
}

// [rows, padded] -> [padded, tile_rows]; columns beyond the rows are zero up to the column step, and not written
// after it. In register blocks: element by element it took a third of a forward on sequences of 28 tokens.
template <typename T>
void transpose(const T* rows, int64_t row_count, int64_t padded, T* columns) {
  constexpr int step = lanes<T>;
  for (int64_t r = 0; r < round_up(row_count, column_step<T>); r += step) {
    for (int64_t d = 0; d < padded; d += step) {
      Vector<T> block[step];
      for (int i = 0; i < step; ++i) block[i] = r + i < row_count ? load(rows + (r + i) * padded + d) : Vector<T>{};
      transpose_block<T>(block);
      for (int i = 0; i < step; ++i) store(columns + (d + i) * tile_rows + r, block[i]);
    }
  }
}

// The tile's rows of x, not rotated.
template <typename Element, typename T = Compute<Element>>
bool pack_plain(const Problem& p, const Heads& x, int64_t head, const Tile& tile, T* rows) {
  const int64_t padded = padded_head_dim<T>(p);
  bool finite = true;
  for (int64_t i = 0; i < tile.rows.count; ++i) {
    const auto* row = x.row<const Element>(tile.batch, head, tile.rows.begin + i);
    load_row(row, p.head_dim, padded, T(1), rows + i * padded);
    finite &= all_finite(rows + i * padded, p.head_dim);
  }
  return finite;
}

// The tile's rows of q or k, scaled and rotated, in both frames (frame 1 only where the problem mirrors).
template <typename Element, typename T = Compute<Element>>
bool pack_rotated(const Problem& p, const Heads& x, int64_t head, const Tile& tile, T scale, T* rows, T* mirrored) {
  const int64_t padded = padded_head_dim<T>(p);
  const Buffer<T> plain(padded);
  bool finite = true;
  for (int64_t i = 0; i < tile.rows.count; ++i) {
    const int64_t position = tile.rows.begin + i;
    load_row(x.row<const Element>(tile.batch, head, position), p.head_dim, padded, scale, plain.get());
    for (T* to : {rows, mirrored}) {
      if (to == nullptr) continue;
      T* rotated = to + i * padded;
      rotate_at(p, tile.batch, position, plain.get(), to == rows ? 0 : 1, rotated);
      for (int64_t d = p.head_dim; d < padded; ++d) rotated[d] = 0;
      finite &= all_finite(rotated, p.head_dim);  // large elements can overflow in the rotation
    }
  }
  return finite;
}

// Keys and values of the whole problem. The forward needs key columns (scores) and value rows (output); the
// backward key columns and rows (scores, grad_q) and value columns (grad of the weights).
template <typename T>
struct PackedKeys {
  Panels<T> key_columns[frames], key_rows[frames], value_rows, value_columns;

  PackedKeys(const Problem& p, int64_t tiles, bool backward)
      : key_columns{{p.kv_heads, tiles, block(p, true)}, {p.kv_heads, tiles, block(p, p.mirror)}},
        key_rows{{p.kv_heads, tiles, block(p, backward)}, {p.kv_heads, tiles, block(p, backward && p.mirror)}},
        value_rows{p.kv_heads, tiles, block(p, !backward)},
        value_columns{p.kv_heads, tiles, block(p, backward)} {}

 private:
  static int64_t block(const Problem& p, bool wanted) { return wanted ? tile_rows * padded_head_dim<T>(p) : 0; }
};

template <typename Element, typename T = Compute<Element>>
PackedKeys<T> pack_keys(const Problem& p, const std::vector<Tile>& tiles, bool backward,
                        const ParallelFor& parallel_for) {
  const int64_t padded = padded_head_dim<T>(p), count = int64_t(tiles.size());
  PackedKeys<T> packed(p, count, backward);
  for_each_task(p.kv_heads, count, 50.0 * tile_rows * padded, parallel_for, [&](int64_t begin, int64_t end) {
    const Buffer<T> rows(tile_rows * padded), mirrored(tile_rows * padded);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / count, t = task % count;
      const Tile& tile = tiles[t];
      T* frame_rows[frames] = {backward ? packed.key_rows[0].at(head, t) : rows.get(), nullptr};
      if (p.mirror) frame_rows[1] = backward ? packed.key_rows[1].at(head, t) : mirrored.get();
      const bool keys_finite = pack_rotated<Element>(p, p.k, head, tile, T(1), frame_rows[0], frame_rows[1]);
      for (int frame = 0; frame < frames; ++frame) {
        packed.key_rows[frame].finite(head, t) = keys_finite;
        if (frame_rows[frame] == nullptr) continue;
        transpose(frame_rows[frame], tile.rows.count, padded, packed.key_columns[frame].at(head, t));
      }
      T* value_rows = backward ? rows.get() : packed.value_rows.at(head, t);
      packed.value_rows.finite(head, t) = pack_plain<Element>(p, p.v, head, tile, value_rows);
      if (backward) transpose(value_rows, tile.rows.count, padded, packed.value_columns.at(head, t));
    }
  });
  return packed;
}

}  // namespace bico::cpu
