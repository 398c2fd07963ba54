// AMX's tile registers in software, for tests on machines without them: the instructions that
// csrc/cpu/products/amx_product.h uses, by Intel's definition of them, for tiles of 16 rows of 64 bytes. A tile that
// nothing was loaded into holds NaN, and so does all of them after a change of configuration.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace bico::emulator {

struct Tile {
  alignas(64) uint8_t rows[16][64];
};

struct TileUnit {
  uint8_t configuration[64] = {};
  Tile tiles[8];

  static TileUnit& of_this_thread() {
    static thread_local TileUnit unit;
    return unit;
  }

  // Palette 1, and all eight tiles of 16 rows of 64 bytes.
  bool configured() const {
    uint8_t wanted[64] = {1};
    for (int i = 0; i < 8; ++i) wanted[16 + 2 * i] = 64, wanted[48 + i] = 16;
    return std::memcmp(configuration, wanted, 64) == 0;
  }
};

inline void tile_load_config(const void* from) {
  TileUnit& unit = TileUnit::of_this_thread();
  std::memcpy(unit.configuration, from, 64);
  std::memset(unit.tiles, 0xff, sizeof(unit.tiles));
}

inline void tile_store_config(void* to) {
  std::memcpy(to, TileUnit::of_this_thread().configuration, 64);
}

// Hardware faults at a tile that is not configured, or has fewer rows than an instruction wants.
inline Tile& tile(int number) {
  TileUnit& unit = TileUnit::of_this_thread();
  if (!unit.configured()) __builtin_trap();
  return unit.tiles[number];
}

inline void tile_zero(int number) {
  std::memset(&tile(number), 0, sizeof(Tile));
}

inline void tile_load(int number, const void* from, int64_t stride_bytes) {
  for (int r = 0; r < 16; ++r) {
    std::memcpy(tile(number).rows[r], static_cast<const char*>(from) + r * stride_bytes, 64);
  }
}

inline void tile_store(int number, void* to, int64_t stride_bytes) {
  for (int r = 0; r < 16; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride_bytes, tile(number).rows[r], 64);
  }
}

// TDPBF16PS: for each m and n, the c over k of a[m][2k] * b[k][2n] and of a[m][2k+1] * b[k][2n+1] are added to each
// other and then to c[m][n], all in float; denormals are zero.
inline void tile_multiply_add(int c_number, int a_number, int b_number) {
  const auto widen = [](uint16_t bits) {
    const uint32_t wide = (bits & 0x7f80) == 0 ? 0 : uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof(x));
    return x;
  };
  float c[16][16];
  uint16_t a[16][32], b[16][32];
  std::memcpy(c, &tile(c_number), sizeof(c));
  std::memcpy(a, &tile(a_number), sizeof(a));
  std::memcpy(b, &tile(b_number), sizeof(b));
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float parts[2] = {};
      for (int k = 0; k < 16; ++k) {
        for (int i = 0; i < 2; ++i) parts[i] = std::fma(widen(a[m][2 * k + i]), widen(b[k][2 * n + i]), parts[i]);
      }
      const float sum = c[m][n] + (parts[0] + parts[1]);
      c[m][n] = std::fpclassify(sum) == FP_SUBNORMAL ? 0.0f : sum;
    }
  }
  std::memcpy(&tile(c_number), c, sizeof(c));
}

}  // namespace bico::emulator

#define BICO_TILE_LOAD_CONFIG(from) emulator::tile_load_config(&(from))
#define BICO_TILE_STORE_CONFIG(to) emulator::tile_store_config(&(to))
#define BICO_TILE_ZERO(tile) emulator::tile_zero(tile)
#define BICO_TILE_LOAD(tile, from, stride_bytes) emulator::tile_load(tile, from, stride_bytes)
#define BICO_TILE_STORE(tile, to, stride_bytes) emulator::tile_store(tile, to, stride_bytes)
#define BICO_TILE_MULTIPLY_ADD(c, a, b) emulator::tile_multiply_add(c, a, b)
