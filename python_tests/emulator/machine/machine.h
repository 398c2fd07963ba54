// A block of threads on the CPU. Each thread is a fiber, which runs until it waits for another one.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "banks.h"
#include "fiber.h"
#include "options.h"
#include "shadow.h"

namespace bico::emulator {

constexpr int warp_size = 32;

class Block {
 public:
  Block(const Options& options, int threads, int shared_bytes);

  // Run all threads of block `index` to their end. Throws Violation.
  void run(int64_t index, const std::function<void()>& kernel);

  // What follows is called from the threads.
  static Block& here();  // the block of the running thread
  int thread() const { return current_; }
  int64_t index() const { return index_; }
  int threads() const { return int(threads_.size()); }
  unsigned char* shared() { return shared_.get(); }

  [[noreturn]] void fail(const std::string& what);

  // Wait at barrier `id` until `count` threads have come; whether any of them said `mine`. `kind` must be the same.
  bool barrier(const char* kind, int id, int count, bool mine = false);

  // Wait until all lanes of the warp have come with an operand; the last one calls `effect` with all of them.
  using Operands = std::array<void*, warp_size>;
  void together(const char* kind, void* operand, const std::function<void(const Operands&)>& effect);
  void sync_warp();

  // Access to `bytes` of shared memory by `thread`, one of the current warp. This and the next two are never inlined,
  // as the address that they return to says which instruction of the kernel it is.
  [[gnu::noinline]] void check_read(const void* from, int64_t bytes, int64_t alignment, int thread,
                                    Access kind = Access::load);
  [[gnu::noinline]] void check_write(const void* to, int64_t bytes, int64_t alignment);

  [[gnu::noinline]] void copy_async(void* to, const void* from, int bytes, int zeros);
  void commit_copies();
  void wait_copies(int newest);

  // Of all that this block has run; null unless the options ask for it.
  const BankCosts* bank_costs() const { return banks_ ? &banks_->costs() : nullptr; }

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes, zeros;
  };
  struct Thread {
    Fiber fiber;
    bool done = false;
    const char* waits = nullptr;            // for what
    bool any = false;                       // the answer of the last barrier
    std::vector<std::vector<Copy>> groups;  // of copies under way, oldest first; the last is not committed
  };
  struct Barrier {
    const char* kind = nullptr;
    int count = 0;
    bool any = false;
    std::vector<int> waiting;
  };
  struct Aligned {  // to 128 bytes, as shared memory is
    static constexpr std::align_val_t alignment{128};
    void operator()(unsigned char* memory) const { ::operator delete(memory, alignment); }
  };
  struct Warp {
    const char* kind = nullptr;
    int arrived = 0;
    Operands operands;
  };

  static void thread_entry();
  int64_t offset(const void* pointer, int64_t bytes, int64_t alignment, const char* does);
  void write(const void* to, int64_t bytes, int64_t alignment, Access kind, const void* site);
  void arrive(const Copy& copy);
  void wait(const char* what);  // leave until made ready
  void leave_for_next(Fiber& from);
  void finish_thread();
  std::string who_waits() const;

  Options options_;
  int shared_bytes_;
  int64_t index_ = 0;
  int current_ = 0;
  std::unique_ptr<unsigned char, Aligned> shared_;
  std::unique_ptr<Shadow> shadow_;
  std::unique_ptr<Clocks> clocks_;
  std::unique_ptr<Banks> banks_;
  Fiber main_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::map<int, Barrier> barriers_;
  std::vector<int> ready_;
  size_t next_ready_ = 0;
  std::mt19937_64 random_;
  const std::function<void()>* kernel_ = nullptr;
  std::string violation_;
};

// All blocks of a launch, several at a time. Throws the first Violation.
void run(const Options& options, const char* name, int64_t blocks, int threads, int shared_bytes,
         const std::function<void()>& kernel);

}  // namespace bico::emulator
