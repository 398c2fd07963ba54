// What the kernels know of a row before they look at pairs: its span id, and the rows that it reaches.
#pragma once

#include "../attention.h"
#include "../rounding.h"
#include "../visibility.h"
#include "device/instructions.h"

namespace bico::cuda {

using TileRows = RowsOf<int32_t>;

// Smallest and largest span id of `granule` rows that begin at a multiple of it, and one bit for each row that exists
// and is context. summarise_spans writes them once a call.
struct alignas(16) Extent {
  int32_t min, max;
  uint32_t context;
};
constexpr int granule = 32;

// Bits of the rows of a tile, `rows` from `begin` on, a multiple of granule, where `word_of(granule)` holds 32 of them.
template <int rows, class WordOf>
BICO_DEVICE uint64_t row_bits(int begin, int length, const WordOf& word_of) {
  static_assert(rows == 32 || rows == 64, "one or two words");
  uint64_t bits = word_of(begin / granule);
  if (rows == 64 && begin + granule < length) bits |= uint64_t(word_of(begin / granule + 1)) << 32;
  return bits;
}

// The span ids of one batch entry; null without span ids, when everything is context.
struct Spans {
  const int32_t* ids;
  const Extent* extents;
  int length;

  BICO_DEVICE int32_t at(int row) const { return ids ? ids[row] : 0; }

  // Of the granules that hold [begin, begin + count), so `min_span` and `max_span` may be those of neighbours, too.
  BICO_DEVICE TileRows rows(int begin, int count) const {
    TileRows rows = {begin, count, 0, 0};
    if (!ids || count <= 0) return rows;
    const int first = begin / granule, last = (begin + count - 1) / granule;
    rows.min_span = extents[first].min;
    rows.max_span = extents[first].max;
    for (int i = first + 1; i <= last; ++i) {
      if (extents[i].min < rows.min_span) rows.min_span = extents[i].min;
      if (extents[i].max > rows.max_span) rows.max_span = extents[i].max;
    }
    return rows;
  }

  // Bit i: row begin + i exists and is context.
  template <int rows>
  BICO_DEVICE uint64_t context(int begin) const {
    return row_bits<rows>(begin, length, [&](int i) {
      const int left = length - i * granule;
      return ids ? extents[i].context : left < granule ? (1u << left) - 1 : ~0u;
    });
  }
};

BICO_DEVICE Spans spans_of(const Problem& p, const Extent* extents, int64_t batch) {
  if (!p.span_ids) return {nullptr, nullptr, int(p.length)};
  return {p.spans(batch), extents + batch * divide_up(p.length, granule), int(p.length)};
}

// The rows [begin, end) that a row sees, or that see it, as far as packed sequences and the window say. Both ends
// ascend with the row.
struct Reach {
  int32_t begin, end;

  BICO_DEVICE bool holds(int row) const { return begin <= row && row < end; }
};

// Of the row's sequence alone. A row that is in no sequence has an empty one.
BICO_DEVICE Reach sequence_of(const Problem& p, int row) {
  const int length = p.length;
  if (row >= length) return {row, row};
  if (!p.cu_seqlens) return {0, length};
  int low = 0, high = p.sequences;  // the last offset that is not beyond the row
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.cu_seqlens[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  // Values on a device are not checked: whatever they are, no row outside [0, S) may be touched.
  const int begin = p.cu_seqlens[low], end = p.cu_seqlens[low + 1];
  if (row < begin || row >= end) return {row, row};
  return {begin < 0 ? 0 : begin, end > length ? length : end};
}

BICO_DEVICE Reach reach_of(const Problem& p, int row) {
  const Reach sequence = sequence_of(p, row);
  const int window = p.window;  // at most S (dispatch.cpp)
  return {row - sequence.begin >= window ? row - window + 1 : sequence.begin,
          sequence.end - row > window ? row + window : sequence.end};
}

}  // namespace bico::cuda
