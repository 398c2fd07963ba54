// The op in float32 or float64: which kernels run, on what memory.
#pragma once

#include "../dispatch.h"
#include "../postprocess.cuh"
#include "../preprocess.cuh"
#include "kernels.cuh"

namespace bico::cuda {

inline int64_t padded_columns(const Problem& p) {
  return round_up(p.head_dim, vector_elements);
}

template <typename T>
int64_t forward_in(const Forward& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const int64_t columns = padded_columns(p);
  const RotatedHeads<T> q(arena, p, p.query_heads, columns), k(arena, p, p.kv_heads, columns);
  if (arena.counts_only()) return arena.bytes();
  q.launch_rotate(p, p.q, p.query_heads, columns, stream);
  k.launch_rotate(p, p.k, p.kv_heads, columns, stream);
  SimtWork work = {};
  static_cast<Problem&>(work.problem) = p;
  work.problem.out = p.out;
  work.problem.lse = p.lse;
  work.columns = columns;
  work.q = {q.frames.plus, q.frames.minus};
  work.k = {k.frames.plus, k.frames.minus};
  const int64_t rows = p.batch * p.query_heads * p.length;
  launch("simt_forward", simt_forward<T>, divide_up(rows, simt_warps), simt_threads, 0, stream, work);
  return arena.bytes();
}

template <typename T>
int64_t backward_in(const Backward& p, bool, void* workspace, Stream stream) {
  Arena arena(workspace);
  const int64_t columns = padded_columns(p);
  const int64_t q_rows = p.batch * p.query_heads * p.length, k_rows = p.batch * p.kv_heads * p.length;
  const RotatedHeads<T> q(arena, p, p.query_heads, columns), k(arena, p, p.kv_heads, columns);
  T* delta = arena.take<T>(q_rows);
  const PerFrame<T*> grad_q = {arena.take<T>(q_rows * columns), arena.take<T>(q_rows * columns)};
  const PerFrame<T*> grad_k = {arena.take<T>(k_rows * columns), arena.take<T>(k_rows * columns)};
  if (arena.counts_only()) return arena.bytes();
  q.launch_rotate(p, p.q, p.query_heads, columns, stream);
  k.launch_rotate(p, p.k, p.kv_heads, columns, stream);
  launch_compute_delta<T>(p, delta, stream);
  const SimtWork work = {p,      {q.frames.plus, q.frames.minus}, {k.frames.plus, k.frames.minus},
                         delta,  {grad_q.plus, grad_q.minus},     {grad_k.plus, grad_k.minus},
                         columns};
  launch("simt_backward_queries", simt_backward_queries<T>, divide_up(q_rows, simt_warps), simt_threads, 0, stream,
         work);
  launch("simt_backward_keys", simt_backward_keys<T>, divide_up(k_rows, simt_warps), simt_threads, 0, stream, work);
  launch_rotate_back<T>(p, {grad_q.plus, grad_q.minus}, p.grad_q, p.query_heads, RowOrder{columns}, stream);
  launch_rotate_back<T>(p, {grad_k.plus, grad_k.minus}, p.grad_k, p.kv_heads, RowOrder{columns}, stream);
  return arena.bytes();
}

}  // namespace bico::cuda
