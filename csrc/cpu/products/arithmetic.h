// What the kernels compute with, and how tensors are converted to it. Operands are what panels hold and products read.
// Everything else is a Scalar, accumulators above all.
#pragma once

#include <bit>

#include "../../attention.h"
#include "load.h"
#include "vectors.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float widen(BFloat16 x) {
  return std::bit_cast<float>(uint32_t(x.bits) << 16);
}
inline float widen(float x) {
  return x;
}
inline double widen(double x) {
  return x;
}

// An arithmetic says how products are computed. Its members:
// Session: lives while a task runs, for hardware that has to be set up.
// group: operands that stand side by side in a panel, consecutive in depth, and are multiplied by one instruction.
// depth_step: what the depth of a product is rounded up to; panels are zero there.
// finite_below: a scalar of at least this size, or NaN, makes an operand that is not finite.
//
// Here operands are scalars, multiplied one at a time.
template <typename T>
struct ScalarOperands {
  struct Session {};
  using Scalar = T;
  using Operand = T;
  static constexpr int group = 1, depth_step = 1, exp2_terms = 6;
  static constexpr T finite_below = INFINITY;

  static Vector<T> multiply_add(Vector<T> c, const T* a, const T* b) { return c + *a * load(b); }
  static void store_row(T* to, Vector<T> x) { store(to, x); }
  static void store_row(T* to, Vector<T> x, Vector<T> next) { store(to, x), store(to + lanes<T>, next); }
  // Stores x, vectors of `group` consecutive rows, at one place of a panel and in the rows themselves.
  static void store_group(const Vector<T>* x, T* panel, T* const* rows) {
    store(panel, *x);
    if (rows != nullptr) store(*rows, *x);
  }
  static void interleave(const T* const* rows, T* panel) { store(panel, load(*rows)); }
};

#ifdef __AVX512BF16__
// bfloat16 operands in pairs, float accumulators: vdpbf16ps.
struct BFloat16Pairs {
  struct Session {};
  using Scalar = float;
  using Operand = BFloat16;
  static constexpr int group = 2, depth_step = 2, exp2_terms = 4;
  static constexpr float finite_below = 0x1.ffp127f;  // from here on a float rounds to infinity

  static Vector<float> multiply_add(Vector<float> c, const BFloat16* a, const BFloat16* b) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof(pair));
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(b));
  }
  static void store_row(BFloat16* to, Vector<float> x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
  }
  static void store_row(BFloat16* to, Vector<float> x, Vector<float> next) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(next, x));
  }
  static void store_group(const Vector<float>* x, BFloat16* panel, BFloat16* const* rows) {
    const auto both = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]);  // 16 of row 0, then 16 of row 1
    _mm512_storeu_si512(panel, _mm512_permutexvar_epi16(alternate(), both));
    if (rows != nullptr) {
      _mm256_storeu_si256((__m256i*)rows[0], _mm512_castsi512_si256(both));
      _mm256_storeu_si256((__m256i*)rows[1], _mm512_extracti64x4_epi64(both, 1));
    }
  }
  static void interleave(const BFloat16* const* rows, BFloat16* panel) {
    const auto both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)rows[0])),
                                         _mm256_loadu_si256((const __m256i*)rows[1]), 1);
    _mm512_storeu_si512(panel, _mm512_permutexvar_epi16(alternate(), both));
  }

 private:
  // 0, 16, 1, 17, ...: the two halves of a register, alternating.
  static __m512i alternate() {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
  }
};
#endif

// The `lanes` elements from `from` on.
inline Vector<float> load_elements(const BFloat16* from) {
#ifdef __AVX512F__
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
  return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#endif
}
inline Vector<float> load_elements(const Float16* from) {
#ifdef __AVX512F__
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#endif
}
template <typename T>
Vector<T> load_elements(const T* from) {
  return load(from);
}

