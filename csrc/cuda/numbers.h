// 16-bit numbers as storage, and what each element type is computed in.
#pragma once

#include <cstdint>

namespace bico::cuda {

struct Brain {  // bfloat16
  uint16_t bits;
  static constexpr uint16_t exponent = 0x7f80;
};

struct Half {  // float16
  uint16_t bits;
  static constexpr uint16_t exponent = 0x7c00;
};

constexpr float log2_e = 1.44269504f;

struct alignas(16) Vector {
  uint32_t word[4];
};

template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
// Of rotary tables, lse and whatever is summed.
template <typename T>
using Compute = typename ComputeOf<T>::type;

}  // namespace bico::cuda
