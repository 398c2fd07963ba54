// How the work is cut: every sequence into tiles of rows; a task is one tile of one head.
#pragma once

#include <cstdint>
#include <vector>

#include "../attention.h"
#include "../visibility.h"
#include "buffer.h"
#include "kernels.h"
#include "tile_product.h"

namespace bico::cpu {

constexpr int64_t tile_rows = 64;  // queries and keys alike, so the diagonal crosses one tile in each row of tiles

inline int64_t round_up(int64_t x, int64_t step) {
  return (x + step - 1) / step * step;
}

struct Tile {
  int64_t batch = 0;
  Rows rows;                              // positions along S
  int64_t first_tile = 0, last_tile = 0;  // [first, last): the tiles of its sequence
};

inline std::vector<Tile> cut_into_tiles(const Problem& p) {
  std::vector<Tile> tiles;
  const int64_t sequences = p.cu_seqlens ? p.sequences : p.batch;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t batch = p.cu_seqlens ? 0 : s;
    const int64_t begin = p.cu_seqlens ? p.cu_seqlens[s] : 0;
    const int64_t end = p.cu_seqlens ? p.cu_seqlens[s + 1] : p.length;
    const int32_t* span_ids = p.span_ids ? p.span_ids + batch * p.span_batch_stride : nullptr;
    const auto first_tile = int64_t(tiles.size());
    const int64_t last_tile = first_tile + round_up(end - begin, tile_rows) / tile_rows;
    for (int64_t row = begin; row < end; row += tile_rows) {
      tiles.push_back({batch, describe_rows(span_ids, row, std::min(tile_rows, end - row)), first_tile, last_tile});
    }
  }
  return tiles;
}

// Of one product pair (scores and output) over a typical row of tiles.
inline double flops_per_task(const Problem& p) {
  const auto sequences = double(p.cu_seqlens ? p.sequences : p.batch);
  return 4.0 * tile_rows * double(p.head_dim) * double(p.batch * p.length) / (sequences + 1e-9);
}

// One block of `tile_rows` x padded head dim for each head and tile, and whether all its inputs were finite.
template <typename T>
class Panels {
 public:
  Panels(int64_t heads, int64_t tiles, int64_t block)
      : tiles_(tiles), block_(block), data_(heads * tiles * block), finite_(heads * tiles) {}
  T* at(int64_t head, int64_t tile) const { return data_.get() + (head * tiles_ + tile) * block_; }
  bool& finite(int64_t head, int64_t tile) const { return finite_[head * tiles_ + tile]; }

 private:
  int64_t tiles_, block_;
  Buffer<T> data_;
  Buffer<bool> finite_;
};

// Runs body(begin, end) on ranges of the tasks head * tiles + tile. Waking a thread costs about 10 us: a range holds
// at least 2 MFLOP (40 us), so that a tiny problem stays on the calling thread.
inline void for_each_task(int64_t heads, int64_t tiles, double flops_per_task, const ParallelFor& parallel_for,
                          const Body& body) {
  if (heads * tiles > 0) parallel_for(heads * tiles, int64_t(2e6 / (flops_per_task + 1)) + 1, body);
}

}  // namespace bico::cpu
