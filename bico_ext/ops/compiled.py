"""The backend `compiled`: the C++ and CUDA kernels as torch's custom op `torch.ops.bico.attention_forward`.

The op has gradients, autocast and torch.compile support. Where nothing was compiled, this module cannot be imported,
and `bico_ext.ops.backends` chooses another backend.
"""

import os
import pathlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

import bico_ext._C as _C
from bico_ext.ops.arguments import autocast, empty_heads, statistics_dtype

torch.ops.load_library(str(pathlib.Path(_C.__file__).with_name("_ops.so")))

# The types of devices that this build runs the op on.
DEVICES = frozenset({"meta"}) | {
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key("bico::attention_forward", device.upper())
}


@cache
def cpu_refusal() -> str | None:
    """Return why no kernel runs on this CPU, or None if one does. What BICO_ISA asks for is checked in every call."""
    if os.environ.get("BICO_ISA"):
        return None
    try:
        _C.chosen_instruction_set()
    except RuntimeError as error:
        return str(error)
    return None


@torch.library.register_fake("bico::attention_forward")
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_heads(q), q.new_empty(q.shape[:3], dtype=statistics_dtype(q))


@torch.library.register_fake("bico::attention_backward")
def _(grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return empty_heads(q), empty_heads(k), empty_heads(v)


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
    return (*grads, *[None] * 8)


def _second_derivative(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "the compiled split_triangle_attention has no second derivative; give it backend='portable', which has"
    )


torch.library.register_autograd("bico::attention_forward", _backward, setup_context=_keep_for_backward)
torch.library.register_autograd("bico::attention_backward", _second_derivative)

# Under autocast, q, k and v are cast to the autocast dtype, but cos and sin keep theirs because positions need float32.
# torch.library.register_autocast would cast them, too.
_AUTOCAST = torch.library.Library("bico", "IMPL")


def _register_autocast(device: str) -> None:
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        q, k, v = autocast(q, k, v)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return torch.ops.bico.attention_forward(q, k, v, *rest)

    _AUTOCAST.impl("attention_forward", run, f"Autocast{device.upper()}")


for _device in ("cpu", "cuda"):
    _register_autocast(_device)
