// One instruction each, for comparison with its definition: what a thread gives it and what it gets, as words.
#pragma once

#include <bit>

#include "accesses.cuh"
#include "shared.cuh"

namespace bico::planted {

struct Wrapper {
  const char* name;
  int inputs, outputs;  // words of each thread
  void (*run)(const uint32_t* in, uint32_t* out);
};

// in: a row of 16 bytes for shared memory; the thread of its warp whose row it gives the address of.
template <void load(uint32_t (&)[4], SharedAddress)>
void load_row(const uint32_t* in, uint32_t* out) {
  const int t = thread_index();
  for (int i = 0; i < 4; ++i) store_shared(chunk(t) + i, std::bit_cast<float>(in[i]));
  sync_warp();
  uint32_t r[4];
  load(r, shared_address(chunk(t / 32 * 32 + int(in[4]))));
  for (int i = 0; i < 4; ++i) out[i] = r[i];
}

// in: four words of a, two of b, four of c.
template <typename T>
void multiply(const uint32_t* in, uint32_t* out) {
  const uint32_t a[4] = {in[0], in[1], in[2], in[3]};
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = std::bit_cast<float>(in[6 + i]);
  multiply_add<T>(c, a, in[4], in[5]);
  for (int i = 0; i < 4; ++i) out[i] = std::bit_cast<uint32_t>(c[i]);
}

// in: 16 bytes, of which so many as the next word says are copied. Eight words, as copies begin at multiples of 16.
inline void copy(const uint32_t* in, uint32_t* out) {
  float* to = chunk(thread_index());
  copy_async(shared_address(to), in, int(in[4]));
  commit_copies();
  wait_copies<0>();
  for (int i = 0; i < 4; ++i) out[i] = std::bit_cast<uint32_t>(load_shared(to + i));
}

template <typename T>
void pack_two(const uint32_t* in, uint32_t* out) {
  out[0] = pack<T>(std::bit_cast<float>(in[0]), std::bit_cast<float>(in[1]));
}

template <typename T>
void narrow_one(const uint32_t* in, uint32_t* out) {
  out[0] = narrow<T>(std::bit_cast<float>(in[0])).bits;
}

template <typename T>
void widen_one(const uint32_t* in, uint32_t* out) {
  out[0] = std::bit_cast<uint32_t>(widen(T{uint16_t(in[0])}));
}

inline const Wrapper wrappers[] = {
    {"load_matrices", 5, 4, load_row<load_matrices>},
    {"load_matrices_transposed", 5, 4, load_row<load_matrices_transposed>},
    {"multiply_add_bfloat16", 10, 4, multiply<BFloat16>},
    {"multiply_add_float16", 10, 4, multiply<Float16>},
    {"copy_async", 8, 4, copy},
    {"pack_bfloat16", 2, 1, pack_two<BFloat16>},
    {"pack_float16", 2, 1, pack_two<Float16>},
    {"narrow_bfloat16", 1, 1, narrow_one<BFloat16>},
    {"narrow_float16", 1, 1, narrow_one<Float16>},
    {"widen_bfloat16", 1, 1, widen_one<BFloat16>},
    {"widen_float16", 1, 1, widen_one<Float16>},
    {"shuffle", 2, 1, [](const uint32_t* in, uint32_t* out) { out[0] = shuffle(in[0], int(in[1])); }},
    {"shuffle_xor", 2, 1, [](const uint32_t* in, uint32_t* out) { out[0] = shuffle_xor(in[0], int(in[1])); }},
    {"ballot", 1, 1, [](const uint32_t* in, uint32_t* out) { out[0] = ballot(in[0] != 0); }},
    {"lowest_bit", 1, 1, [](const uint32_t* in, uint32_t* out) { out[0] = lowest_bit(in[0]); }},
    {"count_bits", 1, 1, [](const uint32_t* in, uint32_t* out) { out[0] = count_bits(in[0]); }},
    {"sync_threads_or", 1, 1, [](const uint32_t* in, uint32_t* out) { out[0] = sync_threads_or(in[0] != 0); }},
    {"exp2_approximate", 1, 1,
     [](const uint32_t* in, uint32_t* out) {
       out[0] = std::bit_cast<uint32_t>(exp2_approximate(std::bit_cast<float>(in[0])));
     }},
    {"reciprocal_approximate", 1, 1,
     [](const uint32_t* in, uint32_t* out) {
       out[0] = std::bit_cast<uint32_t>(reciprocal_approximate(std::bit_cast<float>(in[0])));
     }},
    {"load_4", 1, 0, load_at<uint32_t>},
    {"load_8", 1, 0, load_at<HalfVector>},
    {"load_16", 1, 0, load_at<Vector>},
    {"load_three_words", 1, 0, load_at<ThreeWords>},
    {"store_2", 1, 0, store_at<uint16_t>},
    {"store_4", 1, 0, store_at<uint32_t>},
    {"store_8", 1, 0, store_at<HalfVector>},
    {"store_16", 1, 0, store_at<Vector>},
    {"copy_16", 4, 0, copy_at},
    {"load_matrices_at", 1, 0, load_matrices_at},
    {"load_in_loop", 2, 0, load_in_loop},
    {"load_in_branches", 2, 1, load_in_branches},
    {"load_in_iterations", 2, 0, load_in_iterations},
    {"load_between_barriers", 2, 0, load_between_barriers},
};

}  // namespace bico::planted
