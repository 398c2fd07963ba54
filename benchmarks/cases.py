"""The cases of the CPU benchmark, with their ceilings, and the ways to compute each of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from measure import peak_memory
from peers import two_flash_calls, two_matrices
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from bico_ext import split_triangle_attention

SEED = 0
# Bytes that the two matrices take per query, key and head, as measured by `extra_memory`.
SCORE_BYTES = {"bfloat16": 15, "float32": 18}
SCORE_LIMIT = 4 * 2**30  # bytes; the two matrices are left out if they would take more

SWEEP = ("SDPA full", "SDPA causal", "two matrices", "two flash calls")
FULL = (*SWEEP, "portable")
CAUSAL = ("SDPA causal",)
PADDED = ("SDPA padded", "two matrices padded")


@dataclass(frozen=True)
class Case:
    """A problem of B sequences of up to S tokens with H heads of D, its peers and its ceilings.

    Attributes:
        peers: the other ways to compute the case.
        ceilings: the largest ratio of ours to the first peer, by pass.
        causal: all span ids are 1.
        packed: the lengths lie between S / 3 and S. Ours packs the sequences into one row (cu_seqlens), and the peers
            pad them to S.
    """

    name: str
    dtype: str
    B: int
    H: int
    S: int
    D: int
    peers: tuple[str, ...]
    ceilings: dict[str, float] = field(default_factory=dict)
    causal: bool = False
    packed: bool = False

    def lengths(self) -> list[int]:
        """Return the number of tokens of each sequence."""
        if not self.packed:
            return [self.S] * self.B
        generator = torch.Generator().manual_seed(SEED)
        return torch.randint(self.S // 3, self.S + 1, (self.B,), generator=generator).tolist()


def ceilings(forward: float, both: float) -> dict[str, float]:
    return {"forward": forward, "forward + backward": both}


# fmt: off
CASES = [
    Case("bf16-2048x128", "bfloat16", 1, 8, 2048, 128, FULL, ceilings(0.6, 0.4)),
    Case("bf16-512x64", "bfloat16", 1, 8, 512, 64, FULL, ceilings(0.7, 0.4)),
    Case("bf16-8192x128", "bfloat16", 1, 2, 8192, 128, FULL, ceilings(0.6, 0.4)),
    Case("fp32-2048x64", "float32", 1, 8, 2048, 64, FULL, ceilings(0.8, 0.8)),
    Case("fp32-2048x128", "float32", 1, 8, 2048, 128, FULL, ceilings(0.8, 0.8)),
    Case("causal-bf16", "bfloat16", 1, 8, 2048, 128, CAUSAL, ceilings(0.5, 0.4), causal=True),
    Case("causal-fp32", "float32", 1, 8, 2048, 128, CAUSAL, ceilings(1.05, 1.05), causal=True),
    Case("packed-bf16", "bfloat16", 64, 8, 60, 64, PADDED, ceilings(0.5, 0.15), packed=True),
    Case("two-matrices-bf16", "bfloat16", 1, 8, 2048, 128, ("two matrices",), {"forward": 0.08}),
]
# fmt: on


def sweep_case(length: int) -> Case:
    return Case(f"sweep-{length}", "bfloat16", 1, 2, length, 128, SWEEP)


@dataclass
class Call:
    """One way to compute a case, with its own inputs."""

    attention: Callable[..., Any]  # of q, k, v
    q: Tensor  # q, k and v: [B, H, S, D] with [B, S, H, D] memory, as the projections give them
    k: Tensor
    v: Tensor
    grad_out: Tensor  # in the layout of the output, which all ways share

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.attention(self.q, self.k, self.v)

    def forward_backward(self) -> Tensor:
        out = self.attention(self.q, self.k, self.v)
        out.backward(self.grad_out)
        return out.detach()

    def clear(self) -> None:
        self.q.grad = self.k.grad = self.v.grad = None


PASSES: dict[str, Callable[[Call], Tensor]] = {
    "forward": Call.forward,
    "forward + backward": Call.forward_backward,
}
PASS_FLOPS = {"forward": 1.0, "forward + backward": 3.5}  # the forward has 2 products, the backward 5


def prepare(case: Case, way: str) -> Call:
    """Return the call with the inputs of the case, which are equal for all ways that share their shape."""
    generator = torch.Generator().manual_seed(SEED)
    dtype = getattr(torch, case.dtype)
    lengths = case.lengths()
    as_one_row = case.packed and way == "ours"
    batch, length = (1, sum(lengths)) if as_one_row else (case.B, case.S)
    q, k, v, grad_out = (
        torch.randn(batch, length, case.H, case.D, generator=generator).to(dtype).transpose(1, 2) for _ in range(4)
    )
    positions = torch.cat([torch.arange(n) for n in (lengths if as_one_row else [length])])
    cos, sin = rotary_tables(positions, case.D)
    attention: Callable[..., Any]
    if as_one_row:
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        attention = partial(split_triangle_attention, cos=cos, sin=sin, cu_seqlens=offsets)
    elif way in ("ours", "portable"):
        backend = "portable" if way == "portable" else "auto"
        span_ids = torch.ones(batch, length, dtype=torch.int32) if case.causal else None
        attention = partial(split_triangle_attention, cos=cos, sin=sin, span_ids=span_ids, backend=backend)
    elif way.endswith("padded"):
        real = (torch.arange(length) < torch.tensor(lengths)[:, None])[:, None, None]  # [B, 1, 1, S]
        if way == "SDPA padded":
            attention = partial(sdpa, attn_mask=real)
        else:
            hidden = torch.zeros(real.shape, dtype=dtype).masked_fill_(~real, torch.finfo(dtype).min)
            attention = partial(two_matrices, cos=cos, sin=sin, mask=hidden)
    elif way == "two matrices":
        attention = partial(two_matrices, cos=cos, sin=sin)
    elif way == "two flash calls":
        attention = partial(two_flash_calls, cos=cos, sin=sin)
    else:
        attention = partial(sdpa, is_causal=way == "SDPA causal")
    return Call(attention, q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad_out)


def forward_flops(case: Case, way: str) -> float:
    """Return the operations of the two products of the forward, over real tokens.

    Causal attention computes half of the pairs.
    """
    share = 0.5 if case.causal or way == "SDPA causal" else 1.0
    return share * 4 * case.H * case.D * sum(n**2 for n in case.lengths())


def rotary_tables(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin [1, S, D] in float32, with Llama's base."""
    frequency = 10_000 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.outer(positions, frequency).repeat(1, 2)[None]
    return angle.cos(), angle.sin()


def left_out(case: Case, way: str) -> str | None:
    """Return why a way is not timed on the case; None if it is timed."""
    needed = case.B * case.H * case.S**2 * SCORE_BYTES[case.dtype]
    if way.startswith("two matrices") and needed > SCORE_LIMIT:
        return f"{way} at {case.name}: would take about {needed / 2**30:.0f} GiB"
    return None


def extra_memory(case: Case, way: str) -> int:
    """Return the peak bytes of forward + backward beyond inputs and outputs. Call it in a fresh process.

    It measures the first call of its shape, so it includes some MiB of code that libraries generate for the shape.
    """
    warm = prepare(replace(case, B=1, S=min(case.S, 64)), way)
    warm.forward_backward()  # loads code and starts threads, whose memory does not belong to the call
    call = prepare(case, way)
    grown, out = peak_memory(call.forward_backward)
    grads = [x.grad for x in (call.q, call.k, call.v) if x.grad is not None]
    return max(grown - sum(x.numel() * x.element_size() for x in (out, *grads)), 0)
