// Instructions of a whole warp. A fragment in the wrong order is no violation: its numbers are wrong.
#pragma once

#include "shared.cuh"

namespace bico::planted {

template <bool broken>
BICO_KERNEL(threads)
void divergent_collectives(const float* in, float* out) {
  const int t = thread_index();
  out[t] = broken && t % 32 < 16 ? float(ballot(true)) : shuffle(in[t], 7);
}

template <bool broken>
BICO_KERNEL(threads)
void shuffle_of_some_lanes(const float* in, float* out) {
  const int t = thread_index();
  const bool comes = !broken || t % 32 < 16;
  if (comes) out[t] = shuffle(in[t], 7);
}

template <bool broken>
BICO_KERNEL(threads)
void shuffle_for_sync_warp(const float* in, float* out) {
  const int t = thread_index();
  float* x = numbers_of_all(0);
  store_shared(x + t, in[t]);
  broken ? void(shuffle(0, 0)) : sync_warp();
  out[t] = load_shared(x + (t ^ 1));
}

// out = M M for the 16 x 16 matrix M = in, by a product of M and 8 of its columns in each warp.
template <bool swapped, bool transposed>
BICO_DEVICE void square(const float* in, float* out) {
  const int t = thread_index(), lane = t % 32, warp = t / 32;
  BFloat16* matrix = reinterpret_cast<BFloat16*>(shared_memory());
  for (int i = t; i < 256; i += threads) store_shared(matrix + i, narrow<BFloat16>(in[i]));
  sync_threads();
  uint32_t a[4], b[4];
  const BFloat16* row = matrix + lane % 16 * 16 + lane / 16 * 8;
  load_matrices(a, shared_address(row));
  transposed ? load_matrices_transposed(b, shared_address(row)) : load_matrices(b, shared_address(row));
  const uint32_t left[4] = {a[0], a[swapped ? 2 : 1], a[swapped ? 1 : 2], a[3]};
  float accumulators[4] = {};
  multiply_add<BFloat16>(accumulators, left, b[2 * warp], b[2 * warp + 1]);
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 16 + 8 * warp + lane % 4 * 2 + i % 2] = accumulators[i];
}

template <bool broken>
BICO_KERNEL(threads)
void swapped_quarters_of_left_operand(const float* in, float* out) {
  square<broken, true>(in, out);
}

template <bool broken>
BICO_KERNEL(threads)
void right_operand_not_transposed(const float* in, float* out) {
  square<false, !broken>(in, out);
}

}  // namespace bico::planted
