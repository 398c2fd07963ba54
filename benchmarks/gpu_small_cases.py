"""Small hostile cases for compute-sanitizer, which is slow: forward and backward, compared with the reference.

    compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/gpu_small_cases.py

Inputs are made and results are compared on the CPU, so that the tool watches no other kernels than the op's. The exit
status is 1 if a result is wrong.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import SEED
from torch import Tensor

from bico_ext import split_triangle_attention
from bico_ext.ops import reference

NAMES = ("out", "lse", "grad_q", "grad_k", "grad_v")


@dataclass(frozen=True)
class SmallCase:
    """A case. `spans` holds the values to draw span ids from (if empty, all is visible), `packed` sequence lengths."""

    name: str
    dtype: torch.dtype
    S: int
    D: int
    Hq: int
    Hkv: int
    B: int = 1
    R: int | None = None  # default: D
    spans: tuple[int, ...] = ()
    packed: tuple[int, ...] = ()
    window: int | None = None
    interleaved: bool = False
    mirror: bool = True


CASES = [
    SmallCase("bf16-spans-gqa", torch.bfloat16, 130, 64, 4, 2, B=2, spans=(-1, 0, 1, 2)),
    SmallCase("bf16-128-causal", torch.bfloat16, 67, 128, 2, 1, spans=(1,)),
    SmallCase("bf16-96-spans", torch.bfloat16, 200, 96, 2, 1, R=72, spans=(0, 0, 0, -1)),
    SmallCase("bf16-256-interleaved", torch.bfloat16, 150, 256, 1, 1, spans=(0, 1), interleaved=True),
    SmallCase("bf16-64-window", torch.bfloat16, 200, 64, 2, 1, R=36, spans=(0, 0, 0, -1), window=90),
    SmallCase("bf16-blind", torch.bfloat16, 65, 64, 1, 1, spans=(-1,)),
    # More rows than number_keys takes at once.
    SmallCase("bf16-32-slots", torch.bfloat16, 1100, 32, 1, 1, spans=(0, -1)),
    # As many tiles of keys as an H100 or H200 runs blocks of the backward, so none takes less than a group.
    SmallCase("bf16-whole-groups", torch.bfloat16, 70, 32, 6, 3, B=44, spans=(0, 0, 0, -1)),
    SmallCase("fp16-40-packed", torch.float16, 131, 40, 3, 1, spans=(0, 0, -1), packed=(1, 0, 63, 67)),
    SmallCase("fp32-16-interleaved", torch.float32, 67, 16, 2, 2, B=2, R=6, spans=(0, 1), interleaved=True),
    SmallCase("fp64-8-no-mirror", torch.float64, 33, 8, 2, 1, mirror=False),
]


def inputs(case: SmallCase) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    """Return (q, k, v, cos, sin), the gradients of (out, lse), and the options.

    They lie on the CPU in float64; all but cos and sin hold values that the case's dtype can represent.
    """
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(case.dtype).double()

    q, grad_out = (draw(case.B, case.S, case.Hq, case.D).transpose(1, 2) for _ in range(2))
    k, v = (draw(case.B, case.S, case.Hkv, case.D).transpose(1, 2) for _ in range(2))
    grad_lse = draw(case.B, case.Hq, case.S)
    positions = torch.cat([torch.arange(length) for length in case.packed or (case.S,)]).double()
    angle = torch.outer(positions, torch.rand((case.R or case.D) // 2, dtype=torch.float64, generator=generator))
    angle = angle.repeat_interleave(2, -1) if case.interleaved else angle.repeat(1, 2)
    options: dict[str, Any] = {"interleaved": case.interleaved, "mirror": case.mirror, "window": case.window}
    if case.spans:
        choice = torch.randint(len(case.spans), (case.B, case.S), generator=generator)
        options["span_ids"] = torch.tensor(case.spans, dtype=torch.int32)[choice]
    if case.packed:
        options["cu_seqlens"] = torch.tensor([0, *case.packed]).cumsum(0).to(torch.int32)
    return [q, k, v, angle.cos()[None], angle.sin()[None]], [grad_out, grad_lse], options


def results(case: SmallCase, attention: Callable[..., Any], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Compute out, lse and the gradients in the dtype on the device; return them in float64 on the CPU."""
    (q, k, v, cos, sin), (grad_out, grad_lse), options = inputs(case)
    on_device = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
    operands = [x.to(dtype).to(device).requires_grad_() for x in (q, k, v)]
    table_dtype = torch.promote_types(dtype, torch.float32)  # the op computes rotations in this dtype
    cos, sin = (x.to(table_dtype).to(device) for x in (cos, sin))
    out, lse = attention(*operands, cos, sin, return_lse=True, **on_device)
    grads = torch.autograd.grad(
        (out, lse), operands, (grad_out.to(dtype).to(device), grad_lse.to(lse.dtype).to(device))
    )
    return [x.detach().cpu().double() for x in (out, lse, *grads)]


def complaints(case: SmallCase, device: str) -> list[str]:
    """Return what is wrong: an RMS error over twice that of the reference in the case's dtype, or other blind rows."""
    exact = results(case, reference.split_triangle_attention, torch.float64, "cpu")
    plain = results(case, reference.split_triangle_attention, case.dtype, "cpu")
    ours = results(case, split_triangle_attention, case.dtype, device)
    # In case torch's result happens to be exact, a few rounding errors of the kernels' precision are allowed.
    floor = 16 * torch.finfo(torch.promote_types(case.dtype, torch.float32)).eps
    wrong = []
    for name, want, torchs, got in zip(NAMES, exact, plain, ours, strict=True):
        finite = want.isfinite()
        allowed = 2 * rms((torchs - want)[finite]) + floor * (1 + rms(want[finite]))
        error = rms((got - want)[finite])
        if not torch.equal(got.isfinite(), finite) or not error <= allowed:
            wrong.append(f"{case.name}: {name} has an RMS error of {error:.3g}, allowed {allowed:.3g}")
    return wrong


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    options = parser.parse_args(arguments)
    wrong = []
    for deterministic in (False, True):  # the backward adds dQ in another way each
        torch.use_deterministic_algorithms(deterministic)
        mode = "deterministic" if deterministic else "free"
        wrong += [f"{mode}: {complaint}" for case in CASES for complaint in complaints(case, options.device)]
    torch.use_deterministic_algorithms(False)
    print("\n".join(wrong) or f"{len(CASES)} cases agree with the reference on {options.device} in both modes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
