"""Alternatives to the op: the paper's two dense score matrices, and two flash calls merged by log-sum-exp.

Both are differentiable. Like the op, they take q, k, v [B, H, S, D] that are not rotated and cos, sin [1, S, D]. They
return out [B, H, S, D] with [B, S, H, D] memory, as SDPA and the op do.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_CUDA = torch.ops.aten._scaled_dot_product_flash_attention
_CUDA_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, S, D] as transformers' Llama does, in the dtype and the layout of x."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def two_matrices(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the paper's formulation, written as transformers' eager attention is.

    Everything but the softmax is computed in the dtype of q.

    Args:
        mask: a tensor that is added to the scores, broadcastable to [B, H, S, S] and of their dtype. It holds 0 for
            visible keys and `torch.finfo(dtype).min` for hidden ones.
    """
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).mT  # [B, H, m, n]
    mirrored = rotate(q, cos, -sin) @ rotate(k, cos, -sin).mT
    past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = torch.where(past, scores, mirrored) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2).contiguous().transpose(1, 2)


def both_frames(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Return q, k, v of the call on the keys up to the query, then those of the call on the later keys.

    In reverse order, the keys after a query come before it. But causal attention would also include the query's own
    key. So the second call leaves out the last query, which has no later key, and the first key, which is later than no
    query. Then the causal mask covers exactly the later keys.
    """
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    query = rotate(q[:, :, :-1], cos[:, :-1], -sin[:, :-1])
    key = rotate(k[:, :, 1:], cos[:, 1:], -sin[:, 1:])
    return rotate(q, cos, sin), rotate(k, cos, sin), v, query.flip(2), key.flip(2), v[:, :, 1:].flip(2)


def two_flash_calls(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, frames: Callable[..., tuple[Tensor, ...]] = both_frames
) -> Tensor:
    """Call causal flash attention twice: on the keys up to the query, and in reverse order on the later keys.

    Args:
        frames: `both_frames`, compiled or not.
    """
    return _TwoFlashCalls.apply(*frames(q, k, v, cos, sin))


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Return causal out and lse, and the other arguments of the backward on this device."""
    if q.device.type == "cpu":
        out, lse = _CPU(q, k, v, 0.0, True)
        return out, lse, ()
    out, lse, *rest, _ = _CUDA(q, k, v, 0.0, True)
    return out, lse, tuple(rest)


def _flash_backward(
    operands: list[Tensor], rest: tuple[Any, ...], grad_out: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, ...]:
    if not rest:
        return _CPU_BACKWARD(grad_out, *operands, out, lse, 0.0, True)
    *lengths, seed, offset = rest
    return _CUDA_BACKWARD(grad_out, *operands, out, lse, *lengths, 0.0, True, seed, offset)


class _TwoFlashCalls(torch.autograd.Function):
    """Two flash calls as one function. Each backward gets the merged out and lse: its part of the common softmax."""

    @staticmethod
    def forward(ctx: Any, *operands: Tensor) -> Tensor:
        out, lse, ctx.rest = _flash(*operands[:3])
        out_above, lse_above, ctx.rest_above = _flash(*operands[3:])
        out_above, lse_above = out_above.flip(2), lse_above.flip(2)  # of the queries 0 to S - 2
        share = torch.sigmoid(lse_above - lse[:, :, :-1])  # the share of the softmax that the later keys have
        out[:, :, :-1].lerp_(out_above, share[..., None].to(out.dtype))
        lse[:, :, :-1] = torch.logaddexp(lse[:, :, :-1], lse_above)
        ctx.save_for_backward(*operands, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        *operands, out, lse = ctx.saved_tensors
        (grad_out,) = grads
        below = _flash_backward(operands[:3], ctx.rest, grad_out, out, lse)
        flipped = (x[:, :, :-1].flip(2) for x in (grad_out, out, lse))
        above = _flash_backward(operands[3:], ctx.rest_above, *flipped)
        return (*below, *above)
