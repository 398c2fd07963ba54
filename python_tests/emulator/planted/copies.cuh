// Asynchronous copies from global to shared memory.
#pragma once

#include "shared.cuh"

namespace bico::planted {

template <bool broken>
BICO_KERNEL(threads)
void copy_not_waited_for(const float* in, float* out) {
  const int t = thread_index();
  copy_async(shared_address(chunk(t)), in + 4 * t, 16);
  commit_copies();
  if (!broken) wait_copies<0>();
  out[t] = load_shared(chunk(t));
}

// Waiting is for what was committed.
template <bool broken>
BICO_KERNEL(threads)
void copy_not_committed(const float* in, float* out) {
  const int t = thread_index();
  copy_async(shared_address(chunk(t)), in + 4 * t, 16);
  if (!broken) commit_copies();
  wait_copies<0>();
  out[t] = load_shared(chunk(t));
}

// Of two groups the second is needed.
template <bool broken>
BICO_KERNEL(threads)
void copy_of_another_group(const float* in, float* out) {
  const int t = thread_index();
  copy_async(shared_address(chunk(t)), in, 16);
  commit_copies();
  copy_async(shared_address(chunk(threads + t)), in + 4 * t, 16);
  commit_copies();
  wait_copies<broken ? 1 : 0>();
  out[t] = load_shared(chunk(threads + t));
}

// A wait is for the thread's own copies.
template <bool broken>
BICO_KERNEL(threads)
void copied_without_barrier(const float* in, float* out) {
  const int t = thread_index();
  store_shared(chunk(t), 0);
  sync_threads();
  copy_async(shared_address(chunk(t)), in + 4 * t, 16);
  commit_copies();
  wait_copies<0>();
  if (!broken) sync_threads();
  out[t] = load_shared(chunk((t + 1) % threads));
}

// Threads know of each other's waits only by a barrier after them.
template <bool broken>
BICO_KERNEL(threads)
void barrier_before_the_wait(const float* in, float* out) {
  const int t = thread_index();
  copy_async(shared_address(chunk(t)), in + 4 * t, 16);
  commit_copies();
  sync_threads();
  wait_copies<0>();
  if (!broken) sync_threads();
  out[t] = load_shared(chunk(threads - 1));
}

// The next stage begins to arrive where others still read.
template <bool broken>
BICO_KERNEL(threads)
void copy_over_what_is_read(const float* in, float* out) {
  const int t = thread_index();
  store_shared(chunk(t), in[t]);
  sync_threads();
  out[t] = load_shared(chunk((t + 1) % threads));
  if (!broken) sync_threads();
  copy_async(shared_address(chunk(t)), in + 4 * t, 16);
  commit_copies();
  wait_copies<0>();
}

template <bool broken>
BICO_KERNEL(threads)
void store_where_a_copy_arrives(const float* in, float* out) {
  const int t = thread_index();
  copy_async(shared_address(chunk(t)), in, 16);
  commit_copies();
  if (!broken) wait_copies<0>();
  store_shared(chunk(t), in[t]);
  wait_copies<0>();
  out[t] = load_shared(chunk(t));
}

template <bool broken>
BICO_KERNEL(threads)
void copy_pending_at_the_end(const float* in, float* out) {
  const int t = thread_index();
  out[t] = in[t];
  copy_async(shared_address(chunk(t)), in + 4 * t, 16);
  commit_copies();
  if (!broken) wait_copies<0>();
}

template <bool broken>
BICO_KERNEL(threads)
void copy_of_too_many_bytes(const float* in, float* out) {
  const int t = thread_index();
  copy_async(shared_address(chunk(t)), in, broken ? 20 : 16);
  commit_copies();
  wait_copies<0>();
  out[t] = load_shared(chunk(t) + 3);
}

}  // namespace bico::planted
