// Tiles of 16-bit elements in shared memory.
#pragma once

#include "../device/instructions.h"

namespace bico::cuda {

// [rows, columns], a member of a struct that lies in shared memory. The 16-byte chunks of a row are swizzled: chunk c
// of row r lies where chunk c ^ (a function of r) would. So the chunks of the eight rows that ldmatrix reads at once
// lie in different banks. The chunks of a row fill the 8 chunks of the 32 banks once every 8 / period rows, where the
// row's number begins to repeat.
template <typename T, int row_count, int column_count>
struct SharedTile {
  static constexpr int rows = row_count, columns = column_count;
  static constexpr int chunks = columns / vector_elements;
  static constexpr int period = chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : 2;
  static_assert(columns % 16 == 0, "products go 16 columns at a time");

  alignas(128) T data[rows * columns];  // so that the bits of the swizzle are 0 in the address of a row

  static BICO_DEVICE unsigned swizzle(unsigned row) { return row / (8 / period) % period; }

  BICO_DEVICE T* chunk(unsigned row, unsigned c) {
    return data + (row * chunks + (c ^ swizzle(row))) * vector_elements;
  }

  // Of a lane's first chunk, from which `at` leads to its others.
  BICO_DEVICE SharedAddress address(unsigned row, unsigned c) { return opaque(shared_address(chunk(row, c))); }

  // The address of chunk c + `column` of row r + `row`, from address(r, c). `row` is a multiple of 8 or shares no bits
  // with r; `column` shares none with c. A constant row is a constant in the instruction that uses the address, and so
  // is most of a constant column: were the first address not opaque, the compiler would merge them into its bits and
  // compute nearly every address of a product anew, at two instructions for each ldmatrix.
  static BICO_DEVICE SharedAddress at(SharedAddress address, unsigned row, unsigned column) {
    const SharedAddress turned = address ^ (column % period ^ swizzle(row)) * unsigned(sizeof(Vector));
    return turned + (row * chunks + column / period * period) * unsigned(sizeof(Vector));
  }
};

// Begins to copy `valid_rows` rows of `valid_columns` elements; the rest of the tile becomes 0.
template <int threads, typename T, int rows, int columns>
BICO_DEVICE void copy_rows(SharedTile<T, rows, columns>& tile, const T* from, int64_t row_stride, int valid_rows,
                           int valid_columns) {
  // A thread copies one column of chunks, so that it need not compute each address anew.
  using Tile = SharedTile<T, rows, columns>;
  constexpr int step = threads / Tile::chunks;
  const unsigned thread = thread_index_here();
  const int c = thread % Tile::chunks, first = thread / Tile::chunks;
  if (threads % Tile::chunks != 0 && first >= step) return;
  const T* source = from + first * row_stride + c * vector_elements;
  if (threads % Tile::chunks == 0 && rows % step == 0 && valid_rows >= rows && valid_columns == columns) {
    // Tiles with nothing to fill up, which are nearly all: no branches and no zeros.
    const SharedAddress address = tile.address(first, c);
#pragma unroll
    for (int row = 0; row < rows; row += step) copy_async(Tile::at(address, row, 0), source + row * row_stride, 16);
    return;
  }
  const int left = valid_columns - c * vector_elements;
  const int bytes = (left < 0 ? 0 : left < vector_elements ? left : vector_elements) * int(sizeof(T));
#pragma unroll 1
  for (int row = first; row < rows; row += step) {
    const bool exists = bytes > 0 && row < valid_rows;
    copy_async(shared_address(tile.chunk(row, c)), exists ? source : from, exists ? bytes : 0);
    source += step * row_stride;
  }
}

// Writes `valid_rows` rows of `valid_columns` elements, each to place_of(row). `aligned`: rows begin at multiples of 16
// bytes.
template <int threads, typename T, int rows, int columns, class PlaceOf>
BICO_DEVICE void write_rows(SharedTile<T, rows, columns>& tile, T* to, int64_t row_stride, int valid_rows,
                            int valid_columns, bool aligned, const PlaceOf& place_of) {
  using Tile = SharedTile<T, rows, columns>;
#pragma unroll 1
  for (int i = thread_index(); i < rows * Tile::chunks; i += threads) {
    const int row = i / Tile::chunks, column = i % Tile::chunks * vector_elements;
    if (row >= valid_rows || column >= valid_columns) continue;
    T* target = to + place_of(row) * row_stride + column;
    const T* source = tile.chunk(row, i % Tile::chunks);
    if (aligned && column + vector_elements <= valid_columns) {
      *reinterpret_cast<Vector*>(target) = load_shared(reinterpret_cast<const Vector*>(source));
    } else {
      for (int e = 0; e < vector_elements && column + e < valid_columns; ++e) target[e] = load_shared(source + e);
    }
  }
}

// Rows whose bit is set become 0. Barriers are needed before and after.
template <int threads, typename T, int rows, int columns>
BICO_DEVICE void clear_rows(SharedTile<T, rows, columns>& tile, uint64_t bits) {
  using Tile = SharedTile<T, rows, columns>;
#pragma unroll 1  // rare; registers matter more
  for (int i = thread_index(); i < rows * Tile::chunks; i += threads) {
    const int row = i / Tile::chunks, c = i % Tile::chunks;
    if (bits >> row & 1) store_shared(reinterpret_cast<Vector*>(tile.chunk(row, c)), Vector{});
  }
}

}  // namespace bico::cuda
