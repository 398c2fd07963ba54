// The op on CUDA: the current stream and workspaces for the kernels. Includes nothing of CUDA: its kernels are compiled
// apart, and the stream comes through torch's stable ABI.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../cuda/attention.h"
#include "prepare.h"

// Absent from a torch without CUDA, which cannot bring a CUDA tensor either.
extern "C" [[gnu::weak]] AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace bico {
namespace {

cuda::Stream current_stream(const Tensor& out) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "this build of bico-ext was made with a torch without CUDA; rebuild it with the torch that runs it");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(out.get_device(), &stream));
  return stream;
}

// `out` has the shape and device of q.
void check_for_cuda(const Tensor& out) {
  // Positions are 32-bit in the kernels, and the largest tile must fit beyond the end.
  STD_TORCH_CHECK(out.size(2) <= INT32_MAX - 256, "q must have at most ", INT32_MAX - 256,
                  " tokens on CUDA, got S = ", out.size(2));
  const std::string missing = cuda::missing_support(out.get_device());
  STD_TORCH_CHECK(missing.empty(), missing);
}

// From torch's caching allocator, which keeps memory in the order of the stream.
Tensor workspace_like(const Tensor& out, int64_t bytes) {
  return torch::stable::new_empty(out, {bytes}, ScalarType::Byte);
}

void run_forward(const PreparedForward& prepared) {
  const Tensor& out = prepared.out;
  if (out.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(out.get_device());
  check_for_cuda(out);
  Tensor workspace = workspace_like(out, cuda::forward_workspace(prepared.problem));
  cuda::attention_forward(prepared.problem, workspace.data_ptr(), current_stream(out));
}

void run_backward(const PreparedBackward& prepared, bool deterministic) {
  const Tensor& out = prepared.out;
  if (out.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(out.get_device());
  check_for_cuda(out);
  Tensor workspace = workspace_like(out, cuda::backward_workspace(prepared.problem));
  cuda::attention_backward(prepared.problem, deterministic, workspace.data_ptr(), current_stream(out));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bico, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward<run_forward>));
  m.impl("attention_backward", TORCH_BOX(&attention_backward<run_backward>));
}

}  // namespace bico
