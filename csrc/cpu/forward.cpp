// Forward: one task is one tile of queries of one head; it walks over the sequence's tiles of keys with an online
// softmax. Beyond inputs and outputs it keeps the packed keys and values, O(S D).
#include "scores.h"

namespace bico::cpu {
namespace {

// Output rows in progress: values are unnormalised, relative to the largest score so far.
template <typename T>
struct RunningSoftmax {
  T largest[tile_rows], sum[tile_rows];
  Buffer<T> values;  // [tile_rows, padded head dim]

  explicit RunningSoftmax(int64_t padded) : values(tile_rows * padded) {}

  void reset(int64_t rows, int64_t padded) {
    std::fill(largest, largest + rows, -T(INFINITY));
    std::fill(sum, sum + rows, T(0));
    std::fill(values.get(), values.get() + rows * padded, T(0));
  }

  // scores -> weights relative to the new largest score; sum and values rescaled to it.
  void absorb(int64_t rows, int64_t columns, int64_t padded, T* scores) {
    using V = Vector<T>;
    for (int64_t r = 0; r < rows; ++r) {
      T* row = scores + r * tile_rows;
      V running = load(row);
      for (int64_t c = lanes<T>; c < columns; c += lanes<T>) {
        const V x = load(row + c);
        running = x > running ? x : running;
      }
      T top = largest[r];
      for (int i = 0; i < lanes<T>; ++i) top = running[i] > top ? running[i] : top;
      // A row that has seen nothing yet keeps weights e^(-inf - 0) = 0 instead of NaN.
      const T base = top == -T(INFINITY) ? T(0) : top;
      V total = {};
      for (int64_t c = 0; c < columns; c += lanes<T>) {
        const V weight = exponential(load(row + c) - base);
        store(row + c, weight);
        total += weight;
      }
      const T rescale = std::exp(largest[r] - base);
      sum[r] *= rescale;
      for (int i = 0; i < lanes<T>; ++i) sum[r] += total[i];
      if (rescale != T(1)) {
        for (int64_t d = 0; d < padded; ++d) values[r * padded + d] *= rescale;
      }
      largest[r] = top;
    }
  }
};

template <typename T>
struct ForwardScratch {
  Buffer<T> query_rows, mirrored_rows, scores, other;
  RunningSoftmax<T> softmax;
  SeenTile seen;

  explicit ForwardScratch(int64_t padded)
      : query_rows(tile_rows * padded),
        mirrored_rows(tile_rows * padded),
        scores(tile_rows * tile_rows),
        other(tile_rows * tile_rows),
        softmax(padded) {}
};

template <typename Element, typename T>
void forward_tile(const Forward& p, const std::vector<Tile>& tiles, const PackedKeys<T>& keys, int64_t head,
                  const Tile& queries, ForwardScratch<T>& scratch) {
  const int64_t padded = padded_head_dim<T>(p), kv_head = head / (p.query_heads / p.kv_heads);
  T* query_rows[frames] = {scratch.query_rows.get(), p.mirror ? scratch.mirrored_rows.get() : nullptr};
  pack_rotated<Element>(p, p.q, head, queries, T(p.scale), query_rows[0], query_rows[1]);
  T* scores = scratch.scores.get();
  auto& softmax = scratch.softmax;
  softmax.reset(queries.rows.count, padded);

  for (int64_t t = queries.first_tile; t < queries.last_tile; ++t) {
    const TilePair pair(p, queries, tiles[t]);
    if (pair.view == TileView::hidden) continue;
    const T* key_columns[frames] = {keys.key_columns[0].at(kv_head, t), keys.key_columns[1].at(kv_head, t)};
    compute_scores(p, pair, query_rows, key_columns, scores, scratch.other.get(), scratch.seen);
    softmax.absorb(queries.rows.count, score_columns<T>(pair), padded, scores);

    const Left<T> weights = {scores, tile_rows, 1};
    const T* value_rows = keys.value_rows.at(kv_head, t);
    if (pair.view == TileView::mixed && !keys.value_rows.finite(kv_head, t)) {
      accumulate_seen(queries.rows.count, padded, pair.keys->rows.count, weights, scratch.seen.seen, value_rows,
                      softmax.values.get());
    } else {
      accumulate(queries.rows.count, padded, pair.keys->rows.count, weights, value_rows, padded, softmax.values.get(),
                 padded);
    }
  }

  for (int64_t r = 0; r < queries.rows.count; ++r) {
    const int64_t m = queries.rows.begin + r;
    const bool blind = softmax.sum[r] == 0;
    auto* out = p.out.row<Element>(queries.batch, head, m);
    const T* values = softmax.values.get() + r * padded;
    for (int64_t d = 0; d < p.head_dim; ++d) out[d] = narrow<Element>(blind ? T(0) : values[d] / softmax.sum[r]);
    *p.lse.row<T>(queries.batch, head, m) = blind ? -T(INFINITY) : softmax.largest[r] + std::log(softmax.sum[r]);
  }
}

template <typename Element, typename T = Compute<Element>>
void forward(const Forward& p, const ParallelFor& parallel_for) {
  const std::vector<Tile> tiles = cut_into_tiles(p);
  const auto count = int64_t(tiles.size());
  const PackedKeys<T> keys = pack_keys<Element>(p, tiles, false, parallel_for);
  for_each_task(p.query_heads, count, flops_per_task(p), parallel_for, [&](int64_t begin, int64_t end) {
    ForwardScratch<T> scratch(padded_head_dim<T>(p));
    for (int64_t task = begin; task < end; ++task) {
      forward_tile<Element>(p, tiles, keys, task / count, tiles[task % count], scratch);
    }
  });
}

}  // namespace

void attention_forward(const Forward& problem, const ParallelFor& parallel_for) {
  with_element(problem.dtype, [&](auto element) { forward<decltype(element)>(problem, parallel_for); });
}

}  // namespace bico::cpu
