// Argument checks of the op: each names the argument, what was expected, what came and the way out. That all tensors
// are on one device is checked in Python, before the dispatcher picks a kernel by it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>

namespace bico {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::string describe(const Tensor& tensor);  // "float32 [2, 8, 64, 128]"
std::string describe(ScalarType dtype);      // "float32"

// Everything that both ops take.
struct Arguments {
  const Tensor &q, &k, &v, &cos, &sin;
  const std::optional<Tensor>&span_ids, &cu_seqlens;
  std::optional<int64_t> window;
  double scale;
  bool mirror, interleaved;
};

// What the backward takes besides.
struct BackwardArguments : Arguments {
  const Tensor& grad_out;
  const std::optional<Tensor>& grad_lse;
  const Tensor &out, &lse;
};

void check_arguments(const Arguments& a);
void check_backward_arguments(const BackwardArguments& a);

// lse, cos and sin: float64 for float64 problems, else float32.
inline ScalarType statistics_dtype(const Tensor& q) {
  return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Makes no call where nothing is to do: torch::stable::contiguous looks its operator up by name, about a microsecond.
inline Tensor as_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

}  // namespace bico
