#include "checks.h"

#include <cstdint>
#include <initializer_list>

namespace bico {
namespace {

std::string describe_shape(torch::headeronly::IntHeaderOnlyArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void check_unit_stride(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.size(tensor.dim() - 1) <= 1 || tensor.stride(tensor.dim() - 1) == 1, name,
                  " must have a contiguous last dimension, got strides ", describe_shape(tensor.strides()), "; use ",
                  name, ".contiguous()");
}

// Kernels load elements, never parts of them. torch.frombuffer with an odd offset makes such a tensor.
void check_alignment(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.element_size() == 0, name,
                  " must lie in memory at a multiple of its element size, ", tensor.element_size(), " bytes; use ",
                  name, ".clone()");
}

bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  if (tensor.dim() != int64_t(shape.size())) return false;
  int64_t i = 0;
  for (const int64_t size : shape) {
    if (tensor.size(i++) != size) return false;
  }
  return true;
}

void check_queries(const Tensor& q) {
  const ScalarType dtype = q.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  "q must be float64, float32, bfloat16 or float16, got ", describe(q));
  STD_TORCH_CHECK(q.dim() == 4, "q must be [B, Hq, S, D], got ", describe(q));
  STD_TORCH_CHECK(q.size(1) >= 1, "q must have at least one head, got ", describe(q));
  STD_TORCH_CHECK(q.size(3) >= 1 && q.size(3) <= 256, "q must have a head dim D of 1 to 256, got D = ", q.size(3));
  check_unit_stride("q", q);
}

void check_keys(const char* name, const Tensor& x, const Tensor& q) {
  STD_TORCH_CHECK(x.scalar_type() == q.scalar_type(), name, " must have the dtype of q (", describe(q.scalar_type()),
                  "), got ", describe(x.scalar_type()), "; convert one with .to(dtype)");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == q.size(0) && x.size(2) == q.size(2) && x.size(3) == q.size(3), name,
                  " must be [B, Hkv, S, D] = [", q.size(0), ", Hkv, ", q.size(2), ", ", q.size(3), "] to match q, got ",
                  describe(x));
  STD_TORCH_CHECK(x.size(1) >= 1 && q.size(1) % x.size(1) == 0, name, " must have a number of heads that divides the ",
                  q.size(1), " heads of q, got ", x.size(1));
  check_unit_stride(name, x);
}

void check_rotary(const char* name, const Tensor& x, const Tensor& q) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  name, " must be floating point, got ", describe(x), "; use ", name, ".float()");
  STD_TORCH_CHECK(x.dim() == 3 && (x.size(0) == 1 || x.size(0) == q.size(0)) && x.size(1) == q.size(2), name,
                  " must be [1 or B, S, R] = [1 or ", q.size(0), ", ", q.size(2), ", R], got ", describe(x));
  STD_TORCH_CHECK(x.size(2) % 2 == 0 && x.size(2) <= q.size(3), name,
                  " must have an even rotary width R of at most D = ", q.size(3), ", got R = ", x.size(2));
}

void check_span_ids(const Tensor& span_ids, const Tensor& q) {
  STD_TORCH_CHECK(span_ids.scalar_type() == ScalarType::Int && has_shape(span_ids, {q.size(0), q.size(2)}),
                  "span_ids must be int32 [B, S] = [", q.size(0), ", ", q.size(2), "], got ", describe(span_ids),
                  span_ids.scalar_type() == ScalarType::Int ? "" : "; use span_ids.int()");
}

