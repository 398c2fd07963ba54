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

cuda::Stream current_stream(const Tensor& q) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "this build of bico-ext was made with a torch without CUDA; rebuild it with the torch that runs it");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(q.get_device(), &stream));
  return stream;
}

void check_for_cuda(const Tensor& q) {
  // Positions are 32-bit in the kernels, and the largest tile must fit beyond the end.
  STD_TORCH_CHECK(q.size(2) <= INT32_MAX - 256, "q must have at most ", INT32_MAX - 256,
                  " tokens on CUDA, got S = ", q.size(2));
  const std::string missing = cuda::missing_support(q.get_device());
  STD_TORCH_CHECK(missing.empty(), missing);
}

// From torch's caching allocator, which keeps memory in the order of the stream.
Tensor workspace_like(const Tensor& q, int64_t bytes) {
  return torch::stable::new_empty(q, {bytes}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos,
                                             const Tensor& sin, const std::optional<Tensor>& span_ids,
                                             const std::optional<Tensor>& cu_seqlens, double scale, bool mirror,
                                             bool interleaved) {
  const Arguments arguments = {q, k, v, cos, sin, span_ids, cu_seqlens, scale, mirror, interleaved};
  check_arguments(arguments);
  PreparedForward prepared(arguments);
  if (q.numel() == 0) return {prepared.out, prepared.lse};
  const torch::stable::accelerator::DeviceGuard guard(q.get_device());
  check_for_cuda(q);
  Tensor workspace = workspace_like(q, cuda::forward_workspace(prepared.problem));
  cuda::attention_forward(prepared.problem, workspace.data_ptr(), current_stream(q));
  return {prepared.out, prepared.lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse,
                                                      const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& out, const Tensor& lse, const Tensor& cos,
                                                      const Tensor& sin, const std::optional<Tensor>& span_ids,
                                                      const std::optional<Tensor>& cu_seqlens, double scale,
                                                      bool mirror, bool interleaved, bool deterministic) {
  const BackwardArguments arguments = {
      {q, k, v, cos, sin, span_ids, cu_seqlens, scale, mirror, interleaved}, grad_out, grad_lse, out, lse};
  check_backward_arguments(arguments);
  PreparedBackward prepared(arguments);
  if (q.numel() == 0) return {prepared.grad_q, prepared.grad_k, prepared.grad_v};
  const torch::stable::accelerator::DeviceGuard guard(q.get_device());
  check_for_cuda(q);
  Tensor workspace = workspace_like(q, cuda::backward_workspace(prepared.problem));
  cuda::attention_backward(prepared.problem, deterministic, workspace.data_ptr(), current_stream(q));
  return {prepared.grad_q, prepared.grad_k, prepared.grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bico, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace bico
