// SIMD vectors by the compiler's vector extension, as wide as the instruction set that includes this, and 2^x.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef BICO_ISA
#error "BICO_ISA names the namespace of the instruction set: define it before including any kernel header"
#endif

namespace bico::cpu {
// A namespace for each instruction set: of equal symbols the linker would keep one, perhaps one that this CPU cannot
// run. python_tests/test_instruction_sets.py checks the result.
inline namespace BICO_ISA {

#ifdef __AVX512F__
constexpr int vector_bytes = 64;
#else
constexpr int vector_bytes = 32;
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
  typedef int32_t bits __attribute__((vector_size(vector_bytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
  typedef int64_t bits __attribute__((vector_size(vector_bytes)));
};

template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
using Bits = typename VectorOf<T>::bits;
template <typename T>
constexpr int lanes = vector_bytes / int(sizeof(T));

template <typename T>
Vector<T> load(const T* from) {
  Vector<T> x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
template <typename T>
void store(T* to, Vector<T> x) {
  std::memcpy(to, &x, sizeof(x));
}
template <typename T>
Vector<T> splat(T x) {
  return x - Vector<T>{};
}

template <typename T>
T sum(Vector<T> x) {
  T total = 0;
  for (int i = 0; i < lanes<T>; ++i) total += x[i];
  return total;
}

// The largest element. NaN is not larger than anything.
inline float largest_of(Vector<float> x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps(x);
#else
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
#endif
}
inline double largest_of(Vector<double> x) {
  double top = x[0];
  for (int i = 1; i < lanes<double>; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// Transposes `lanes` vectors in place: log2(lanes) rounds, each swapping blocks of `size` across the diagonal.
template <typename T>
void transpose_block(Vector<T>* v) {
#pragma GCC unroll 8
  for (int size = 1; size < lanes<T>; size *= 2) {
    Bits<T> upper, lower;  // of the concatenated pair: elements of the second vector count from `lanes` on
#pragma GCC unroll 16
    for (int j = 0; j < lanes<T>; ++j) {
      upper[j] = j & size ? lanes<T> + (j ^ size) : j;
      lower[j] = j & size ? lanes<T> + j : j | size;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i) {
      if (i & size) continue;
      const Vector<T> a = v[i], b = v[i | size];
      v[i] = __builtin_shuffle(a, b, upper);
      v[i | size] = __builtin_shuffle(a, b, lower);
    }
  }
}

// 2^x in float: 2^n 2^f with n the nearest integer and a polynomial of 2^f for |f| <= 1/2 whose constant term is 1,
// so that 2^0 is exact. Its largest relative error is 9.1e-8 with 5 further terms and 2.8e-6 with 4, which is enough
// where the result is rounded to bfloat16 (2e-3). Results below 2^-126 are 0; NaN stays NaN.
template <int terms>
Vector<float> exp2(Vector<float> x) {
  static_assert(terms == 4 || terms == 5);
  using V = Vector<float>;
  const V clamped = x < -150.0f ? splat(-150.0f) : x;
#ifdef __AVX512F__
  const V n = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const V n = _mm256_round_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
  const V f = clamped - n;
  V p;
  if constexpr (terms == 5) {
    p = splat(0x1.5bba14p-10f);
    p = p * f + 0x1.3cea88p-7f;
    p = p * f + 0x1.c6b752p-5f;
    p = p * f + 0x1.ebf9bcp-3f;
    p = p * f + 0x1.62e42ap-1f;
  } else {
    p = splat(0x1.3a02ccp-7f);
    p = p * f + 0x1.c9fc46p-5f;
    p = p * f + 0x1.ec0378p-3f;
    p = p * f + 0x1.62e12cp-1f;
  }
  p = p * f + 1.0f;
#ifdef __AVX512F__
  return _mm512_scalef_ps(p, n);
#else
  // n = 128 needs 2^128, which a float exponent cannot hold: multiply by 2^(n-1) and by 2.
  const Bits<float> power = (__builtin_convertvector(n, Bits<float>) + 126) << 23;
  const V result = p * (V)power * 2.0f;
  return x < -126.0f ? V{} : (x > 128.0f ? splat(INFINITY) : result);
#endif
}

template <int terms>
Vector<double> exp2(Vector<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

}  // namespace BICO_ISA
}  // namespace bico::cpu
