// The instructions of csrc/cuda/device/ptx.cuh on the CPU, each with what it promises and what it demands.
#pragma once

#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>

#include <cuda/device/numbers.h>

#include "../machine/machine.h"

#define BICO_DEVICE inline
#define BICO_KERNEL(threads) static
#define BICO_ARGUMENT(type) const type

namespace bico::cuda {

using emulator::Access;
using emulator::Block;

// The compute capability that is compiled for, times 10.
constexpr int architecture = 90;

// Of this thread within its block, and of the block within the launch.
inline int thread_index() {
  return Block::here().thread();
}

// The same number, of which the compiler knows nothing, not even that it is the same as at another call.
template <typename T>
T opaque(T x) {
  return x;
}

// Addresses derived from an opaque index are computed anew at each use, where otherwise they would be kept in registers
// all through a kernel, dozens of them, at the cost of spilling its accumulators.
inline unsigned thread_index_here() {
  return opaque(unsigned(thread_index()));
}

inline int64_t block_index() {
  return Block::here().index();
}

inline unsigned char* shared_memory() {
  return Block::here().shared();
}

// All threads of the block come, and what they wrote before is seen by all after.
inline void sync_threads() {
  Block::here().barrier("sync_threads", 0, Block::here().threads());
}

// The same; whether any of them said `mine`.
inline bool sync_threads_or(bool mine) {
  return Block::here().barrier("sync_threads_or", 0, Block::here().threads(), mine);
}

// A barrier of `threads` threads, whole warps, that has a number from 1 to 15.
inline void sync_named(int id, int threads) {
  if (id < 1 || id > 15 || threads % emulator::warp_size != 0) {
    Block::here().fail("names barrier " + std::to_string(id) + " for " + std::to_string(threads) + " threads");
  }
  Block::here().barrier("sync_named", id, threads);
}

// The lanes of the warp see what they wrote before. No other instruction of a warp promises that.
inline void sync_warp() {
  Block::here().sync_warp();
}

// What the lane `lane` has for x. All lanes must come, to this and to all that follow named "of a warp".
template <typename T>
T shuffle(T x, int lane) {
  struct Operand {
    T mine, got;
    int from;
  } operand = {x, {}, lane};
  Block::here().together("shuffle", &operand, [](const Block::Operands& all) {
    for (void* one : all) {
      auto& to = *static_cast<Operand*>(one);
      to.got = static_cast<Operand*>(all[to.from & 31])->mine;
    }
  });
  return operand.got;
}

template <typename T>
T shuffle_xor(T x, int mask) {
  return shuffle(x, thread_index() % 32 ^ mask);
}

// Bit i is what lane i says, of a warp.
inline uint32_t ballot(bool mine) {
  struct Operand {
    bool mine;
    uint32_t got;
  } operand = {mine, 0};
  Block::here().together("ballot", &operand, [](const Block::Operands& all) {
    uint32_t bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= uint32_t(static_cast<Operand*>(all[lane])->mine) << lane;
    for (void* one : all) static_cast<Operand*>(one)->got = bits;
  });
  return operand.got;
}

// The place of the lowest bit of `bits`, which is not 0.
inline int lowest_bit(uint32_t bits) {
  return std::countr_zero(bits);
}

inline int count_bits(uint32_t bits) {
  return std::popcount(bits);
}

// Shared memory is read and written through these alone. Always inlined, as is copy_async: where they call from says
// which instruction of a kernel they are.
template <typename T>
[[gnu::always_inline]] inline T load_shared(const T* from) {
  Block::here().check_read(from, sizeof(T), alignof(T), thread_index());
  return *from;
}

template <typename T>
[[gnu::always_inline]] inline void store_shared(T* to, std::type_identity_t<T> value) {
  Block::here().check_write(to, sizeof(T), alignof(T));
  *to = value;
}

// A place in shared memory as a number, for arithmetic on its bits.
using SharedAddress = uintptr_t;

inline SharedAddress shared_address(const void* pointer) {
  return reinterpret_cast<SharedAddress>(pointer);
}

[[gnu::always_inline]] inline void store_shared(SharedAddress to, uint32_t value) {
  store_shared(reinterpret_cast<uint32_t*>(to), value);
}

// ldmatrix of four 8 x 8 matrices of 16-bit elements, of a warp: lane l gives the address of row l % 8 of matrix l / 8,
// 16 bytes. Lane 4 g + t gets in r[i] elements 2 t and 2 t + 1 of row g of matrix i; transposed, elements g of rows 2 t
// and 2 t + 1.
template <bool transposed>
void load_matrices_of(uint32_t (&r)[4], const void* row) {
  struct Operand {
    uint32_t* r;
    const void* row;
  } operand = {r, row};
  Block::here().together(transposed ? "load_matrices_transposed" : "load_matrices", &operand,
                         [](const Block::Operands& all) {
                           Block& block = Block::here();
                           uint16_t matrices[4][8][8];
                           for (int lane = 0; lane < 32; ++lane) {
                             const void* from = static_cast<Operand*>(all[lane])->row;
                             block.check_read(from, 16, 16, block.thread() / 32 * 32 + lane, Access::matrices);
                             std::memcpy(matrices[lane / 8][lane % 8], from, 16);
                           }
                           for (int lane = 0; lane < 32; ++lane) {
                             const int g = lane / 4, t = lane % 4;
                             for (int i = 0; i < 4; ++i) {
                               const uint32_t low = transposed ? matrices[i][2 * t][g] : matrices[i][g][2 * t];
                               const uint32_t high = transposed ? matrices[i][2 * t + 1][g] : matrices[i][g][2 * t + 1];
                               static_cast<Operand*>(all[lane])->r[i] = low | high << 16;
                             }
                           }
                         });
}

inline void load_matrices(uint32_t (&r)[4], SharedAddress row) {
  load_matrices_of<false>(r, reinterpret_cast<const void*>(row));
}

inline void load_matrices_transposed(uint32_t (&r)[4], SharedAddress row) {
  load_matrices_of<true>(r, reinterpret_cast<const void*>(row));
}

inline float widen(BFloat16 x) {
  return std::bit_cast<float>(uint32_t(x.bits) << 16);
}

inline float widen(Float16 x) {
  return float(std::bit_cast<_Float16>(x.bits));
}

inline float widen(float x) {
  return x;
}

inline double widen(double x) {
  return x;
}

template <typename T>
uint16_t rounded(float x) {
  if constexpr (std::is_same_v<T, Float16>) return std::bit_cast<uint16_t>(_Float16(x));
  if (x != x) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
}

// Two numbers rounded to T; `low` is the first in memory.
template <typename T>
uint32_t pack(float low, float high) {
  return rounded<T>(low) | uint32_t(rounded<T>(high)) << 16;
}

template <typename T, typename From>
T narrow(From x) {
  if constexpr (sizeof(T) == 2) {
    return {rounded<T>(float(x))};
  } else {
    return x;
  }
}

// mma.m16n8k16 of a warp, c += a b, with exact products and float32 accumulators. Lane 4 g + t holds
//   of a: rows g (a[0], a[2]) and g + 8 (a[1], a[3]), k = 2 t and 2 t + 1 (a[0], a[1]), or those + 8 (a[2], a[3]);
//   of b: column g, k = 2 t and 2 t + 1 (b0), or those + 8 (b1);
//   of c: rows g (c[0], c[1]) and g + 8 (c[2], c[3]), columns 2 t (c[0], c[2]) and 2 t + 1 (c[1], c[3]).
template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operand {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } operand = {c, a, {b0, b1}};
  Block::here().together("multiply_add", &operand, [](const Block::Operands& all) {
    float left[16][16], right[16][8], accumulators[16][8];
    const auto half_of = [](uint32_t word, int e) { return widen(T{uint16_t(word >> 16 * e)}); };
    for (int lane = 0; lane < 32; ++lane) {
      const auto& from = *static_cast<const Operand*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
        for (int e = 0; e < 2; ++e) left[row][column + e] = half_of(from.a[i], e);
        accumulators[g + 8 * (i / 2)][2 * t + i % 2] = from.c[i];
      }
      for (int i = 0; i < 2; ++i) {
        for (int e = 0; e < 2; ++e) right[2 * t + 8 * i + e][g] = half_of(from.b[i], e);
      }
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 8; ++column) accumulators[row][column] += left[row][k] * right[k][column];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        static_cast<Operand*>(all[lane])->c[i] = accumulators[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2];
      }
    }
  });
}

