// Uninitialised memory, aligned for any vector, kept by its thread for the next call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <new>
#include <utility>

namespace bico::cpu {

// Freed blocks of one thread, by size. The system hands out fresh pages zeroed one by one: on a batch of 32 sequences
// of 28 tokens that was a quarter of the time of a training step's attention.
class FreeBlocks {
 public:
  static FreeBlocks& of_this_thread() {
    static thread_local FreeBlocks blocks;
    return blocks;
  }

  // A block of at least `bytes`, a multiple of 64; at most twice as large as asked for.
  void* take(size_t bytes, size_t& size) {
    const auto found = blocks_.lower_bound(bytes);
    if (found != blocks_.end() && found->first <= 2 * bytes) {
      void* block = found->second;
      size = found->first;
      held_ -= size;
      blocks_.erase(found);
      return block;
    }
    size = bytes;
    void* block = std::aligned_alloc(64, bytes);
    if (block == nullptr) throw std::bad_alloc();
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
  static constexpr size_t most_held = size_t(32) << 20;  // bytes a thread
  std::multimap<size_t, void*> blocks_;
  size_t held_ = 0;
};

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 64) / 64 * 64;
    data_ = static_cast<T*>(FreeBlocks::of_this_thread().take(bytes, size_));
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != nullptr) FreeBlocks::of_this_thread().give(data_, size_);
  }

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
  size_t size_;
};

}  // namespace bico::cpu
