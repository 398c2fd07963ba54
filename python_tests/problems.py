"""Random attention problems of hostile sizes, shared by the op's tests."""

import dataclasses

import torch
from torch import Tensor

from bico_ext.ops.reference import CAUSAL_CONTEXT


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem. spans: a kind of `span_ids` below; packed: sequence lengths."""

    name: str
    S: int
    Hq: int = 2
    Hkv: int = 2
    D: int = 16
    R: int | None = None
    B: int = 2
    spans: str = "none"
    packed: tuple[int, ...] | None = None
    mirror: bool = True
    interleaved: bool = False
    scale: float | None = None
    tables: int = 1

    def __str__(self) -> str:
        return self.name


def rotary_table(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """cos, sin [tables, S, R] in fp64, positions restarting with each packed sequence.

    Each table has its own frequencies: another start alone would not show, as scores know distances only.
    """
    width = case.D // 2 * 2 if case.R is None else case.R
    lengths = case.packed or (case.S,)
    position = torch.cat([torch.arange(n) for n in lengths]).double()
    start = torch.randint(0, 50, (case.tables, 1), generator=generator).double()
    frequency = torch.rand(case.tables, 1, width // 2, dtype=torch.float64, generator=generator)
    angle = (position + start)[..., None] * frequency
    angle = angle.repeat_interleave(2, -1) if case.interleaved else angle.repeat(1, 1, 2)
    return angle.cos(), angle.sin()


def span_ids(case: Case, generator: torch.Generator) -> Tensor | None:
    """int32 [B, S] of the kind that the case names."""
    ids = torch.zeros(case.B, case.S, dtype=torch.int32)
    if case.spans == "none":
        return None
    if case.spans == "causal":
        ids += 1
    elif case.spans == "placeholders":
        ids[torch.rand(ids.shape, generator=generator) < 0.3] = -1
    elif case.spans == "infill":
        ids[:, case.S // 3 : case.S // 3 + case.S // 2] = 1
        ids[:, -1:] = 2
    elif case.spans == "causal-context":
        ids[:1] = CAUSAL_CONTEXT  # a span inside, after context that sees everything; the other entries end in context
        ids[:1, case.S // 2 : case.S // 2 + case.S // 4] = 1
        ids[:1, case.S // 2 - 1] = 0
        ids[:, -1:] = -1
        ids[1:, case.S // 4 : -(case.S // 4)] = CAUSAL_CONTEXT
    elif case.spans == "prefix":
        ids[:, case.S // 3 :] = 1
    elif case.spans == "random":
        ids = torch.randint(-1, 4, ids.shape, generator=generator, dtype=torch.int32)
    elif case.spans == "blind":
        ids -= 1
    elif case.spans == "causal-padded":
        ids[:, :-1] = 1
        ids[:, -1:] = -1
    return ids


@dataclasses.dataclass
class Problem:
    """fp64 inputs that the dtype under test represents exactly, and the gradients to send back."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    grad_out: Tensor
    grad_lse: Tensor
    options: dict

    def run(self, attention, dtype: torch.dtype, table_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """out, lse and the gradients of q, k, v by `attention` in `dtype`; results in fp64."""
        q, k, v = (x.to(dtype).detach().requires_grad_() for x in (self.q, self.k, self.v))
        cos, sin = (x.to(table_dtype or dtype) for x in (self.cos, self.sin))
        out, lse = attention(q, k, v, cos, sin, return_lse=True, **self.options)
        finite_lse = lse.masked_fill(lse == -torch.inf, 0)
        loss = (out * self.grad_out.to(dtype)).sum() + (finite_lse * self.grad_lse.to(lse.dtype)).sum()
        grads = torch.autograd.grad(loss, (q, k, v))
        results = dict(zip(("out", "lse", "grad_q", "grad_k", "grad_v"), (out, lse, *grads), strict=True))
        return {name: x.detach().double() for name, x in results.items()}


def make_problem(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0, ids: Tensor | None = None) -> Problem:
    """The case's inputs, rounded to dtype, with the given span ids or those of its kind."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).double()

    cos, sin = rotary_table(case, generator)
    options = {
        "span_ids": span_ids(case, generator) if ids is None else ids,
        "mirror": case.mirror,
        "interleaved": case.interleaved,
        "scale": case.scale,
    }
    if case.packed is not None:
        offsets = [0, *torch.tensor(case.packed).cumsum(0).tolist()]
        options["cu_seqlens"] = torch.tensor(offsets, dtype=torch.int32)
    return Problem(
        case,
        draw(case.B, case.Hq, case.S, case.D),
        draw(case.B, case.Hkv, case.S, case.D),
        draw(case.B, case.Hkv, case.S, case.D),
        cos,
        sin,
        draw(case.B, case.Hq, case.S, case.D),
        draw(case.B, case.Hq, case.S),
        options,
    )