// Begin to copy `bytes` (0 to 16) from global to shared memory and zeros up to 16. Both addresses are multiples of 16.
// The data are there once this thread has waited for the group that they were committed in, for others a barrier later.
[[gnu::always_inline]] inline void copy_async(SharedAddress to, const void* from, int bytes) {
  Block::here().copy_async(reinterpret_cast<void*>(to), from, bytes, 16 - bytes);
}

inline void commit_copies() {
  Block::here().commit_copies();
}

// Wait for all committed groups but the `newest` ones.
template <int newest>
void wait_copies() {
  Block::here().wait_copies(newest);
}

// Global memory, from any block.
inline void atomic_add(float* to, float value) {
  std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
}

// As many neighbours as one instruction adds to.
constexpr int atomic_add_width = 4;

// `to` is a multiple of 16 bytes.
inline void atomic_add(float* to, const float (&values)[4]) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) Block::here().fail("adds at an address that is no multiple of 16");
  for (int i = 0; i < 4; ++i) atomic_add(to + i, values[i]);
}

inline void atomic_or(uint32_t* to, uint32_t bits) {
  std::atomic_ref(*to).fetch_or(bits, std::memory_order_relaxed);
}

inline int32_t take_ticket(int32_t* counter) {
  return std::atomic_ref(*counter).fetch_add(1);
}

// Waits until another block has set the semaphore to `value`; what that block did before is seen after.
inline void wait_for_semaphore(const int32_t* semaphore, int32_t value) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::atomic_ref(*const_cast<int32_t*>(semaphore)).load(std::memory_order_acquire) != value) {
    if (std::chrono::steady_clock::now() > give_up)
      Block::here().fail("waited 20 seconds for a semaphore that nobody set");
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

inline void set_semaphore(int32_t* semaphore, int32_t value) {
  std::atomic_ref(*semaphore).store(value, std::memory_order_release);
}

// 2^x within 2 units of the last place; results below the normal numbers are 0.
inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return std::fabs(y) < std::numeric_limits<float>::min() ? 0.0f : y;
}

// 1 / x within one unit of the last place; 0 for results below the normal numbers, infinite for x below them.
inline float reciprocal_approximate(float x) {
  const float y = 1 / (std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x);
  return std::fabs(y) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : y;
}

}  // namespace bico::cuda
