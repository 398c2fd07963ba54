// Order between threads: barriers of the block, of some of its warps, and of one warp.
#pragma once

#include "shared.cuh"

namespace bico::planted {

template <bool broken>
BICO_KERNEL(threads)
void read_without_barrier(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers_of_all(0);
  store_shared(x + t, in[t]);
  if (!broken) sync_threads();
  out[t] = load_shared(x + (t + 1) % threads);
}

template <bool broken>
BICO_KERNEL(threads)
void overwrite_without_barrier(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers_of_all(in[t]);
  out[t] = load_shared(x + (t + 1) % threads);
  if (!broken) sync_threads();
  store_shared(x + t, 0);
}

// The writing lane runs last in one schedule: no schedule may hide that the others have read.
template <bool broken>
BICO_KERNEL(threads)
void overwrite_by_last_lane(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers_of_all(in[t]) + t / 32 * 32;
  out[t] = load_shared(x);
  if (!broken) sync_warp();
  if (t == 31) store_shared(x, 0);
}

template <bool broken>
BICO_KERNEL(threads)
void two_writers(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers_of_all(0);
  store_shared(x + (broken ? t / 2 : t), in[t]);
  sync_threads();
  out[t] = load_shared(x + t);
}

template <bool broken>
BICO_KERNEL(threads)
void no_barrier_within_warp(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers_of_all(0);
  store_shared(x + t, in[t]);
  if (!broken) sync_warp();
  out[t] = load_shared(x + (t ^ 1));
}

template <bool broken>
BICO_KERNEL(threads)
void sync_warp_between_warps(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers_of_all(0);
  store_shared(x + t, in[t]);
  broken ? sync_warp() : sync_threads();
  out[t] = load_shared(x + (t ^ 32));
}

// The others' first barrier is then the second one of thread 5.
template <bool broken>
BICO_KERNEL(threads)
void skipped_barrier(const float* in, float* out) {
  const int t = thread_index();
  if (!broken || t != 5) sync_threads();
  sync_threads();
  out[t] = in[t];
}

template <bool broken>
BICO_KERNEL(threads)
void exit_before_barrier(const float* in, float* out) {
  const int t = thread_index();
  out[t] = in[t];
  if (broken && t == 5) return;
  sync_threads();
}

template <bool broken>
BICO_KERNEL(threads)
void barriers_of_two_kinds(const float* in, float* out) {
  const int t = thread_index();
  (broken && t < 32) ? sync_threads() : void(sync_threads_or(true));
  out[t] = in[t];
}

template <bool broken>
BICO_KERNEL(threads)
void named_barrier_of_two_counts(const float* in, float* out) {
  const int t = thread_index();
  sync_named(1, broken && t < 32 ? 32 : 64);
  out[t] = in[t];
}

template <bool broken>
BICO_KERNEL(threads)
void named_barriers_mixed_up(const float* in, float* out) {
  const int t = thread_index();
  sync_named(broken && t < 32 ? 2 : 1, 64);
  out[t] = in[t];
}

// Hardware counts warps: it would wait for the other halves.
template <bool broken>
BICO_KERNEL(threads)
void named_barrier_of_half_warps(const float* in, float* out) {
  const int t = thread_index();
  const bool comes = broken ? t % 32 < 16 : t < 32;
  if (comes) sync_named(1, 32);
  out[t] = in[t];
}

template <bool broken>
BICO_KERNEL(threads)
void named_barrier_of_no_number(const float* in, float* out) {
  const int t = thread_index();
  sync_named(broken ? 16 : 15, 64);
  out[t] = in[t];
}

// One warp fills a buffer, the other one empties it, four times.
template <bool broken>
BICO_KERNEL(threads)
void producer_and_consumer(const float* in, float* out) {
  const int lane = thread_index() % 32;
  const auto full = [] { sync_named(1, threads); };
  const auto empty = [] {
    if (!broken) sync_named(2, threads);
  };
  if (thread_index() < 32) {
    for (int step = 0; step < 4; ++step) {
      if (step > 0) empty();
      store_shared(numbers() + lane, in[32 * step + lane]);
      full();
    }
  } else {
    for (int step = 0; step < 4; ++step) {
      full();
      out[32 * step + lane] = load_shared(numbers() + 31 - lane);
      if (step < 3) empty();
    }
  }
}

}  // namespace bico::planted
