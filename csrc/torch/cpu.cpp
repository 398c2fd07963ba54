// The op on the CPU: checks, allocation, and torch's threads for the kernels.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../cpu/kernels.h"
#include "checks.h"

namespace bico {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::transpose;

DType dtype_of(const Tensor& q) {
  switch (q.scalar_type()) {
    case ScalarType::Double: return DType::float64;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    default: return DType::float32;
  }
}

Heads heads_of(const Tensor& x) {
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

RowStatistics statistics_of(const Tensor& x) {
  return {x.data_ptr(), x.size(1), x.size(2)};
}

// [B, H, S, D] whose memory is [B, S, H, D], so that the caller's transpose back is free.
Tensor empty_heads(const Tensor& like) {
  return transpose(new_empty(like, {like.size(0), like.size(2), like.size(1), like.size(3)}), 1, 2);
}

// A gradient may be expanded (stride 0), as that of a sum is.
Tensor with_unit_stride(const Tensor& x) {
  return x.stride(3) == 1 ? x : contiguous(x);
}

Tensor contiguous_as(const Tensor& x, ScalarType dtype) {
  return contiguous(x.scalar_type() == dtype ? x : torch::stable::to(x, dtype));
}

// The problem, and the converted inputs that it points into.
struct Prepared {
  Tensor cos, sin;
  std::optional<Tensor> span_ids, cu_seqlens;

  explicit Prepared(const Arguments& a)
      : cos(contiguous_as(a.cos, statistics_dtype(a.q))), sin(contiguous_as(a.sin, statistics_dtype(a.q))) {
    if (a.span_ids) span_ids = contiguous(*a.span_ids);
    if (a.cu_seqlens) cu_seqlens = contiguous(*a.cu_seqlens);
  }

  void fill(const Arguments& a, Problem& p) const {
    p.dtype = dtype_of(a.q);
    p.batch = a.q.size(0);
    p.query_heads = a.q.size(1);
    p.kv_heads = a.k.size(1);
    p.length = a.q.size(2);
    p.head_dim = a.q.size(3);
    p.q = heads_of(a.q);
    p.k = heads_of(a.k);
    p.v = heads_of(a.v);
    const int64_t width = cos.size(2), batch_stride = cos.size(0) == 1 ? 0 : cos.stride(0);
    p.rotary = {cos.data_ptr(), sin.data_ptr(), batch_stride, width, batch_stride, width, width, a.interleaved};
    if (span_ids) {
      p.span_ids = static_cast<const int32_t*>(span_ids->data_ptr());
      p.span_batch_stride = a.q.size(2);
    }
    if (cu_seqlens) {
      p.cu_seqlens = static_cast<const int32_t*>(cu_seqlens->data_ptr());
      p.sequences = cu_seqlens->size(0) - 1;
    }
    p.scale = a.scale;
    p.mirror = a.mirror;
  }
};

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
  Tensor out = empty_heads(q);
  Tensor lse = new_empty(q, {q.size(0), q.size(1), q.size(2)}, statistics_dtype(q));
  const Prepared prepared(arguments);
  Forward problem;
  prepared.fill(arguments, problem);
  problem.out = heads_of(out);
  problem.lse = statistics_of(lse);
  cpu::attention_forward(problem, torch_threads());
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse,
                                                      const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& out, const Tensor& lse, const Tensor& cos,
                                                      const Tensor& sin, const std::optional<Tensor>& span_ids,
                                                      const std::optional<Tensor>& cu_seqlens, double scale,
                                                      bool mirror, bool interleaved) {
  const Arguments arguments = {q, k, v, cos, sin, span_ids, cu_seqlens, scale, mirror, interleaved};
  check_arguments(arguments);
  check_like_q("grad_out", grad_out, q);
  check_like_q("out", out, q);
  check_statistics("lse", lse, q);
  if (grad_lse) check_statistics("grad_lse", *grad_lse, q);

  const Tensor dense_out = with_unit_stride(out), dense_grad_out = with_unit_stride(grad_out);
  const Tensor dense_lse = contiguous(lse);
  std::optional<Tensor> dense_grad_lse;
  if (grad_lse) dense_grad_lse = contiguous(*grad_lse);
  Tensor grad_q = empty_heads(q), grad_k = empty_heads(k), grad_v = empty_heads(v);
  const Prepared prepared(arguments);
  Backward problem;
  prepared.fill(arguments, problem);
  problem.out = heads_of(dense_out);
  problem.grad_out = heads_of(dense_grad_out);
  problem.grad_q = heads_of(grad_q);
  problem.grad_k = heads_of(grad_k);
  problem.grad_v = heads_of(grad_v);
  problem.lse = statistics_of(dense_lse);
  if (dense_grad_lse) problem.grad_lse = statistics_of(*dense_grad_lse);
  cpu::attention_backward(problem, torch_threads());
  return {grad_q, grad_k, grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bico, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace bico
