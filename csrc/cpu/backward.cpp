// Backward in two passes over recomputed scores: one task owns a tile of keys (grad_k, grad_v) or a tile of queries
// (grad_q), and adds in a fixed order. So there are no races and no atomics, at 7 tile products where one shared
// pass would need 5. With P = exp(scores - lse) and delta = rowsum(grad_out * out) - grad_lse:
//   dS = P * (grad_out V^T - delta),  grad_v = P^T grad_out,  grad_q = dS K,  grad_k = dS^T Q,
// the last two in each frame, then turned back.
#include "scores.h"

namespace bico::cpu {
namespace {

// Queries and output gradients of the whole problem. q carries the scale, so dS^T Q is grad_k as it stands.
template <typename T>
struct PackedQueries {
  Panels<T> query_rows[frames], grad_out_rows;
  Panels<T> lse, delta;  // [tile_rows]

  PackedQueries(const Problem& p, int64_t tiles)
      : query_rows{{p.query_heads, tiles, tile_rows * padded_head_dim<T>(p)},
                   {p.query_heads, tiles, p.mirror ? tile_rows * padded_head_dim<T>(p) : 0}},
        grad_out_rows{p.query_heads, tiles, tile_rows * padded_head_dim<T>(p)},
        lse{p.query_heads, tiles, tile_rows},
        delta{p.query_heads, tiles, tile_rows} {}
};

template <typename Element, typename T>
void pack_statistics(const Backward& p, int64_t head, const Tile& tile, T* lse, T* delta) {
  for (int64_t i = 0; i < tile.rows.count; ++i) {
    const int64_t m = tile.rows.begin + i;
    const auto* out = p.out.row<const Element>(tile.batch, head, m);
    const auto* grad_out = p.grad_out.row<const Element>(tile.batch, head, m);
    T dot = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) dot += widen(out[d]) * widen(grad_out[d]);
    lse[i] = *p.lse.row<const T>(tile.batch, head, m);
    delta[i] = dot - (p.grad_lse.data ? *p.grad_lse.row<const T>(tile.batch, head, m) : T(0));
  }
}

template <typename Element, typename T = Compute<Element>>
PackedQueries<T> pack_queries(const Backward& p, const std::vector<Tile>& tiles, const ParallelFor& parallel_for) {
  const auto count = int64_t(tiles.size());
  PackedQueries<T> packed(p, count);
  const double cost = 50.0 * tile_rows * double(p.head_dim);
  for_each_task(p.query_heads, count, cost, parallel_for, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / count, t = task % count;
      T* mirrored = p.mirror ? packed.query_rows[1].at(head, t) : nullptr;
      const bool finite =
          pack_rotated<Element>(p, p.q, head, tiles[t], T(p.scale), packed.query_rows[0].at(head, t), mirrored);
      for (auto& rows : packed.query_rows) rows.finite(head, t) = finite;
      packed.grad_out_rows.finite(head, t) =
          pack_plain<Element>(p, p.grad_out, head, tiles[t], packed.grad_out_rows.at(head, t));
      pack_statistics<Element>(p, head, tiles[t], packed.lse.at(head, t), packed.delta.at(head, t));
    }
  });
  return packed;
}

// Weights P and dS of one pair of tiles, recomputed.
template <typename T>
struct PairGradients {
  Buffer<T> weights, scratch, score_grads[frames];  // [tile_rows, tile_rows]; dS split by frame
  SeenTile seen;

  PairGradients()
      : weights(tile_rows * tile_rows),
        scratch(tile_rows * tile_rows),
        score_grads{Buffer<T>(tile_rows * tile_rows), Buffer<T>(tile_rows * tile_rows)} {}

