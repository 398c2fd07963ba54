"""The definition that every kernel is judged by: dense, plain torch, and importing nothing of ours.

It materialises [B, Hq, S, S] scores, so use it in tests and on small inputs only.
"""

import math

import torch
from torch import Tensor


def visible(span_ids: Tensor) -> Tensor:
    """Which key each query sees: context (0), or the past of the query's own span (> 0); never -1.

    Args:
        span_ids: int [B, S].

    Returns:
        bool [B, S (query m), S (key n)].
    """
    m_span, n_span = span_ids[:, :, None], span_ids[:, None, :]
    position = torch.arange(span_ids.shape[1], device=span_ids.device)
    past = position[None, :] <= position[:, None]  # [m, n]
    return (n_span == 0) | ((n_span > 0) & (n_span == m_span) & past)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the first R elements of each head of x [B, H, S, D]; cos and sin are [1 or B, S, R]."""
    width = cos.shape[-1]
    turning, still = x[..., :width], x[..., width:]
    if interleaved:
        partner = torch.stack((-turning[..., 1::2], turning[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = turning.chunk(2, dim=-1)
        partner = torch.cat((-second, first), dim=-1)
    return torch.cat((turning * cos[:, None] + partner * sin[:, None], still), dim=-1)


def split_triangle_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    span_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    mirror: bool = True,
    interleaved: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Split-triangle RoPE attention, dense. Arguments as in `bico_ext.split_triangle_attention`.

    Everything is computed in the dtype of q (cos and sin are converted to it), so pass fp64 for a reference and
    bf16 to see the error that plain torch makes in bf16.
    """
    batch, query_heads, length, head_dim = q.shape
    if span_ids is None:
        span_ids = torch.zeros(batch, length, dtype=torch.int32, device=q.device)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    group = query_heads // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # [B, Hq, S, D]

    position = torch.arange(length, device=q.device)
    past = position[None, :] <= position[:, None]  # [m, n]: key n at or before query m
    scores = rotate(q, cos, sin, interleaved) @ rotate(k, cos, sin, interleaved).mT  # [B, Hq, m, n]
    if mirror:
        mirrored = rotate(q, cos, -sin, interleaved) @ rotate(k, cos, -sin, interleaved).mT
        scores = torch.where(past, scores, mirrored)
    scores = scores * scale

    seen = visible(span_ids)
    if cu_seqlens is not None:
        sequence = torch.searchsorted(cu_seqlens.long(), position, right=True)
        seen = seen & (sequence[:, None] == sequence[None, :])
    seen = seen[:, None]  # [B, 1, m, n]
    scores = scores.masked_fill(~seen, -math.inf)
    blind = ~seen.any(-1, keepdim=True)
    lse = scores.masked_fill(blind, 0).logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp().masked_fill(~seen, 0)
    out = weights @ v
    return (out, lse.masked_fill(blind, -math.inf).squeeze(-1)) if return_lse else out
