// The op on the CPU: torch's threads for the kernels.
#include <torch/csrc/stable/library.h>

#include "../cpu/kernels.h"
#include "prepare.h"

namespace bico {
namespace {

cpu::Threads torch_threads() {
  return {int64_t(torch::stable::get_num_threads()), [](int64_t n, const std::function<void()>& body) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t, int64_t) { body(); });
          }};
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos,
                                             const Tensor& sin, const std::optional<Tensor>& span_ids,
                                             const std::optional<Tensor>& cu_seqlens, double scale, bool mirror,
                                             bool interleaved) {
  const Arguments arguments = {q, k, v, cos, sin, span_ids, cu_seqlens, scale, mirror, interleaved};
  check_arguments(arguments);
  PreparedForward prepared(arguments);
  cpu::attention_forward(prepared.problem, torch_threads());
  return {prepared.out, prepared.lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse,
                                                      const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& out, const Tensor& lse, const Tensor& cos,
                                                      const Tensor& sin, const std::optional<Tensor>& span_ids,
                                                      const std::optional<Tensor>& cu_seqlens, double scale,
                                                      bool mirror, bool interleaved, bool /* deterministic: always */) {
  const BackwardArguments arguments = {
      {q, k, v, cos, sin, span_ids, cu_seqlens, scale, mirror, interleaved}, grad_out, grad_lse, out, lse};
  check_backward_arguments(arguments);
  PreparedBackward prepared(arguments);
  cpu::attention_backward(prepared.problem, torch_threads());
  return {prepared.grad_q, prepared.grad_k, prepared.grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bico, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace bico
