// The steps around the attention kernels: their memory, and their launches.
#pragma once

#include "device/launch.h"
#include "postprocess.cuh"
#include "preprocess.cuh"
#include "workspace.h"

namespace bico::cuda {

inline int64_t blocks_for(int64_t count, int64_t each) {
  return (count + each - 1) / each;
}

// Heads in both frames; one serves as both where nothing is mirrored.
template <typename T>
struct Frames {
  T *plus, *minus;

  Frames(Workspace& memory, const Problem& p, int64_t heads, int64_t columns) {
    const int64_t count = p.batch * heads * p.length * columns;
    plus = memory.take<T>(count);
    minus = p.mirror ? memory.take<T>(count) : plus;
  }

  void fill(const Problem& p, const Heads& heads, int64_t count, int64_t columns, Stream stream) const {
    const Source source = {heads, count,
                           aligned_rows(heads, sizeof(T)) && aligned_rotation(p.rotary, sizeof(Compute<T>))};
    const int64_t threads = p.batch * count * p.length * (columns / vector_elements);
    launch("rotate_heads", rotate_heads<T, true>, blocks_for(threads, prepare_threads), prepare_threads, 0, stream, p,
           source, plus, p.mirror ? minus : static_cast<T*>(nullptr), int(columns));
  }
};

// The heads, or a copy of them whose rows can be copied by 16 bytes.
template <typename T>
struct CopyableHeads {
  Heads heads;
  T* copy = nullptr;

  CopyableHeads(Workspace& memory, const Problem& p, const Heads& given, int64_t count, int64_t columns)
      : heads(given) {
    if (aligned_rows(given, sizeof(T))) return;
    copy = memory.take<T>(p.batch * count * p.length * columns);
    heads = {copy, count * p.length * columns, p.length * columns, columns};
  }

  void fill(const Problem& p, const Heads& given, int64_t count, int64_t columns, Stream stream) const {
    if (!copy) return;
    const Source source = {given, count, false};
    const int64_t threads = p.batch * count * p.length * (columns / vector_elements);
    launch("copy_heads", rotate_heads<T, false>, blocks_for(threads, prepare_threads), prepare_threads, 0, stream, p,
           source, copy, static_cast<T*>(nullptr), int(columns));
  }
};

inline Extent* take_extents(Workspace& memory, const Problem& p) {
  return p.span_ids ? memory.take<Extent>(p.batch * blocks_for(p.length, granule)) : nullptr;
}

inline void fill_extents(Extent* extents, const Problem& p, Stream stream) {
  if (!extents) return;
  const int64_t warps = p.batch * blocks_for(p.length, granule);
  launch("summarise_spans", summarise_spans, blocks_for(warps, prepare_threads / 32), prepare_threads, 0, stream, p,
         extents);
}

template <typename T>
void fill_deltas(const Backward& p, Compute<T>* delta, Stream stream) {
  const int64_t rows = p.batch * p.query_heads * p.length;
  launch("sum_rows", sum_rows<T>, blocks_for(rows, prepare_threads / 32), prepare_threads, 0, stream, p, delta);
}

template <typename T, class Order>
void launch_turn_back(const Problem& p, const Compute<T>* plus, const Compute<T>* minus, const Heads& to, int64_t heads,
                      const Order& order, Stream stream) {
  const FramesOf<Compute<T>> frames = {plus, minus, to, heads};
  const int64_t threads = p.batch * heads * p.length * ((p.head_dim + 1) / 2);
  launch("turn_back", turn_back<T, Order>, blocks_for(threads, prepare_threads), prepare_threads, 0, stream, p, frames,
         order);
}

}  // namespace bico::cuda
