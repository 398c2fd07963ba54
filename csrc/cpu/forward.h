// Forward: one task computes one tile of queries of one head. It walks over the sequence's tiles of keys with an online
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
  PerFrame<Operand*> columns;
  Operand* depth;
  bool* values_finite;  // [tiles]

  PackedKeys(const Problem& p, int64_t tiles, int64_t rows_in_tile, Arena& arena)
      : tile_rows(rows_in_tile), padded(padded_head_dim(p)) {
    for (const Frame frame : every_frame) {
      columns[frame] = arena.take<Operand>(needs(frame, p.mirror) ? tiles * tile_rows * padded : 0);
    }
    depth = arena.take<Operand>(tiles * tile_rows * padded);
    values_finite = arena.take<bool>(tiles);
  }

  PerFrame<Panel<A>> key_columns(int64_t tile) const {
    const int64_t at = tile * tile_rows * padded;
    return {{columns.plus + at, padded}, {columns.minus + at, padded}};
  }
  Panel<A> value_depth(int64_t tile) const { return {depth + tile * tile_rows * padded, tile_rows}; }
};

// Weights may grow to 2^headroom before row sums and values are rescaled. Then hardly any tile but a row's first needs
// rescaling. Nor does it need the largest score of the row, which costs more than to find that no score is larger.
constexpr int headroom = 8;

template <typename A>
struct ForwardScratch {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  PerFrame<Matrix<Operand>> rows;  // [tile, D] of queries; of keys or values while packing
  Matrix<T> scores, minus_scores;  // [strip, tile], [strip, strip]
  Matrix<Operand> weights;         // [strip, tile]
  Matrix<T> values;                // [tile, D], unnormalised, relative to 2^base
  T* base;                         // [tile]: within `headroom` of the largest score so far
  Vector<T>* row_sums;             // [tile], by lane

  ForwardScratch(const Problem& p, int64_t tile_rows, Arena& arena) {
    const int64_t padded = padded_head_dim(p);
    for (const Frame frame : every_frame) rows[frame] = take_matrix<Operand>(arena, tile_rows, padded);
    scores = take_matrix<T>(arena, strip_rows, tile_rows);
    minus_scores = take_matrix<T>(arena, strip_rows, strip_rows);
    weights = take_matrix<Operand>(arena, strip_rows, tile_rows);
    values = take_matrix<T>(arena, tile_rows, padded);
    base = arena.take<T>(tile_rows);
    row_sums = arena.take<Vector<T>>(tile_rows);
  }

  void reset(int64_t count) {
    std::fill_n(base, count, -T(INFINITY));
    std::fill_n(row_sums, count, Vector<T>{});
  }

  // Turns the scores of a strip into weights relative to `base`, and rescales row sums and values where `base` grows.
  void absorb(const Block& block, int64_t columns) {
    for (int64_t r = 0; r < block.queries.count; ++r) {
      const T* row = scores.row(r);
      T& base_so_far = base[block.first_query + r];
      Vector<T> row_sum = row_sums[block.first_query + r];
      Vector<T> row_max = load(row);
      for (int64_t c = lanes<T>; c < columns; c += lanes<T>) {
        const Vector<T> x = load(row + c);
        row_max = x > row_max ? x : row_max;
      }
      if (any<T>(row_max > base_so_far + headroom)) {
        const T new_base = largest_of(row_max);
        if (base_so_far != -T(INFINITY)) {  // else there is nothing to rescale yet
          const T rescale = std::exp2(base_so_far - new_base);
          row_sum *= rescale;
          T* value_row = values.row(block.first_query + r);
          for (int64_t d = 0; d < values.stride; d += lanes<T>) store(value_row + d, load(value_row + d) * rescale);
        }
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
        row_sum += weight + next;
      }
      if (c < columns) {
        const Vector<T> weight = exp2<A::exp2_terms>(load(row + c) - from);
        A::store_row(weight_row + c, weight);
        row_sum += weight;
      }
      row_sums[block.first_query + r] = row_sum;
    }
  }

