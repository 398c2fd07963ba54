// What the kernels know of a row before they look at pairs: its span id, its slot, and the rows that it reaches.
#pragma once

#include "../attention.h"
#include "../rounding.h"
#include "../visibility.h"
#include "device/instructions.h"

namespace bico::cuda {

using TileRows = RowsOf<int32_t>;

// Span ids are summarised, and flags of rows kept, by so many rows.
constexpr int granule = 32;

// Smallest and largest span id of a granule.
struct SpanRange {
  int32_t min, max;
};

// Of a granule of slots: their rows from the first to the last, and the smallest and largest span id.
struct alignas(16) SlotRange {
  int32_t first_row, last_row, min, max;
};

// Of a granule of rows, one bit for each that is no placeholder, and how many such rows come before the granule.
struct alignas(8) KeptRows {
  uint32_t bits;
  int32_t before;
};

// The slots of keys. No query sees a placeholder, so rotated k, v and the gradients of the parts of a group lie in
// slots: first the other rows, in their order, then the placeholders, from the last one to the first. number_keys
// writes this once a call; without span ids it is null and a row's slot is the row.
struct Slots {
  SpanRange* of_rows;   // [B, ceil(S / granule)]
  SlotRange* of_slots;  // the same, without placeholders
  KeptRows* kept;       // [B, ceil(S / granule) + 1]
  int32_t* rows;        // [B, S], of the slots

  BICO_DEVICE Slots of(int64_t batch, int64_t length) const {
    const int64_t granules = divide_up(length, granule);
    return {of_rows + batch * granules, of_slots + batch * granules, kept + batch * (granules + 1),
            rows + batch * length};
  }
};

// A tile of `count` slots. `rows` reaches from the row of the first to that of the last.
struct KeyTile {
  TileRows rows;
  int count;
};

// The span ids and slots of one batch entry; null without span ids, when everything is context.
struct Spans {
  const int32_t* ids;
  Slots slots;
  int length;

  BICO_DEVICE int32_t at(int row) const { return ids ? ids[row] : 0; }

  // Of the granules that hold [begin, begin + count), so `min_span` and `max_span` may be those of neighbours, too.
  BICO_DEVICE TileRows rows(int begin, int count) const {
    TileRows rows = {begin, count, 0, 0};
    if (!ids || count <= 0) return rows;
    const int first = begin / granule, last = (begin + count - 1) / granule;
    rows.min_span = slots.of_rows[first].min;
    rows.max_span = slots.of_rows[first].max;
    for (int i = first + 1; i <= last; ++i) {
      if (slots.of_rows[i].min < rows.min_span) rows.min_span = slots.of_rows[i].min;
      if (slots.of_rows[i].max > rows.max_span) rows.max_span = slots.of_rows[i].max;
    }
    return rows;
  }

  // Slots of rows before `row` (<= S), without placeholders.
  BICO_DEVICE int slots_before(int row) const {
    if (!ids) return row;
    const KeptRows kept = slots.kept[row / granule];
    return kept.before + count_bits(kept.bits & ((1u << row % granule) - 1));
  }

  BICO_DEVICE int row_of(int slot) const { return ids ? slots.rows[slot] : slot; }

  // Slots [begin, begin + size), as far as there are any before `end`; begin and size are multiples of granule. A tile
  // without any has the span id of a placeholder.
  BICO_DEVICE KeyTile keys(int begin, int size, int end) const {
    if (begin >= end) return {{0, 0, -1, -1}, 0};
    const int count = end - begin < size ? end - begin : size;
    if (!ids) return {{begin, count, 0, 0}, count};
    SlotRange range = slots.of_slots[begin / granule];
    for (int i = begin / granule + 1; i * granule < begin + count; ++i) {
      const SlotRange more = slots.of_slots[i];
      range.last_row = more.last_row;
      if (more.min < range.min) range.min = more.min;
      if (more.max > range.max) range.max = more.max;
    }
    return {{range.first_row, range.last_row + 1 - range.first_row, range.min, range.max}, count};
  }
};

BICO_DEVICE Spans spans_of(const Problem& p, const Slots& slots, int64_t batch) {
  if (!slots.rows) return {nullptr, {}, int(p.length)};
  return {p.spans(batch), slots.of(batch, p.length), int(p.length)};
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