  void compute(const Problem& p, const TilePair& pair, const PackedQueries<T>& queries, const PackedKeys<T>& keys,
               int64_t head, int64_t kv_head, int64_t q, int64_t k) {
    using V = Vector<T>;
    const int64_t rows = pair.queries->rows.count, columns = score_columns<T>(pair);
    const int64_t padded = padded_head_dim<T>(p);
    const T* query_rows[frames] = {queries.query_rows[0].at(head, q), queries.query_rows[1].at(head, q)};
    const T* key_columns[frames] = {keys.key_columns[0].at(kv_head, k), keys.key_columns[1].at(kv_head, k)};
    compute_scores(p, pair, query_rows, key_columns, weights.get(), scratch.get(), seen);

    T* grads = score_grads[pair.plain ? 0 : 1].get();
    multiply<T>(rows, columns, padded, {queries.grad_out_rows.at(head, q), padded, 1},
                keys.value_columns.at(kv_head, k), tile_rows, grads, tile_rows);
    const T *lse = queries.lse.at(head, q), *delta = queries.delta.at(head, q);
    for (int64_t r = 0; r < rows; ++r) {
      T *weight_row = weights.get() + r * tile_rows, *grad_row = grads + r * tile_rows;
      for (int64_t c = 0; c < columns; c += lanes<T>) {
        const V weight = exponential(load(weight_row + c) - lse[r]);
        store(weight_row + c, weight);
        store(grad_row + c, weight * (load(grad_row + c) - delta[r]));
      }
    }
    if (pair.view == TileView::mixed) hide(rows, columns, grads);
    if (pair.plain && pair.mirrored) split_by_frame(pair);
  }

 private:
  // An unseen pair has weight 0 and gradient 0, whatever NaN its query's lse or its key's value holds.
  void hide(int64_t rows, int64_t columns, T* grads) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = r * tile_rows; i < r * tile_rows + columns; ++i) {
        weights[i] = seen.seen[i] ? weights[i] : T(0);
        grads[i] = seen.seen[i] ? grads[i] : T(0);
      }
    }
  }

  void split_by_frame(const TilePair& pair) {
    T *plain = score_grads[0].get(), *mirrored = score_grads[1].get();
    const Rows &queries = pair.queries->rows, &keys = pair.keys->rows;
    for (int64_t r = 0; r < queries.count; ++r) {
      for (int64_t c = 0; c < keys.count; ++c) {
        const int64_t i = r * tile_rows + c;
        const bool after = keys.begin + c > queries.begin + r;
        mirrored[i] = after ? plain[i] : T(0);
        plain[i] = after ? T(0) : plain[i];
      }
    }
  }
};

// C += A B, or the careful sum where B is not finite and some pairs are not seen. A is a [queries, keys] tile, or
// its transpose.
template <typename T>
void accumulate_pair(const TilePair& pair, const SeenTile& seen, bool finite, int64_t padded, bool transposed,
                     const T* a, const T* b, T* c) {
  int64_t rows = pair.queries->rows.count, depth = pair.keys->rows.count;
  Left<T> left = {a, tile_rows, 1};
  if (transposed) {
    std::swap(rows, depth);
    left = {a, 1, tile_rows};
  }
  if (pair.view == TileView::mixed && !finite) {
    accumulate_seen(rows, padded, depth, left, seen.seen, b, c);
  } else {
    accumulate(rows, padded, depth, left, b, padded, c, padded);
  }
}

template <typename T>
struct FrameGradients {
  Buffer<T> grads[frames];  // [tile_rows, padded head dim]
  Buffer<T> turned;         // [padded head dim]

  explicit FrameGradients(int64_t padded)
      : grads{Buffer<T>(tile_rows * padded), Buffer<T>(tile_rows * padded)}, turned(padded) {}

  void reset(int64_t padded) {
    for (auto& g : grads) std::fill_n(g.get(), tile_rows * padded, T(0));
  }

  // Turns each frame back, adds them and stores factor times the sum.
  template <typename Element>
  void finish(const Problem& p, const Heads& to, int64_t head, const Tile& tile, T factor) {
    const int64_t padded = padded_head_dim<T>(p);
    for (int64_t r = 0; r < tile.rows.count; ++r) {
      const int64_t position = tile.rows.begin + r;
      T* sum = grads[0].get() + r * padded;
      rotate_at(p, tile.batch, position, sum, 1, turned.get());
      std::copy_n(turned.get(), p.head_dim, sum);
      if (p.mirror) {
        rotate_at(p, tile.batch, position, grads[1].get() + r * padded, 0, turned.get());
        for (int64_t d = 0; d < p.head_dim; ++d) sum[d] += turned[d];
      }
      auto* row = to.row<Element>(tile.batch, head, position);
      for (int64_t d = 0; d < p.head_dim; ++d) row[d] = narrow<Element>(sum[d] * factor);
    }
  }
};

