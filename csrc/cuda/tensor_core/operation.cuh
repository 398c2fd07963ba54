// The op in a 16-bit type: which kernels run, on what memory.
#pragma once

#include "../dispatch.h"
#include "../steps.cuh"
#include "backward.cuh"
#include "forward.cuh"

namespace bico::cuda {

// Calls `run` with the smallest of these head dims, in ascending order, that holds D.
template <int first, int... others, class Run>
void with_columns(int64_t head_dim, const Run& run) {
  if constexpr (sizeof...(others) > 0) {
    if (head_dim > first) return with_columns<others...>(head_dim, run);
  }
  run(std::integral_constant<int, first>());
}

template <typename T>
int64_t forward_in(const Forward& p, void* workspace, Stream stream) {
  Workspace memory(workspace);
  with_columns<32, 64, 80, 96, 128, 256>(p.head_dim, [&](auto width) {
    constexpr int D = width;
    const Frames<T> k(memory, p, p.kv_heads, D);
    const CopyableHeads<T> v(memory, p, p.v, p.kv_heads, D);
    Extent* extents = take_extents(memory, p);
    if (memory.counts_only()) return;
    fill_extents(extents, p, stream);
    k.fill(p, p.k, p.kv_heads, D, stream);
    v.fill(p, p.v, p.kv_heads, D, stream);
    const bool q_aligned = aligned_rows(p.q, sizeof(T)) && aligned_rotation(p.rotary, sizeof(float));
    launch_forward<T, D>({p, k.plus, k.minus, v.heads, extents, q_aligned, aligned_rows(p.out, sizeof(T))}, stream);
  });
  return memory.bytes();
}

template <typename T>
int64_t backward_in(const Backward& p, bool deterministic, void* workspace, Stream stream) {
  Workspace memory(workspace);
  with_columns<32, 64, 96, 128, 256>(p.head_dim, [&](auto width) {
    constexpr int D = width;
    using Order = SumOrder<D>;
    const int64_t q_heads = p.batch * p.query_heads, k_heads = p.batch * p.kv_heads;
    const int64_t q_count = Order::head(q_heads, p.length), k_count = Order::head(k_heads, p.length);
    // First what begins as 0.
    float *grad_q_plus = memory.take<float>(q_count), *grad_q_minus = memory.take<float>(q_count);
    int32_t* turns = memory.take<int32_t>(2 * q_heads * blocks_for(p.length, Order::rows));
    int32_t* ticket = memory.take<int32_t>(1);
    const int64_t zeros = memory.bytes();
    float *grad_k_plus = memory.take<float>(k_count), *grad_k_minus = memory.take<float>(k_count);
    const Frames<T> q(memory, p, p.query_heads, D), k(memory, p, p.kv_heads, D);
    const CopyableHeads<T> v(memory, p, p.v, p.kv_heads, D), grad_out(memory, p, p.grad_out, p.query_heads, D);
    float* delta = memory.take<float>(q_heads * p.length);
    Extent* extents = take_extents(memory, p);
    if (memory.counts_only()) return;

    fill_with_zeros(workspace, zeros, stream);
    fill_extents(extents, p, stream);
    q.fill(p, p.q, p.query_heads, D, stream);
    k.fill(p, p.k, p.kv_heads, D, stream);
    v.fill(p, p.v, p.kv_heads, D, stream);
    grad_out.fill(p, p.grad_out, p.query_heads, D, stream);
    fill_deltas<T>(p, delta, stream);
    launch_backward<T, D>(
        {p, q.plus, q.minus, k.plus, k.minus, v.heads, grad_out.heads, delta, grad_q_plus, grad_q_minus, grad_k_plus,
         grad_k_minus, deterministic ? ticket : nullptr, turns, extents, aligned_rows(p.grad_v, sizeof(T))},
        stream);
    launch_turn_back<T>(p, grad_q_plus, grad_q_minus, p.grad_q, p.query_heads, Order(), stream);
    launch_turn_back<T>(p, grad_k_plus, grad_k_minus, p.grad_k, p.kv_heads, Order(), stream);
  });
  return memory.bytes();
}

}  // namespace bico::cuda
