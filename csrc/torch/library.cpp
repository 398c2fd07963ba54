// The schema of the op, under torch's stable ABI: one binary serves every torch from 2.11 on.
#include <torch/csrc/stable/library.h>

// `deterministic` asks for the same bits each time. On the CPU they always are; on CUDA sums over keys are then added
// in one order.
STABLE_TORCH_LIBRARY(bico, m) {
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor? span_ids, "
      "Tensor? cu_seqlens, int? window, float scale, bool mirror, bool interleaved) -> (Tensor out, Tensor lse)");
  m.def(
      "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor cos, Tensor sin, Tensor? span_ids, Tensor? cu_seqlens, int? window, float scale, bool mirror, "
      "bool interleaved, bool deterministic=False) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
}
