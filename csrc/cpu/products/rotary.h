// The rotation of whole head rows, in both frames at once.
#pragma once

#include "../../rotation.h"
#include "arithmetic.h"

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

constexpr int frames = 2;  // frame 0 is turned by R(t), frame 1 by R'(t) = R(-t), for keys after the query

// The rotation at one position of one batch entry.
template <typename T>
struct Rotation {
  const T *cos, *sin;
  int64_t width;
  bool interleaved;

  Rotation(const Problem& p, int64_t batch, int64_t position)
      : cos(static_cast<const T*>(p.rotary.cos) + batch * p.rotary.cos_batch_stride +
            position * p.rotary.cos_row_stride),
        sin(static_cast<const T*>(p.rotary.sin) + batch * p.rotary.sin_batch_stride +
            position * p.rotary.sin_row_stride),
        width(p.rotary.width),
        interleaved(p.rotary.interleaved) {}

  // Calls turn(i, j, E{}) with the places of each pair; E is T, or a vector of T for as many pairs at once.
  template <typename Turn>
  void for_each_pair(const Turn& turn) const {
    const int64_t pairs = width / 2;
    int64_t i = 0;
    if (!interleaved) {
      for (; i + lanes<T> <= pairs; i += lanes<T>) turn(i, i + pairs, Vector<T>{});
    }
    for (; i < pairs; ++i) {
      interleaved ? turn(2 * i, 2 * i + 1, T(0)) : turn(i, i + pairs, T(0));
    }
  }

  // plain = R(t) x and mirrored = R'(t) x, [0, head_dim) each.
  void rotate(const T* x, int64_t head_dim, T* plain, T* mirrored) const {
    for_each_pair([&]<typename E>(int64_t i, int64_t j, E) {
      const auto pair = rotate_pair<E>(get<E>(x + i), get<E>(x + j), get<E>(cos + i), get<E>(sin + i), get<E>(cos + j),
                                       get<E>(sin + j));
      set(plain + i, pair.x()), set(plain + j, pair.y());
      set(mirrored + i, pair.mirrored_x()), set(mirrored + j, pair.mirrored_y());
    });
    for (int64_t i = width; i < head_dim; ++i) plain[i] = mirrored[i] = x[i];
  }

  // x = R(t)^T plain + R'(t)^T mirrored: gradients of a row from those of its two frames. mirrored may be null.
  void rotate_back(const T* plain, const T* mirrored, int64_t head_dim, T* x) const {
    for_each_pair([&]<typename E>(int64_t i, int64_t j, E) {
      const auto turn = [&](const T* from) {
        return rotate_pair<E>(get<E>(from + i), get<E>(from + j), get<E>(cos + i), get<E>(sin + i), get<E>(cos + j),
                              get<E>(sin + j));
      };
      const auto back = turn(plain);
      E at_i = back.mirrored_x(), at_j = back.mirrored_y();
      if (mirrored != nullptr) {
        const auto forth = turn(mirrored);
        at_i += forth.x(), at_j += forth.y();
      }
      set(x + i, at_i), set(x + j, at_j);
    });
    for (int64_t i = width; i < head_dim; ++i) x[i] = plain[i] + (mirrored == nullptr ? T(0) : mirrored[i]);
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
