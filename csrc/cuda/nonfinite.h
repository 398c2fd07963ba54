// Which rows of a tensor of 16-bit numbers hold a NaN or an infinity.
//
// NaN times the weight 0 of a hidden pair is NaN. So where not every pair of a tile is visible, such rows become 0 in
// shared memory before they are multiplied, and weights become NaN where the pair is visible. The kernels of
// preprocess.cuh find the rows once a call; there are hardly ever any.
#pragma once

#include "sequences.h"

namespace bico::cuda {

// Any of the eight elements.
template <typename T>
BICO_DEVICE bool has_nonfinite(const Vector& x) {
  constexpr uint32_t exponents = T::exponent * 0x10001u;
  constexpr uint32_t lowest = (0x8000u - T::exponent) * 0x10001u;  // carries to the sign bit where all are set
  uint32_t found = 0;
  for (const uint32_t word : x.word) found |= (word & exponents) + lowest;
  return found & 0x80008000u;
}

// One bit for each row, or slot of keys and values: [heads, counted over the batch, ceil(S / granule)] words, which
// begin as 0. Kernels flag rows that are not finite.
struct RowFlags {
  uint32_t* words;

  static BICO_DEVICE int64_t index(int64_t head, int64_t length, int row) {
    return head * divide_up(length, granule) + row / granule;
  }

  BICO_DEVICE void set(int64_t head, int64_t length, int row) const {
    atomic_or(words + index(head, length, row), 1u << row % granule);
  }

  // Of a tile of a head that begins at row `begin`.
  template <int rows>
  BICO_DEVICE uint64_t of_tile(int64_t head, int64_t length, int begin) const {
    static_assert(rows == 32 || rows == 64, "one or two words");
    const uint32_t* word = words + index(head, length, begin);
    uint64_t bits = word[0];
    if (rows == 64 && begin + granule < length) bits |= uint64_t(word[1]) << 32;
    return bits;
  }
};

}  // namespace bico::cuda
