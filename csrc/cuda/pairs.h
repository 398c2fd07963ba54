// Pairs: the two elements of a head that a rotation mixes.
#pragma once

#include "../attention.h"
#include "device/instructions.h"

namespace bico::cuda {

// Rotated heads lie in the workspace with the two elements of each pair beside each other, whatever the pairs of the
// table. So whoever holds two neighbouring columns can rotate them. What is not rotated stays where it is.
struct PairedColumns {
  int half = 0;  // R / 2 where the pairs of a head are (i, i + R / 2); 0 where they are neighbours there, too

  static constexpr PairedColumns of(const RotaryTable& rotary) {
    return {rotary.interleaved ? 0 : int(rotary.width / 2)};
  }

  // The element of a head, or of a row of the table, that a column of the workspace holds.
  BICO_DEVICE int in_head(int column) const {
    return half > 0 && column < 2 * half ? column / 2 + column % 2 * half : column;
  }
};

}  // namespace bico::cuda
