// Backward: one task is one tile of keys; it walks over the tiles of queries, recomputes the weights P from lse and
// gathers grad_k and grad_v of its keys in its own memory. grad_q of each tile of queries gathers from all tasks of the
// unit, which take turns. With delta = rowsum(grad_out * out) - grad_lse:
//   dS = P * (grad_out V^T - delta),  grad_v = P^T grad_out,  grad_q = dS K,  grad_k = dS^T Q,
// the last two in each frame, then turned back. grad_k and grad_v are held transposed, [D, keys], so that P and dS are
// the right operands of their products as they come. As in the forward, scores are in units of log2.
#pragma once

#include "forward.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// Queries and output gradients of one unit, packed, and the grad_q in progress. `tile` counts through the query heads
// of the unit: head in group * tiles + tile.
template <typename A>
struct PackedQueries {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  int64_t tile_rows, padded;
  Operand *rows[frames], *transposed[frames], *grad_out_rows, *grad_out_transposed;
  T *lse, *delta;   // lse in units of log2
  T* sums[frames];  // of grad_q, before it is turned back
  bool *queries_finite, *grad_out_finite;

  PackedQueries(const Problem& p, int64_t unit_tiles, int64_t rows_in_tile, Carver& memory)
      : tile_rows(rows_in_tile), padded(padded_head_dim(p)) {
    const int64_t tiles = p.query_heads / p.kv_heads * unit_tiles, elements = tiles * tile_rows * padded;
    for (int frame = 0; frame < frames; ++frame) {
      const int64_t wanted = frame == 0 || p.mirror ? elements : 0;
      rows[frame] = memory.take<Operand>(wanted);
      transposed[frame] = memory.take<Operand>(wanted);
      sums[frame] = memory.take<T>(wanted);
    }
    grad_out_rows = memory.take<Operand>(elements);
    grad_out_transposed = memory.take<Operand>(elements);
    lse = memory.take<T>(tiles * tile_rows);
    delta = memory.take<T>(tiles * tile_rows);
    queries_finite = memory.take<bool>(tiles);
    grad_out_finite = memory.take<bool>(tiles);
  }

  template <typename E>
  Matrix<E> row_major(E* data, int64_t tile) const {
    return {data + tile * tile_rows * padded, padded};
  }
  Matrix<Operand> turned(Operand* data, int64_t tile) const { return {data + tile * tile_rows * padded, tile_rows}; }
};

template <typename A>
struct BackwardScratch {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  int64_t tile_rows, padded;
  Matrix<Operand> rows[frames];  // [tile, D], while packing
  Panel<A> depth;                // [tile, D], while packing
  Panel<A> key_columns[frames], key_depth[frames], value_columns;
  Matrix<T> scores, other;                      // [strip, tile], [strip, strip]
  Matrix<T> weight_grads;                       // [strip, tile]: grad_out V^T
  Matrix<Operand> score_grads[frames];          // [strip, tile]: dS
  Panel<A> weights, score_grad_panels[frames];  // [tile of queries, tile of keys]: P and dS
  Matrix<T> key_sums[frames], value_sums;       // [D, tile]
  Matrix<T> turned;                             // [tile, D]

  BackwardScratch(const Problem& p, int64_t rows_in_tile, Carver& memory)
      : tile_rows(rows_in_tile), padded(padded_head_dim(p)) {
    for (int frame = 0; frame < frames; ++frame) {
      rows[frame] = memory.matrix<Operand>(tile_rows, padded);
      key_columns[frame] = Panel<A>::carve(memory, padded, tile_rows);
      key_depth[frame] = Panel<A>::carve(memory, tile_rows, padded);
      score_grads[frame] = memory.matrix<Operand>(strip_rows, tile_rows);
      score_grad_panels[frame] = Panel<A>::carve(memory, tile_rows, tile_rows);
      key_sums[frame] = memory.matrix<T>(padded, tile_rows);
    }
    depth = Panel<A>::carve(memory, tile_rows, padded);
    value_columns = Panel<A>::carve(memory, padded, tile_rows);
    scores = memory.matrix<T>(strip_rows, tile_rows);
    other = memory.matrix<T>(strip_rows, strip_rows);
    weight_grads = memory.matrix<T>(strip_rows, tile_rows);
    weights = Panel<A>::carve(memory, tile_rows, tile_rows);
    value_sums = memory.matrix<T>(padded, tile_rows);
    turned = memory.matrix<T>(tile_rows, padded);
  }
};

