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

}  // namespace bico
