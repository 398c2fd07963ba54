"""The definition of split-triangle attention in dense, plain torch, against which every kernel is tested.

It imports nothing else from this package. It materialises the scores [B, Hq, S, S], so use it in tests and on small
inputs only.
"""

import math

import torch
from torch import Tensor

CAUSAL_CONTEXT = 2**31 - 1  # the span id of context that is read causally; csrc/visibility.h has the same number


def visible(span_ids: Tensor, window: int | None = None) -> Tensor:
    """Return which keys each query sees.

    Key n is visible to query m if it is context (`span_ids[n]` is 0 or `CAUSAL_CONTEXT`), or if it is in the query's
    own span and not after the query (`span_ids[n] == span_ids[m] > 0` and n <= m). A query whose own span id is
    `CAUSAL_CONTEXT` sees no key after itself. A key with span id -1 (placeholder or padding) is visible to no query.
    With a window, keys at a distance |m - n| of `window` or more are hidden as well.

    Args:
        span_ids: int [B, S].
        window: at least 1, or None for no limit.

    Returns:
        bool [B, S (query m), S (key n)].
    """
    m_span, n_span = span_ids[:, :, None], span_ids[:, None, :]
    position = torch.arange(span_ids.shape[1], device=span_ids.device)
    past = position[None, :] <= position[:, None]  # [m, n]
    context = (n_span == 0) | (n_span == CAUSAL_CONTEXT)
    seen = (context & (past | (m_span != CAUSAL_CONTEXT))) | ((n_span > 0) & (n_span == m_span) & past)
    if window is not None:
        seen &= (position[None, :] - position[:, None]).abs() < window
    return seen


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the first R elements of each head: R(m) x with (cos, sin), R(-m) x with (cos, -sin).

    Args:
        x: [B, H, S, D].
        cos, sin: [1 or B, S, R]. The elements from R on are not rotated.
        interleaved: rotary pairs are (2i, 2i + 1) instead of (i, i + R / 2).
    """
    width = cos.shape[-1]
    rotary, rest = x[..., :width], x[..., width:]
    if interleaved:
        partner = torch.stack((-rotary[..., 1::2], rotary[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = rotary.chunk(2, dim=-1)
        partner = torch.cat((-second, first), dim=-1)
    return torch.cat((rotary * cos[:, None] + partner * sin[:, None], rest), dim=-1)


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute dense split-triangle RoPE attention; the arguments are those of `bico_ext.split_triangle_attention`.

    Keys up to the query are scored in the plus frame R(m), later keys in the minus frame R(-m). Everything is computed
    in the dtype of q, to which cos and sin are converted. Pass fp64 for a reference, or bf16 to see the error that
    plain torch makes in bf16.
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
    scores = rotate(q, cos, sin, interleaved) @ rotate(k, cos, sin, interleaved).mT  # plus frame, [B, Hq, m, n]
    if mirror:
        minus = rotate(q, cos, -sin, interleaved) @ rotate(k, cos, -sin, interleaved).mT
        scores = torch.where(past, scores, minus)
    scores = scores * scale

    seen = visible(span_ids, window)
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
