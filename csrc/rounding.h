// Division that rounds up. Functions have internal linkage and are constexpr for the reasons in visibility.h.
#pragma once

#include <cstdint>

namespace bico {

static constexpr int64_t divide_up(int64_t x, int64_t step) {
  return (x + step - 1) / step;
}

static constexpr int64_t round_up(int64_t x, int64_t step) {
  return divide_up(x, step) * step;
}

}  // namespace bico