// rows [count, D] of finite operands to the left operand of a sum over them.
template <typename A>
void pack_transposed(const BackwardScratch<A>& scratch, Matrix<typename A::Operand> rows, bool finite, int64_t count,
                     Matrix<typename A::Operand> transposed) {
  if (!finite) rows = finite_part<A>(rows, count, scratch.padded, scratch.rows[0]);
  rows_to_depth<A>(rows, count, scratch.padded, scratch.depth);
  depth_to_transposed<A>(scratch.depth, count, scratch.padded, transposed);
}

template <typename A>
void pack_queries(const Backward& p, const Unit& unit, int64_t query_head, int64_t query_tile, void* shared,
                  void* scratch_memory) {
  using T = typename A::Scalar;
  Carver shared_memory(shared), own_memory(scratch_memory);
  const PackedQueries<A> packed(p, unit.tile_count, unit.tile_rows, shared_memory);
  const BackwardScratch<A> scratch(p, unit.tile_rows, own_memory);
  const Rows& tile = unit.tiles[query_tile];
  const int64_t group = p.query_heads / p.kv_heads, padded = packed.padded;
  const int64_t at = (query_head - unit.kv_head * group) * unit.tile_count + query_tile;
  for (const Heads* x : {&p.q, &p.grad_out, static_cast<const Heads*>(&p.out)}) {
    prefetch_tile(p, *x, unit.batch, query_head, tile);
  }

  const Matrix<typename A::Operand> rows[frames] = {packed.row_major(packed.rows[0], at),
                                                    packed.row_major(packed.rows[1], at)};
  const double scale = p.scale * std::numbers::log2e;
  const bool finite = pack_rotated<A>(p, p.q, unit.batch, query_head, tile, scale, rows);
  for (int frame = 0; frame < (p.mirror ? frames : 1); ++frame) {
    pack_transposed(scratch, rows[frame], finite, tile.count, packed.turned(packed.transposed[frame], at));
    std::fill_n(packed.row_major(packed.sums[frame], at).data, packed.tile_rows * padded, T(0));
  }
  const auto grad_out_rows = packed.row_major(packed.grad_out_rows, at);
  const bool grad_finite = pack_plain<A>(p, p.grad_out, unit.batch, query_head, tile, grad_out_rows);
  pack_transposed(scratch, grad_out_rows, grad_finite, tile.count, packed.turned(packed.grad_out_transposed, at));
  packed.queries_finite[at] = finite;
  packed.grad_out_finite[at] = grad_finite;

  T out[most_head_dim], grad_out[most_head_dim];
  for (int64_t r = 0; r < tile.count; ++r) {
    const int64_t m = tile.begin + r;
    load_row(p.out, p.dtype, unit.batch, query_head, m, p.head_dim, padded, T(1), out);
    load_row(p.grad_out, p.dtype, unit.batch, query_head, m, p.head_dim, padded, T(1), grad_out);
    Vector<T> dot = {};
    for (int64_t d = 0; d < padded; d += lanes<T>) dot += load(out + d) * load(grad_out + d);
    const T grad_lse = p.grad_lse.data ? *p.grad_lse.row<const T>(unit.batch, query_head, m) : T(0);
    packed.lse[at * packed.tile_rows + r] = *p.lse.row<const T>(unit.batch, query_head, m) * T(std::numbers::log2e);
    packed.delta[at * packed.tile_rows + r] = sum<T>(dot) - grad_lse;
  }
}