void check_cu_seqlens(const Tensor& cu_seqlens, const Tensor& q) {
  STD_TORCH_CHECK(cu_seqlens.scalar_type() == ScalarType::Int && cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1,
                  "cu_seqlens must be int32 [sequences + 1], got ", describe(cu_seqlens),
                  cu_seqlens.scalar_type() == ScalarType::Int ? "" : "; use cu_seqlens.int()");
  STD_TORCH_CHECK(q.size(0) == 1, "cu_seqlens needs one packed batch entry, B = 1, got B = ", q.size(0),
                  "; drop cu_seqlens, or pack the batch along S");
  STD_TORCH_CHECK(cu_seqlens.size(0) >= 2 || q.size(2) == 0, "cu_seqlens must end with S = ", q.size(2),
                  ", got one offset alone: no sequence");
  if (!cu_seqlens.is_cpu()) return;  // values on a device are not read back: that would stall the stream
  const Tensor values = as_contiguous(cu_seqlens);
  const auto* offsets = static_cast<const int32_t*>(values.const_data_ptr());
  const int64_t last = cu_seqlens.size(0) - 1;
  STD_TORCH_CHECK(offsets[0] == 0, "cu_seqlens must begin with 0, got ", offsets[0]);
  STD_TORCH_CHECK(offsets[last] == q.size(2), "cu_seqlens must end with S = ", q.size(2), ", got ", offsets[last]);
  for (int64_t i = 0; i < last; ++i) {
    STD_TORCH_CHECK(offsets[i] <= offsets[i + 1], "cu_seqlens must not descend, got ", offsets[i], " before ",
                    offsets[i + 1], " at index ", i);
  }
}

// `tensor` has the dtype and shape of q.
void check_like_q(const char* name, const Tensor& tensor, const Tensor& q) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == q.scalar_type() && has_shape(tensor, {q.size(0), q.size(1), q.size(2), q.size(3)}), name,
      " must be like q, ", describe(q), ", got ", describe(tensor));
  check_alignment(name, tensor);
}

// `statistics` is [B, Hq, S] of the dtype that lse has for q.
void check_statistics(const char* name, const Tensor& statistics, const Tensor& q) {
  STD_TORCH_CHECK(
      statistics.scalar_type() == statistics_dtype(q) && has_shape(statistics, {q.size(0), q.size(1), q.size(2)}), name,
      " must be ", describe(statistics_dtype(q)), " [B, Hq, S] = [", q.size(0), ", ", q.size(1), ", ", q.size(2),
      "], got ", describe(statistics));
  check_alignment(name, statistics);
}

}  // namespace

std::string describe(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return "float64";
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Short: return "int16";
    case ScalarType::Bool: return "bool";
    default: return "dtype number " + std::to_string(int(dtype));
  }
}

std::string describe(const Tensor& tensor) {
  return describe(tensor.scalar_type()) + " " + describe_shape(tensor.sizes());
}

void check_arguments(const Arguments& a) {
  check_queries(a.q);
  check_keys("k", a.k, a.q);
  check_keys("v", a.v, a.q);
  STD_TORCH_CHECK(a.k.size(1) == a.v.size(1), "k and v must have the same number of heads, got ", a.k.size(1), " and ",
                  a.v.size(1));
  check_rotary("cos", a.cos, a.q);
  check_rotary("sin", a.sin, a.q);
  STD_TORCH_CHECK(a.cos.size(0) == a.sin.size(0) && a.cos.size(2) == a.sin.size(2),
                  "cos and sin must have the same shape, got ", describe(a.cos), " and ", describe(a.sin));
  if (a.span_ids) check_span_ids(*a.span_ids, a.q);
  STD_TORCH_CHECK(!a.window || *a.window >= 1, "window must be at least 1, got ", a.window.value_or(1),
                  "; None sets no limit");
  check_alignment("q", a.q);
  check_alignment("k", a.k);
  check_alignment("v", a.v);
  check_alignment("cos", a.cos);
  check_alignment("sin", a.sin);
  if (a.span_ids) check_alignment("span_ids", *a.span_ids);
  if (a.cu_seqlens) check_alignment("cu_seqlens", *a.cu_seqlens);
  if (a.cu_seqlens) check_cu_seqlens(*a.cu_seqlens, a.q);
}

void check_backward_arguments(const BackwardArguments& a) {
  check_arguments(a);
  check_like_q("grad_out", a.grad_out, a.q);
  check_like_q("out", a.out, a.q);
  check_statistics("lse", a.lse, a.q);
  if (a.grad_lse) check_statistics("grad_lse", *a.grad_lse, a.q);
}

}  // namespace bico
