// Accesses to shared memory at the byte that a thread is given, for counts of what they cost its banks.
#pragma once

#include "shared.cuh"

namespace bico::planted {

struct HalfVector {
  alignas(8) uint32_t word[2];
};
struct ThreeWords {
  uint32_t word[3];
};

template <typename T>
T* at(uint32_t byte) {
  return reinterpret_cast<T*>(shared_memory() + byte);
}

// As nothing may be read that was not written.
inline void fill_shared() {
  for (int i = thread_index(); i < shared_bytes / 4; i += threads) store_shared(numbers() + i, 0);
  sync_threads();
}

template <typename T>
void load_at(const uint32_t* in, uint32_t*) {
  fill_shared();
  load_shared(at<T>(in[0]));
}

template <typename T>
void store_at(const uint32_t* in, uint32_t*) {
  store_shared(at<T>(in[0]), T{});
}

inline void copy_at(const uint32_t* in, uint32_t*) {
  copy_async(shared_address(at<float>(in[0])), in, 16);
  commit_copies();
  wait_copies<0>();
}

inline void load_matrices_at(const uint32_t* in, uint32_t*) {
  fill_shared();
  uint32_t r[4];
  load_matrices(r, shared_address(at<float>(in[0])));
}

// As many times as the second word says.
inline void load_in_loop(const uint32_t* in, uint32_t*) {
  fill_shared();
  for (uint32_t i = 0; i < in[1]; ++i) load_shared(at<uint32_t>(in[0]));
}

// In one branch or the other.
inline void load_in_branches(const uint32_t* in, uint32_t* out) {
  fill_shared();
  if (in[1] == 0) {
    out[0] = load_shared(at<uint32_t>(in[0]));
  } else {
    out[0] = load_shared(at<uint32_t>(in[0])) + 1;
  }
}

// Before or after the lanes of the warp come together.
inline void load_in_iterations(const uint32_t* in, uint32_t*) {
  fill_shared();
  for (uint32_t i = 0; i < 2; ++i) {
    if (i == in[1]) load_shared(at<uint32_t>(in[0]));
    sync_warp();
  }
}

// The same with a barrier of the block.
inline void load_between_barriers(const uint32_t* in, uint32_t*) {
  fill_shared();
  for (uint32_t i = 0; i < 2; ++i) {
    if (i == in[1]) load_shared(at<uint32_t>(in[0]));
    sync_threads();
  }
}

}  // namespace bico::planted
