// Cuts a problem into tasks and runs them on the caller's threads, with the kernels of the chosen instruction set.
//
// Tasks are taken in one fixed order, by whichever thread is free. A task waits only for tasks before it in that
// order, and those have been taken, so somebody is at them: there is no deadlock for any number of threads. Where each
// sequence is one tile, a thread takes all tasks of a unit at once. The bits of the results are the same.
#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "../rounding.h"
#include "kernels.h"
#include "workspace.h"

namespace bico::cpu {

namespace {

void pause() {
  __builtin_ia32_pause();
}

// Waits until `done` says so. The task that it waits for is running: it spins for a few microseconds and then, as that
// task may have lost its core, lets other threads run.
template <typename Done>
void wait_until(const Done& done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < 1000) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

Rows describe_rows(const int32_t* spans, int64_t begin, int64_t count) {
  if (spans == nullptr) return {begin, count, 0, 0};
  const auto [low, high] = std::minmax_element(spans + begin, spans + begin + count);
  return {begin, count, *low, *high};
}

enum class TilesOf { queries, keys };

// The sequences of a problem, cut into tiles. Short ones get tiles of their own length, rounded up to 32.
struct Plan {
  struct Sequence {
    int64_t batch, first_tile, tile_count;
    bool mirror;
  };
  int64_t tile_rows = 32, longest = 0;  // longest: tiles of the longest sequence
  std::vector<Sequence> sequences;      // that are not empty
  std::vector<Rows> tiles;
  double flops = 0;  // of the forward, were everything visible

  Plan(const Problem& p, int64_t most_tile_rows) {
    const int64_t count = p.cu_seqlens ? p.sequences : p.batch;
    const auto begin = [&](int64_t s) -> int64_t { return p.cu_seqlens ? p.cu_seqlens[s] : 0; };
    const auto end = [&](int64_t s) -> int64_t { return p.cu_seqlens ? p.cu_seqlens[s + 1] : p.length; };
    for (int64_t s = 0; s < count; ++s) {
      tile_rows = std::min(most_tile_rows, std::max(tile_rows, round_up(end(s) - begin(s), 32)));
    }
    for (int64_t s = 0; s < count; ++s) {
      const int64_t batch = p.cu_seqlens ? 0 : s, length = end(s) - begin(s);
      const int32_t* spans = p.spans(batch);
      const int64_t tile_count = divide_up(length, tile_rows);
      if (tile_count == 0) continue;
      const Rows whole = describe_rows(spans, begin(s), length);
      sequences.push_back({batch, int64_t(tiles.size()), tile_count, p.mirror && sees_later(whole, whole)});
      for (int64_t row = begin(s); row < end(s); row += tile_rows) {
        tiles.push_back(describe_rows(spans, row, std::min(tile_rows, end(s) - row)));
      }
      longest = std::max(longest, tile_count);
      flops += 4.0 * double(p.query_heads * p.head_dim) * double(length) * double(length);
    }
  }

  int64_t units(const Problem& p) const { return int64_t(sequences.size()) * p.kv_heads; }

  Unit unit(const Problem& p, int64_t index) const {
    const Sequence& sequence = sequences[index / p.kv_heads];
    return {sequence.batch,      index % p.kv_heads, tiles.data() + sequence.first_tile,
            sequence.tile_count, tile_rows,          sequence.mirror};
  }

