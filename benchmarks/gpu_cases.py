"""The cases of the GPU benchmark, the ways to compute each of them, and the targets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from cases import SCORE_BYTES, SEED, rotary_tables
from peers import both_frames, two_flash_calls, two_matrices
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from bico_ext import split_triangle_attention

DTYPE = torch.bfloat16
TOKENS = 16_384  # B S, unless a single sequence is longer
WIDTH = 2048  # H D
PLACEHOLDERS = 0.15  # share of the span ids that are -1
SCORE_SHARE = 0.8  # of the free memory; the two matrices are left out if they would take more
FLEX_LENGTHS = (2048, 8192, 32_768)  # FlexAttention compiles for some ten seconds per shape

OURS = "ours"  # the op's backend `compiled`
OTHER_BACKENDS = ("flex", "portable")  # measured only if asked for
FLASH, CUDNN, TWO_CALLS = "SDPA flash", "SDPA cuDNN", "two flash calls"
FLEX, EAGER = "FlexAttention, no split triangle", "two matrices"
UNMASKED, MASKED = "SDPA flash, no mask", "SDPA with mask"
WAYS = {
    "full": (OURS, *OTHER_BACKENDS, FLASH, CUDNN, TWO_CALLS, FLEX, EAGER),
    "causal": (OURS, *OTHER_BACKENDS, FLASH, CUDNN),
    "placeholders": (OURS, *OTHER_BACKENDS, UNMASKED, CUDNN, MASKED),
}
SAME_FUNCTION = (*OTHER_BACKENDS, TWO_CALLS, EAGER)  # as ours, so their results are compared
_BACKENDS = {
    FLASH: [SDPBackend.FLASH_ATTENTION],
    CUDNN: [SDPBackend.CUDNN_ATTENTION],
    UNMASKED: [SDPBackend.FLASH_ATTENTION],
    # Torch chooses, but never plain score matrices.
    MASKED: [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
}

PASS_FLOPS = {"forward": 1.0, "backward": 2.5}  # the forward has 2 products, the backward 5


@dataclass(frozen=True)
class GpuCase:
    """B sequences of S tokens with H heads of D; the mask is full, causal (span ids 1) or placeholders (some -1).

    Attributes:
        kv_heads: the number of key and value heads, if it is not H.
    """

    mask: str
    B: int
    H: int
    S: int
    D: int
    kv_heads: int | None = None

    @property
    def name(self) -> str:
        return f"{self.mask}-{self.S}x{self.D}" + ("-gqa" if self.kv_heads else "")


def gpu_case(mask: str, length: int, head_dim: int) -> GpuCase:
    return GpuCase(mask, max(1, TOKENS // length), WIDTH // head_dim, length, head_dim)


def both_head_dims(mask: str, *lengths: int) -> list[GpuCase]:
    return [gpu_case(mask, length, head_dim) for length in lengths for head_dim in (128, 64)]


# The most important cases come first, because the time of a run is limited and its last cases may be left out.
CASES = [
    *both_head_dims("full", 4096),
    *both_head_dims("placeholders", 4096),
    *both_head_dims("causal", 4096),
    # One sequence of Yi-6B (128) and TinyLlama (64). With 132 multiprocessors, the backward splits their groups.
    *(GpuCase(mask, 1, 32, 2048, head_dim, 4) for mask in ("full", "placeholders") for head_dim in (128, 64)),
    *both_head_dims("full", 2048, 8192),
    *both_head_dims("causal", 2048, 8192),
    *both_head_dims("placeholders", 2048, 8192),
    *both_head_dims("full", 16_384, 32_768, 1024, 512),
]


@dataclass(frozen=True)
class Target:
    """The ratio of ours to the peer is at most the ceiling, in each pass of full attention on least to most tokens.

    Cases with fewer key and value heads than query heads have no targets.
    """

    peer: str
    ceiling: float
    least: int
    most: int


TARGETS = [Target(FLASH, 1.1, 2048, 32_768), Target(TWO_CALLS, 0.8, 2048, 32_768), Target(EAGER, 0.1, 4096, 4096)]


def inputs(case: GpuCase, device: str) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v [B, H, S, D] with [B, S, H, D] memory, as projections give them, and the gradient of out."""
    generator = torch.Generator(device).manual_seed(SEED)
    kv_heads = case.kv_heads or case.H
    *operands, grad_out = (
        torch.randn(case.B, case.S, heads, case.D, generator=generator, device=device).to(DTYPE).transpose(1, 2)
        for heads in (case.H, kv_heads, kv_heads, case.H)
    )
    return [x.requires_grad_() for x in operands], grad_out


