// Which tiles a tile visits, in which frame, and which pairs of a visited tile are seen.
//
// A frame is one of the two rotations: `plus` turns by theta and serves keys up to the query (n <= m), `minus` turns by
// -theta and serves later keys. So attention is two sweeps, each as causal attention is: over the keys up to the query
// in one frame, then over the later ones in the other. The tiles on the diagonal are visited by both.
#pragma once

#include "../attention.h"
#include "../visibility.h"
#include "device/instructions.h"

namespace bico::cuda {

using TileRows = RowsOf<int32_t>;

enum class Frame { plus, minus };

template <typename Index>
BICO_DEVICE bool in_frame(Frame frame, Index m, Index n) {
  return (n <= m) == (frame == Frame::plus);
}

// Smallest and largest span id of `granule` rows from a multiple of it on, written once a call by summarise_spans.
struct Extent {
  int32_t min, max;
};
constexpr int granule = 32;

// The span ids of one batch entry; null without span ids, when everything is context.
struct Spans {
  const int32_t* ids;
  const Extent* extents;

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
};

BICO_DEVICE Spans spans_of(const Problem& p, const Extent* extents, int64_t batch) {
  if (!p.span_ids) return {nullptr, nullptr};
  return {p.span_ids + batch * p.span_batch_stride, extents + batch * ((p.length + granule - 1) / granule)};
}

// [begin, end) of the sequence of a row: all rows, or those of a packed sequence. Rows that are in none have an empty
// one.
struct Sequence {
  int32_t begin, end;

  BICO_DEVICE bool holds(int row) const { return begin <= row && row < end; }
};

BICO_DEVICE Sequence sequence_of(const Problem& p, int row) {
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

// A row of a tile, as a pair's test needs it.
struct Token {
  Sequence sequence;
  int32_t span;
};

// Whether query m sees key n in this frame.
BICO_DEVICE bool sees(Frame frame, int m, int32_t span_m, int n, int32_t span_n, bool same_sequence) {
  return same_sequence && in_frame(frame, m, n) && visible(span_m, span_n, m, n);
}

// The tile that does the visiting: queries forward, keys backward. Those visited are its guests.
struct Visitor {
  TileRows rows;
  Sequence first, last;  // of its first and last row

  BICO_DEVICE bool one_sequence() const { return first.begin == last.begin; }
};

BICO_DEVICE Visitor visitor_of(const Problem& p, const Spans& spans, int begin, int size) {
  const int left = int(p.length) - begin, count = left < size ? left : size;
  return {spans.rows(begin, count), sequence_of(p, begin), sequence_of(p, begin + count - 1)};
}

// What a tile of queries sees of a tile of keys in one frame: nothing, everything, the same keys for every query, or
// what each pair must be asked for. Denoising hides placeholders and nothing else, so nearly all of its tiles are
// `by_key`.
enum class Seen { nothing, everything, by_key, by_pair };

// `keys_full`: the tile of keys is not cut off by the end.
BICO_DEVICE Seen seen_in(Frame frame, const TileRows& queries, const TileRows& keys, bool keys_full) {
  const Side where = side(queries, keys);
  if (where == (frame == Frame::plus ? Side::above : Side::below)) return Seen::nothing;
  if (frame == Frame::minus && !has_context(keys)) return Seen::nothing;
  const TileView seen = tile_view(queries, keys);
  if (seen == TileView::hidden) return Seen::nothing;
  if (where == Side::on_diagonal) return Seen::by_pair;
  if (seen == TileView::whole && keys_full) return Seen::everything;
  return keys.max_span <= 0 ? Seen::by_key : Seen::by_pair;
}

// The same with respect to the visitor's sequences.
BICO_DEVICE Seen within_sequences(Seen seen, const Visitor& visitor, const TileRows& guests) {
  if (guests.last() < visitor.first.begin || guests.begin >= visitor.last.end) return Seen::nothing;
  const bool inside = guests.begin >= visitor.first.begin && guests.last() < visitor.first.end;
  return inside && visitor.one_sequence() || seen == Seen::nothing ? seen : Seen::by_pair;
}

// Where a block works. It lies in shared memory: every thread knows it, but has no registers for it between two uses.
struct Place {
  Visitor visitor;
  int batch, head, kv_head;  // backward, head is the first query head of the group
};

// Tiles [begin, end) of `size` rows that hold the rows of the visitor's sequences up to the visitor, or from it on.
struct Range {
  int begin, end;
};

BICO_DEVICE Range earlier(const Visitor& visitor, int size) {
  return {visitor.first.begin / size, visitor.rows.last() / size + 1};
}

BICO_DEVICE Range later(const Visitor& visitor, int size) {
  return {visitor.rows.begin / size, (visitor.last.end - 1) / size + 1};
}

BICO_DEVICE TileRows tile_rows(const Spans& spans, int length, int tile, int size) {
  const int left = length - tile * size;
  return spans.rows(tile * size, left < size ? left : size);
}

// A tile and what is seen of it; of the tile after the last, nothing is.
struct Sight {
  int tile;
  Seen seen;
};

// The first tile from `tile` on of which something is seen. A warp looks at 32 tiles at a time: under causal span ids
// half of all tiles are hidden, and one after the other each would cost a chain of dependent loads.
template <class See>
BICO_DEVICE Sight first_seen(int tile, int end, const See& see) {
  for (int first = tile; first < end; first += 32) {
    const int mine = first + thread_index() % 32;
    const Seen seen = mine < end ? see(mine) : Seen::nothing;
    const uint32_t any = ballot(seen != Seen::nothing);
    if (any) return {first + lowest_bit(any), Seen(shuffle(int(seen), lowest_bit(any)))};
  }
  return {end, Seen::nothing};
}

}  // namespace bico::cuda
