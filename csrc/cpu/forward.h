// Forward: one task is one tile of queries of one head; it walks over the sequence's tiles of keys with an online
// softmax, strip by strip. Scores are in units of log2: q carries scale * log2(e).
#pragma once

#include <numbers>

#include "kernels.h"
#include "nonfinite.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// The keys and values of one unit, packed.
template <typename A>
struct PackedKeys {
  using Operand = typename A::Operand;
  int64_t tile_rows, padded;
  Operand *columns[frames], *depth;
  bool* values_finite;  // [tiles]

  PackedKeys(const Problem& p, int64_t tiles, int64_t rows_in_tile, Carver& memory)
      : tile_rows(rows_in_tile), padded(padded_head_dim(p)) {
    for (int frame = 0; frame < frames; ++frame) {
      columns[frame] = memory.take<Operand>(frame == 0 || p.mirror ? tiles * tile_rows * padded : 0);
    }
    depth = memory.take<Operand>(tiles * tile_rows * padded);
    values_finite = memory.take<bool>(tiles);
  }

  Panel<A> key_columns(int frame, int64_t tile) const { return {columns[frame] + tile * tile_rows * padded, padded}; }
  Panel<A> value_depth(int64_t tile) const { return {depth + tile * tile_rows * padded, tile_rows}; }
};

// Weights may grow to 2^headroom before sums and values are rescaled: then hardly any tile but a row's first needs
// it, nor the largest score of the row, which costs more than to know that none is larger.
constexpr int headroom = 8;

template <typename A>
struct ForwardScratch {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  Matrix<Operand> rows[frames];  // [tile, D] of queries; of keys or values while packing
  Matrix<T> scores, other;       // [strip, tile], [strip, strip]
  Matrix<Operand> weights;       // [strip, tile]
  Matrix<T> values;              // [tile, D], unnormalised, relative to 2^base
  T* base;                       // [tile]: within `headroom` of the largest score so far
  Vector<T>* sums;               // [tile], by lane

  ForwardScratch(const Problem& p, int64_t tile_rows, Carver& memory) {
    const int64_t padded = padded_head_dim(p);
    for (auto& frame : rows) frame = memory.matrix<Operand>(tile_rows, padded);
    scores = memory.matrix<T>(strip_rows, tile_rows);
    other = memory.matrix<T>(strip_rows, strip_rows);
    weights = memory.matrix<Operand>(strip_rows, tile_rows);
    values = memory.matrix<T>(tile_rows, padded);
    base = memory.take<T>(tile_rows);
    sums = memory.take<Vector<T>>(tile_rows);
  }

  void reset() {
    const int64_t tile_rows = scores.stride;
    std::fill_n(values.data, tile_rows * values.stride, T(0));
    std::fill_n(base, tile_rows, -T(INFINITY));
    std::fill_n(sums, tile_rows, Vector<T>{});
  }

  // Scores of a strip to weights relative to `base`; sums and values rescaled where that has to grow.
  void absorb(const Block& block, int64_t columns) {
    for (int64_t r = 0; r < block.queries.count; ++r) {
      const T* row = scores.row(r);
      T& base_so_far = base[block.first_query + r];
      Vector<T> total = sums[block.first_query + r];
      Vector<T> top = load(row);
      for (int64_t c = lanes<T>; c < columns; c += lanes<T>) {
        const Vector<T> x = load(row + c);
        top = x > top ? x : top;
      }
      if (any<T>(top > base_so_far + headroom)) {
        const T new_base = largest_of(top), rescale = std::exp2(base_so_far - new_base);
        total *= rescale;
        T* value_row = values.row(block.first_query + r);
        for (int64_t d = 0; d < values.stride; d += lanes<T>) store(value_row + d, load(value_row + d) * rescale);
        base_so_far = new_base;
      }
      // A row that has seen nothing yet keeps weights 2^(-inf - 0) = 0 instead of NaN.
      const T from = base_so_far == -T(INFINITY) ? T(0) : base_so_far;
      typename A::Operand* weight_row = weights.row(r);
      int64_t c = 0;
      for (; c + 2 * lanes<T> <= columns; c += 2 * lanes<T>) {
        const Vector<T> weight = exp2<A::exp2_terms>(load(row + c) - from);
        const Vector<T> next = exp2<A::exp2_terms>(load(row + c + lanes<T>) - from);
        A::store_row(weight_row + c, weight, next);
        total += weight + next;
      }
      if (c < columns) {
        const Vector<T> weight = exp2<A::exp2_terms>(load(row + c) - from);
        A::store_row(weight_row + c, weight);
        total += weight;
      }
      sums[block.first_query + r] = total;
    }
  }

