// Backward: one task computes one tile of keys. It walks over the tiles of queries, recomputes the weights P from lse
// and accumulates grad_k and grad_v of its keys in its own memory. All tasks of the unit add to grad_q of each tile of
// queries, one after another in the order of the keys. With delta = rowsum(grad_out * out) - grad_lse:
//   dS = P * (grad_out V^T - delta),  grad_v = P^T grad_out,  grad_q = dS K,  grad_k = dS^T Q,
// the last two in each frame, then rotated back. As in the forward, scores are in units of log2.
#pragma once

#include "forward.h"
#include "products/key_sums.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// Queries and output gradients of one unit, packed, and the grad_q in progress. `tile` counts through the query heads
// of the unit: head in group * tiles + tile.
template <typename A>
struct PackedQueries {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  int64_t tile_rows, padded;
  PerFrame<Operand*> rows, summands;
  Operand *grad_out_rows, *grad_out_summands;
  T *lse, *delta;              // lse in units of log2
  PerFrame<T*> grad_q;         // not yet rotated back
  PerFrame<bool*> has_grad_q;  // else nothing was added yet
  bool *queries_finite, *grad_out_finite;

  PackedQueries(const Problem& p, int64_t unit_tiles, int64_t rows_in_tile, Arena& arena)
      : tile_rows(rows_in_tile), padded(padded_head_dim(p)) {
    const int64_t tiles = p.query_heads / p.kv_heads * unit_tiles, elements = tiles * tile_rows * padded;
    for (const Frame frame : every_frame) {
      const int64_t wanted = needs(frame, p.mirror) ? elements : 0;
      rows[frame] = arena.take<Operand>(wanted);
      summands[frame] = arena.take<Operand>(wanted);
      grad_q[frame] = arena.take<T>(wanted);
      has_grad_q[frame] = arena.take<bool>(tiles);
    }
    grad_out_rows = arena.take<Operand>(elements);
    grad_out_summands = arena.take<Operand>(elements);
    lse = arena.take<T>(tiles * tile_rows);
    delta = arena.take<T>(tiles * tile_rows);
    queries_finite = arena.take<bool>(tiles);
    grad_out_finite = arena.take<bool>(tiles);
  }

  // One tile of an array, as rows [tile, D] or as what is summed over rows.
  template <typename E>
  Matrix<E> row_major(E* data, int64_t tile) const {
    return {data + tile * tile_rows * padded, padded};
  }
  template <typename E>
  PerFrame<Matrix<E>> row_major(const PerFrame<E*>& data, int64_t tile) const {
    return {row_major(data.plus, tile), row_major(data.minus, tile)};
  }
  KeySum<A>::Summand summand(Operand* data, int64_t tile) const {
    return {data + tile * tile_rows * padded, tile_rows};
  }
};

template <typename A>
struct BackwardScratch {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  int64_t tile_rows, padded;
  PerFrame<Matrix<Operand>> rows;  // [tile, D], while packing
  PerFrame<Panel<A>> key_columns, key_depth;
  Panel<A> value_columns;
  Matrix<T> scores, minus_scores;         // [strip, tile], [strip, strip]
  Matrix<T> weight_grads;                 // [strip, tile]: grad_out V^T
  PerFrame<Matrix<Operand>> score_grads;  // [strip, tile]: dS
  Panel<A> weights;                       // [tile of queries, tile of keys]: P
  PerFrame<Panel<A>> score_grad_panels;   // [tile of queries, tile of keys]: dS
  PerFrame<KeySum<A>> grad_k;             // [tile, D], not yet rotated back
  KeySum<A> grad_v;                       // [tile, D]

