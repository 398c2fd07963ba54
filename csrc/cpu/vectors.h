// SIMD vectors by the compiler's vector extension, and the exponential.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace bico::cpu {

constexpr int vector_bytes = 32;  // AVX2

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

// Transposes `lanes` vectors in place: log2(lanes) rounds, each swapping blocks of `size` across the diagonal.
template <typename T>
void transpose_block(Vector<T>* v) {
  using Index = typename VectorOf<T>::bits;
#pragma GCC unroll 8
  for (int size = 1; size < lanes<T>; size *= 2) {
    Index upper, lower;  // of the concatenated pair: elements of the second vector count from `lanes` on
#pragma GCC unroll 8
    for (int j = 0; j < lanes<T>; ++j) {
      upper[j] = j & size ? lanes<T> + (j ^ size) : j;
      lower[j] = j & size ? lanes<T> + j : j | size;
    }
#pragma GCC unroll 8
    for (int i = 0; i < lanes<T>; ++i) {
      if (i & size) continue;
      const Vector<T> a = v[i], b = v[i | size];
      v[i] = __builtin_shuffle(a, b, upper);
      v[i | size] = __builtin_shuffle(a, b, lower);
    }
  }
}

// e^x in float, to 2e-7 relative: 2^n * e^r with |r| <= ln(2) / 2 and a degree-6 Taylor polynomial of e^r, whose
// remainder r^7/5040 is 1.2e-7 relative there. Below -86.98, where 2^(n-1) would be denormal, it is 0 instead of less
// than 1.7e-38; NaN stays NaN.
inline Vector<float> exponential(Vector<float> x) {
  using V = Vector<float>;
  using Bits = VectorOf<float>::bits;
  const V clamped = x > 88.72f ? splat(88.72f) : (x < -86.98f ? splat(-86.98f) : x);
  const V shift = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves round(y) in the low mantissa bits
  const V shifted = clamped * 1.44269504f + shift;
  const V n = shifted - shift;
  const V r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts (Cody and Waite)
  V p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // n = 128 needs 2^128, which a float exponent cannot hold: multiply by 2^(n-1) and by 2.
  const Bits power = ((Bits)shifted - (Bits)shift + 126) << 23;
  const V result = p * (V)power * 2.0f;
  return x < -86.98f ? V{} : (x > 88.72f ? splat(INFINITY) : result);
}

inline Vector<double> exponential(Vector<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace bico::cpu
