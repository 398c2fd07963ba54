"""The compiled op: split-triangle RoPE attention with gradients, autocast and torch.compile support."""

import math
import pathlib
from typing import Any

import torch
from torch import Tensor

try:
    import bico_ext._C as _C
except ImportError as error:
    raise ImportError(
        "bico_ext was imported without its compiled part. Install it with `pip install --no-build-isolation .` and run "
        "outside the source folder, or, for development, install with `pip install --no-build-isolation -e .`"
    ) from error
torch.ops.load_library(str(pathlib.Path(_C.__file__).with_name("_ops.so")))
_DEVICES = {"meta"} | {
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key("bico::attention_forward", device.upper())
}


def has_kernels(device_type: str) -> bool:
    """Whether this build runs the op on that type of device ("cpu", "cuda", "meta", ...).

    Example:
        >>> has_kernels("cpu")
        True
    """
    return device_type in _DEVICES


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
    """Compute bidirectional RoPE attention whose relative distance is always -|m - n|, as in causal pre-training.

    Keys up to the query (n <= m) are scored in the plus frame, `(R(m) q) . (R(n) k)`. Later keys are scored in the
    minus frame, where every sine is negated: `(R(-m) q) . (R(-n) k)`. One softmax runs over all the keys that the span
    ids make visible. Memory beyond inputs and outputs is O(S D).

    Args:
        q: [B, Hq, S, D], not rotated; float64, float32, bfloat16 or float16; D from 1 to 256. Any strides with a
            contiguous last dimension.
        k, v: [B, Hkv, S, D], with the dtype and device of q; Hkv divides Hq (grouped-query attention).
        cos, sin: [1 or B, S, R], the rotation of each position; R is even and at most D. The two elements of a pair
            have equal values. Elements from R on are not rotated. Used in float32 (float64 if q is float64).
        span_ids: int32 [B, S]. Key n is visible to query m if and only if it is context (`span_ids[n] == 0`), or it is
            in m's own span and not after m (`span_ids[n] == span_ids[m] > 0 and n <= m`). A token with a negative id
            (placeholder or padding) is never a key. All ones is causal attention. Default: all 0, so that everything
            is visible.
        cu_seqlens: int32 [sequences + 1], ascending from 0 to S: offsets of sequences packed along S (B = 1).
        scale: Factor of the scores. Default: 1 / sqrt(D).
        mirror: False scores later keys in the plus frame, too. This is plain bidirectional RoPE attention, the paper's
            control. Default: True.
        interleaved: Rotary pairs are (2i, 2i + 1), as in GLM, instead of (i, i + R / 2), as in Llama (the default).
        return_lse: Also return the log-sum-exp of each query's scores.

    Returns:
        out: [B, Hq, S, D] in the dtype of q, laid out in memory as [B, S, Hq, D]; 0 where a query sees no key.
        lse (only with return_lse): [B, Hq, S], float32 (float64 if q is float64), differentiable; -inf where a query
            sees no key.

    Raises:
        RuntimeError: an argument has the wrong dtype, shape, device or strides. The message names the argument and the
            remedy.

    The backward is deterministic, except on CUDA in bfloat16 and float16: there the order in which gradients of q are
    summed is fixed only under `torch.use_deterministic_algorithms`. Second derivatives raise RuntimeError. NaN in a row
    of q, k or v reaches the outputs that see that row, and no others. So does infinity, except that a score of -inf
    gets weight 0.

    Example:
        >>> import torch
        >>> from bico_ext import split_triangle_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
        >>> angle = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1, 0.01, 0.001])).repeat(1, 2)[None]
        >>> placeholder = torch.tensor([[0, 0, -1, 0, 0]], dtype=torch.int32)
        >>> split_triangle_attention(q, k, v, angle.cos(), angle.sin(), span_ids=placeholder).shape
        torch.Size([1, 2, 5, 8])
    """
    if cos.requires_grad or sin.requires_grad:
        raise RuntimeError(
            "cos and sin must not require gradients, because the op computes none for them; use cos.detach() and "
            "sin.detach()"
        )
    if not has_kernels(q.device.type):
        raise RuntimeError(f"q is on {q.device}, for which this build of bico-ext has no kernels; use q.cpu()")
    others = {"k": k, "v": v, "cos": cos, "sin": sin, "span_ids": span_ids, "cu_seqlens": cu_seqlens}
    for name, x in others.items():
        if x is not None and x.device != q.device:
            raise RuntimeError(
                f"{name} must be on the device of q ({q.device}), got {x.device}; use {name}.to(q.device)"
            )
    if scale is None:
        scale = 1 / math.sqrt(max(q.shape[-1], 1))
    out, lse = torch.ops.bico.attention_forward(q, k, v, cos, sin, span_ids, cu_seqlens, scale, mirror, interleaved)
    return (out, lse) if return_lse else out


def _statistics_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _empty_heads(x: Tensor) -> Tensor:
    batch, heads, length, head_dim = x.shape
    return x.new_empty(batch, length, heads, head_dim).transpose(1, 2)


@torch.library.register_fake("bico::attention_forward")
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_heads(q), q.new_empty(q.shape[:3], dtype=_statistics_dtype(q))


@torch.library.register_fake("bico::attention_backward")
def _(grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _empty_heads(q), _empty_heads(k), _empty_heads(v)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cos, sin, span_ids, cu_seqlens, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, cos, sin, span_ids, cu_seqlens)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read only once: under gradient checkpointing a second read raises
    if grad_out is None:
        grad_out = torch.zeros_like(saved[3])  # out
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = torch.ops.bico.attention_backward(grad_out, grad_lse, *saved, *ctx.settings, deterministic)
    return (*grads, *[None] * 7)


def _second_derivative(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "split_triangle_attention has no second derivative; use bico_ext.ops.reference.split_triangle_attention instead"
    )


torch.library.register_autograd("bico::attention_forward", _backward, setup_context=_keep_for_backward)
torch.library.register_autograd("bico::attention_backward", _second_derivative)

# Under autocast, q, k and v are cast to the autocast dtype, but cos and sin keep theirs because positions need float32.
# torch.library.register_autocast would cast them, too.
_AUTOCAST = torch.library.Library("bico", "IMPL")


def _register_autocast(device: str) -> None:
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(device)
        q, k, v = (x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in (q, k, v))
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return torch.ops.bico.attention_forward(q, k, v, *rest)

    _AUTOCAST.impl("attention_forward", run, f"Autocast{device.upper()}")


for _device in ("cpu", "cuda"):
    _register_autocast(_device)
