// Where memory is accessed.
#pragma once

#include "shared.cuh"

namespace bico::planted {

template <bool broken>
BICO_KERNEL(threads)
void shared_write_past_the_end(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers() + shared_bytes / 4 - threads + (broken ? 1 : 0);
  store_shared(x + t, in[t]);
  out[t] = load_shared(x + t);
}

template <bool broken>
BICO_KERNEL(threads)
void shared_read_past_the_end(const float* in, float* out) {
  const int t = thread_index();
  float* last = chunk(threads + t) + 3;
  store_shared(last, in[t]);
  out[t] = load_shared(broken && t == threads - 1 ? last + 1 : last);
}

template <bool broken>
BICO_KERNEL(threads)
void shared_read_of_nothing(const float* in, float* out) {
  const int t = thread_index();
  if (!broken || t != 5) store_shared(numbers() + t, in[t]);
  sync_threads();
  out[t] = load_shared(numbers() + (t + 1) % threads);
}

template <bool broken>
BICO_KERNEL(threads)
void misaligned_store(const float* in, float* out) {
  const int t = thread_index();
  float* x = chunk(0) + (broken ? 1 : 0);
  if (t == 0) store_shared(reinterpret_cast<Vector*>(x), Vector{});
  out[t] = in[t];
}

template <bool broken>
BICO_KERNEL(threads)
void misaligned_matrix_row(const float* in, float* out) {
  const int t = thread_index();
  for (int i = 0; i < 4; ++i) store_shared(chunk(t) + i, in[t]);
  sync_threads();
  uint32_t rows[4];
  load_matrices(rows, shared_address(chunk(t) - (broken && t % 32 == 9 ? 1 : 0)));
  out[t] = in[t];
}

template <bool broken>
BICO_KERNEL(threads)
void misaligned_copy_to_shared(const float* in, float* out) {
  const int t = thread_index();
  if (t == 0) copy_async(shared_address(chunk(t) + (broken ? 2 : 0)), in, 16);
  commit_copies();
  wait_copies<0>();
  out[t] = in[t];
}

template <bool broken>
BICO_KERNEL(threads)
void misaligned_copy_from_global(const float* in, float* out) {
  const int t = thread_index();
  copy_async(shared_address(chunk(t)), in + (broken ? 2 : 0), 16);
  commit_copies();
  wait_copies<0>();
  out[t] = in[t];
}

// For AddressSanitizer: the emulator does not see accesses to global memory.
template <bool broken>
BICO_KERNEL(threads)
void global_write_past_the_end(const float* in, float* out) {
  const int t = thread_index();
  out[broken ? t + 1 : t] = in[t];
}

}  // namespace bico::planted
