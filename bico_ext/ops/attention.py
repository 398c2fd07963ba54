"""Split-triangle attention with the backend that suits the machine."""

import math

import torch
from torch import Tensor

from bico_ext.ops import backends
from bico_ext.ops.arguments import check_dimensions


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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute bidirectional RoPE attention whose relative distance is always -|m - n|, as in causal pre-training.

    Keys up to the query (n <= m) are scored in the plus frame, `(R(m) q) . (R(n) k)`. Later keys are scored in the
    minus frame, where every sine is negated: `(R(-m) q) . (R(-n) k)`. One softmax runs over all the keys that the span
    ids and the window make visible. Memory beyond inputs and outputs is O(S D).

    Args:
        q: [B, Hq, S, D], not rotated; float64, float32, bfloat16 or float16; D from 1 to 256. Any strides with a
            contiguous last dimension.
        k, v: [B, Hkv, S, D], with the dtype and device of q; Hkv divides Hq (grouped-query attention).
        cos, sin: [1 or B, S, R], the rotation of each position; R is even and at most D. The two elements of a pair
            have equal values. Elements from R on are not rotated. Used in float32 (float64 if q is float64).
        span_ids: int32 [B, S]. Key n is visible to query m if and only if it is context (`span_ids[n] == 0`), or it is
            in m's own span and not after m (`span_ids[n] == span_ids[m] > 0 and n <= m`). A token with a negative id
            (placeholder or padding) is never a key. The id 2**31 - 1 (`bico_ext.ops.reference.CAUSAL_CONTEXT`) is
            reserved for context that is read causally: its token is context as a key, but as a query it sees no key
            after itself. All ones is causal attention. Default: all 0, so that everything is visible.
        cu_seqlens: int32 [sequences + 1], ascending from 0 to S: offsets of sequences packed along S (B = 1). On a GPU
            they are not checked: others give wrong results, and the deterministic backward may wait for ever.
        window: A sliding window to both sides, at least 1: key n is visible to query m only if |m - n| < window, where
            m and n are places along S. Default: no limit.
        scale: Factor of the scores. Default: 1 / sqrt(D).
        mirror: False scores later keys in the plus frame, too. This is plain bidirectional RoPE attention, the paper's
            control. Default: True.
        interleaved: Rotary pairs are (2i, 2i + 1), as in GLM, instead of (i, i + R / 2), as in Llama (the default).
        return_lse: Also return the log-sum-exp of each query's scores.
        backend: "compiled" (C++ and CUDA kernels), "portable" (plain torch, on every device), "flex" (FlexAttention on
            CUDA, in bfloat16 or float16, D from 16 on) or "auto": compiled where this build has kernels for the device
            of q, otherwise portable. The environment variable BICO_BACKEND takes the place of "auto".

    Returns:
        out: [B, Hq, S, D] in the dtype of q, laid out in memory as [B, S, Hq, D]; 0 where a query sees no key.
        lse (only with return_lse): [B, Hq, S], float32 (float64 if q is float64), differentiable; -inf where a query
            sees no key.

    Raises:
        RuntimeError: an argument is not a tensor, or has the wrong dtype, shape, device or strides, or the backend does
            not run on the device of q or does not take q. The message names the argument and the remedy.
        ValueError: there is no such backend.
        NotImplementedError: the call is within torch.func.grad, jvp or one of their relatives, or an input has a
            forward-mode derivative; with the other backends than "compiled", also within torch.vmap.

    The backward is deterministic, except on CUDA in bfloat16 and float16: there the order in which the compiled kernels
    sum gradients of q is fixed only under `torch.use_deterministic_algorithms`. Second derivatives exist with the
    portable backend; the others raise RuntimeError. NaN in a row of q, k or v reaches the outputs that see that row,
    and no others, except with the flex backend, where it may reach others, too. So does infinity, except that a score
    of -inf gets weight 0.

    Example:
        >>> import torch
        >>> from bico_ext import split_triangle_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
        >>> angle = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1, 0.01, 0.001])).repeat(1, 2)[None]
        >>> placeholder = torch.tensor([[0, 0, -1, 0, 0]], dtype=torch.int32)
        >>> split_triangle_attention(q, k, v, angle.cos(), angle.sin(), span_ids=placeholder).shape
        torch.Size([1, 2, 5, 8])
    """
    others = {"k": k, "v": v, "cos": cos, "sin": sin, "span_ids": span_ids, "cu_seqlens": cu_seqlens}
    for name, given in {"q": q, **others}.items():
        if not isinstance(given, Tensor) and not (given is None and name in ("span_ids", "cu_seqlens")):
            raise RuntimeError(f"{name} must be a tensor, got {type(given).__name__}")
    check_dimensions(q)
    if cos.requires_grad or sin.requires_grad:
        raise RuntimeError(
            "cos and sin must not require gradients, because the op computes none for them; use cos.detach() and "
            "sin.detach()"
        )
    if window is not None and not isinstance(window, int | torch.SymInt):
        raise RuntimeError(f"window must be an int or None, got {window!r}")
    for name, x in others.items():
        if x is not None and x.device != q.device:
            raise RuntimeError(
                f"{name} must be on the device of q ({q.device}), got {x.device}; use {name}.to(q.device)"
            )
    if scale is None:
        scale = 1 / math.sqrt(max(q.shape[-1], 1))
    attention = backends.attention(backend, q)
    out, lse = attention(q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, mirror, interleaved)
    return (out, lse) if return_lse else out
