// Launching on hardware. A failure is an exception that says what was launched.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace bico::cuda {

inline void check(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is reported here; it must not be found again by the next call
    throw std::runtime_error("bico-ext: " + what + " failed: " + cudaGetErrorString(error));
  }
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
            Stream stream, const Arguments&... arguments) {
  const std::string what = std::string("kernel ") + name + " with " + std::to_string(blocks) + " blocks of " +
                           std::to_string(threads) + " threads and " + std::to_string(shared_bytes) +
                           " bytes of shared memory";
  if (blocks == 0) return;
  if (blocks > 0x7fffffff)
    throw std::runtime_error("bico-ext: " + what + " is more than a grid can hold; split the batch");
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), what);
  }
  kernel<<<dim3(unsigned(blocks)), dim3(unsigned(threads)), size_t(shared_bytes), static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  check(cudaGetLastError(), what);
}

// Of the current device.
inline DeviceLimits device_limits() {
  DeviceLimits limits;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "asking for the number of multiprocessors");
  check(cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
        "asking for shared memory");
  return limits;
}

inline void fill_with_zeros(void* memory, int64_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, size_t(bytes), static_cast<cudaStream_t>(stream)), "clearing the workspace");
}

}  // namespace bico::cuda
