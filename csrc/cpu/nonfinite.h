// Infinities and NaN in sums over rows. Products take the finite part of a tile (a hidden pair has weight 0, and
// 0 * NaN is NaN); the rest is added here, pair by pair, to those who see it. Rare, so simple.
#pragma once

#include "scores.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// Calls add(query, key), positions in the block's strip and tile, for each pair that is visible.
template <typename Add>
void for_each_visible(const Problem& p, int64_t batch, const Block& block, const Add& add) {
  const int32_t* spans = p.spans(batch);
  for (int64_t r = 0; r < block.queries.count; ++r) {
    for (int64_t c = 0; c < block.keys.count; ++c) {
      const int64_t m = block.queries.begin + r, n = block.keys.begin + c;
      if (in_window(m, n, p.window) && (spans == nullptr || visible(spans[m], spans[n], m, n))) add(r, c);
    }
  }
}

// to[d * stride] += weight * row[d] for each element of the row that is not finite.
template <typename T, typename Operand>
void add_nonfinite(T weight, const Operand* row, int64_t count, T* to, int64_t stride) {
  for (int64_t d = 0; d < count; ++d) {
    if (!is_finite(row[d])) to[d * stride] += weight * widen(row[d]);
  }
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