  BackwardScratch(const Problem& p, int64_t rows_in_tile, Arena& arena)
      : tile_rows(rows_in_tile), padded(padded_head_dim(p)) {
    for (const Frame frame : every_frame) {
      rows[frame] = take_matrix<Operand>(arena, tile_rows, padded);
      key_columns[frame] = Panel<A>::take(arena, padded, tile_rows);
      key_depth[frame] = Panel<A>::take(arena, tile_rows, padded);
      score_grads[frame] = take_matrix<Operand>(arena, strip_rows, tile_rows);
      score_grad_panels[frame] = Panel<A>::take(arena, tile_rows, tile_rows);
      grad_k[frame] = KeySum<A>(arena, tile_rows, padded);
    }
    value_columns = Panel<A>::take(arena, padded, tile_rows);
    scores = take_matrix<T>(arena, strip_rows, tile_rows);
    minus_scores = take_matrix<T>(arena, strip_rows, strip_rows);
    weight_grads = take_matrix<T>(arena, strip_rows, tile_rows);
    weights = Panel<A>::take(arena, tile_rows, tile_rows);
    grad_v = KeySum<A>(arena, tile_rows, padded);
  }
};

// rows [count, D] to what is summed over them.
template <typename A>
void pack_summand(const BackwardScratch<A>& scratch, Matrix<typename A::Operand> rows, bool finite, int64_t count,
                  typename KeySum<A>::Summand summand) {
  if (!finite) rows = finite_part<A>(rows, count, scratch.padded, scratch.rows.plus);
  KeySum<A>::pack(rows, count, scratch.padded, scratch.key_depth.plus, summand);
}