  // The tiles of a unit's queries or keys: one task each.
  int64_t count(const Problem& p, TilesOf of, int64_t unit) const {
    const int64_t tile_count = sequences[unit / p.kv_heads].tile_count;
    return of == TilesOf::keys ? tile_count : p.query_heads / p.kv_heads * tile_count;
  }
  Place place(const Problem& p, TilesOf of, int64_t unit_index, int64_t index) const {
    const Unit unit = this->unit(p, unit_index);
    const int64_t first_head = of == TilesOf::keys ? unit.kv_head : unit.kv_head * (p.query_heads / p.kv_heads);
    return {unit.batch, first_head + index / unit.tile_count, unit.tiles[index % unit.tile_count]};
  }
};

struct Task {
  int64_t unit;
  bool packs;     // else it computes
  int64_t index;  // among those of its kind and unit
};

// Units are worked on in batches: first the tasks that pack a batch, then those that compute it, one task of each unit
// after the other. So each thread finds tasks that need not wait, as long as there are as many units as threads. Two
// threads at one unit would follow each other tile by tile, and both stop whenever one of them loses its core. The
// packing of a batch stands before the computing of the batch before it, so that it is finished when it is needed.
template <typename PackTasks, typename ComputeTasks>
std::vector<Task> order_tasks(int64_t units, int64_t batch, const PackTasks& pack_tasks,
                              const ComputeTasks& compute_tasks) {
  std::vector<Task> tasks;
  for (int64_t begin = 0; begin < units + batch; begin += batch) {
    for (int64_t unit = begin; unit < std::min(units, begin + batch); ++unit) {
      for (int64_t i = 0; i < pack_tasks(unit); ++i) tasks.push_back({unit, true, i});
    }
    bool more = begin > 0;
    for (int64_t i = 0; more; ++i) {
      more = false;
      for (int64_t unit = begin - batch; unit < std::min(units, begin); ++unit) {
        if (i >= compute_tasks(unit)) continue;
        tasks.push_back({unit, false, i});
        more = true;
      }
    }
  }
  return tasks;
}

// The shared memory of the units that are in progress. Unit u uses slot u % slots once unit u - slots is finished.
class Slots {
 public:
  Slots(int64_t slots, int64_t units, size_t bytes, int64_t counters)
      : slots_(slots),
        bytes_(size_t(round_up(int64_t(bytes), 4096))),
        counters_per_slot_(counters),
        memory_(size_t(slots) * bytes_),
        packed_(new std::atomic<int64_t>[units]()),
        computed_(new std::atomic<int64_t>[units]()),
        counters_(new std::atomic<int32_t>[slots * counters]()) {}

  void* memory(int64_t unit) const { return static_cast<char*>(memory_.get()) + size_t(unit % slots_) * bytes_; }
  OrderOfKeys order(int64_t unit) const { return OrderOfKeys(&counters_[unit % slots_ * counters_per_slot_]); }
  std::atomic<int64_t>& packed(int64_t unit) const { return packed_[unit]; }
  std::atomic<int64_t>& computed(int64_t unit) const { return computed_[unit]; }
  int64_t count() const { return slots_; }

