// What a task loads from the tensors. Nothing here depends on an instruction set.
#pragma once

#include "../../visibility.h"

namespace bico::cpu {

// Rows of one head.
struct Place {
  int64_t batch = 0, head = 0;
  Rows rows;
};

// What a task loads, and what its thread will probably load next: that is fetched into the caches meanwhile, row for
// row. The rows of a head are short and far apart, as all heads of a token lie side by side, and no hardware prefetcher
// follows them.
struct Load {
  Place now, ahead;
};

}  // namespace bico::cpu
