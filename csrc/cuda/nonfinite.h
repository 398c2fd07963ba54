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

// One bit for each row: [heads, counted over the batch, ceil(S / granule)] words, which begin as 0. Kernels flag rows
// that are not finite; compute_delta also flags others.
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
    const uint32_t* first = words + index(head, length, 0);
    return row_bits<rows>(begin, int(length), [&](int i) { return first[i]; });
  }
};

}  // namespace bico::cuda