  void finish(const Forward& p, int64_t batch, int64_t head, const Rows& queries) {
    for (int64_t r = 0; r < queries.count; ++r) {
      const T total = sum<T>(sums[r]);
      const bool blind = total == 0;
      T* row = values.row(r);
      if (blind) std::fill_n(row, values.stride, T(0));
      store_row(p.out, p.dtype, batch, head, queries.begin + r, p.head_dim, blind ? T(1) : 1 / total, row);
      const T lse = (base[r] + std::log2(total)) * std::numbers::ln2_v<T>;
      *p.lse.row<T>(batch, head, queries.begin + r) = blind ? -T(INFINITY) : lse;
    }
  }
};

template <typename A>
void pack_keys(const Forward& p, const Unit& unit, int64_t key_tile, void* shared, void* scratch_memory) {
  Carver shared_memory(shared), own_memory(scratch_memory);
  const PackedKeys<A> packed(p, unit.tile_count, unit.tile_rows, shared_memory);
  const ForwardScratch<A> scratch(p, unit.tile_rows, own_memory);
  const Rows& tile = unit.tiles[key_tile];
  prefetch_tile(p, p.k, unit.batch, unit.kv_head, tile);
  prefetch_tile(p, p.v, unit.batch, unit.kv_head, tile);
  pack_rotated<A>(p, p.k, unit.batch, unit.kv_head, tile, 1.0, scratch.rows);
  for (int frame = 0; frame < (p.mirror ? frames : 1); ++frame) {
    rows_to_columns<A>(scratch.rows[frame], tile.count, packed.padded, packed.key_columns(frame, key_tile));
  }
  auto values = scratch.rows[0];
  const bool finite = pack_plain<A>(p, p.v, unit.batch, unit.kv_head, tile, values);
  if (!finite) values = finite_part<A>(values, tile.count, packed.padded, scratch.rows[1]);
  rows_to_depth<A>(values, tile.count, packed.padded, packed.value_depth(key_tile));
  packed.values_finite[key_tile] = finite;
}

// Infinite and NaN values, to the queries that see them.
template <typename A>
void add_nonfinite_values(const Forward& p, const Unit& unit, const Block& block, const ForwardScratch<A>& scratch) {
  using T = typename A::Scalar;
  T row[most_head_dim];
  for_each_visible(p, unit.batch, block, [&](int64_t r, int64_t c) {
    load_row(p.v, p.dtype, unit.batch, unit.kv_head, block.keys.begin + c, p.head_dim, scratch.values.stride, T(1),
             row);
    add_nonfinite(widen(scratch.weights.row(r)[c]), row, p.head_dim, scratch.values.row(block.first_query + r), 1);
  });
}

template <typename A>
void attend(const Forward& p, const Unit& unit, int64_t query_head, int64_t query_tile, void* shared,
            void* scratch_memory) {
  [[maybe_unused]] const typename A::Session session;
  Carver shared_memory(shared), own_memory(scratch_memory);
  const PackedKeys<A> keys(p, unit.tile_count, unit.tile_rows, shared_memory);
  ForwardScratch<A> scratch(p, unit.tile_rows, own_memory);
  const Rows& queries = unit.tiles[query_tile];
  prefetch_tile(p, p.q, unit.batch, query_head, queries);
  const double scale = p.scale * std::numbers::log2e;
  pack_rotated<A>(p, p.q, unit.batch, query_head, queries, scale, scratch.rows);
  scratch.reset();

  for (int64_t t = 0; t < unit.tile_count; ++t) {
    if (tile_view(queries, unit.tiles[t]) == TileView::hidden) continue;
    const Panel<A> columns[frames] = {keys.key_columns(0, t), keys.key_columns(1, t)};
    for (int64_t strip = 0; strip < queries.count; strip += strip_rows) {
      const Block block(p, queries, unit.tiles[t], strip);
      compute_scores<A>(p, unit.batch, block, scratch.rows, columns, scratch.scores, scratch.other);
      scratch.absorb(block, score_columns<A>(block));
      accumulate<A>({block.queries.count, p.head_dim, block.end, scratch.weights, keys.value_depth(t), 0, 0,
                     scratch.values.from(strip)});
      if (!keys.values_finite[t]) add_nonfinite_values(p, unit, block, scratch);
    }
  }
  scratch.finish(p, unit.batch, query_head, queries);
}

// A product over one tile of keys then takes 64 steps of 24 multiply-adds for 48 loads and stores of its sums.
template <typename A>
constexpr int64_t tile_rows = 64 * A::group;

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
