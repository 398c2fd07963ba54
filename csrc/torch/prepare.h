// From checked tensors to the plain structs that kernels take, and the tensors that they write: the same on every
// device.
#pragma once

#include <optional>
#include <tuple>

#include "../attention.h"
#include "checks.h"

namespace bico {

// Tensors in the form that kernels read them in, which must live until the kernels have been queued.
struct Prepared {
  Tensor cos, sin;
  std::optional<Tensor> span_ids, cu_seqlens;

  explicit Prepared(const Arguments& a);

  void fill(const Arguments& a, Problem& p) const;
};

// The problem of a forward, and the outputs that it points to.
struct PreparedForward : Prepared {
  Tensor out, lse;
  Forward problem;

  explicit PreparedForward(const Arguments& a);
};

struct PreparedBackward : Prepared {
  Tensor out, grad_out, lse;
  std::optional<Tensor> grad_lse;
  Tensor grad_q, grad_k, grad_v;
  Backward problem;

  explicit PreparedBackward(const BackwardArguments& a);
};

// The registered functions, the same on every device but for what runs the kernels.
template <void (*run)(const PreparedForward&)>
std::tuple<Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos,
                                             const Tensor& sin, const std::optional<Tensor>& span_ids,
                                             const std::optional<Tensor>& cu_seqlens, std::optional<int64_t> window,
                                             double scale, bool mirror, bool interleaved) {
  const Arguments arguments = {q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, mirror, interleaved};
  check_arguments(arguments);
  const PreparedForward prepared(arguments);
  run(prepared);
  return {prepared.out, prepared.lse};
}

template <void (*run)(const PreparedBackward&, bool deterministic)>
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse,
                                                      const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& out, const Tensor& lse, const Tensor& cos,
                                                      const Tensor& sin, const std::optional<Tensor>& span_ids,
                                                      const std::optional<Tensor>& cu_seqlens,
                                                      std::optional<int64_t> window, double scale, bool mirror,
                                                      bool interleaved, bool deterministic) {
  const BackwardArguments arguments = {
      {q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, mirror, interleaved}, grad_out, grad_lse, out, lse};
  check_backward_arguments(arguments);
  const PreparedBackward prepared(arguments);
  run(prepared, deterministic);
  return {prepared.grad_q, prepared.grad_k, prepared.grad_v};
}

}  // namespace bico
