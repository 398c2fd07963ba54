// The rotary rotation of one pair of elements; T is a number or a vector of them.
#pragma once

namespace bico {

// R(t) rotates the pair (x, y) to (x cos_x - y sin_x, y cos_y + x sin_y); the table holds equal values for the two
// elements of a pair. R(-t) has every sine negated. That is also the transpose of R(t), so the gradient of a row comes
// from the gradient in one frame by the rotation of the other frame.
template <typename T>
struct RotatedPair {
  T x_cos, y_sin, y_cos, x_sin;

  constexpr T plus_x() const { return x_cos - y_sin; }
  constexpr T plus_y() const { return y_cos + x_sin; }
  constexpr T minus_x() const { return x_cos + y_sin; }
  constexpr T minus_y() const { return y_cos - x_sin; }
};

template <typename T>
static constexpr RotatedPair<T> rotate_pair(T x, T y, T cos_x, T sin_x, T cos_y, T sin_y) {
  return {x * cos_x, y * sin_x, y * cos_y, x * sin_y};
}

}  // namespace bico
