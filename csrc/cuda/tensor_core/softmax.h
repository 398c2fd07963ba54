// The online softmax of the forward on tensor cores.
#pragma once

#include "mma.h"

namespace bico::cuda {

// The running softmax of the rows of a warp's accumulators: scores become weights relative to the largest score so far.
template <int M>
struct Softmax {
  // Of the rows g and g + 8. Until `normalise` a row sum is that of this lane's columns alone.
  float row_max[M][2], row_sum[M][2];

  BICO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < M; ++i) {
      row_max[i][0] = row_max[i][1] = -INFINITY;
      row_sum[i][0] = row_sum[i][1] = 0;
    }
  }

  // Scores times `factor` (> 0) are exponents of 2. All lanes of a warp call.
  template <int N, int C>
  BICO_DEVICE void update(Accumulators<M, N>& scores, Accumulators<M, C>& out, float factor) {
    float correction[M][2];
    bool rose = false;
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = row_max[i][h];
#pragma unroll
        for (int j = 0; j < N; ++j) largest = fmaxf(largest, fmaxf(scores.x[i][j][2 * h], scores.x[i][j][2 * h + 1]));
        largest = fmaxf(largest, shuffle_xor(largest, 1));
        largest = fmaxf(largest, shuffle_xor(largest, 2));
        const float base = largest == -INFINITY ? 0.0f : largest;  // nothing seen yet: weights are 0
        const float offset = base * factor;
        // The difference first: of row_max * factor - offset, fused, the rounding of offset would remain, and grow with
        // every tile.
        correction[i][h] = exp2_approximate((row_max[i][h] - base) * factor);
        rose |= correction[i][h] != 1;
        row_max[i][h] = largest;
        float sum = row_sum[i][h] * correction[i][h];
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = scores.x[i][j][2 * h + e];
            x = exp2_approximate(x * factor - offset);
            sum += x;
          }
        }
        row_sum[i][h] = sum;
      }
    }
    if (ballot(rose) == 0) return;  // as in nearly all tiles but the first ones
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < C; ++j) {
          out.x[i][j][2 * h] *= correction[i][h];
          out.x[i][j][2 * h + 1] *= correction[i][h];
        }
      }
    }
  }

  // Divides by the row sums; 0 for rows that saw nothing, NaN for those whose bit is set in any of the row's lanes.
  template <int C>
  BICO_DEVICE void normalise(Accumulators<M, C>& out, uint32_t poisoned) {
    poisoned |= shuffle_xor(poisoned, 1);
    poisoned |= shuffle_xor(poisoned, 2);
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        row_sum[i][h] += shuffle_xor(row_sum[i][h], 1);
        row_sum[i][h] += shuffle_xor(row_sum[i][h], 2);
        const float inverse = poisoned >> (2 * i + h) & 1 ? NAN : row_sum[i][h] == 0 ? 0.0f : 1 / row_sum[i][h];
#pragma unroll
        for (int j = 0; j < C; ++j) {
          out.x[i][j][2 * h] *= inverse;
          out.x[i][j][2 * h + 1] *= inverse;
        }
      }
    }
  }

  BICO_DEVICE float lse(int i, int h, float factor) const {
    constexpr float log_2 = 0.693147180559945f;
    return row_sum[i][h] == 0 ? -INFINITY : row_max[i][h] * factor * log_2 + logf(row_sum[i][h]);
  }
};

}  // namespace bico::cuda
