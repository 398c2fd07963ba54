"""The backend `flex`: split-triangle attention from PyTorch's FlexAttention, two calls merged by log-sum-exp.

A `score_mod` of FlexAttention sees one score, so it cannot choose between two rotations. The keys up to a query and the
later keys therefore each take one call, in the plus and in the minus frame, and the results are merged under one
softmax. On CUDA, `torch.compile` fuses the rotation, the calls and the merge. On the CPU the same code runs eagerly and
materialises the scores; it has no backward there, so it serves tests only.

Unlike the other backends, this one does not contain NaN and infinity to the outputs that see them: a hidden key in a
visited tile spreads its NaN, and keeping it out would cost another pass over k and v. It has no second derivatives.
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from bico_ext.ops import portable
from bico_ext.ops.arguments import check_offsets, statistics_dtype, visible
from bico_ext.ops.rotary import Rotation

HEAD_DIMS = 16, 256  # the fewest elements that Triton multiplies, and the most that the op takes
MOST_MASKS = 32  # in the cache
MOST_GRAPHS = 64  # for other dtypes, heads, head dims and kinds of masks; torch stops compiling after 8


def refusal(device: str) -> str | None:
    """Return why the backend cannot run on a type of device, or None if it can."""
    from torch.utils._triton import has_triton

    if device != "cuda":
        return "the kernels of FlexAttention need an NVIDIA GPU"
    return None if has_triton() else "the kernels of FlexAttention need Triton and a GPU that it supports"


def argument_refusal(dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why the backend cannot take q in this dtype and with this head dim, or None if it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"q must be bfloat16 or float16, got {str(dtype).removeprefix('torch.')}"
    if not HEAD_DIMS[0] <= head_dim <= HEAD_DIMS[1]:
        return f"q must have a head dim D of {HEAD_DIMS[0]} to {HEAD_DIMS[1]}, got D = {head_dim}"
    return None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    span_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int | None,
    scale: float,
    mirror: bool,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Return out and lse; the arguments are those of `backends.Backend.attention`, already checked."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise RuntimeError(
            "backend 'flex' has no backward on the CPU; call it under torch.no_grad(), or use backend='portable'"
        )
    if q.numel() == 0:  # FlexAttention refuses empty sequences
        return portable.attention(q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, mirror, interleaved)
    masks = block_masks(q, span_ids, cu_seqlens, window, mirror)
    with portable.without_autocast(q), _many_graphs():
        return _on(q.device.type, attend)(q, k, v, cos, sin, masks, scale, interleaved)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    masks: tuple[BlockMask, ...],
    scale: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Return out and lse of one call per mask, the first of them in the plus frame, the second in the minus frame."""
    wide = statistics_dtype(q)
    rotation = Rotation(cos.to(wide)[:, None], sin.to(wide)[:, None], interleaved, mirror=len(masks) == 2)
    frames = zip(rotation.frames(q.to(wide) * scale), rotation.frames(k.to(wide)), masks, strict=True)
    parts = [_flex(frame_q.to(q.dtype), frame_k.to(k.dtype), v, mask) for frame_q, frame_k, mask in frames]
    out, lse = parts[0] if len(parts) == 1 else merge(*parts[0], *parts[1])
    return out.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2), lse


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Return out, in float32 or wider, and lse of one softmax over the keys of both parts; either may see no key.

    A log-sum-exp of -inf is replaced by a finite number, because the difference of two would be NaN; that also stops
    the gradients.
    """
    lowest = torch.finfo(lse.dtype).min / 4
    first, second = (x.masked_fill(x == -torch.inf, lowest) for x in (lse, other_lse))
    share = torch.sigmoid(second - first)[..., None]  # of the softmax that the other part has
    wide = torch.promote_types(out.dtype, lse.dtype)
    out, other_out = out.to(wide), other_out.to(wide)
    blind = (lse == -torch.inf) & (other_lse == -torch.inf)
    return out + share * (other_out - out), torch.logaddexp(first, second).masked_fill(blind, -torch.inf)


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    out, aux = flex_attention(
        q,
        k,
        v,
        block_mask=mask,
        scale=1.0,  # q is scaled already
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options={"BACKEND": "TRITON"},  # one kernel for every length, and not another one for S < 128
        return_aux=AuxRequest(lse=True),
    )
    assert aux.lse is not None
    return out, aux.lse


_MASKS: dict[tuple, tuple[list[weakref.ref], list[int], tuple[BlockMask, ...]]] = {}


def block_masks(
    q: Tensor, span_ids: Tensor | None, cu_seqlens: Tensor | None, window: int | None, mirror: bool
) -> tuple[BlockMask, ...]:
    """Return the masks of the two calls, or of the only one; all layers of a model share them.

    They are built once for each `span_ids` and `cu_seqlens`, and again if those were changed in place (not through
    `.data`). They neither keep these tensors alive nor outlive them. Within the graph of a compiled caller, and for
    ids made in inference mode, each call builds its own.
    """
    length, device = q.shape[2], q.device
    sources = [x for x in (span_ids, cu_seqlens) if x is not None]
    fake = any(isinstance(x, FakeTensor) for x in (q, *sources))
    if fake or torch.compiler.is_compiling() or any(x.is_inference() for x in sources):  # which have no versions
        return _built(span_ids, cu_seqlens, window, length, device, mirror)
    key = (*(None if x is None else id(x) for x in (span_ids, cu_seqlens)), length, device, window, mirror)
    versions = [x._version for x in sources]
    known = _MASKS.get(key)
    if known is not None and known[1] == versions and all(a() is b for a, b in zip(known[0], sources, strict=True)):
        return known[2]
    masks = _built(span_ids, cu_seqlens, window, length, device, mirror)
    _MASKS.pop(key, None)
    while len(_MASKS) >= MOST_MASKS:
        _MASKS.pop(next(iter(_MASKS)), None)
    references = [weakref.ref(x, lambda _: _MASKS.pop(key, None)) for x in sources]
    _MASKS[key] = references, versions, masks
    return masks


def _built(
    span_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int | None,
    length: int,
    device: torch.device,
    mirror: bool,
) -> tuple[BlockMask, ...]:
    with torch.inference_mode(False), torch.no_grad():  # masks made in inference mode could not serve training
        sequence = None
        if cu_seqlens is not None:
            if device.type != "cpu" and not torch.compiler.is_compiling():  # on the CPU they were checked before
                check_offsets(cu_seqlens.tolist(), length)
            position = torch.arange(length, dtype=torch.int32, device=device)
            sequence = torch.searchsorted(cu_seqlens, position, right=True, out_int32=True)  # [S]
        reach = torch.tensor(length if window is None else window, device=device)
        ids = None if span_ids is None else span_ids.clone()  # not the caller's, which would stay alive, or change
        with _many_graphs():
            return tuple(
                _on(device.type, create_block_mask)(
                    _mask_mod(keys, ids, sequence, reach), 1 if ids is None else len(ids), None, length, length, device
                )
                for keys in (("past", "later") if mirror else ("all",))
            )


def _mask_mod(keys: str, span_ids: Tensor | None, sequence: Tensor | None, window: Tensor) -> Callable[..., Tensor]:
    """Return which `keys` ("past", with the query's own; "later"; "all") a query sees, as FlexAttention asks for it.

    For the compiler these functions are one and the same code over other tensors, so that no batch compiles anew.
    """

    def mask_mod(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        past = n <= m
        seen = (m - n).abs() < window
        if span_ids is not None:
            seen = seen & visible(span_ids[b, m], span_ids[b, n], past)
        if sequence is not None:
            seen = seen & (sequence[m] == sequence[n])
        if keys == "all":
            return seen
        return seen & past if keys == "past" else seen & ~past

    return mask_mod


def _on(device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, compiled on CUDA unless what calls it is being compiled."""
    return _compiled(function) if device == "cuda" and not torch.compiler.is_compiling() else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True, fullgraph=function is attend)


def _many_graphs() -> AbstractContextManager[Any]:
    """Let torch compile as many graphs as the backend needs, and each for its own scale.

    Sizes that happen to be equal in the first call, such as the batch and the number of heads, are not tied together.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS, specialize_float=True))
    stack.enter_context(torch.fx.experimental._config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
    return stack
