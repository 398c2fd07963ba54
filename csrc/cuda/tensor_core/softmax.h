// The online softmax of the forward on tensor cores.
#pragma once

#include "mma.h"

namespace bico::cuda {

// The running softmax of the rows of a warp's accumulators: scores become weights relative to the row's `base`, the
// largest score at some time. Weights up to 2^most_rise leave it as it is, because a new one costs a product for every
// element of the output: with independent random scores, some of the 32 rows of a warp have a new largest score in two
// of three tiles (S = 4096, 64 keys in a tile).
template <int M>
struct Softmax {
  static constexpr float most_rise = 8;  // in exponents of 2: weights up to 256 fit every type

  // Of the rows g and g + 8. Until `normalise` a row sum is that of this lane's columns alone.
  float base[M][2], row_sum[M][2];

  BICO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < M; ++i) {
      base[i][0] = base[i][1] = -INFINITY;
      row_sum[i][0] = row_sum[i][1] = 0;
    }
  }

  // Scores times `factor` (> 0) are exponents of 2. All lanes of a warp call.
  template <int N, int C>
  BICO_DEVICE void update(Accumulators<M, N>& scores, Accumulators<M, C>& out, float factor) {
    float largest[M][2];
    bool rose = false;
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& x = largest[i][h];
        x = base[i][h];
#pragma unroll
        for (int j = 0; j < N; ++j) x = fmaxf(x, fmaxf(scores.x[i][j][2 * h], scores.x[i][j][2 * h + 1]));
        x = fmaxf(x, shuffle_xor(x, 1));
        x = fmaxf(x, shuffle_xor(x, 2));
        rose |= (x - base[i][h]) * factor > most_rise;  // false for inf - inf
      }
    }
    if (ballot(rose) != 0) rebase(largest, out, factor);
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float offset = base[i][h] == -INFINITY ? 0.0f : base[i][h] * factor;  // nothing seen yet: weights are 0
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = scores.x[i][j][2 * h + e];
            x = exp2_approximate(x * factor - offset);
            row_sum[i][h] += x;
          }
        }
      }
    }
  }

  template <int C>
  BICO_DEVICE void rebase(const float (&largest)[M][2], Accumulators<M, C>& out, float factor) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // The difference first: of base * factor - largest * factor, fused, the rounding of the second product would
        // remain, and grow with every time.
        const float rise = largest[i][h] == base[i][h] ? 0.0f : largest[i][h] - base[i][h];
        const float correction = exp2_approximate(-rise * factor);
        base[i][h] = largest[i][h];
        row_sum[i][h] *= correction;
#pragma unroll
        for (int j = 0; j < C; ++j) {
          out.x[i][j][2 * h] *= correction;
          out.x[i][j][2 * h + 1] *= correction;
        }
      }
    }
  }

  // Divides by the row sums; rows that saw nothing become 0.
  template <int C>
  BICO_DEVICE void normalise(Accumulators<M, C>& out) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        row_sum[i][h] += shuffle_xor(row_sum[i][h], 1);
        row_sum[i][h] += shuffle_xor(row_sum[i][h], 2);
        const float inverse = row_sum[i][h] == 0 ? 0.0f : 1 / row_sum[i][h];
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
    return row_sum[i][h] == 0 ? -INFINITY : base[i][h] * factor * log_2 + logf(row_sum[i][h]);
  }
};

}  // namespace bico::cuda
