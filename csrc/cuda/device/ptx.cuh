// The instructions on hardware, sm_80 and newer: the only place with inline PTX. What each of them promises is written
// down once, in python_tests/emulator/device/instructions.h, beside the checks of it.
#pragma once

#include <cuda_runtime.h>

#include "numbers.h"

#define BICO_DEVICE __device__ __forceinline__
#define BICO_KERNEL(threads) static __global__ __launch_bounds__(threads, 1)
#define BICO_ARGUMENT(type) const __grid_constant__ type

namespace bico::cuda {

#ifdef __CUDA_ARCH__
constexpr int architecture = __CUDA_ARCH__ / 10;
#else
constexpr int architecture = 0;
#endif

BICO_DEVICE int thread_index() {
  return threadIdx.x;
}

BICO_DEVICE uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

template <typename T>
BICO_DEVICE T* opaque(T* in_global_memory) {
  size_t address = __cvta_generic_to_global(in_global_memory);
  asm volatile("" : "+l"(address));
  return static_cast<T*>(__cvta_global_to_generic(address));
}

BICO_DEVICE unsigned thread_index_here() {
  return opaque(threadIdx.x);
}

BICO_DEVICE int64_t block_index() {
  return blockIdx.x;
}

BICO_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

BICO_DEVICE void sync_threads() {
  __syncthreads();
}

BICO_DEVICE bool sync_threads_or(bool mine) {
  return __syncthreads_or(mine);
}

// For kernels whose warps play different roles; so far only the emulator's own tests have such kernels.
BICO_DEVICE void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

BICO_DEVICE void sync_warp() {
  __syncwarp();
}

template <typename T>
BICO_DEVICE T shuffle(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}

template <typename T>
BICO_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

BICO_DEVICE uint32_t ballot(bool mine) {
  return __ballot_sync(0xffffffffu, mine);
}

BICO_DEVICE int lowest_bit(uint32_t bits) {
  return __ffs(bits) - 1;
}

BICO_DEVICE int count_bits(uint32_t bits) {
  return __popc(bits);
}

template <typename T>
BICO_DEVICE T load_shared(const T* from) {
  return *from;
}

template <typename T>
BICO_DEVICE void store_shared(T* to, T value) {
  *to = value;
}

using SharedAddress = uint32_t;

BICO_DEVICE SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

BICO_DEVICE void store_shared(SharedAddress to, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

BICO_DEVICE void load_matrices(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

BICO_DEVICE void load_matrices_transposed(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

template <typename T>
BICO_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
BICO_DEVICE void multiply_add<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
BICO_DEVICE void multiply_add<Float16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

BICO_DEVICE void copy_async(SharedAddress to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

BICO_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int newest>
BICO_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

BICO_DEVICE void atomic_add(float* to, float value) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
}

constexpr int atomic_add_width = architecture >= 90 ? 4 : 1;

BICO_DEVICE void atomic_add(float* to, const float (&values)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(values[0]), "f"(values[1]),
               "f"(values[2]), "f"(values[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomic_add(to + i, values[i]);
#endif
}

BICO_DEVICE void atomic_or(uint32_t* to, uint32_t bits) {
  asm volatile("red.global.or.b32 [%0], %1;" ::"l"(to), "r"(bits) : "memory");
}

BICO_DEVICE int32_t take_ticket(int32_t* counter) {
  return atomicAdd(counter, 1);
}

BICO_DEVICE void wait_for_semaphore(const int32_t* semaphore, int32_t value) {
  int32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(semaphore) : "memory");
  } while (seen != value);
}

BICO_DEVICE void set_semaphore(int32_t* semaphore, int32_t value) {
  asm volatile("fence.acq_rel.gpu;\n\tst.release.gpu.global.s32 [%0], %1;" ::"l"(semaphore), "r"(value) : "memory");
}

BICO_DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

BICO_DEVICE float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <typename T>
BICO_DEVICE uint32_t pack(float low, float high);

template <>
BICO_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

template <>
BICO_DEVICE uint32_t pack<Float16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

BICO_DEVICE float widen(BFloat16 x) {
  return __uint_as_float(uint32_t(x.bits) << 16);
}

BICO_DEVICE float widen(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

BICO_DEVICE float widen(float x) {
  return x;
}

BICO_DEVICE double widen(double x) {
  return x;
}

template <typename T, typename From>
BICO_DEVICE T narrow(From x) {
  if constexpr (sizeof(T) == 2) {
    return {uint16_t(pack<T>(x, 0.0f))};
  } else {
    return x;
  }
}

}  // namespace bico::cuda