// P and dS of a strip, from its scores and grad_out V^T: into the panels, at the strip's queries, and dS into rows.
// Where the diagonal crosses, dS is split by frame. An unseen pair (score -inf) has P and dS of 0, whatever NaN its
// query's lse or its key's value holds.
template <typename A>
void weigh(const Block& block, const typename A::Scalar* lse, const typename A::Scalar* delta,
           const BackwardScratch<A>& scratch) {
  using T = typename A::Scalar;
  using V = Vector<T>;
  constexpr int group = A::group;
  const bool split = block.plain() && block.mirrored();
  const int frame = block.plain() ? 0 : 1;
  const int64_t columns = score_columns<A>(block);
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  Bits<T> lane;
  for (int i = 0; i < lanes<T>; ++i) lane[i] = i;

  for (int64_t r = 0; r < round_up(block.queries.count, A::depth_step); r += group) {
    const int64_t m = block.first_query + r;
    typename A::Operand *rows[group], *other_rows[group];
    for (int64_t c = 0; c < columns; c += lanes<T>) {
      V weight[group], grad[group];
      for (int i = 0; i < group; ++i) {
        rows[i] = scratch.score_grads[frame].row(r + i) + c;
        if (r + i >= block.queries.count) {
          weight[i] = grad[i] = V{};
          continue;
        }
        const V score = load(scratch.scores.row(r + i) + c);
        const auto unseen = score == -T(INFINITY);
        const V seen_weight = exp2<A::exp2_terms>(score - lse[r + i]);
        const V seen_grad = seen_weight * (load(scratch.weight_grads.row(r + i) + c) - delta[r + i]);
        weight[i] = unseen ? V{} : seen_weight;
        grad[i] = unseen ? V{} : seen_grad;
      }
      A::store_group(weight, scratch.weights.at(m, c), nullptr);
      if (!split) {
        A::store_group(grad, scratch.score_grad_panels[frame].at(m, c), rows);
        continue;
      }
      V after[group];
      for (int i = 0; i < group; ++i) {
        const auto is_after = lane > Index(m + i - c);
        after[i] = is_after ? grad[i] : V{};
        grad[i] = is_after ? V{} : grad[i];
        other_rows[i] = scratch.score_grads[1].row(r + i) + c;
      }
      A::store_group(grad, scratch.score_grad_panels[0].at(m, c), rows);
      A::store_group(after, scratch.score_grad_panels[1].at(m, c), other_rows);
    }
  }
}

// Infinities and NaN of the operands that stand in sums over keys (K, for grad_q).
template <typename A>
void add_nonfinite_keys(const Backward& p, const Unit& unit, const Block& block, const BackwardScratch<A>& scratch,
                        const Matrix<typename A::Scalar> sums[frames]) {
  for_each_visible(p, unit.batch, block, [&](int64_t r, int64_t c) {
    const int frame = block.frame(p, r, c);
    typename A::Operand row[most_head_dim];
    for (int64_t d = 0; d < p.head_dim; ++d) row[d] = scratch.key_columns[frame].element(d, c);
    add_nonfinite(widen(scratch.score_grads[frame].row(r)[c]), row, p.head_dim, sums[frame].row(block.first_query + r),
                  1);
  });
}

// The same in sums over queries: grad_out for grad_v, Q for grad_k.
template <typename A>
void add_nonfinite_queries(const Backward& p, const Unit& unit, const Block& block, const PackedQueries<A>& packed,
                           int64_t at, const BackwardScratch<A>& scratch) {
  for_each_visible(p, unit.batch, block, [&](int64_t r, int64_t c) {
    const int64_t m = block.first_query + r;
    add_nonfinite(widen(scratch.weights.element(m, c)), packed.row_major(packed.grad_out_rows, at).row(m), p.head_dim,
                  scratch.value_sums.data + c, scratch.value_sums.stride);
    const int frame = block.frame(p, r, c);
    add_nonfinite(widen(scratch.score_grad_panels[frame].element(m, c)),
                  packed.row_major(packed.rows[frame], at).row(m), p.head_dim, scratch.key_sums[frame].data + c,
                  scratch.key_sums[frame].stride);
  });
}

template <typename A>
void pack_key_tile(const Backward& p, const Unit& unit, const Rows& tile, const BackwardScratch<A>& scratch,
                   bool& finite) {
  prefetch_tile(p, p.k, unit.batch, unit.kv_head, tile);
  prefetch_tile(p, p.v, unit.batch, unit.kv_head, tile);
  finite = pack_rotated<A>(p, p.k, unit.batch, unit.kv_head, tile, 1.0, scratch.rows);
  for (int frame = 0; frame < (p.mirror ? frames : 1); ++frame) {
    auto rows = scratch.rows[frame];
    rows_to_columns<A>(rows, tile.count, scratch.padded, scratch.key_columns[frame]);
    if (!finite) finite_part<A>(rows, tile.count, scratch.padded, rows);
    rows_to_depth<A>(rows, tile.count, scratch.padded, scratch.key_depth[frame]);
  }
  pack_plain<A>(p, p.v, unit.batch, unit.kv_head, tile, scratch.rows[0]);
  rows_to_columns<A>(scratch.rows[0], tile.count, scratch.padded, scratch.value_columns);
}

