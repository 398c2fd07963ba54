"""The op on each device, taking and giving CPU tensors: on the CPU, on CUDA, and as CUDA kernels under the emulator."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from bico_ext.ops.attention import has_kernels, split_triangle_attention


def on_cuda(*tensors: torch.Tensor, **options: Any) -> Any:
    """`split_triangle_attention` on the GPU, differentiable as it is."""
    options = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    result = split_triangle_attention(*(x.cuda() for x in tensors), **options)
    return tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.cpu()


def emulated(schedule: str, copies: str) -> Callable[..., Any]:
    def run(*tensors: torch.Tensor, **options: Any) -> Any:
        import emulated  # needs a build with BICO_EMULATOR

        return emulated.attention(schedule, copies)(*tensors, **options)

    return run


# Asynchronous copies arrive as early as they may under one schedule, as late as they may under the other.
EVERY: dict[str, Callable[..., Any]] = {
    "cpu": split_triangle_attention,
    "cuda": on_cuda,
    "emulated-cuda": emulated("round-robin", "at-issue"),
    "emulated-cuda-random": emulated("random", "at-wait"),
}


def present() -> list[str]:
    """Those of this build and machine."""
    names = ["cpu"]
    if importlib.util.find_spec("bico_ext._emulator"):
        names += ["emulated-cuda", "emulated-cuda-random"]
    if torch.cuda.is_available() and has_kernels("cuda"):
        names.append("cuda")
    return names
