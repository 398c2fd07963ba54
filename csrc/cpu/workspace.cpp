#include "workspace.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <new>
#include <utility>

namespace bico::cpu {
namespace {

// Freed blocks of one thread, by size. The system hands out fresh pages zeroed one by one: on a batch of 32 sequences
// of 28 tokens that was a quarter of the time of a training step's attention.
class FreeBlocks {
 public:
  static FreeBlocks& of_this_thread() {
    static thread_local FreeBlocks blocks;
    return blocks;
  }

  // A block of at least `bytes`; at most twice as large as asked for.
  void* take(size_t bytes, size_t& size) {
    const auto found = blocks_.lower_bound(bytes);
    if (found != blocks_.end() && found->first <= 2 * bytes) {
      void* block = found->second;
      size = found->first;
      held_ -= size;
      blocks_.erase(found);
      return block;
    }
    const size_t alignment = bytes < huge_page ? 64 : huge_page;
    size = (bytes + alignment - 1) / alignment * alignment;
    void* block = std::aligned_alloc(alignment, size);
    if (block == nullptr) throw std::bad_alloc();
    if (alignment == huge_page) madvise(block, size, MADV_HUGEPAGE);  // a wish: without it pages are small, no more
    return block;
  }

  void give(void* block, size_t size) {
    if (held_ + size > most_held) return std::free(block);
    held_ += size;
    blocks_.emplace(size, block);
  }

  ~FreeBlocks() {
    for (const auto& [size, block] : blocks_) std::free(block);
  }

 private:
  static constexpr size_t huge_page = size_t(2) << 20;
  static constexpr size_t most_held = size_t(32) << 20;  // bytes a thread
  std::multimap<size_t, void*> blocks_;
  size_t held_ = 0;
};

}  // namespace

Workspace::Workspace(size_t bytes) : data_(FreeBlocks::of_this_thread().take(bytes + 1, size_)) {}
Workspace::Workspace(Workspace&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
Workspace::~Workspace() {
  if (data_ != nullptr) FreeBlocks::of_this_thread().give(data_, size_);
}

}  // namespace bico::cpu