// Adds what one pair of tiles gives to grad_q, grad_k and grad_v.
template <typename A>
void differentiate_pair(const Backward& p, const Unit& unit, const Rows& queries, const Rows& keys,
                        const PackedQueries<A>& packed, int64_t at, bool keys_finite,
                        const BackwardScratch<A>& scratch) {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  const Matrix<Operand> query_rows[frames] = {packed.row_major(packed.rows[0], at),
                                              packed.row_major(packed.rows[1], at)};
  const Matrix<T> query_sums[frames] = {packed.row_major(packed.sums[0], at), packed.row_major(packed.sums[1], at)};
  const auto grad_out_rows = packed.row_major(packed.grad_out_rows, at);

  for (int64_t strip = 0; strip < queries.count; strip += strip_rows) {
    const Block block(p, queries, keys, strip);
    compute_scores<A>(p, unit.batch, block, query_rows, scratch.key_columns, scratch.scores, scratch.other);
    multiply<A>({block.queries.count, score_columns<A>(block), p.head_dim, grad_out_rows.from(strip),
                 scratch.value_columns, 0, 0, scratch.weight_grads});
    weigh<A>(block, packed.lse + at * packed.tile_rows + strip, packed.delta + at * packed.tile_rows + strip, scratch);
    const auto add_to_queries = [&](int frame, int64_t begin, int64_t end) {
      if (begin >= end) return;
      accumulate<A>({block.queries.count, p.head_dim, end - begin, scratch.score_grads[frame].from(0, begin),
                     scratch.key_depth[frame], begin, 0, query_sums[frame].from(strip)});
    };
    add_to_queries(0, 0, block.plain_end);
    add_to_queries(1, block.mirrored_begin, block.end);
    if (!keys_finite) add_nonfinite_keys(p, unit, block, scratch, query_sums);
  }

  // The sums over queries, for columns of keys whose range of queries is one: on the diagonal, frame 0 begins and
  // frame 1 ends with the strip that the columns cross.
  const Block whole(p, queries, keys, 0);
  const bool on_diagonal = side(queries, keys) == Side::on_diagonal;
  const bool split = on_diagonal && p.mirror && has_context(keys), causal = on_diagonal && !has_context(keys);
  const int64_t step = split || causal ? strip_rows : keys.count;
  for (int64_t begin = 0; begin < keys.count; begin += step) {
    const int64_t columns = std::min(step, keys.count - begin);
    const auto add_to_keys = [&](Matrix<Operand> left, Panel<A> right, Matrix<T> sums, int64_t first, int64_t last) {
      accumulate<A>(
          {scratch.padded, columns, last - first, left.from(0, first), right, first, begin, sums.from(0, begin)});
    };
    const int64_t first = split || causal ? begin : 0, last = std::min(queries.count, begin + columns);
    add_to_keys(packed.turned(packed.grad_out_transposed, at), scratch.weights, scratch.value_sums, causal ? first : 0,
                queries.count);
    if (split || whole.plain()) {
      add_to_keys(packed.turned(packed.transposed[0], at), scratch.score_grad_panels[0], scratch.key_sums[0], first,
                  queries.count);
    }
    if (split || !whole.plain()) {
      add_to_keys(packed.turned(packed.transposed[1], at), scratch.score_grad_panels[1], scratch.key_sums[1], 0,
                  split ? last : queries.count);
    }
  }
  if (!packed.queries_finite[at] || !packed.grad_out_finite[at]) {
    for (int64_t strip = 0; strip < queries.count; strip += strip_rows) {
      add_nonfinite_queries(p, unit, Block(p, queries, keys, strip), packed, at, scratch);
    }
  }
}