def span_ids(case: GpuCase, device: str) -> Tensor | None:
    """Return the span ids, int32 [B, S]; None for full attention."""
    if case.mask == "full":
        return None
    if case.mask == "causal":
        return torch.ones(case.B, case.S, dtype=torch.int32, device=device)
    generator = torch.Generator().manual_seed(SEED)
    hidden = torch.rand(case.B, case.S, generator=generator) < PLACEHOLDERS
    return -hidden.to(torch.int32).to(device)


def attention(case: GpuCase, way: str, device: str) -> Callable[..., Any]:
    """Return the way as a function of q, k, v."""
    ids = span_ids(case, device)
    cos, sin = (table.to(device) for table in rotary_tables(torch.arange(case.S), case.D))
    if way in (OURS, *OTHER_BACKENDS):
        backend = "compiled" if way == OURS else way
        return partial(split_triangle_attention, cos=cos, sin=sin, span_ids=ids, backend=backend)
    if way == TWO_CALLS:
        frames = both_frames
        if device == "cuda":  # fused; on the CPU, where only tests come here, compiling takes minutes
            torch.compiler.reset()  # otherwise the shapes would reach the limit of recompilations
            frames = torch.compile(both_frames, dynamic=False)
        return partial(two_flash_calls, cos=cos, sin=sin, frames=frames)
    if way == EAGER:
        return partial(two_matrices, cos=cos, sin=sin)
    if way == FLEX:
        torch.compiler.reset()  # otherwise the shapes would reach the limit of recompilations
        return torch.compile(flex_attention, fullgraph=True, dynamic=False)
    seen = None
    if way == MASKED:
        assert ids is not None
        seen = (ids == 0)[:, None, None]  # [B, 1, 1, S]
    options: dict[str, Any] = {
        "attn_mask": seen,
        "is_causal": case.mask == "causal",
        "enable_gqa": case.kv_heads is not None,
    }
    return partial(sdpa_by, _BACKENDS[way], **options)


def sdpa_by(backends: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Call SDPA with one of the backends; RuntimeError if none of them supports the case."""
    with sdpa_kernel(backends):
        return scaled_dot_product_attention(q, k, v, **options)


def left_out(case: GpuCase, way: str, free_bytes: Callable[[], int]) -> str | None:
    """Return why a way is not tried on the case; None if it is tried."""
    if case.kv_heads and way in (TWO_CALLS, FLEX, EAGER):
        return "not timed with fewer key and value heads than query heads"
    if way == FLEX and case.S not in FLEX_LENGTHS:
        return f"it compiles for each shape, so only S = {', '.join(map(str, FLEX_LENGTHS))} are timed"
    needed = case.B * case.H * case.S**2 * SCORE_BYTES["bfloat16"]
    if way == EAGER and needed > SCORE_SHARE * (free := free_bytes()):
        return f"would take about {needed / 2**30:.0f} GiB, over {SCORE_SHARE:.0%} of the {free / 2**30:.0f} GiB free"
    return None


def forward_flops(case: GpuCase) -> float:
    """Return the operations of the two products of the forward.

    Placeholders count as keys. Causal attention computes half of the pairs.
    """
    return (0.5 if case.mask == "causal" else 1.0) * 4 * case.B * case.H * case.S**2 * case.D
