#include "fiber.h"

#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Without the system calls of swapcontext, which makes seven times as many blocks per second.
asm(R"(
.text
.globl bico_switch_stack
.hidden bico_switch_stack
.type bico_switch_stack, @function
bico_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size bico_switch_stack, .-bico_switch_stack
)");
extern "C" void bico_switch_stack(void** from, void* to);

namespace bico::emulator {
namespace {

// The two fibers of the switch in progress.
thread_local Fiber* leaving = nullptr;
thread_local Fiber* entering = nullptr;

// Stacks that nobody uses. A block has 128 fibers, and new stacks for each launch took a fifth of the tests' time.
struct Stacks {
  std::mutex mutex;
  std::vector<std::unique_ptr<unsigned char[]>> free;
};

Stacks& stacks() {
  static Stacks one;
  return one;
}

}  // namespace

Fiber::~Fiber() {
  if (!stack_) return;
  const std::lock_guard lock(stacks().mutex);
  stacks().free.push_back(std::move(stack_));
}

// First on the new stack.
void Fiber::begin() {
  entering->arrive();
  entering->entry_();
}

// AddressSanitizer must know on which stack it is, and what to return to.
void Fiber::arrive() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
  if (!leaving->bottom_) {  // the operating system's stack, which was not made here
    leaving->bottom_ = bottom;
    leaving->size_ = size;
  }
#endif
}

void Fiber::prepare(void (*entry)()) {
  entry_ = entry;
  fake_stack_ = nullptr;
  if (!stack_) {
    const std::lock_guard lock(stacks().mutex);
    if (stacks().free.empty()) {
      stack_ = std::make_unique_for_overwrite<unsigned char[]>(stack_bytes);
    } else {
      stack_ = std::move(stacks().free.back());
      stacks().free.pop_back();
    }
  }
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_.get(), stack_bytes);  // of an earlier fiber that never returned
#endif
  bottom_ = stack_.get();
  size_ = stack_bytes;
  // Six registers and the address to return to; a function begins with its stack 8 bytes from a multiple of 16.
  auto top = reinterpret_cast<uintptr_t>(stack_.get() + stack_bytes) / 16 * 16 - 64;
  void** frame = reinterpret_cast<void**>(top);
  std::memset(frame, 0, 64);
  frame[6] = reinterpret_cast<void*>(&begin);
  stack_pointer_ = frame;
}

void Fiber::switch_to(Fiber& next) {
  leaving = this;
  entering = &next;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
#endif
  bico_switch_stack(&stack_pointer_, next.stack_pointer_);
  arrive();
}

}  // namespace bico::emulator
