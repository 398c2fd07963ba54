// Threads of execution that switch by hand, without the kernel of the operating system.
#pragma once

#include <cstddef>
#include <memory>

namespace bico::emulator {

class Fiber {
 public:
  // The fiber that is running now, on the stack of its operating system thread.
  Fiber() = default;
  Fiber(Fiber&&) = default;
  ~Fiber();

  // A fiber that will run `entry`, which must never return.
  void prepare(void (*entry)());

  // Leave this fiber, which is running, for `next`. Returns when something switches back.
  void switch_to(Fiber& next);

 private:
  static constexpr size_t stack_bytes = 256 * 1024;

  static void begin();
  void arrive();

  void (*entry_)() = nullptr;
  std::unique_ptr<unsigned char[]> stack_;
  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's, as are the next two: where the stack is
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace bico::emulator
