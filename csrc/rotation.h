// The rotary rotation of one head row, and its reverse. Internal linkage, as in visibility.h.
#pragma once

#include <cstdint>

namespace bico {

// rotated = R(t) x for sign = +1 and R(-t) x = R'(t) x for sign = -1, over the first `width` of `head_dim`
// elements; the others are copied. cos and sin hold equal values for the two elements of a pair, so R(-t) is also
// the transpose of R(t): gradients go back through the opposite sign. x and rotated must not overlap.
template <typename T>
static inline void rotate(const T* __restrict x, const T* __restrict cos, const T* __restrict sin, T sign,
                          int64_t width, int64_t head_dim, bool interleaved, T* __restrict rotated) {
  const int64_t pairs = width / 2;
  if (interleaved) {
    for (int64_t i = 0; i < width; i += 2) {
      rotated[i] = x[i] * cos[i] - sign * x[i + 1] * sin[i];
      rotated[i + 1] = x[i + 1] * cos[i + 1] + sign * x[i] * sin[i + 1];
    }
  } else {
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t j = i + pairs;
      rotated[i] = x[i] * cos[i] - sign * x[j] * sin[i];
      rotated[j] = x[j] * cos[j] + sign * x[i] * sin[j];
    }
  }
  for (int64_t i = width; i < head_dim; ++i) rotated[i] = x[i];
}

}  // namespace bico
