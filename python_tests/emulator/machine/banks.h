// How long the banks of shared memory take for what a kernel reads and writes, counted when asked for.
//
// The model is that of NVIDIA's GPUs of compute capability 5.0 and newer. Successive words of 4 bytes lie in successive
// banks, of which there are 32, and in a cycle (a "wavefront") a bank serves one word, to all lanes that want it: CUDA
// C++ Programming Guide, "Shared Memory" of these capabilities. Where a lane accesses 8 bytes, the 16 lanes of a
// half-warp are served together, where it accesses 16, the 8 of a quarter-warp: slides of the GTC talk S9593 (2019),
// quoted in issue 738 of Dao-AILab/flash-attention. The rows of a matrix of ldmatrix are such a quarter. Hardware can
// serve two halves or quarters together when few addresses are wanted, which is not modelled: it would lower the fewest
// wavefronts, too.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace bico::emulator {

enum class Access { matrices, load, store, copy };
constexpr const char* access_names[] = {"ldmatrix", "load", "store", "cp.async"};

struct BankCost {
  int64_t requests = 0;    // instructions of a warp
  int64_t wavefronts = 0;  // cycles that they take
  int64_t fewest = 0;      // cycles that they would take if no two lanes wanted different words of one bank

  BankCost& operator+=(const BankCost& other);
};
using BankCosts = std::array<BankCost, std::size(access_names)>;  // by Access

// What all launches cost that were given it. Blocks of several threads may add at the same time.
class BankCounts {
 public:
  // Requests, wavefronts and fewest wavefronts by kernel and kind of access.
  using Table = std::map<std::string, std::map<std::string, std::array<int64_t, 3>>>;

  void add(const std::string& kernel, const BankCosts& costs);
  Table table() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, BankCosts> costs_;
};

// Finds the requests of a block's warps in what its threads do one after the other. Lanes make a request together where
// they come to the same instruction for the same time since the warp was last together. So lanes that are in another
// branch, or in more iterations of a loop, make requests of their own, as they do in hardware. But of a lane that skips
// an iteration, the later ones are taken for earlier ones.
class Banks {
 public:
  explicit Banks(int threads);

  // An access by `thread` in the instruction at `site`, in pieces of as many bytes as `alignment` lets one instruction
  // move, 16 at most.
  void record(Access kind, const void* site, int thread, int64_t offset, int64_t bytes, int64_t alignment);

  // All lanes of the warp are here: what they accessed before makes no request with what they access from now on.
  void settle(int warp);

  const BankCosts& costs() const { return costs_; }

 private:
  using Offsets = std::array<int64_t, 32>;                    // of a warp's lanes, or -1
  using Request = std::tuple<const void*, int, Access, int>;  // site, time, kind, bytes of each lane
  struct Warp {
    std::map<Request, Offsets> requests;
    std::map<std::pair<const void*, int>, int> times;  // that a lane has been at a site
  };

  static BankCost cost(const Offsets& offsets, int bytes);

  std::vector<Warp> warps_;
  BankCosts costs_;
};

}  // namespace bico::emulator
