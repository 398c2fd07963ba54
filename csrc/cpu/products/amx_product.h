// The tile product on AMX. Of its eight tile registers, [16 rows, 64 bytes] each, 0 to 3 hold accumulators, 4 and 5
// rows of A, 6 and 7 columns of B. A tile of B is a part of a panel of bfloat16 pairs. The register numbers are part of
// the instructions, hence the macros.
#pragma once

#include "key_sums.h"

#ifdef BICO_EMULATE_AMX
#include <emulator/device/amx.h>
#else
// Not the intrinsics: g++ 12 declares that _tile_loadconfig reads 8 of its 64 bytes and drops the stores to the others,
// and that _tile_loadd reads no memory at all.
#define BICO_TILE_LOAD_CONFIG(from) asm volatile("ldtilecfg %0" : : "m"(from))
#define BICO_TILE_STORE_CONFIG(to) asm volatile("sttilecfg %0" : "=m"(to))
#define BICO_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile : :)
#define BICO_TILE_LOAD(tile, from, stride_bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride_bytes) : "memory")
#define BICO_TILE_STORE(tile, to, stride_bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(stride_bytes) : "memory")
#define BICO_TILE_MULTIPLY_ADD(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)
#endif

namespace bico::cpu {
inline namespace BICO_KERNEL_NAMESPACE {

struct TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64, "the instruction reads 64 bytes");

struct BFloat16Tiles : BFloat16Pairs {
  static constexpr int depth_step = 32;

  // Other libraries configure tiles too (oneDNN does) and may rely on finding their configuration again.
  class Session {
   public:
    Session() {
      BICO_TILE_STORE_CONFIG(before_);
      const TileConfiguration ours;
      BICO_TILE_LOAD_CONFIG(ours);
    }
    ~Session() { BICO_TILE_LOAD_CONFIG(before_); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

   private:
    alignas(64) TileConfiguration before_;
  };
};

// C of R x C tiles. The rows of A and C are rounded up to 16: all buffers have them.
template <int R, int C, bool accumulated>
void tile_block(int64_t depth, const BFloat16* a, int64_t a_stride, const BFloat16* b, float* c, int64_t c_stride) {
  const int64_t a_bytes = a_stride * int64_t(sizeof(BFloat16)), c_bytes = c_stride * int64_t(sizeof(float));
  constexpr int64_t b_bytes = panel_columns<BFloat16Tiles> * 2 * int64_t(sizeof(BFloat16));
  if constexpr (accumulated) {
    BICO_TILE_LOAD(0, c, c_bytes);
    if constexpr (C > 1) BICO_TILE_LOAD(1, c + 16, c_bytes);
    if constexpr (R > 1) BICO_TILE_LOAD(2, c + 16 * c_stride, c_bytes);
    if constexpr (R > 1 && C > 1) BICO_TILE_LOAD(3, c + 16 * c_stride + 16, c_bytes);
  } else {
    BICO_TILE_ZERO(0);
    BICO_TILE_ZERO(1);
    BICO_TILE_ZERO(2);
    BICO_TILE_ZERO(3);
  }
  for (int64_t k = 0; k < depth; k += 32) {
    BICO_TILE_LOAD(4, a + k, a_bytes);
    BICO_TILE_LOAD(6, b + k * panel_columns<BFloat16Tiles>, b_bytes);
    BICO_TILE_MULTIPLY_ADD(0, 4, 6);
    if constexpr (C > 1) {
      BICO_TILE_LOAD(7, b + k * panel_columns<BFloat16Tiles> + 32, b_bytes);
      BICO_TILE_MULTIPLY_ADD(1, 4, 7);
    }
    if constexpr (R > 1) {
      BICO_TILE_LOAD(5, a + 16 * a_stride + k, a_bytes);
      BICO_TILE_MULTIPLY_ADD(2, 5, 6);
      if constexpr (C > 1) BICO_TILE_MULTIPLY_ADD(3, 5, 7);
    }
  }
  BICO_TILE_STORE(0, c, c_bytes);
  if constexpr (C > 1) BICO_TILE_STORE(1, c + 16, c_bytes);
  if constexpr (R > 1) BICO_TILE_STORE(2, c + 16 * c_stride, c_bytes);
  if constexpr (R > 1 && C > 1) BICO_TILE_STORE(3, c + 16 * c_stride + 16, c_bytes);
}

template <bool accumulated>
void tile_product(const Product<BFloat16Tiles>& x) {
  const int64_t depth = round_up(x.depth, 32), columns = round_up(x.columns, 16);
  for (int64_t column = 0; column < columns;) {
    const bool two = columns - column >= 32 && (x.b_column + column) % panel_columns<BFloat16Tiles> == 0;
    const BFloat16* b = x.b.at(x.b_depth, x.b_column + column);
    const auto high = two ? tile_block<2, 2, accumulated> : tile_block<2, 1, accumulated>;
    const auto low = two ? tile_block<1, 2, accumulated> : tile_block<1, 1, accumulated>;
    for (int64_t row = 0; row < x.rows; row += 32) {
      const auto run = x.rows - row > 16 ? high : low;
      run(depth, x.a.row(row), x.a.stride, b, x.c.row(row) + column, x.c.stride);
    }
    column += two ? 32 : 16;
  }
}

template <>
inline void multiply<BFloat16Tiles>(const Product<BFloat16Tiles>& x) {
  tile_product<false>(x);
}
template <>
inline void accumulate<BFloat16Tiles>(const Product<BFloat16Tiles>& x) {
  tile_product<true>(x);
}

// Sums over queries by the transposed product, C^T += X^T W: X is transposed when it is packed, the sum when it is
// read.
template <>
class KeySum<BFloat16Tiles> {
 public:
  using A = BFloat16Tiles;
  using Summand = Matrix<BFloat16>;  // X^T [D, T]

  KeySum() = default;
  KeySum(Arena& arena, int64_t tile_rows, int64_t padded)
      : padded_(padded),
        transposed_(take_matrix<float>(arena, padded, tile_rows)),
        sum_(take_matrix<float>(arena, tile_rows, padded)) {}

  static void pack(Matrix<BFloat16> rows, int64_t count, int64_t padded, Panel<A> scratch, Summand to) {
    rows_to_depth<A>(rows, count, padded, scratch);
    const int64_t words = padded_rows<A>(count) / A::group;
    for (int64_t d = 0; d < padded; d += lanes<float>) {
      transpose_words<float>(words, lanes<float>, reinterpret_cast<const float*>(scratch.at(0, d)), panel_columns<A>,
                             reinterpret_cast<float*>(to.row(d)), to.stride / A::group);
    }
  }

  void add(Panel<A> w, Summand x, int64_t begin, int64_t end, int64_t key, int64_t count, int64_t /* head_dim */,
           bool first) const {
    add_product<A>({padded_, count, end - begin, x.from(0, begin), w, begin, key, transposed_.from(0, key)}, first);
  }

  float* key(int64_t key) const { return transposed_.data + key; }
  int64_t stride() const { return transposed_.stride; }

  Matrix<float> rows(int64_t count) const {
    transpose_words<float>(padded_, padded_rows<A>(count), transposed_.data, transposed_.stride, sum_.data,
                           sum_.stride);
    return sum_;
  }

 private:
  int64_t padded_ = 0;
  Matrix<float> transposed_, sum_;  // [D, keys], [keys, D]
};

}  // namespace BICO_KERNEL_NAMESPACE
}  // namespace bico::cpu
