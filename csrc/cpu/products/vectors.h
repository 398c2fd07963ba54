// SIMD vectors by the compiler's vector extension, as wide as the instruction set that includes this, and 2^x.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#ifndef BICO_KERNEL_NAMESPACE
#error "define BICO_KERNEL_NAMESPACE, the instruction set's own, before including any kernel header"
#endif

namespace bico::cpu {
// Each instruction set has a namespace of its own: of equal symbols the linker would keep one, perhaps one that this
// CPU cannot run. python_tests/csrc/test_instruction_sets.py checks the result.
inline namespace BICO_KERNEL_NAMESPACE {

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

// The floats by halves, as adding one element after another waits for each addition.
inline float sum(Vector<float> x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(x);
#else
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
#endif
}
inline double sum(Vector<double> x) {
  double sum = 0;
  for (int i = 0; i < lanes<double>; ++i) sum += x[i];
  return sum;
}

// Whether a comparison is true anywhere.
template <typename T>
bool any(Bits<T> x) {
#ifdef __AVX512F__
  return sizeof(T) == 4 ? _mm512_test_epi32_mask((__m512i)x, (__m512i)x)
                        : _mm512_test_epi64_mask((__m512i)x, (__m512i)x);
#else
  return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#endif
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
  double largest = x[0];
  for (int i = 1; i < lanes<double>; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// Transposes `lanes` vectors in place: log2(lanes) rounds, each swapping blocks of `size` across the diagonal. The
// indices are constants, because g++ 12 would build them from scalars at run time, once in every block.
template <typename T, int size = 1>
[[gnu::always_inline]] inline void transpose_block(Vector<T>* v) {
  if constexpr (size < lanes<T>) {
    // Of the concatenated pair: elements of the second vector count from `lanes` on.
    const auto [upper, lower] = []<int... j>(std::integer_sequence<int, j...>) {
      return std::pair(Bits<T>{(j & size ? lanes<T> + (j ^ size) : j)...},
                       Bits<T>{(j & size ? lanes<T> + j : j | size)...});
    }(std::make_integer_sequence<int, lanes<T>>());
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i) {
      if (i & size) continue;
      const Vector<T> a = v[i], b = v[i | size];
      v[i] = __builtin_shuffle(a, b, upper);
      v[i | size] = __builtin_shuffle(a, b, lower);
    }
    transpose_block<T, 2 * size>(v);
  }
}

// 2^x in float: 2^n 2^f with n = floor(x) and a polynomial of 2^f for 0 <= f < 1 whose constant term is 1, so that 2^0
// is exact. Its largest relative error is 6.4e-9 with 6 further terms, and 8.8e-6 with 4, which is enough where the
// result is rounded to bfloat16 (2e-3). NaN stays NaN, 2^-inf is 0.
template <int terms>
Vector<float> exp2(Vector<float> x) {
  static_assert(terms == 4 || terms == 6);
  using V = Vector<float>;
#ifdef __AVX512F__
  const V f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  const V clamped = x < -127.0f ? splat(-127.0f) : x;  // -inf - floor(-inf) is NaN
  const V n = _mm256_floor_ps(clamped), f = clamped - n;
#endif
  V p;
  if constexpr (terms == 6) {
    p = splat(0x1.284c28p-12f);
    p = p * f + 0x1.020168p-10f;
    p = p * f + 0x1.4a82fep-7f;
    p = p * f + 0x1.c3ee8ep-5f;
    p = p * f + 0x1.ec3ce2p-3f;
    p = p * f + 0x1.62e1c8p-1f;
  } else {
    p = splat(0x1.17a2cap-6f);
    p = p * f + 0x1.64ad6ap-5f;
    p = p * f + 0x1.fbdeb4p-3f;
    p = p * f + 0x1.61fe28p-1f;
  }
  p = p * f + 1.0f;
#ifdef __AVX512F__
  return _mm512_scalef_ps(p, x);  // by 2^floor(x)
#else
  // n = 128 needs 2^128, which a float exponent cannot hold: multiply by 2^(n-1) and by 2. Below 2^-126 is 0.
  const Bits<float> power = (__builtin_convertvector(n, Bits<float>) + 126) << 23;
  const V result = p * (V)power * 2.0f;
  return x < -126.0f ? V{} : (x >= 129.0f ? splat(INFINITY) : result);
#endif
}

template <int terms>
Vector<double> exp2(Vector<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
