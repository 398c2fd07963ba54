#include "machine.h"

#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

namespace bico::emulator {
namespace {

thread_local Block* running = nullptr;

constexpr int poison = 0xff;  // NaN in every floating-point type

}  // namespace

Block::Block(const Options& options, int threads, int shared_bytes)
    : options_(options), shared_bytes_(shared_bytes), threads_(threads), warps_(threads / warp_size) {
  if (threads % warp_size != 0)
    throw Violation("blocks must be whole warps, got " + std::to_string(threads) + " threads");
  if (options.banks) banks_ = std::make_unique<Banks>(threads);
}

// Never inlined: the compiler must not keep the address of a thread_local across a switch of fibers.
[[gnu::noinline]] Block& Block::here() {
  return *running;
}

void Block::run(int64_t index, const std::function<void()>& kernel) {
  index_ = index;
  kernel_ = &kernel;
  violation_.clear();
  random_.seed(options_.seed * 1000003 + uint64_t(index));
  // Allocated with its exact size, so that AddressSanitizer knows its end, and for each block, so that nothing is left
  // of the last one.
  shared_.reset(static_cast<unsigned char*>(::operator new(shared_bytes_, Aligned::alignment)));
  std::memset(shared(), poison, shared_bytes_);
  shadow_ = std::make_unique<Shadow>(shared_bytes_, threads());
  clocks_ = std::make_unique<Clocks>(threads());
  barriers_.clear();
  for (Warp& warp : warps_) warp.arrived = 0;
  ready_.resize(threads());
  std::iota(ready_.begin(), ready_.end(), 0);
  next_ready_ = 0;
  for (Thread& thread : threads_) {
    thread.done = false;
    thread.waits = nullptr;
    thread.groups.assign(1, {});
    thread.fiber.prepare(&thread_entry);
  }
  running = this;
  leave_for_next(main_);
  running = nullptr;
  for (size_t warp = 0; banks_ && warp < warps_.size(); ++warp) banks_->settle(int(warp));
  if (!violation_.empty()) throw Violation(violation_);
}

void Block::thread_entry() {
  Block& block = here();
  (*block.kernel_)();
  block.finish_thread();
}

void Block::finish_thread() {
  Thread& thread = threads_[current_];
  for (const auto& group : thread.groups) {
    if (!group.empty()) fail("ends while its copies are still under way");
  }
  thread.done = true;
  leave_for_next(thread.fiber);
}

void Block::leave_for_next(Fiber& from) {
  if (next_ready_ == ready_.size()) {
    for (const Thread& thread : threads_) {
      if (!thread.done) fail("deadlock: nobody can go on; " + who_waits());
    }
    from.switch_to(main_);
    return;
  }
  if (options_.schedule == Schedule::random) {
    std::swap(ready_[next_ready_], ready_[next_ready_ + random_() % (ready_.size() - next_ready_)]);
  }
  current_ = ready_[next_ready_++];
  if (next_ready_ >= 4096) {  // forget those that have gone on
    ready_.erase(ready_.begin(), ready_.begin() + next_ready_);
    next_ready_ = 0;
  }
  Fiber& next = threads_[current_].fiber;
  threads_[current_].waits = nullptr;
  if (&next != &from) from.switch_to(next);
}

void Block::wait(const char* what) {
  const int mine = current_;
  threads_[mine].waits = what;
  leave_for_next(threads_[mine].fiber);
}

std::string Block::who_waits() const {
  std::map<std::string, std::vector<int>> waiting;
  for (int t = 0; t < threads(); ++t) {
    waiting[threads_[t].done    ? "have ended"
            : threads_[t].waits ? std::string("wait for ") + threads_[t].waits
                                : "run"]
        .push_back(t);
  }
  std::string text;
  for (const auto& [what, who] : waiting) {
    text += (text.empty() ? "" : "; ") + std::to_string(who.size()) + " threads, among them " +
            std::to_string(who.front()) + ", " + what;
  }
  return text;
}

void Block::fail(const std::string& what) {
  violation_ = "block " + std::to_string(index_) + ", thread " + std::to_string(current_) + " " + what;
  threads_[current_].fiber.switch_to(main_);
  __builtin_unreachable();
}

bool Block::barrier(const char* kind, int id, int count, bool mine) {
  Barrier& barrier = barriers_[id];
  if (barrier.waiting.empty()) {
    barrier.kind = kind;
    barrier.count = count;
    barrier.any = false;
  }
  if (std::strcmp(barrier.kind, kind) != 0 || barrier.count != count) {
    fail(std::string("comes to a barrier by ") + kind + " of " + std::to_string(count) +
         " threads where others came by " + barrier.kind + " of " + std::to_string(barrier.count));
  }
  barrier.any |= mine;
  barrier.waiting.push_back(current_);
  if (int(barrier.waiting.size()) < count) {
    const int me = current_;
    wait(kind);
    return threads_[me].any;
  }
  std::vector<int> lanes(warps_.size());
  for (const int thread : barrier.waiting) ++lanes[thread / warp_size];
  for (size_t warp = 0; warp < lanes.size(); ++warp) {
    if (lanes[warp] % warp_size != 0) {
      fail(std::string("completes a barrier by ") + kind + " to which only " + std::to_string(lanes[warp]) +
           " lanes of warp " + std::to_string(warp) + " have come");
    }
    if (banks_ && lanes[warp] > 0) banks_->settle(int(warp));
  }
  clocks_->join(barrier.waiting);
  for (const int thread : barrier.waiting) {
    threads_[thread].any = barrier.any;
    if (thread != current_) ready_.push_back(thread);
  }
  barrier.waiting.clear();
  return barrier.any;
}

void Block::together(const char* kind, void* operand, const std::function<void(const Operands&)>& effect) {
  Warp& warp = warps_[current_ / warp_size];
  if (warp.arrived > 0 && std::strcmp(warp.kind, kind) != 0) {
    fail(std::string("comes to ") + kind + " while other lanes of its warp are at " + warp.kind);
  }
  warp.kind = kind;
  warp.operands[current_ % warp_size] = operand;
  if (++warp.arrived < warp_size) return wait(kind);
  effect(warp.operands);
  if (banks_) banks_->settle(current_ / warp_size);
  warp.arrived = 0;
  const int first = current_ / warp_size * warp_size;
  for (int thread = first; thread < first + warp_size; ++thread) {
    if (thread != current_) ready_.push_back(thread);
  }
}

void Block::sync_warp() {
  together("sync_warp", nullptr, [&](const Operands&) {
    std::vector<int> lanes(warp_size);
    std::iota(lanes.begin(), lanes.end(), current_ / warp_size * warp_size);
    clocks_->join(lanes);
  });
}

int64_t Block::offset(const void* pointer, int64_t bytes, int64_t alignment, const char* does) {
  const int64_t offset = static_cast<const unsigned char*>(pointer) - shared();
  if (offset < 0 || offset + bytes > shared_bytes_) {
    fail(std::string(does) + " bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) + " of " +
         std::to_string(shared_bytes_) + " of shared memory");
  }
  if (offset % alignment != 0) {
    fail(std::string(does) + " at byte " + std::to_string(offset) + ", which is no multiple of " +
         std::to_string(alignment));
  }
  return offset;
}

void Block::check_read(const void* from, int64_t bytes, int64_t alignment, int thread, Access kind) {
  const int64_t at = offset(from, bytes, alignment, "reads");
  if (banks_) banks_->record(kind, __builtin_return_address(0), thread, at, bytes, alignment);
  const std::string wrong = shadow_->read(at, bytes, thread, *clocks_);
  if (!wrong.empty())
    fail(wrong + " (byte " + std::to_string(at) + ", read for lane " + std::to_string(thread % warp_size) + ")");
}

void Block::check_write(const void* to, int64_t bytes, int64_t alignment) {
  write(to, bytes, alignment, Access::store, __builtin_return_address(0));
}

void Block::write(const void* to, int64_t bytes, int64_t alignment, Access kind, const void* site) {
  const int64_t at = offset(to, bytes, alignment, "writes");
  if (banks_) banks_->record(kind, site, current_, at, bytes, alignment);
  const std::string wrong = shadow_->write(at, bytes, current_, *clocks_);
  if (!wrong.empty()) fail(wrong + " (byte " + std::to_string(at) + ")");
}

void Block::copy_async(void* to, const void* from, int bytes, int zeros) {
  if (bytes < 0 || zeros < 0) {
    fail("copies " + std::to_string(bytes) + " bytes, which must be 0 to " + std::to_string(bytes + zeros));
  }
  if (reinterpret_cast<uintptr_t>(from) % (bytes + zeros) != 0)
    fail("copies from an address that is no multiple of " + std::to_string(bytes + zeros));
  write(to, bytes + zeros, bytes + zeros, Access::copy, __builtin_return_address(0));
  const Copy copy = {to, from, bytes, zeros};
  shadow_->begin_copy(static_cast<unsigned char*>(to) - shared(), bytes + zeros);
  if (options_.copies == Copies::at_issue) {
    arrive(copy);
  } else {
    std::memset(to, poison, bytes + zeros);
  }
  threads_[current_].groups.back().push_back(copy);
}

void Block::arrive(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  std::memset(static_cast<unsigned char*>(copy.to) + copy.bytes, 0, copy.zeros);
}

void Block::commit_copies() {
  threads_[current_].groups.emplace_back();
}

void Block::wait_copies(int newest) {
  auto& groups = threads_[current_].groups;
  while (int(groups.size()) - 1 > newest) {
    for (const Copy& copy : groups.front()) {
      if (options_.copies == Copies::at_wait) arrive(copy);
      shadow_->end_copy(static_cast<unsigned char*>(copy.to) - shared(), copy.bytes + copy.zeros, current_, *clocks_);
    }
    groups.erase(groups.begin());
  }
}

void run(const Options& options, const char* name, int64_t blocks, int threads, int shared_bytes,
         const std::function<void()>& kernel) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::string violation;
  const auto work = [&] {
    try {
      Block block(options, threads, shared_bytes);
      for (int64_t i = next++; i < blocks && !stop; i = next++) {
        // A random schedule begins anywhere and goes on from there, so that no block may rely on an earlier one.
        const int64_t start = options.schedule == Schedule::random ? int64_t(options.seed % uint64_t(blocks)) : 0;
        block.run((i + start) % blocks, kernel);
      }
      if (const BankCosts* costs = block.bank_costs()) options.banks->add(name, *costs);
    } catch (const Violation& error) {
      const std::lock_guard lock(mutex);
      if (!stop.exchange(true)) violation = std::string("kernel ") + name + ", " + error.what();
    }
  };
  std::vector<std::thread> helpers;
  // At least four blocks at a time, as sums of two do not show in which order they were added.
  const int64_t workers = std::min<int64_t>(std::max(4u, std::thread::hardware_concurrency()), blocks);
  for (int64_t i = 1; i < workers; ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  if (stop) throw Violation(violation);
}

}  // namespace bico::emulator