 private:
  int64_t slots_;
  size_t bytes_;
  int64_t counters_per_slot_;
  Workspace memory_;
  std::unique_ptr<std::atomic<int64_t>[]> packed_, computed_;  // tasks that are finished, by unit
  std::unique_ptr<std::atomic<int32_t>[]> counters_;
};

// The task of the same kind that the worker at tasks[at] will probably take next, or null.
const Task* task_ahead(const std::vector<Task>& tasks, int64_t at, int64_t workers) {
  for (size_t next = size_t(at + workers); next < tasks.size(); ++next) {
    if (tasks[next].packs == tasks[at].packs) return &tasks[next];
  }
  return nullptr;
}

// Runs the tasks of all units: pack and compute, both called with (unit, index, loads, shared, scratch, order).
template <typename Pack, typename Compute>
void run_tasks(const Problem& p, const Plan& plan, double flops, size_t shared_bytes, size_t scratch_bytes,
               int64_t counters, const Threads& threads, TilesOf packed, const Pack& pack, TilesOf computed,
               const Compute& compute) {
  const int64_t units = plan.units(p);
  if (units == 0) return;
  // Waking a thread costs about 10 us: each gets at least 2 MFLOP (10 to 40 us), so that a tiny problem stays on the
  // calling thread.
  const int64_t workers = std::clamp<int64_t>(int64_t(flops / 2e6), 1, threads.count);
  std::atomic<int64_t> next{0};

  // Where each sequence is one tile, a thread packs and computes a whole unit. It finds what it has packed in its own
  // caches, and waits for nobody, not even for a thread that has lost its core.
  if (plan.longest == 1 && units >= workers) {
    return threads.run(workers, [&] {
      const Workspace scratch(scratch_bytes);
      const Slots own(1, 1, shared_bytes, counters);
      for (int64_t at = next++; at < units; at = next++) {
        const auto for_each_tile = [&](TilesOf of, const auto& run) {
          const bool more = at + workers < units;
          for (int64_t i = 0; i < plan.count(p, of, at); ++i) {
            const Load loads = {plan.place(p, of, at, i), more ? plan.place(p, of, at + workers, i) : Place{}};
            run(plan.unit(p, at), i, loads, own.memory(0), scratch.get(), own.order(0));
          }
        };
        for_each_tile(packed, pack);
        for_each_tile(computed, compute);
      }
    });
  }

  const int64_t batch = std::min(units, workers);
  const auto pack_tasks = [&](int64_t unit) { return plan.count(p, packed, unit); };
  const auto compute_tasks = [&](int64_t unit) { return plan.count(p, computed, unit); };
  const std::vector<Task> tasks = order_tasks(units, batch, pack_tasks, compute_tasks);
  const Slots slots(std::min(units, 2 * batch), units, shared_bytes, counters);

  const auto work = [&] {
    const Workspace scratch(scratch_bytes);
    for (int64_t at = next++; at < int64_t(tasks.size()); at = next++) {
      const Task& task = tasks[at];
      const Unit unit = plan.unit(p, task.unit);
      const TilesOf of = task.packs ? packed : computed;
      const Task* ahead = task_ahead(tasks, at, workers);
      const Load loads = {plan.place(p, of, task.unit, task.index),
                          ahead == nullptr ? Place{} : plan.place(p, of, ahead->unit, ahead->index)};
      if (task.packs) {
        const int64_t before = task.unit - slots.count();
        if (before >= 0) wait_until([&] { return slots.computed(before).load() == compute_tasks(before); });
        pack(unit, task.index, loads, slots.memory(task.unit), scratch.get(), slots.order(task.unit));
        ++slots.packed(task.unit);
      } else {
        wait_until([&] { return slots.packed(task.unit).load() == pack_tasks(task.unit); });
        compute(unit, task.index, loads, slots.memory(task.unit), scratch.get(), slots.order(task.unit));
        ++slots.computed(task.unit);
      }
    }
  };
  threads.run(workers, work);
}

}  // namespace

void OrderOfKeys::wait_for(int64_t query_tile, int64_t key_tile) const {
  wait_until([&] { return next_[query_tile].load(std::memory_order_acquire) == key_tile; });
}

void attention_forward(const Forward& p, const Threads& threads) {
  const ForwardKernel& kernel = kernels_for(p.dtype).forward;
  const Plan plan(p, kernel.tile_rows);
  run_tasks(
      p, plan, plan.flops, kernel.shared_bytes(p, plan.longest, plan.tile_rows),
      kernel.scratch_bytes(p, plan.tile_rows), 0, threads, TilesOf::keys,
      [&](const Unit& unit, int64_t index, const Load& loads, void* shared, void* scratch, const OrderOfKeys&) {
        kernel.pack_keys(p, unit, index, loads, shared, scratch);
      },
      TilesOf::queries,
      [&](const Unit& unit, int64_t, const Load& loads, void* shared, void* scratch, const OrderOfKeys&) {
        kernel.attend(p, unit, loads, shared, scratch);
      });
}

void attention_backward(const Backward& p, const Threads& threads) {
  const BackwardKernel& kernel = kernels_for(p.dtype).backward;
  const Plan plan(p, kernel.tile_rows);
  run_tasks(
      p, plan, 2.5 * plan.flops, kernel.shared_bytes(p, plan.longest, plan.tile_rows),
      kernel.scratch_bytes(p, plan.tile_rows), p.query_heads / p.kv_heads * plan.longest, threads, TilesOf::queries,
      [&](const Unit& unit, int64_t index, const Load& loads, void* shared, void* scratch, const OrderOfKeys& order) {
        order.begin(index);
        kernel.pack_queries(p, unit, index, loads, shared, scratch);
      },
      TilesOf::keys,
      [&](const Unit& unit, int64_t index, const Load& loads, void* shared, void* scratch, const OrderOfKeys& order) {
        kernel.differentiate(p, unit, index, loads, shared, scratch, order);
      });
}

}  // namespace bico::cpu
