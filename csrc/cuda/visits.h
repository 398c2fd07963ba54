// Which tiles a tile visits, in which frame, and which pairs of a visited tile are seen.
//
// A frame is one of the two rotations: `plus` turns by theta and serves keys up to the query (n <= m), `minus` turns by
// -theta and serves later keys. So attention is two sweeps, each as causal attention is: over the keys up to the query
// in one frame, then over the later ones in the other. The tiles on the diagonal are visited by both.
#pragma once

#include "../attention.h"
#include "../visibility.h"
#include "instructions.h"

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

// [begin, end) of the sequence of a row: all rows, or those of a packed sequence. TileRows from S on have an empty one.
struct Sequence {
  int32_t begin, end;

  BICO_DEVICE bool holds(int row) const { return begin <= row && row < end; }
};

BICO_DEVICE Sequence sequence_of(const Problem& p, int row) {
  const int length = p.length;
  if (row >= length) return {0, 0};
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

// The tile that does the visiting: queries forward, keys backward.
struct Host {
  TileRows rows;
  Sequence first, last;  // of its first and last row

  BICO_DEVICE bool one_sequence() const { return first.begin == last.begin; }
};

BICO_DEVICE Host host_of(const Problem& p, const Spans& spans, int begin, int size) {
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

// The same with respect to the host's sequences.
BICO_DEVICE Seen within_sequences(Seen seen, const Host& host, const TileRows& guests) {
  if (guests.last() < host.first.begin || guests.begin >= host.last.end) return Seen::nothing;
  const bool inside = guests.begin >= host.first.begin && guests.last() < host.first.end;
  return inside && host.one_sequence() || seen == Seen::nothing ? seen : Seen::by_pair;
}

// Tiles [begin, end) of `size` rows that hold the rows of the host's sequences up to the host, or from it on.
struct Range {
  int begin, end;
};

BICO_DEVICE Range earlier(const Host& host, int size) {
  return {host.first.begin / size, host.rows.last() / size + 1};
}

BICO_DEVICE Range later(const Host& host, int size) {
  return {host.rows.begin / size, (host.last.end - 1) / size + 1};
}

}  // namespace bico::cuda