template <typename A>
void pack_queries(const Backward& p, const Unit& unit, int64_t at, const Load& loads, void* shared,
                  void* scratch_memory) {
  using T = typename A::Scalar;
  Arena shared_arena(shared), scratch_arena(scratch_memory);
  const PackedQueries<A> packed(p, unit.tile_count, unit.tile_rows, shared_arena);
  const BackwardScratch<A> scratch(p, unit.tile_rows, scratch_arena);
  const auto& [batch, query_head, tile] = loads.now;
  const int64_t padded = packed.padded;
  const PerFrame<Matrix<typename A::Operand>> rows = packed.row_major(packed.rows, at);
  const double scale = p.scale * std::numbers::log2e;
  const bool finite = pack_rotated<A>(p, p.q, loads, scale, unit.mirror, rows);
  for (const Frame frame : every_frame) {
    if (!needs(frame, unit.mirror)) continue;
    pack_summand(scratch, rows[frame], finite, tile.count, packed.summand(packed.summands[frame], at));
  }
  const auto grad_out_rows = packed.row_major(packed.grad_out_rows, at);
  const bool grad_finite = pack_unrotated<A>(p, p.grad_out, loads, grad_out_rows);
  pack_summand(scratch, grad_out_rows, grad_finite, tile.count, packed.summand(packed.grad_out_summands, at));
  packed.has_grad_q.plus[at] = packed.has_grad_q.minus[at] = false;
  packed.queries_finite[at] = finite;
  packed.grad_out_finite[at] = grad_finite;

  T out[most_head_dim];
  for (int64_t r = 0; r < tile.count; ++r) {
    const int64_t m = tile.begin + r;
    prefetch_row(p, p.out, loads.ahead, r);
    load_row(p.out, p.dtype, batch, query_head, m, p.head_dim, padded, out);
    Vector<T> dot = {};
    for (int64_t d = 0; d < padded; d += lanes<T>) dot += load(out + d) * load_elements(grad_out_rows.row(r) + d);
    const T grad_lse = p.grad_lse.data ? *p.grad_lse.row<const T>(batch, query_head, m) : T(0);
    packed.lse[at * packed.tile_rows + r] = *p.lse.row<const T>(batch, query_head, m) * T(std::numbers::log2e);
    packed.delta[at * packed.tile_rows + r] = sum(dot) - grad_lse;
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
  const bool split = block.has_plus() && block.has_minus();
  const Frame frame = block.has_plus() ? Frame::plus : Frame::minus;
  const Matrix<typename A::Operand> score_grads = scratch.score_grads[frame];
  const Panel<A> panel = scratch.score_grad_panels[frame];
  const int64_t columns = score_columns<A>(block);
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  Bits<T> lane;
  for (int i = 0; i < lanes<T>; ++i) lane[i] = i;

  for (int64_t r = 0; r < round_up(block.queries.count, A::depth_step); r += group) {
    const int64_t m = block.first_query + r;
    typename A::Operand *rows[group], *minus_rows[group];
    for (int64_t c = 0; c < columns; c += lanes<T>) {
      V weight[group], grad[group];
      for (int i = 0; i < group; ++i) {
        rows[i] = score_grads.row(r + i) + c;
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
        A::store_group(grad, panel.at(m, c), rows);
        continue;
      }
      V minus_grad[group];
      for (int i = 0; i < group; ++i) {
        const auto in_minus = in_minus_frame(Index(m + i - c), lane);
        minus_grad[i] = in_minus ? grad[i] : V{};
        grad[i] = in_minus ? V{} : grad[i];
        minus_rows[i] = scratch.score_grads.minus.row(r + i) + c;
      }
      A::store_group(grad, panel.at(m, c), rows);
      A::store_group(minus_grad, scratch.score_grad_panels.minus.at(m, c), minus_rows);
    }
  }
}

// Infinities and NaN of the operands that stand in sums over keys (K, for grad_q).
template <typename A>
void add_nonfinite_keys(const Backward& p, const Unit& unit, const Block& block, const BackwardScratch<A>& scratch,
                        const PerFrame<Matrix<typename A::Scalar>>& grad_q) {
  for_each_visible(p, unit.batch, block, [&](int64_t r, int64_t c) {
    const Frame frame = block.frame(p, r, c);
    typename A::Operand row[most_head_dim];
    for (int64_t d = 0; d < p.head_dim; ++d) row[d] = scratch.key_columns[frame].element(d, c);
    add_nonfinite(widen(scratch.score_grads[frame].row(r)[c]), row, p.head_dim,
                  grad_q[frame].row(block.first_query + r), 1);
  });
}

// The same in sums over queries: grad_out for grad_v, Q for grad_k.
template <typename A>
void add_nonfinite_queries(const Backward& p, const Unit& unit, const Block& block, const PackedQueries<A>& packed,
                           int64_t at, const BackwardScratch<A>& scratch) {
  for_each_visible(p, unit.batch, block, [&](int64_t r, int64_t c) {
    const int64_t m = block.first_query + r;
    add_nonfinite(widen(scratch.weights.element(m, c)), packed.row_major(packed.grad_out_rows, at).row(m), p.head_dim,
                  scratch.grad_v.key(c), scratch.grad_v.stride());
    const Frame frame = block.frame(p, r, c);
    add_nonfinite(widen(scratch.score_grad_panels[frame].element(m, c)),
                  packed.row_major(packed.rows[frame], at).row(m), p.head_dim, scratch.grad_k[frame].key(c),
                  scratch.grad_k[frame].stride());
  });
}

template <typename A>
void pack_key_tile(const Backward& p, const Unit& unit, const Load& loads, const BackwardScratch<A>& scratch,
                   bool& finite) {
  const Rows& tile = loads.now.rows;
  finite = pack_rotated<A>(p, p.k, loads, 1.0, unit.mirror, scratch.rows);
  for (const Frame frame : every_frame) {
    if (!needs(frame, unit.mirror)) continue;
    auto rows = scratch.rows[frame];
    rows_to_columns<A>(rows, tile.count, scratch.padded, scratch.key_columns[frame]);
    if (!finite) finite_part<A>(rows, tile.count, scratch.padded, rows);
    rows_to_depth<A>(rows, tile.count, scratch.padded, scratch.key_depth[frame]);
  }
  pack_unrotated<A>(p, p.v, loads, scratch.rows.plus);
  rows_to_columns<A>(scratch.rows.plus, tile.count, scratch.padded, scratch.value_columns);
}

// Adds what one pair of tiles gives to grad_q, grad_k and grad_v. `has_grad_k`: something was added in a frame before.
template <typename A>
void differentiate_pair(const Backward& p, const Unit& unit, const Rows& queries, const Rows& keys,
                        const PackedQueries<A>& packed, int64_t at, bool keys_finite, const BackwardScratch<A>& scratch,
                        PerFrame<bool>& has_grad_k) {
  using T = typename A::Scalar;
  using Operand = typename A::Operand;
  const PerFrame<Matrix<Operand>> query_rows = packed.row_major(packed.rows, at);
  const PerFrame<Matrix<T>> grad_q = packed.row_major(packed.grad_q, at);
  const auto grad_out_rows = packed.row_major(packed.grad_out_rows, at);

  for (int64_t strip = 0; strip < queries.count; strip += strip_rows) {
    const Block block(p, queries, keys, strip);
    compute_scores<A>(p, unit.batch, block, query_rows, scratch.key_columns, scratch.scores, scratch.minus_scores);
    multiply<A>({block.queries.count, score_columns<A>(block), p.head_dim, grad_out_rows.from(strip),
                 scratch.value_columns, 0, 0, scratch.weight_grads});
    weigh<A>(block, packed.lse + at * packed.tile_rows + strip, packed.delta + at * packed.tile_rows + strip, scratch);
    const auto add_to_queries = [&](Frame frame, int64_t begin, int64_t end) {
      if (begin >= end) return;
      add_product<A>({block.queries.count, p.head_dim, end - begin, scratch.score_grads[frame].from(0, begin),
                      scratch.key_depth[frame], begin, 0, grad_q[frame].from(strip)},
                     !packed.has_grad_q[frame][at]);
    };
    add_to_queries(Frame::plus, 0, block.plus_end);
    add_to_queries(Frame::minus, block.minus_begin, block.end);
    if (!keys_finite) add_nonfinite_keys(p, unit, block, scratch, grad_q);
  }

  // The sums over queries, for groups of keys that share one range of queries. On the diagonal the plus frame begins
  // with the strip that the keys cross, and the minus frame ends with it.
  const Block whole(p, queries, keys, 0);
  const bool on_diagonal = side(queries, keys) == Side::on_diagonal;
  const bool ahead = sees_later(queries, keys);
  const bool split = on_diagonal && p.mirror && ahead, causal = on_diagonal && !ahead;
  const PerFrame<bool> adds = {split || whole.has_plus(), split || !whole.has_plus()};
  const int64_t step = split || causal ? strip_rows : keys.count;
  for (int64_t begin = 0; begin < keys.count; begin += step) {
    const int64_t count = std::min(step, keys.count - begin);
    const auto add_to_keys = [&](const KeySum<A>& sum, bool has_sum, Panel<A> weights, Operand* summands, int64_t first,
                                 int64_t last) {
      sum.add(weights, packed.summand(summands, at), first, last, begin, count, p.head_dim, !has_sum);
    };
    const int64_t first = split || causal ? begin : 0,
                  last = split ? std::min(queries.count, begin + count) : queries.count;
    add_to_keys(scratch.grad_v, has_grad_k.plus || has_grad_k.minus, scratch.weights, packed.grad_out_summands,
                causal ? first : 0, queries.count);
    if (adds.plus) {
      add_to_keys(scratch.grad_k.plus, has_grad_k.plus, scratch.score_grad_panels.plus, packed.summands.plus, first,
                  queries.count);
    }
    if (adds.minus) {
      add_to_keys(scratch.grad_k.minus, has_grad_k.minus, scratch.score_grad_panels.minus, packed.summands.minus, 0,
                  last);
    }
  }
  for (const Frame frame : every_frame) {
    if (adds[frame]) has_grad_k[frame] = packed.has_grad_q[frame][at] = true;
  }
  if (!packed.queries_finite[at] || !packed.grad_out_finite[at]) {
    for (int64_t strip = 0; strip < queries.count; strip += strip_rows) {
      add_nonfinite_queries(p, unit, Block(p, queries, keys, strip), packed, at, scratch);
    }
  }
}

template <typename T>
alignas(64) constexpr T zeros[most_head_dim] = {};

// Rotates a gradient [rows, D] back from the frames that there is one in, and stores factor times their sum.
template <typename A>
void store_gradient(const Backward& p, const Unit& unit, int64_t head, const Rows& tile, double factor,
                    const PerFrame<Matrix<typename A::Scalar>>& frames, const PerFrame<bool>& has, const Heads& to) {
  using T = typename A::Scalar;
  alignas(64) T gradient[most_head_dim];
  for (int64_t r = 0; r < tile.count; ++r) {
    const PerFrame<const T*> row = {has.plus ? frames.plus.row(r) : zeros<T>,
                                    has.minus ? frames.minus.row(r) : nullptr};
    Rotation<T>(p, unit.batch, tile.begin + r).rotate_back(row, p.head_dim, gradient);
    store_row(to, p.dtype, unit.batch, head, tile.begin + r, p.head_dim, T(factor), gradient);
  }
}

template <typename A>
void store_key_gradients(const Backward& p, const Unit& unit, const Rows& tile, const BackwardScratch<A>& scratch,
                         const PerFrame<bool>& has) {
  using T = typename A::Scalar;
  const bool seen = has.plus || has.minus;
  const Matrix<T> grad_v = seen ? scratch.grad_v.rows(tile.count) : Matrix<T>{};
  for (int64_t r = 0; r < tile.count; ++r) {
    store_row(p.grad_v, p.dtype, unit.batch, unit.kv_head, tile.begin + r, p.head_dim, T(1),
              seen ? grad_v.row(r) : zeros<T>);
  }
  // q carried scale * log2(e): what is left of it is 1 / log2(e).
  PerFrame<Matrix<T>> grad_k;
  for (const Frame frame : every_frame) {
    if (has[frame]) grad_k[frame] = scratch.grad_k[frame].rows(tile.count);
  }
  store_gradient<A>(p, unit, unit.kv_head, tile, std::numbers::ln2, grad_k, has, p.grad_k);
}

template <typename A>
void differentiate(const Backward& p, const Unit& unit, int64_t key_tile, const Load& loads, void* shared,
                   void* scratch_memory, const OrderOfKeys& order) {
  [[maybe_unused]] const typename A::Session session;
  Arena shared_arena(shared), scratch_arena(scratch_memory);
  const PackedQueries<A> packed(p, unit.tile_count, unit.tile_rows, shared_arena);
  const BackwardScratch<A> scratch(p, unit.tile_rows, scratch_arena);
  const Rows& keys = loads.now.rows;
  bool keys_finite;
  pack_key_tile<A>(p, unit, loads, scratch, keys_finite);
  PerFrame<bool> has_grad_k = {false, false};
  const int64_t group = p.query_heads / p.kv_heads;
  for (int64_t at = 0; at < group * unit.tile_count; ++at) {
    const Rows& queries = unit.tiles[at % unit.tile_count];
    order.wait_for(at, key_tile);
    if (tile_view(queries, keys, p.window) != TileView::nothing) {
      differentiate_pair<A>(p, unit, queries, keys, packed, at, keys_finite, scratch, has_grad_k);
    }
    if (key_tile == unit.tile_count - 1) {
      const int64_t query_head = unit.kv_head * group + at / unit.tile_count;
      store_gradient<A>(p, unit, query_head, queries, p.scale, packed.row_major(packed.grad_q, at),
                        {packed.has_grad_q.plus[at], packed.has_grad_q.minus[at]}, p.grad_q);
    }
    order.pass_on(at, key_tile);
  }
  store_key_gradients<A>(p, unit, keys, scratch, has_grad_k);
}

// What the kernels take for granted when they round a tail up.
template <typename A>
constexpr bool steps_fit = padding % column_step<A> == 0 && padding % panel_columns<A> == 0 &&
                           strip_rows % A::depth_step == 0 && tile_rows<A> % padding == 0 &&
                           tile_rows<A> <= most_tile_rows && padding / A::group % lanes<typename A::Scalar> == 0;

template <typename A>
  requires steps_fit<A>
constexpr Kernels kernels = {
    {tile_rows<A>, bytes_of<PackedKeys<A>>, bytes_of<ForwardScratch<A>>, pack_keys<A>, attend<A>},
    {tile_rows<A>, bytes_of<PackedQueries<A>>, bytes_of<BackwardScratch<A>>, pack_queries<A>, differentiate<A>}};

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
