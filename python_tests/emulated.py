"""The op as its CUDA kernels compute it, run on the CPU by the emulator."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bico_ext import _emulator


def empty_heads(like: Tensor) -> Tensor:
    """[B, H, S, D] with [B, S, H, D] memory, as the op allocates it, full of NaN."""
    batch, heads, length, head_dim = like.shape
    return like.new_full((batch, length, heads, head_dim), math.nan).transpose(1, 2)


class _Emulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, arguments: dict, how: dict) -> tuple[Tensor, Tensor]:
        deterministic = how.get("deterministic", True)
        how = {name: value for name, value in how.items() if name != "deterministic"}
        out, lse = empty_heads(q), q.new_full(q.shape[:3], math.nan, dtype=arguments["cos"].dtype)
        ctx.arguments = {**arguments, "q": q, "k": k, "v": v, "out": out, "lse": lse}
        ctx.how, ctx.deterministic = how, deterministic
        ctx.set_materialize_grads(False)
        _emulator.forward(ctx.arguments, **how)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            grad_out = torch.zeros_like(ctx.arguments["out"])
        if grad_out.stride(3) != 1:
            grad_out = grad_out.contiguous()
        if grad_lse is not None:
            grad_lse = grad_lse.contiguous()
        grads = {f"grad_{name}": empty_heads(ctx.arguments[name]) for name in ("q", "k", "v")}
        arguments = {**ctx.arguments, "grad_out": grad_out, "grad_lse": grad_lse, **grads}
        _emulator.backward(arguments, deterministic=ctx.deterministic, **ctx.how)
        return *grads.values(), None, None


def split_triangle_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    span_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    mirror: bool = True,
    interleaved: bool = False,
    return_lse: bool = False,
    how: dict,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `bico_ext.split_triangle_attention`; `how` has schedule, copies, seed, deterministic and banks."""
    table_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    arguments = {
        "cos": cos.to(table_dtype).contiguous(),
        "sin": sin.to(table_dtype).contiguous(),
        "span_ids": None if span_ids is None else span_ids.contiguous(),
        "cu_seqlens": None if cu_seqlens is None else cu_seqlens.contiguous(),
        "window": window,
        "scale": 1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        "mirror": mirror,
        "interleaved": interleaved,
    }
    out, lse = _Emulated.apply(q, k, v, arguments, how)
    return (out, lse) if return_lse else out


def attention(
    schedule: str,
    copies: str,
    seed: int = 0,
    deterministic: bool = True,
    banks: _emulator.BankCounts | None = None,
) -> Callable[..., Any]:
    """`split_triangle_attention` under one schedule. `banks` gets what its accesses to shared memory cost."""
    how = {"schedule": schedule, "copies": copies, "seed": seed, "deterministic": deterministic, "banks": banks}
    return partial(split_triangle_attention, how=how)