  // Divides by the row sums and stores out and lse.
  void store_results(const Forward& p, int64_t batch, int64_t head, const Rows& queries) {
    for (int64_t r = 0; r < queries.count; ++r) {
      const T row_sum = sum(row_sums[r]);
      const bool blind = row_sum == 0;
      T* row = values.row(r);
      if (blind) std::fill_n(row, values.stride, T(0));
      store_row(p.out, p.dtype, batch, head, queries.begin + r, p.head_dim, blind ? T(1) : 1 / row_sum, row);
      const T lse = (base[r] + std::log2(row_sum)) * std::numbers::ln2_v<T>;
      *p.lse.row<T>(batch, head, queries.begin + r) = blind ? -T(INFINITY) : lse;
    }
  }
};

template <typename A>
void pack_keys(const Forward& p, const Unit& unit, int64_t key_tile, const Load& loads, void* shared,
               void* scratch_memory) {
  Arena shared_arena(shared), scratch_arena(scratch_memory);
  const PackedKeys<A> packed(p, unit.tile_count, unit.tile_rows, shared_arena);
  const ForwardScratch<A> scratch(p, unit.tile_rows, scratch_arena);
  const Rows& tile = loads.now.rows;
  pack_rotated<A>(p, p.k, loads, 1.0, unit.mirror, scratch.rows);
  const PerFrame<Panel<A>> columns = packed.key_columns(key_tile);
  for (const Frame frame : every_frame) {
    if (needs(frame, unit.mirror)) rows_to_columns<A>(scratch.rows[frame], tile.count, packed.padded, columns[frame]);
  }
  auto values = scratch.rows.plus;
  const bool finite = pack_unrotated<A>(p, p.v, loads, values);
  if (!finite) values = finite_part<A>(values, tile.count, packed.padded, scratch.rows.minus);
  rows_to_depth<A>(values, tile.count, packed.padded, packed.value_depth(key_tile));
  packed.values_finite[key_tile] = finite;
}

// Adds infinite and NaN values to the queries that see them.
template <typename A>
void add_nonfinite_values(const Forward& p, const Unit& unit, const Block& block, const ForwardScratch<A>& scratch) {
  using T = typename A::Scalar;
  T row[most_head_dim];
  for_each_visible(p, unit.batch, block, [&](int64_t r, int64_t c) {
    load_row(p.v, p.dtype, unit.batch, unit.kv_head, block.keys.begin + c, p.head_dim, scratch.values.stride, row);
    add_nonfinite(widen(scratch.weights.row(r)[c]), row, p.head_dim, scratch.values.row(block.first_query + r), 1);
  });
}

template <typename A>
void attend(const Forward& p, const Unit& unit, const Load& loads, void* shared, void* scratch_memory) {
  [[maybe_unused]] const typename A::Session session;
  Arena shared_arena(shared), scratch_arena(scratch_memory);
  const PackedKeys<A> keys(p, unit.tile_count, unit.tile_rows, shared_arena);
  ForwardScratch<A> scratch(p, unit.tile_rows, scratch_arena);
  const Rows& queries = loads.now.rows;
  const double scale = p.scale * std::numbers::log2e;
  pack_rotated<A>(p, p.q, loads, scale, unit.mirror, scratch.rows);
  scratch.reset(queries.count);
  bool first = true;

  for (int64_t t = 0; t < unit.tile_count; ++t) {
    if (tile_view(queries, unit.tiles[t], p.window) == TileView::nothing) continue;
    const PerFrame<Panel<A>> columns = keys.key_columns(t);
    for (int64_t strip = 0; strip < queries.count; strip += strip_rows) {
      const Block block(p, queries, unit.tiles[t], strip);
      compute_scores<A>(p, unit.batch, block, scratch.rows, columns, scratch.scores, scratch.minus_scores);
      scratch.absorb(block, score_columns<A>(block));
      add_product<A>({block.queries.count, p.head_dim, block.end, scratch.weights, keys.value_depth(t), 0, 0,
                      scratch.values.from(strip)},
                     first);
      if (!keys.values_finite[t]) add_nonfinite_values(p, unit, block, scratch);
    }
    first = false;
  }
  scratch.store_results(p, unit.batch, loads.now.head, queries);
}

// A product over one tile of keys then takes 64 steps of 24 multiply-adds for 48 loads and stores of its accumulators.
template <typename A>
constexpr int64_t tile_rows = 64 * A::group;

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
