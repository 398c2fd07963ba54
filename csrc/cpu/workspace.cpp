#include "workspace.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>

#include <cstring>
#endif

namespace bico::cpu {
namespace {

constexpr size_t huge_page = size_t(2) << 20;

// Large blocks are mapped, so that they go back to the system at once. They lie on huge pages where it has them.
void* allocate(size_t bytes) {
  if (bytes < huge_page) {
    void* block = std::aligned_alloc(64, bytes);
    if (block == nullptr) throw std::bad_alloc();
    return block;
  }
  void* mapped = mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(mapped);
  char* block = begin + (huge_page - reinterpret_cast<uintptr_t>(begin) % huge_page) % huge_page;
  if (block > begin) munmap(begin, size_t(block - begin));
  if (block - begin < ptrdiff_t(huge_page)) munmap(block + bytes, huge_page - size_t(block - begin));
  madvise(block, bytes, MADV_HUGEPAGE);  // only a hint: without it the pages are small
  return block;
}

void release(void* block, size_t bytes) {
  if (bytes < huge_page) return std::free(block);
  munmap(block, bytes);
}

// Freed blocks of one thread, by size. The system hands out fresh pages zeroed one by one: on a batch of 32 sequences
// of 28 tokens that was a quarter of the time of a training step's attention.
class FreeBlocks {
 public:
  static FreeBlocks& of_this_thread() {
    static thread_local FreeBlocks blocks;
    return blocks;
  }

  // The smallest kept block of at least `bytes`, however large: it would lie idle otherwise. If there is none, the
  // largest one makes way for a new one: what is kept does not add up over calls of growing size.
  void* take(size_t bytes, size_t& size) {
    auto found = blocks_.lower_bound(bytes);
    if (found != blocks_.end()) {
      size = found->first;
      return remove(found);
    }
    if (found != blocks_.begin()) {
      const size_t smaller = std::prev(found)->first;
      release(remove(std::prev(found)), smaller);
    }
    size = bytes < huge_page ? (bytes + 63) / 64 * 64 : (bytes + huge_page - 1) / huge_page * huge_page;
    return allocate(size);
  }

  void give(void* block, size_t size) {
    if (held_ + size > most_held) return release(block, size);
    try {
      blocks_.emplace(size, block);
      held_ += size;
    } catch (const std::bad_alloc&) {
      release(block, size);
    }
  }

  ~FreeBlocks() {
    for (const auto& [size, block] : blocks_) release(block, size);
  }

 private:
  static constexpr size_t most_held = size_t(64) << 20;  // bytes of each thread
  using Blocks = std::multimap<size_t, void*>;

  void* remove(Blocks::iterator at) {
    void* block = at->second;
    held_ -= at->first;
    blocks_.erase(at);
    return block;
  }

  Blocks blocks_;
  size_t held_ = 0;
};

}  // namespace

Workspace::Workspace(size_t bytes) : data_(FreeBlocks::of_this_thread().take(bytes + 1, size_)) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(data_, size_);
  std::memset(data_, 0xff, size_);  // NaN in every format, so that an element that nobody wrote shows
#endif
}
Workspace::~Workspace() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(data_, size_);
#endif
  FreeBlocks::of_this_thread().give(data_, size_);
}

}  // namespace bico::cpu
