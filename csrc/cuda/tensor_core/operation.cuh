// The op in a 16-bit type: which kernels run, on what memory.
#pragma once

#include <algorithm>
#include <cmath>

#include "../dispatch.h"
#include "../postprocess.cuh"
#include "../preprocess.cuh"
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
  Arena arena(workspace);
  with_columns<32, 64, 80, 96, 128, 256>(p.head_dim, [&](auto width) {
    constexpr int D = width;
    const RowFlags bad_values = take_flags(arena, p, p.kv_heads);
    const int64_t zeros = arena.bytes();
    const RotatedHeads<T> q(arena, p, p.query_heads, D), k(arena, p, p.kv_heads, D);
    const Slots slots = take_slots(arena, p);
    const CopyableHeads<T> v(arena, p, p.v, p.kv_heads, D, p.span_ids != nullptr);
    if (arena.counts_only()) return;

    fill_with_zeros(workspace, zeros, stream);
    launch_number_keys(slots, p, stream);
    q.launch_rotate(p, p.q, p.query_heads, D, stream, {}, {}, p.scale < 0);
    k.launch_rotate(p, p.k, p.kv_heads, D, stream, slots);
    v.launch_copy(p, p.v, p.kv_heads, D, stream, slots, bad_values);
    const float factor = std::max(std::abs(float(p.scale)) * log2_e, 1e-30f);  // a scale of 0 must not meet infinity
    launch_forward<T, D>({p,
                          {q.frames.plus, q.frames.minus},
                          {k.frames.plus, k.frames.minus},
                          v.heads,
                          bad_values,
                          slots,
                          aligned_rows(p.out, sizeof(T)),
                          factor},
                         stream);
  });
  return arena.bytes();
}

// How many blocks of the backward run on a multiprocessor. The registers do not hold a third one, but for D = 32.
template <typename T, int D>
int blocks_of_multiprocessor(const DeviceLimits& limits, int stages) {
  constexpr int reserved = 1024;  // bytes of each block, from sm_80 on (CUDA's occupancy rules)
  return std::min(2, limits.shared_bytes / (BackwardShared<T, D>::bytes(stages) + reserved));
}

// Two stages of Q hide the latency of memory, but a second block on the multiprocessor does so better.
template <typename T, int D>
int stages_of_queries(const DeviceLimits& limits) {
  return blocks_of_multiprocessor<T, D>(limits, 1) > blocks_of_multiprocessor<T, D>(limits, 2) ? 1 : 2;
}

// How many query heads of a group a block of the backward takes: all, unless blocks that take fewer end sooner because
// more of them run at a time. The gradients of k and v of the parts must be added, so there are as few as possible.
template <typename T, int D>
int heads_of_block(const Problem& p, const DeviceLimits& limits, int stages) {
  const int64_t group = p.query_heads / p.kv_heads;
  const int64_t at_a_time = blocks_of_multiprocessor<T, D>(limits, stages) * limits.multiprocessors;
  const int64_t blocks = p.batch * p.kv_heads * divide_up(p.length, BackwardTiles<D>::keys);
  const auto waves = [&](int64_t parts) { return divide_up(blocks * parts, at_a_time); };
  int64_t best = 1;
  for (int64_t parts = 2; parts <= group && blocks < at_a_time; ++parts) {
    if (group % parts == 0 && waves(parts) * best < waves(best) * parts) best = parts;
  }
  return int(group / best);
}

template <typename T>
int64_t backward_in(const Backward& p, bool deterministic, void* workspace, Stream stream) {
  Arena arena(workspace);
  const DeviceLimits limits = device_limits();
  with_columns<32, 64, 96, 128, 256>(p.head_dim, [&](auto width) {
    constexpr int D = width;
    using Order = AccumulatorOrder<D>;
    const int64_t q_heads = p.batch * p.query_heads, k_heads = p.batch * p.kv_heads;
    const int stages = stages_of_queries<T, D>(limits), heads = heads_of_block<T, D>(p, limits, stages);
    const int parts = int(p.query_heads / p.kv_heads) / heads;
    const int64_t q_count = Order::head(q_heads, p.length), k_count = Order::head(parts * k_heads, p.length);
    // First what begins as 0.
    const PerFrame<float*> grad_q = {arena.take<float>(q_count), arena.take<float>(q_count)};
    int32_t* semaphores = arena.take<int32_t>(2 * q_heads * divide_up(p.length, Order::rows));
    int32_t* ticket = arena.take<int32_t>(1);
    const PerFrame<RowFlags> bad_queries = take_flags_of_frames(arena, p, p.query_heads);
    const PerFrame<RowFlags> bad_keys = take_flags_of_frames(arena, p, p.kv_heads);
    const int64_t zeros = arena.bytes();
    float* grad_k = parts > 1 ? arena.take<float>(k_count) : nullptr;
    float* grad_v = parts > 1 ? arena.take<float>(k_count) : nullptr;
    const RotatedHeads<T> q(arena, p, p.query_heads, D), k(arena, p, p.kv_heads, D);
    const Slots slots = take_slots(arena, p);
    const CopyableHeads<T> v(arena, p, p.v, p.kv_heads, D, p.span_ids != nullptr),
        grad_out(arena, p, p.grad_out, p.query_heads, D);
    float* delta = arena.take<float>(q_heads * p.length);
    if (arena.counts_only()) return;

    fill_with_zeros(workspace, zeros, stream);
    launch_number_keys(slots, p, stream);
    q.launch_rotate(p, p.q, p.query_heads, D, stream, {}, bad_queries);
    k.launch_rotate(p, p.k, p.kv_heads, D, stream, slots, bad_keys);
    v.launch_copy(p, p.v, p.kv_heads, D, stream, slots);
    grad_out.launch_copy(p, p.grad_out, p.query_heads, D, stream);
    launch_compute_delta<T>(p, delta, stream, bad_queries);
    launch_backward<T, D>({p,
                           {q.frames.plus, q.frames.minus},
                           {k.frames.plus, k.frames.minus},
                           v.heads,
                           grad_out.heads,
                           delta,
                           grad_q,
                           grad_k,
                           grad_v,
                           deterministic ? ticket : nullptr,
                           semaphores,
                           bad_queries,
                           bad_keys,
                           slots,
                           heads,
                           stages,
                           aligned_rows(p.grad_k, sizeof(T)),
                           aligned_rows(p.grad_v, sizeof(T))},
                          stream);
    launch_rotate_back<T>(p, {grad_q.plus, grad_q.minus}, p.grad_q, p.query_heads, Order(), stream);
    if (parts == 1) return;
    launch_add_parts<T>(p, grad_k, parts, PairedColumns::of(p.rotary), slots, p.grad_k, Order(), stream);
    launch_add_parts<T>(p, grad_v, parts, {}, slots, p.grad_v, Order(), stream);
  });
  return arena.bytes();
}

}  // namespace bico::cuda
