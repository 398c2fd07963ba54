"""The op by each backend and device, taking and giving CPU tensors.

Compiled for the CPU ("cpu"), for CUDA, and as CUDA kernels under the emulator; and portable, on the CPU.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bico_ext.ops import flex
from bico_ext.ops.attention import split_triangle_attention
from bico_ext.ops.backends import refusal


def on_cuda(*tensors: torch.Tensor, **options: Any) -> Any:
    """`split_triangle_attention` on the GPU, differentiable as it is."""
    options = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    result = split_triangle_attention(*(x.cuda() for x in tensors), backend="compiled", **options)
    return tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.cpu()


def by_flex(
    q, k, v, cos, sin, *, span_ids=None, cu_seqlens=None, window=None, scale=None, mirror=True, interleaved=False, **_
):
    """out and lse by the backend `flex`, which the public op gives to no CPU; there it has no backward."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return flex.attention(q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, mirror, interleaved)


def emulated(schedule: str, copies: str) -> Callable[..., Any]:
    def run(*tensors: torch.Tensor, seed: int = 0, deterministic: bool = True, **options: Any) -> Any:
        import emulated  # needs a build with BICO_EMULATOR

        return emulated.attention(schedule, copies, seed, deterministic)(*tensors, **options)

    return run


# Asynchronous copies arrive as early as they may under one schedule, as late as they may under the other.
EVERY: dict[str, Callable[..., Any]] = {
    "cpu": partial(split_triangle_attention, backend="compiled"),
    "portable": partial(split_triangle_attention, backend="portable"),
    "cuda": on_cuda,
    "emulated-cuda": emulated("round-robin", "at-issue"),
    "emulated-cuda-random": emulated("random", "at-wait"),
}

EMULATORS = "emulated-cuda", "emulated-cuda-random"


needs_compiled = pytest.mark.skipif(refusal("compiled", "cpu") is not None, reason="needs the compiled part")


def present() -> list[str]:
    """Those of this build and machine."""
    names = ["portable"] if refusal("compiled", "cpu") else ["cpu", "portable"]
    if importlib.util.find_spec("bico_ext._emulator"):
        names += EMULATORS
    if torch.cuda.is_available() and refusal("compiled", "cuda") is None:
        names.append("cuda")
    return names
