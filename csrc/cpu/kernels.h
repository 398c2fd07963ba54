// What an instruction set provides, and the entry points of the CPU kernels. Nothing here depends on one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "../attention.h"
#include "products/load.h"

namespace bico::cpu {

// One sequence of one key/value head: the tasks of a unit share its packed operands. Tiles of queries and tiles of
// keys are the same rows, so the diagonal crosses one tile in each row of tiles.
struct Unit {
  int64_t batch = 0, kv_head = 0;
  const Rows* tiles = nullptr;
  int64_t tile_count = 0;
  int64_t tile_rows = 0;  // of a full tile, a multiple of 32
  bool mirror = false;    // some query sees a later key in the minus frame; else nothing is packed in it
};

// All tiles of keys add to grad_q of a tile of queries, each in its own task. They add in ascending order, so that the
// sum does not depend on who runs when.
class OrderOfKeys {
 public:
  explicit OrderOfKeys(std::atomic<int32_t>* next) : next_(next) {}
  void begin(int64_t query_tile) const { next_[query_tile].store(0, std::memory_order_relaxed); }
  void wait_for(int64_t query_tile, int64_t key_tile) const;
  void pass_on(int64_t query_tile, int64_t key_tile) const {
    next_[query_tile].store(int32_t(key_tile) + 1, std::memory_order_release);
  }

 private:
  std::atomic<int32_t>* next_;  // [query heads of the unit * tiles]: the tile of keys that may add now
};

// The kernels of one direction for one dtype. `shared` holds the packed operands of a unit, `scratch` belongs to one
// thread; both are uninitialised memory of the size that the kernel asks for, for units of up to `tiles` tiles. Tiles
// of queries count through the query heads of the unit: head in group * tiles + tile. Load::now is the task's own tile.
struct ForwardKernel {
  int64_t tile_rows;
  size_t (*shared_bytes)(const Forward&, int64_t tiles, int64_t tile_rows);
  size_t (*scratch_bytes)(const Forward&, int64_t tile_rows);
  void (*pack_keys)(const Forward&, const Unit&, int64_t key_tile, const Load&, void* shared, void* scratch);
  void (*attend)(const Forward&, const Unit&, const Load&, void* shared, void* scratch);
};

struct BackwardKernel {
  int64_t tile_rows;
  size_t (*shared_bytes)(const Backward&, int64_t tiles, int64_t tile_rows);
  size_t (*scratch_bytes)(const Backward&, int64_t tile_rows);
  void (*pack_queries)(const Backward&, const Unit&, int64_t query_tile, const Load&, void* shared, void* scratch);
  void (*differentiate)(const Backward&, const Unit&, int64_t key_tile, const Load&, void* shared, void* scratch,
                        const OrderOfKeys&);
};

// One instruction set's kernels for one dtype.
struct Kernels {
  ForwardKernel forward;
  BackwardKernel backward;
};

// What each instruction set's object provides.
extern const Kernels avx2_float64, avx2_float32;
extern const Kernels avx512_float64, avx512_float32;
extern const Kernels avx512_bf16_bfloat16;
extern const Kernels amx_bfloat16;

// Those of the chosen instruction set (isa.h).
const Kernels& kernels_for(DType dtype);

// The caller's threads: run(n, body) calls body on up to n of them at once, at least one, and returns when all have.
struct Threads {
  int64_t count = 1;
  std::function<void(int64_t n, const std::function<void()>& body)> run;
};

// Both are bit-identical for any number of threads: a task's additions never depend on who runs it.
void attention_forward(const Forward& problem, const Threads& threads);
void attention_backward(const Backward& problem, const Threads& threads);

}  // namespace bico::cpu