// Turns each frame of a sum [rows, D] back and stores factor times their total.
template <typename A>
void store_gradient(const Backward& p, int64_t batch, int64_t head, const Rows& tile, double factor,
                    const Matrix<typename A::Scalar> sums[frames], const Heads& to) {
  using T = typename A::Scalar;
  alignas(64) T gradient[most_head_dim];
  for (int64_t r = 0; r < tile.count; ++r) {
    const T* mirrored = p.mirror ? sums[1].row(r) : nullptr;
    Rotation<T>(p, batch, tile.begin + r).rotate_back(sums[0].row(r), mirrored, p.head_dim, gradient);
    store_row(to, p.dtype, batch, head, tile.begin + r, p.head_dim, T(factor), gradient);
  }
}

template <typename A>
void store_key_gradients(const Backward& p, const Unit& unit, const Rows& tile, const BackwardScratch<A>& scratch) {
  using T = typename A::Scalar;
  const auto to_rows = [&](Matrix<T> sums, Matrix<T> rows) {
    transpose_words<T>(scratch.padded, round_up(tile.count, padding), sums.data, sums.stride, rows.data, rows.stride);
  };
  // q carried scale * log2(e): what is left of it is 1 / log2(e).
  Matrix<T> rows[frames] = {scratch.turned, {scratch.value_sums.data, scratch.padded}};
  to_rows(scratch.value_sums, scratch.turned);
  for (int64_t r = 0; r < tile.count; ++r) {
    store_row(p.grad_v, p.dtype, unit.batch, unit.kv_head, tile.begin + r, p.head_dim, T(1), scratch.turned.row(r));
  }
  to_rows(scratch.key_sums[0], rows[0]);
  if (p.mirror) to_rows(scratch.key_sums[1], rows[1]);  // value_sums are stored: their memory is free
  store_gradient<A>(p, unit.batch, unit.kv_head, tile, std::numbers::ln2, rows, p.grad_k);
}

template <typename A>
void differentiate(const Backward& p, const Unit& unit, int64_t key_tile, void* shared, void* scratch_memory,
                   const Turns& turns) {
  using T = typename A::Scalar;
  [[maybe_unused]] const typename A::Session session;
  Carver shared_memory(shared), own_memory(scratch_memory);
  const PackedQueries<A> packed(p, unit.tile_count, unit.tile_rows, shared_memory);
  const BackwardScratch<A> scratch(p, unit.tile_rows, own_memory);
  const Rows& keys = unit.tiles[key_tile];
  bool keys_finite;
  pack_key_tile<A>(p, unit, keys, scratch, keys_finite);
  const int64_t elements = scratch.padded * scratch.tile_rows;
  for (const auto& sums : {scratch.key_sums[0], scratch.key_sums[1], scratch.value_sums}) {
    std::fill_n(sums.data, elements, T(0));
  }

  const int64_t group = p.query_heads / p.kv_heads;
  for (int64_t at = 0; at < group * unit.tile_count; ++at) {
    const Rows& queries = unit.tiles[at % unit.tile_count];
    turns.wait_for(at, key_tile);
    if (tile_view(queries, keys) != TileView::hidden) {
      differentiate_pair<A>(p, unit, queries, keys, packed, at, keys_finite, scratch);
    }
    if (key_tile == unit.tile_count - 1) {
      const Matrix<T> sums[frames] = {packed.row_major(packed.sums[0], at), packed.row_major(packed.sums[1], at)};
      const int64_t query_head = unit.kv_head * group + at / unit.tile_count;
      store_gradient<A>(p, unit.batch, query_head, queries, p.scale, sums, p.grad_q);
    }
    turns.pass_on(at, key_tile);
  }
  store_key_gradients<A>(p, unit, keys, scratch);
}

// What the kernels take for granted when they round a tail up.
template <typename A>
constexpr bool steps_fit =
    padding % column_step<A> == 0 && padding % panel_columns<A> == 0 && strip_rows % A::depth_step == 0 &&
    tile_rows<A> % padding == 0 && padding / A::group % lanes<typename A::Scalar> == 0;

template <typename A>
  requires steps_fit<A>
constexpr Kernels kernels = {
    {tile_rows<A>, bytes_of<PackedKeys<A>>, bytes_of<ForwardScratch<A>>, pack_keys<A>, attend<A>},
    {tile_rows<A>, bytes_of<PackedQueries<A>>, bytes_of<BackwardScratch<A>>, pack_queries<A>, differentiate<A>}};

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
