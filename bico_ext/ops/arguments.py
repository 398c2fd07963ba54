"""The contract of `split_triangle_attention` in Python, for the backends that have no checks of their own.

The messages are those of the compiled op (csrc/torch/checks.cpp); the same tests hold both to them.
"""

import itertools

import torch
from torch import Tensor

from bico_ext.ops.reference import CAUSAL_CONTEXT

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    span_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int | None,
) -> None:
    """Raise a RuntimeError that names the first argument with a wrong dtype, shape, strides or value."""
    _check_queries(q)
    _check_keys("k", k, q)
    _check_keys("v", v, q)
    heads = k.shape[1], v.shape[1]
    _expect(heads[0] == heads[1], f"k and v must have the same number of heads, got {heads[0]} and {heads[1]}")
    _check_rotary("cos", cos, q)
    _check_rotary("sin", sin, q)
    _expect(cos.shape == sin.shape, f"cos and sin must have the same shape, got {_text(cos)} and {_text(sin)}")
    if span_ids is not None:
        shape = [q.shape[0], q.shape[2]]
        expected = f"span_ids must be int32 [B, S] = {shape}, got {_text(span_ids)}"
        _expect(span_ids.dtype == torch.int32 and list(span_ids.shape) == shape, expected + _to_int(span_ids))
    _expect(window is None or window >= 1, f"window must be at least 1, got {window}; None sets no limit")
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, q)


def check_dimensions(q: Tensor) -> None:
    """Raise a RuntimeError if q is not [B, Hq, S, D]."""
    if q.dim() != 4:  # not with _expect, which would build the message in every call: a microsecond
        raise RuntimeError(f"q must be [B, Hq, S, D], got {_text(q)}")


def is_context(span_ids: Tensor) -> Tensor:
    """Return which span ids are those of context."""
    return (span_ids == 0) | (span_ids == CAUSAL_CONTEXT)


def visible(m_span: Tensor, n_span: Tensor, past: Tensor) -> Tensor:
    """Return whether queries see keys of the same sequence, by their span ids and whether n <= m; all broadcastable.

    `bico_ext.ops.reference.visible` defines the rule, and stays independent of this.
    """
    return (is_context(n_span) & (past | (m_span != CAUSAL_CONTEXT))) | ((n_span > 0) & (n_span == m_span) & past)


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace it
def has_autocast(device: str) -> bool:
    """Return whether a type of device has autocast."""
    return torch.amp.is_autocast_available(device)


def dtype_under_autocast(x: Tensor) -> torch.dtype:
    """Return the dtype that autocast gives to x: its own if autocast is off, or if x is float64 or no float."""
    device = x.device.type
    if not (has_autocast(device) and torch.is_autocast_enabled(device)):
        return x.dtype
    kept = x.dtype == torch.float64 or not x.dtype.is_floating_point
    return x.dtype if kept else torch.get_autocast_dtype(device)


def autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v in the dtype of autocast if it is on; float64 stays, and so do cos and sin of the caller."""
    q, k, v = (x.to(dtype_under_autocast(x)) for x in (q, k, v))
    return q, k, v


def statistics_dtype(q: Tensor) -> torch.dtype:
    """Return the dtype of lse, which is also that of the softmax and of sums."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def empty_heads(x: Tensor) -> Tensor:
    """Return an empty tensor like x [B, H, S, D], laid out in memory as [B, S, H, D]."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _text(x: Tensor) -> str:
    return f"{_name(x.dtype)} {list(x.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _to_int(x: Tensor) -> str:
    name = "span_ids" if x.dim() == 2 else "cu_seqlens"
    return "" if x.dtype == torch.int32 else f"; use {name}.int()"


def _check_last_dimension(name: str, x: Tensor) -> None:
    _expect(
        x.shape[-1] <= 1 or x.stride(-1) == 1,
        f"{name} must have a contiguous last dimension, got strides {list(x.stride())}; use {name}.contiguous()",
    )


def _check_queries(q: Tensor) -> None:
    _expect(q.dtype in _DTYPES, f"q must be float64, float32, bfloat16 or float16, got {_text(q)}")
    check_dimensions(q)
    _expect(q.shape[1] >= 1, f"q must have at least one head, got {_text(q)}")
    _expect(1 <= q.shape[3] <= 256, f"q must have a head dim D of 1 to 256, got D = {q.shape[3]}")
    _check_last_dimension("q", q)


def _check_keys(name: str, x: Tensor, q: Tensor) -> None:
    batch, heads, length, head_dim = q.shape
    _expect(
        x.dtype == q.dtype,
        f"{name} must have the dtype of q ({_name(q.dtype)}), got {_name(x.dtype)}; convert one with .to(dtype)",
    )
    _expect(
        x.dim() == 4 and (x.shape[0], *x.shape[2:]) == (batch, length, head_dim),
        f"{name} must be [B, Hkv, S, D] = [{batch}, Hkv, {length}, {head_dim}] to match q, got {_text(x)}",
    )
    _expect(
        x.shape[1] >= 1 and heads % x.shape[1] == 0,
        f"{name} must have a number of heads that divides the {heads} heads of q, got {x.shape[1]}",
    )
    _check_last_dimension(name, x)


def _check_rotary(name: str, x: Tensor, q: Tensor) -> None:
    batch, _, length, head_dim = q.shape
    _expect(x.dtype in _DTYPES, f"{name} must be floating point, got {_text(x)}; use {name}.float()")
    _expect(
        x.dim() == 3 and x.shape[0] in (1, batch) and x.shape[1] == length,
        f"{name} must be [1 or B, S, R] = [1 or {batch}, {length}, R], got {_text(x)}",
    )
    width = x.shape[2]
    _expect(
        width % 2 == 0 and width <= head_dim,
        f"{name} must have an even rotary width R of at most D = {head_dim}, got R = {width}",
    )


def _check_cu_seqlens(cu_seqlens: Tensor, q: Tensor) -> None:
    batch, length = q.shape[0], q.shape[2]
    _expect(
        cu_seqlens.dtype == torch.int32 and cu_seqlens.dim() == 1 and len(cu_seqlens) >= 1,
        f"cu_seqlens must be int32 [sequences + 1], got {_text(cu_seqlens)}{_to_int(cu_seqlens)}",
    )
    _expect(
        batch == 1,
        f"cu_seqlens needs one packed batch entry, B = 1, got B = {batch}; drop cu_seqlens, or pack the batch along S",
    )
    end = f"cu_seqlens must end with S = {length}, got"
    _expect(len(cu_seqlens) >= 2 or length == 0, f"{end} one offset alone: no sequence")
    if cu_seqlens.device.type == "cpu":  # elsewhere, whoever reads the values checks them
        check_offsets(cu_seqlens.tolist(), length)


def check_offsets(offsets: list[int], length: int) -> None:
    """Raise a RuntimeError if the values of `cu_seqlens` do not ascend from 0 to S = `length`."""
    end = f"cu_seqlens must end with S = {length}, got"
    _expect(offsets[0] == 0, f"cu_seqlens must begin with 0, got {offsets[0]}")
    _expect(offsets[-1] == length, f"{end} {offsets[-1]}")
    for i, (a, b) in enumerate(itertools.pairwise(offsets)):
        _expect(a <= b, f"cu_seqlens must not descend, got {a} before {b} at index {i}")
