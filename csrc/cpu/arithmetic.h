// What the kernels compute with, and how tensors become it. Operands are what panels hold and products read; all
// else, sums above all, is a Scalar.
#pragma once

#include <bit>

#include "../attention.h"
#include "vectors.h"

namespace bico::cpu {
inline namespace BICO_ISA {

struct BFloat16 {
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

// Round to nearest even; a NaN must not round up to infinity.
inline BFloat16 to_bfloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {uint16_t(x != x ? 0x7fc0 : rounded)};
}

// group: operands that stand side by side in a panel, consecutive in depth, and are multiplied by one instruction.
// depth_step: what the depth of a product is rounded up to; panels are zero there.
//
// Session: lives while a task runs, for hardware that has to be set up.
struct Double {
  struct Session {};
  using Scalar = double;
  using Operand = double;
  static constexpr int group = 1, depth_step = 1, exp2_terms = 5;

  static Vector<double> multiply_add(Vector<double> sum, const double* a, const double* b) {
    return sum + *a * load(b);
  }
  static double operand(double x) { return x; }
  static void store_row(double* to, Vector<double> x) { store(to, x); }
  // x of `group` consecutive rows to one panel place and to the rows themselves.
  static void store_group(const Vector<double>* x, double* panel, double* const* rows) {
    store(panel, *x);
    if (rows != nullptr) store(*rows, *x);
  }
  static void interleave(const double* const* rows, double* panel) { store(panel, load(*rows)); }
};

struct Single {
  struct Session {};
  using Scalar = float;
  using Operand = float;
  static constexpr int group = 1, depth_step = 1, exp2_terms = 5;

  static Vector<float> multiply_add(Vector<float> sum, const float* a, const float* b) { return sum + *a * load(b); }
  static float operand(float x) { return x; }
  static void store_row(float* to, Vector<float> x) { store(to, x); }
  static void store_group(const Vector<float>* x, float* panel, float* const* rows) {
    store(panel, *x);
    if (rows != nullptr) store(*rows, *x);
  }
  static void interleave(const float* const* rows, float* panel) { store(panel, load(*rows)); }
};

#ifdef __AVX512BF16__
// bfloat16 operands in pairs, float sums: vdpbf16ps.
struct Brain {
  struct Session {};
  using Scalar = float;
  using Operand = BFloat16;
  static constexpr int group = 2, depth_step = 2, exp2_terms = 4;

  static Vector<float> multiply_add(Vector<float> sum, const BFloat16* a, const BFloat16* b) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof(pair));
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(b));
  }
  static BFloat16 operand(float x) { return to_bfloat16(x); }
  static void store_row(BFloat16* to, Vector<float> x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
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
    const __m512i low = _mm512_cvtepu16_epi32(
        _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
  }
};
#endif

inline int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::float64: return 8;
    case DType::float32: return 4;
    default: return 2;
  }
}

// to[0, padded) = factor * the row of `count` elements, then zeros.
inline void load_row(const Heads& x, DType dtype, int64_t batch, int64_t head, int64_t position, int64_t count,
                     int64_t padded, double factor, double* __restrict to) {
  (void)dtype;
  const auto* row = x.row<const double>(batch, head, position);
  for (int64_t i = 0; i < count; ++i) to[i] = row[i] * factor;
  for (int64_t i = count; i < padded; ++i) to[i] = 0;
}

inline void load_row(const Heads& x, DType dtype, int64_t batch, int64_t head, int64_t position, int64_t count,
                     int64_t padded, float factor, float* __restrict to) {
  if (dtype == DType::float32) {
    const auto* row = x.row<const float>(batch, head, position);
    for (int64_t i = 0; i < count; ++i) to[i] = row[i] * factor;
  } else if (dtype == DType::bfloat16) {
    const auto* row = x.row<const BFloat16>(batch, head, position);
    for (int64_t i = 0; i < count; ++i) to[i] = widen(row[i]) * factor;
  } else {
    const auto* row = x.row<const uint16_t>(batch, head, position);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(row + i)));
      _mm256_storeu_ps(to + i, _mm256_mul_ps(wide, _mm256_set1_ps(factor)));
    }
    for (; i < count; ++i) to[i] = _cvtsh_ss(row[i]) * factor;
  }
  for (int64_t i = count; i < padded; ++i) to[i] = 0;
}

// The row of `count` elements = factor * from[0, count).
inline void store_row(const Heads& x, DType dtype, int64_t batch, int64_t head, int64_t position, int64_t count,
                      double factor, const double* __restrict from) {
  (void)dtype;
  auto* row = x.row<double>(batch, head, position);
  for (int64_t i = 0; i < count; ++i) row[i] = from[i] * factor;
}

inline void store_row(const Heads& x, DType dtype, int64_t batch, int64_t head, int64_t position, int64_t count,
                      float factor, const float* __restrict from) {
  if (dtype == DType::float32) {
    auto* row = x.row<float>(batch, head, position);
    for (int64_t i = 0; i < count; ++i) row[i] = from[i] * factor;
  } else if (dtype == DType::bfloat16) {
    auto* row = x.row<BFloat16>(batch, head, position);
    for (int64_t i = 0; i < count; ++i) row[i] = to_bfloat16(from[i] * factor);
  } else {
    auto* row = x.row<uint16_t>(batch, head, position);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(factor));
      _mm_storeu_si128((__m128i*)(row + i), _mm256_cvtps_ph(scaled, _MM_FROUND_TO_NEAREST_INT));
    }
    for (; i < count; ++i) row[i] = _cvtss_sh(from[i] * factor, _MM_FROUND_TO_NEAREST_INT);
  }
}

}  // namespace BICO_ISA
}  // namespace bico::cpu
