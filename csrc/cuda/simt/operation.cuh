// The op in float32 or float64: which kernels run, on what memory.
#pragma once

#include "../dispatch.h"
#include "../steps.cuh"
#include "kernels.cuh"

namespace bico::cuda {

inline int64_t exact_columns(const Problem& p) {
  return blocks_for(p.head_dim, vector_elements) * vector_elements;
}

template <typename T>
int64_t forward_in(const Forward& p, void* workspace, Stream stream) {
  Workspace memory(workspace);
  const int64_t columns = exact_columns(p);
  const Frames<T> q(memory, p, p.query_heads, columns), k(memory, p, p.kv_heads, columns);
  if (memory.counts_only()) return memory.bytes();
  q.fill(p, p.q, p.query_heads, columns, stream);
  k.fill(p, p.k, p.kv_heads, columns, stream);
  ExactWork work = {};
  static_cast<Problem&>(work.problem) = p;
  work.problem.out = p.out;
  work.problem.lse = p.lse;
  work.columns = columns;
  work.q_plus = q.plus;
  work.q_minus = q.minus;
  work.k_plus = k.plus;
  work.k_minus = k.minus;
  const int64_t rows = p.batch * p.query_heads * p.length;
  launch("exact_forward", exact_forward<T>, blocks_for(rows, exact_warps), exact_threads, 0, stream, work);
  return memory.bytes();
}

template <typename T>
int64_t backward_in(const Backward& p, bool, void* workspace, Stream stream) {
  Workspace memory(workspace);
  const int64_t columns = exact_columns(p);
  const int64_t q_rows = p.batch * p.query_heads * p.length, k_rows = p.batch * p.kv_heads * p.length;
  const Frames<T> q(memory, p, p.query_heads, columns), k(memory, p, p.kv_heads, columns);
  T* delta = memory.take<T>(q_rows);
  T *grad_q_plus = memory.take<T>(q_rows * columns), *grad_q_minus = memory.take<T>(q_rows * columns);
  T *grad_k_plus = memory.take<T>(k_rows * columns), *grad_k_minus = memory.take<T>(k_rows * columns);
  if (memory.counts_only()) return memory.bytes();
  q.fill(p, p.q, p.query_heads, columns, stream);
  k.fill(p, p.k, p.kv_heads, columns, stream);
  fill_deltas<T>(p, delta, stream);
  const ExactWork work = {p,           q.plus,       q.minus,     k.plus,       k.minus, delta,
                          grad_q_plus, grad_q_minus, grad_k_plus, grad_k_minus, columns};
  launch("exact_backward_queries", exact_backward_queries<T>, blocks_for(q_rows, exact_warps), exact_threads, 0, stream,
         work);
  launch("exact_backward_keys", exact_backward_keys<T>, blocks_for(k_rows, exact_warps), exact_threads, 0, stream,
         work);
  launch_turn_back<T>(p, grad_q_plus, grad_q_minus, p.grad_q, p.query_heads, RowOrder{columns}, stream);
  launch_turn_back<T>(p, grad_k_plus, grad_k_minus, p.grad_k, p.kv_heads, RowOrder{columns}, stream);
  return memory.bytes();
}

}  // namespace bico::cuda
