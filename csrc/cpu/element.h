// What tensors store and what the kernels compute in: float64 in double, everything else in float.
#pragma once

#include <cstdint>
#include <cstring>

#include "../attention.h"

namespace bico::cpu {

struct BFloat16 {
  uint16_t bits;
};
using Float16 = _Float16;

template <typename Element>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename Element>
using Compute = typename ComputeOf<Element>::type;

template <typename Element>
Compute<Element> widen(Element x) {
  return static_cast<Compute<Element>>(x);
}
inline float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

template <typename Element>
Element narrow(Compute<Element> x) {
  return static_cast<Element>(x);
}
// Round to nearest even; a NaN must not round up to infinity.
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  if (x != x) return {0x7fc0};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Calls run(Element{}) with the C++ type of dtype.
template <typename Run>
void with_element(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::float64: return run(double{});
    case DType::float32: return run(float{});
    case DType::bfloat16: return run(BFloat16{});
    case DType::float16: return run(Float16{});
  }
}

}  // namespace bico::cpu
