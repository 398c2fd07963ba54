// The rotation of whole head rows, in both frames at once.
#pragma once

#include "../../rotation.h"
#include "../../visibility.h"
#include "arithmetic.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

// The rotation at one position of one batch entry.
template <typename T>
struct Rotation {
  const T *cos, *sin;
  int64_t width;
  bool interleaved;

  Rotation(const Problem& p, int64_t batch, int64_t position)
      : cos(p.rotary.cos_row<T>(batch, position)),
        sin(p.rotary.sin_row<T>(batch, position)),
        width(p.rotary.width),
        interleaved(p.rotary.interleaved) {}

  // Calls body(i, j, E{}) with the places of each pair; E is T, or a vector of T for as many pairs at once.
  template <typename Body>
  void for_each_pair(const Body& body) const {
    const int64_t pairs = width / 2;
    int64_t i = 0;
    if (!interleaved) {
      for (; i + lanes<T> <= pairs; i += lanes<T>) body(i, i + pairs, Vector<T>{});
    }
    for (; i < pairs; ++i) {
      interleaved ? body(2 * i, 2 * i + 1, T(0)) : body(i, i + pairs, T(0));
    }
  }

  // The pair (x, y) at the places i and j, or vectors of pairs from there on.
  template <typename E>
  RotatedPair<E> rotated(E x, E y, int64_t i, int64_t j) const {
    return rotate_pair<E>(x, y, get<E>(cos + i), get<E>(sin + i), get<E>(cos + j), get<E>(sin + j));
  }

  // A vector of interleaved pairs, the elements of a row from i on. Only plus_x() and minus_x() of the result count:
  // each element is taken as the first of its pair, and where it is the second, its sine is negated.
  RotatedPair<Vector<T>> rotated_interleaved(Vector<T> x, int64_t i) const {
    const auto [partner, sine] = [&]<int... j>(std::integer_sequence<int, j...>) {
      return std::pair(__builtin_shuffle(x, Bits<T>{(j ^ 1)...}), load(sin + i) * Vector<T>{(j % 2 ? T(-1) : T(1))...});
    }(std::make_integer_sequence<int, lanes<T>>());
    return rotate_pair<Vector<T>>(x, partner, load(cos + i), sine, Vector<T>{}, Vector<T>{});
  }
  bool interleaved_in_vectors() const { return interleaved && width % lanes<T> == 0; }

  // to.plus = R(t) x and to.minus = R(-t) x, [0, head_dim) each. to.minus may be null.
  void rotate(const T* x, int64_t head_dim, PerFrame<T*> to) const {
    if (interleaved_in_vectors()) {
      for (int64_t i = 0; i < width; i += lanes<T>) {
        const auto pairs = rotated_interleaved(load(x + i), i);
        store(to.plus + i, pairs.plus_x());
        if (to.minus != nullptr) store(to.minus + i, pairs.minus_x());
      }
    } else {
      for_each_pair([&]<typename E>(int64_t i, int64_t j, E) {
        const auto pair = rotated(get<E>(x + i), get<E>(x + j), i, j);
        set(to.plus + i, pair.plus_x()), set(to.plus + j, pair.plus_y());
        if (to.minus != nullptr) set(to.minus + i, pair.minus_x()), set(to.minus + j, pair.minus_y());
      });
    }
    for (int64_t i = width; i < head_dim; ++i) {
      to.plus[i] = x[i];
      if (to.minus != nullptr) to.minus[i] = x[i];
    }
  }

  // x = R(t)^T from.plus + R(-t)^T from.minus: the gradient of a row from those in the two frames. from.minus may be
  // null.
  void rotate_back(PerFrame<const T*> from, int64_t head_dim, T* x) const {
    if (interleaved_in_vectors()) {
      for (int64_t i = 0; i < width; i += lanes<T>) {
        Vector<T> sum = rotated_interleaved(load(from.plus + i), i).minus_x();
        if (from.minus != nullptr) sum += rotated_interleaved(load(from.minus + i), i).plus_x();
        store(x + i, sum);
      }
    } else {
      for_each_pair([&]<typename E>(int64_t i, int64_t j, E) {
        const auto from_plus = rotated(get<E>(from.plus + i), get<E>(from.plus + j), i, j);
        E at_i = from_plus.minus_x(), at_j = from_plus.minus_y();
        if (from.minus != nullptr) {
          const auto from_minus = rotated(get<E>(from.minus + i), get<E>(from.minus + j), i, j);
          at_i += from_minus.plus_x(), at_j += from_minus.plus_y();
        }
        set(x + i, at_i), set(x + j, at_j);
      });
    }
    for (int64_t i = width; i < head_dim; ++i) x[i] = from.plus[i] + (from.minus == nullptr ? T(0) : from.minus[i]);
  }

 private:
  template <typename E>
  static E get(const T* from) {
    E x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  template <typename E>
  static void set(T* to, E x) {
    std::memcpy(to, &x, sizeof(x));
  }
};

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
