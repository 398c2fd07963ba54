#include "prepare.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <array>

namespace bico {
namespace {

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

// A tensor on the device of `like`. torch::stable::new_empty would look its operator up by name, as contiguous does.
template <size_t dims>
Tensor empty_strided(const Tensor& like, const std::array<int64_t, dims>& sizes,
                     const std::array<int64_t, dims>& strides, ScalarType dtype) {
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(dims), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, device_index, &handle));
  return Tensor(handle);
}

// Strides count an empty dimension as one row, as torch's own do.
int64_t at_least_1(int64_t size) {
  return std::max<int64_t>(size, 1);
}

// [B, H, S, D] whose memory is [B, S, H, D], so that the caller's transpose back is free.
Tensor empty_heads(const Tensor& like) {
  const int64_t B = like.size(0), H = like.size(1), S = like.size(2), D = like.size(3);
  return empty_strided<4>(like, {B, H, S, D}, {at_least_1(S) * H * D, D, H * D, 1}, like.scalar_type());
}

// [B, H, S], contiguous.
Tensor empty_statistics(const Tensor& q) {
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2);
  return empty_strided<3>(q, {B, H, S}, {H * at_least_1(S), at_least_1(S), 1}, statistics_dtype(q));
}

// A gradient may be expanded (stride 0), as that of a sum is.
Tensor with_unit_stride(const Tensor& x) {
  return x.stride(3) == 1 ? x : as_contiguous(x);
}

Tensor contiguous_as(const Tensor& x, ScalarType dtype) {
  return as_contiguous(x.scalar_type() == dtype ? x : torch::stable::to(x, dtype));
}

}  // namespace

Prepared::Prepared(const Arguments& a)
    : cos(contiguous_as(a.cos, statistics_dtype(a.q))), sin(contiguous_as(a.sin, statistics_dtype(a.q))) {
  if (a.span_ids) span_ids = as_contiguous(*a.span_ids);
  if (a.cu_seqlens) cu_seqlens = as_contiguous(*a.cu_seqlens);
}

void Prepared::fill(const Arguments& a, Problem& p) const {
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
  if (a.window) p.window = *a.window;
  p.scale = a.scale;
  p.mirror = a.mirror;
}

PreparedForward::PreparedForward(const Arguments& a) : Prepared(a), out(empty_heads(a.q)), lse(empty_statistics(a.q)) {
  fill(a, problem);
  problem.out = heads_of(out);
  problem.lse = statistics_of(lse);
}

PreparedBackward::PreparedBackward(const BackwardArguments& a)
    : Prepared(a),
      out(with_unit_stride(a.out)),
      grad_out(with_unit_stride(a.grad_out)),
      lse(as_contiguous(a.lse)),
      grad_q(empty_heads(a.q)),
      grad_k(empty_heads(a.k)),
      grad_v(empty_heads(a.v)) {
  if (a.grad_lse) grad_lse = as_contiguous(*a.grad_lse);
  fill(a, problem);
  problem.out = heads_of(out);
  problem.grad_out = heads_of(grad_out);
  problem.grad_q = heads_of(grad_q);
  problem.grad_k = heads_of(grad_k);
  problem.grad_v = heads_of(grad_v);
  problem.lse = statistics_of(lse);
  if (grad_lse) problem.grad_lse = statistics_of(*grad_lse);
}

}  // namespace bico