// Rounds `lanes` scalars to elements; NaN stays NaN. The instructions of AVX-512 BF16 make zeros of subnormal numbers.
inline void store_elements(BFloat16* to, Vector<float> x) {
#ifdef __AVX512BF16__
  BFloat16Pairs::store_row(to, x);
#else
  const auto bits = (Bits<float>)x;
  const Bits<float> rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Bits<float> narrow = (x != x ? Bits<float>{} + 0x7fc00000 : rounded) >> 16;
#ifdef __AVX512F__
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)narrow));
#else
  const __m256i pairs = _mm256_packus_epi32((__m256i)(narrow & 0xffff), (__m256i)(narrow & 0xffff));
  _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
#endif
#endif
}
inline void store_elements(Float16* to, Vector<float> x) {
#ifdef __AVX512F__
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#endif
}
template <typename T>
void store_elements(T* to, Vector<T> x) {
  store(to, x);
}

// Two vectors, by one store where there is an instruction for it.
template <typename Element, typename V>
void store_elements(Element* to, V x, V next) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<Element, BFloat16>) return BFloat16Pairs::store_row(to, x, next);
#endif
  store_elements(to, x), store_elements(to + sizeof(V) / sizeof(x[0]), next);
}

// to[0, padded) = factor * from[0, count), then zeros. `padded` is a multiple of the vector; nothing is read beyond
// the row.
template <typename Element, typename T>
void load_elements(const Element* from, int64_t count, int64_t padded, T factor, T* to) {
  int64_t i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) store(to + i, load_elements(from + i) * factor);
  if (i < count) {
    Element rest[lanes<T>] = {};
    std::memcpy(rest, from + i, size_t(count - i) * sizeof(Element));
    store(to + i, load_elements(rest) * factor);
    i += lanes<T>;
  }
  for (; i < padded; i += lanes<T>) store(to + i, Vector<T>{});
}

// to[0, count) = factor * from[0, count); from is readable up to a multiple of the vector.
template <typename Element, typename T>
void store_elements(Element* to, int64_t count, T factor, const T* from) {
  int64_t i = 0;
  for (; i + 2 * lanes<T> <= count; i += 2 * lanes<T>) {
    store_elements(to + i, load(from + i) * factor, load(from + i + lanes<T>) * factor);
  }
  for (; i + lanes<T> <= count; i += lanes<T>) store_elements(to + i, load(from + i) * factor);
  if (i < count) {
    Element rest[lanes<T>];
    store_elements(rest, load(from + i) * factor);
    std::memcpy(to + i, rest, size_t(count - i) * sizeof(Element));
  }
}

// Asks for memory ahead of its use. Not __builtin_prefetch: g++ 12 takes a function of nothing else to have no effect,
// and drops its calls.
inline void prefetch(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 64) asm volatile("prefetcht0 %0" : : "m"(line[i]));
}

// Asks for row r of a place, if it has so many.
inline void prefetch_row(const Problem& p, const Heads& x, const Place& place, int64_t r) {
  if (r >= place.rows.count) return;
  const int64_t bytes = p.dtype == DType::float64 ? 8 : p.dtype == DType::float32 ? 4 : 2;
  const int64_t at = place.batch * x.batch_stride + place.head * x.head_stride + (place.rows.begin + r) * x.row_stride;
  prefetch(static_cast<const char*>(x.data) + at * bytes, p.head_dim * bytes);
}

// Calls body(Element{}), where Element is what tensors of the dtype hold. T is what the kernels compute with.
template <typename T, typename Body>
auto with_element(DType dtype, const Body& body) {
  if constexpr (sizeof(T) == 8) {
    return body(double{});
  } else {
    switch (dtype) {
      case DType::float32: return body(float{});
      case DType::bfloat16: return body(BFloat16{});
      default: return body(Float16{});
    }
  }
}

// load_elements and store_elements for the row of a tensor.
template <typename T>
void load_row(const Heads& x, DType dtype, int64_t batch, int64_t head, int64_t position, int64_t count, int64_t padded,
              T* to) {
  with_element<T>(dtype, [&]<typename Element>(Element) {
    load_elements(x.row<const Element>(batch, head, position), count, padded, T(1), to);
  });
}
template <typename T>
void store_row(const Heads& x, DType dtype, int64_t batch, int64_t head, int64_t position, int64_t count, T factor,
               const T* from) {
  with_element<T>(dtype, [&]<typename Element>(Element) {
    store_elements(x.row<Element>(batch, head, position), count, factor, from);
  });
}

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
