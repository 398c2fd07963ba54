// Uninitialised memory for the kernels, aligned for any vector.
#pragma once

#include <cstddef>

namespace bico::cpu {

// The memory of a call: a block of at least `bytes`, which an arena cuts into arrays. It comes from the blocks that the
// thread has kept, and goes back to them.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  void* get() const { return data_; }

 private:
  void* data_;
  size_t size_;
};

}  // namespace bico::cpu
