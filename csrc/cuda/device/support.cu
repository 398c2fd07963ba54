// Which devices this build runs on.
#include <mutex>
#include <vector>

#include "../attention.h"
#include "launch.h"

namespace bico::cuda {
namespace {

constexpr int oldest_major = 8;  // mma.sync of bfloat16, cp.async

__global__ void probe() {}

std::string find_missing_support(int device) {
  int major = 0, minor = 0, shared = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the compute capability");
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for shared memory");
  const std::string name = std::to_string(major) + "." + std::to_string(minor);
  if (major < oldest_major) {
    return "bico-ext needs a GPU of compute capability 8.0 or newer, and cuda:" + std::to_string(device) + " has " +
           name + "; use q.cpu()";
  }
  if (shared < shared_limit) {
    return "bico-ext needs " + std::to_string(shared_limit) +
           " bytes of shared memory in each block, and cuda:" + std::to_string(device) + " has " +
           std::to_string(shared) + "; use q.cpu()";
  }
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    return "this build of bico-ext has no kernels for compute capability " + name + " (cuda:" + std::to_string(device) +
           "); rebuild it there, or with -C cmake.define.BICO_CUDA_ARCHITECTURES=" + std::to_string(major) +
           std::to_string(minor);
  }
  check(error, "looking for kernels");
  return "";
}

}  // namespace

std::string missing_support(int device) {
  static std::mutex mutex;
  static std::vector<int> known;  // devices that it runs on; failures are looked into again
  const std::lock_guard lock(mutex);
  for (const int one : known) {
    if (one == device) return "";
  }
  const std::string missing = find_missing_support(device);
  if (missing.empty()) known.push_back(device);
  return missing;
}

}  // namespace bico::cuda
