"""The backends of `split_triangle_attention`: what each needs, and which one runs.

| backend    | computes with                                   | needs                                                 |
| ---------- | ----------------------------------------------- | ----------------------------------------------------- |
| `compiled` | C++ and CUDA kernels (csrc/), a torch custom op | a compiled build; x86-64 with AVX2, or an NVIDIA GPU  |
| `flex`     | two calls of FlexAttention, compiled by Triton  | an NVIDIA GPU; bfloat16 or float16; D of 16 or more   |
| `portable` | plain torch, in blocks of queries               | any device that torch has                             |

"auto" takes the first of `AUTOMATIC` that runs on the device. `flex` is not among them, as denoising takes longer with
it than with `compiled` (docs/architecture.md). To add a backend, write a module with a function `attention` like the
others' and add it to `BACKENDS`.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from bico_ext.ops import flex, portable, transforms
from bico_ext.ops.arguments import autocast, check_arguments, dtype_under_autocast

AUTOMATIC = "compiled", "portable"  # the backends of "auto", in this order
VARIABLE = "BICO_BACKEND"  # the environment variable that replaces "auto" in a process
NOT_COMPILED = (
    f"the bico_ext in {Path(__file__).parents[1]} has no compiled part; `BICO_BUILD=ON pip install -v "
    "--no-build-isolation .` in the source folder compiles it or says why it cannot"
)
CUDA_REMEDY = (
    "`BICO_BUILD=ON pip install -v --no-build-isolation -C cmake.define.BICO_CUDA=ON .` in the source folder compiles "
    "them or says why it cannot"
)

compiled: Any  # the module, or None
_WITHOUT = ""  # why there is no compiled part
try:
    from bico_ext.ops import compiled
except ModuleNotFoundError:
    compiled, _WITHOUT = None, NOT_COMPILED
except (ImportError, OSError) as error:
    compiled, _WITHOUT = None, f"the compiled part cannot be loaded: {error}"

Attention = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Backend:
    """A way to compute the op.

    Attributes:
        attention: takes q, k, v, cos, sin, span_ids, cu_seqlens, window, scale, mirror and interleaved by position, and
            returns out and lse, as documented at `bico_ext.split_triangle_attention`.
        refusal: takes the type of a device ("cpu", "cuda", ...) and returns why the backend cannot run there, or None
            if it can.
        argument_refusal: takes the dtype that q has under autocast and the head dim, and returns why the backend cannot
            take such a q, or None if it can.
    """

    attention: Attention
    refusal: Callable[[str], str | None]
    argument_refusal: Callable[[torch.dtype, int], str | None] = lambda dtype, head_dim: None


def _compiled_attention(*arguments: Any) -> tuple[Tensor, Tensor]:
    transforms.refuse(transforms.DERIVATIVES, *arguments[:3])  # torch runs the op for each entry of a vmap
    return torch.ops.bico.attention_forward(*arguments)


def _compiled_refusal(device: str) -> str | None:
    if compiled is None:
        return _WITHOUT
    if device not in compiled.DEVICES:
        reason = f"this build of bico-ext has no kernels for {device} devices"
        return f"{reason}; {CUDA_REMEDY}" if device == "cuda" else reason
    return compiled.cpu_refusal() if device == "cpu" else None


def _checked(attention: Attention) -> Attention:
    """Return a function of torch with the checks and the autocast of the op."""

    def checked(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        transforms.refuse(transforms.DERIVATIVES | transforms.OTHERS, q, k, v)
        q, k, v = autocast(q, k, v)
        check_arguments(q, k, v, *rest[:5])
        return attention(q, k, v, *rest)

    return checked


BACKENDS = {
    "compiled": Backend(_compiled_attention, _compiled_refusal),
    "flex": Backend(_checked(flex.attention), flex.refusal, flex.argument_refusal),
    "portable": Backend(_checked(portable.attention), lambda device: None),
}


@torch.compiler.assume_constant_result
def refusal(backend: str, device: str) -> str | None:
    """Return why a backend, a key of `BACKENDS`, cannot run on a type of device, or None if it can."""
    return BACKENDS[backend].refusal(device)


def choose(backend: str, q: Tensor) -> str:
    """Return the backend that computes the op for q, of which the device, the dtype and the shape count.

    Args:
        backend: a key of `BACKENDS`, or "auto", for which the environment variable BICO_BACKEND may name one. Without
            it, "auto" is the first of `AUTOMATIC` that runs on the device of q.
        q: [B, Hq, S, D].

    Raises:
        ValueError: there is no such backend.
        RuntimeError: the backend does not run on the device of q, or does not take its dtype or head dim.

    Example:
        >>> choose("portable", torch.zeros(1, 2, 5, 8))
        'portable'
    """
    source, remedy = "backend", "use 'auto'"
    if backend == "auto" and os.environ.get(VARIABLE):
        source, remedy, backend = VARIABLE, f"unset {VARIABLE}", os.environ[VARIABLE]
    if backend == "auto":
        return _first_that_runs(q.device.type)
    if backend not in BACKENDS:
        names = ", ".join(map(repr, ("auto", *BACKENDS)))
        raise ValueError(f"{source} must be one of {names}, got {backend!r}")
    device = q.device.type
    reason = refusal(backend, device)
    if reason is not None:
        raise RuntimeError(f"{source} {backend!r} cannot run on {device}: {reason}; {remedy}")
    reason = BACKENDS[backend].argument_refusal(dtype_under_autocast(q), q.shape[-1])
    if reason is not None:
        raise RuntimeError(f"{source} {backend!r} cannot take these arguments: {reason}; {remedy}")
    return backend


_LOGGED: set[str] = set()  # the types of devices whose fallback was logged


@torch.compiler.assume_constant_result  # a line for the log cannot be traced
def _first_that_runs(device: str) -> str:
    reasons = {name: refusal(name, device) for name in AUTOMATIC}
    chosen = next(name for name, reason in reasons.items() if reason is None)
    if chosen != "compiled" and device not in _LOGGED:
        _LOGGED.add(device)
        hint = "" if refusal("flex", device) else f"; {VARIABLE}=flex may be faster in bfloat16 and float16"
        logging.getLogger(__name__).warning("attention runs on the %s backend: %s%s", chosen, reasons["compiled"], hint)
    return chosen


class Interception:
    """While entered, every call of the op on any backend becomes a call of `attention`. For probes of a model.

    Example:
        >>> class Count(Interception):
        ...     calls = 0
        ...     def attention(self, compute, *arguments):
        ...         self.calls += 1
        ...         return compute(*arguments)
        >>> with Count() as count:
        ...     pass
        >>> count.calls
        0
    """

    def __enter__(self) -> Self:
        _ENTERED.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _ENTERED.remove(self)

    def attention(self, compute: Attention, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Return out and lse; `compute` is the backend's function, which takes the same `arguments`."""
        raise NotImplementedError


_ENTERED: list[Interception] = []


def attention(backend: str, q: Tensor) -> Attention:
    """Return the function that computes the op; the arguments and the errors are those of `choose`."""
    compute = BACKENDS[choose(backend, q)].attention
    return partial(_ENTERED[-1].attention, compute) if _ENTERED else compute


def describe() -> dict[str, str]:
    """Return for each backend the devices here that it runs on, and why it does not run on the others.

    Example:
        >>> list(describe()) == list(BACKENDS)
        True
    """
    devices = ["cpu"]
    if torch.accelerator.is_available():
        devices.append(torch.accelerator.current_accelerator().type)  # type: ignore[union-attr]
    shown = {}
    for name in BACKENDS:
        reasons = {device: refusal(name, device) for device in devices}
        runs_on = ", ".join(device for device, reason in reasons.items() if reason is None)
        refused = {device: reason for device, reason in reasons.items() if reason is not None}
        if not runs_on:
            shown[name] = f"none: {refused[devices[-1]]}"
        else:
            shown[name] = "; ".join([runs_on, *(f"not {device}: {reason}" for device, reason in refused.items())])
    return shown
