// 16-bit numbers as storage, and what each element type is computed in.
#pragma once

#include <cstdint>

namespace bico::cuda {

struct BFloat16 {
  uint16_t bits;
  static constexpr uint16_t exponent = 0x7f80;
};

struct Float16 {
  uint16_t bits;
  static constexpr uint16_t exponent = 0x7c00;
};

constexpr float log2_e = 1.44269504f;

// 16 bytes: what cp.async copies and ldmatrix takes as a row.
struct alignas(16) Vector {
  uint32_t word[4];
};
constexpr int vector_elements = 8;  // of 16 bits

template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
// The type of rotary tables, lse and accumulators.
template <typename T>
using Compute = typename ComputeOf<T>::type;

}  // namespace bico::cuda