template <typename Element, typename T>
void backward_of_keys(const Backward& p, const std::vector<Tile>& tiles, const PackedQueries<T>& queries,
                      const PackedKeys<T>& keys, const ParallelFor& parallel_for) {
  const int64_t count = int64_t(tiles.size()), padded = padded_head_dim<T>(p);
  const int64_t group = p.query_heads / p.kv_heads;
  const double flops = 2 * double(group) * flops_per_task(p);
  for_each_task(p.kv_heads, count, flops, parallel_for, [&](int64_t begin, int64_t end) {
    PairGradients<T> gradients;
    FrameGradients<T> key_grads(padded);
    const Buffer<T> value_grads(tile_rows * padded);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t kv_head = task / count, k = task % count;
      key_grads.reset(padded);
      std::fill_n(value_grads.get(), tile_rows * padded, T(0));
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t q = tiles[k].first_tile; q < tiles[k].last_tile; ++q) {
          const TilePair pair(p, tiles[q], tiles[k]);
          if (pair.view == TileView::hidden) continue;
          gradients.compute(p, pair, queries, keys, head, kv_head, q, k);
          accumulate_pair(pair, gradients.seen, queries.grad_out_rows.finite(head, q), padded, true,
                          gradients.weights.get(), queries.grad_out_rows.at(head, q), value_grads.get());
          for (int frame = 0; frame < frames; ++frame) {
            if (!(frame == 0 ? pair.plain : pair.mirrored)) continue;
            accumulate_pair(pair, gradients.seen, queries.query_rows[frame].finite(head, q), padded, true,
                            gradients.score_grads[frame].get(), queries.query_rows[frame].at(head, q),
                            key_grads.grads[frame].get());
          }
        }
      }
      key_grads.template finish<Element>(p, p.grad_k, kv_head, tiles[k], T(1));
      for (int64_t r = 0; r < tiles[k].rows.count; ++r) {
        auto* row = p.grad_v.row<Element>(tiles[k].batch, kv_head, tiles[k].rows.begin + r);
        for (int64_t d = 0; d < p.head_dim; ++d) row[d] = narrow<Element>(value_grads[r * padded + d]);
      }
    }
  });
}

template <typename Element, typename T>
void backward_of_queries(const Backward& p, const std::vector<Tile>& tiles, const PackedQueries<T>& queries,
                         const PackedKeys<T>& keys, const ParallelFor& parallel_for) {
  const int64_t count = int64_t(tiles.size()), padded = padded_head_dim<T>(p);
  for_each_task(p.query_heads, count, 1.5 * flops_per_task(p), parallel_for, [&](int64_t begin, int64_t end) {
    PairGradients<T> gradients;
    FrameGradients<T> query_grads(padded);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / count, q = task % count, kv_head = head / (p.query_heads / p.kv_heads);
      query_grads.reset(padded);
      for (int64_t k = tiles[q].first_tile; k < tiles[q].last_tile; ++k) {
        const TilePair pair(p, tiles[q], tiles[k]);
        if (pair.view == TileView::hidden) continue;
        gradients.compute(p, pair, queries, keys, head, kv_head, q, k);
        for (int frame = 0; frame < frames; ++frame) {
          if (!(frame == 0 ? pair.plain : pair.mirrored)) continue;
          accumulate_pair(pair, gradients.seen, keys.key_rows[frame].finite(kv_head, k), padded, false,
                          gradients.score_grads[frame].get(), keys.key_rows[frame].at(kv_head, k),
                          query_grads.grads[frame].get());
        }
      }
      query_grads.template finish<Element>(p, p.grad_q, head, tiles[q], T(p.scale));
    }
  });
}

}  // namespace

void attention_backward(const Backward& problem, const ParallelFor& parallel_for) {
  with_element(problem.dtype, [&](auto element) {
    using Element = decltype(element);
    const std::vector<Tile> tiles = cut_into_tiles(problem);
    const auto queries = pack_queries<Element>(problem, tiles, parallel_for);
    const auto keys = pack_keys<Element>(problem, tiles, true, parallel_for);
    backward_of_keys<Element>(problem, tiles, queries, keys, parallel_for);
    backward_of_queries<Element>(problem, tiles, queries, keys, parallel_for);
  });
}

}  // namespace bico::cpu
