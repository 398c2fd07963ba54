"""Random attention problems of hostile sizes, and the accuracy that is asked of the op. Shared by its tests."""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bico_ext.ops import reference
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
    window: int | None = None
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
    """fp64 inputs that the dtype under test represents exactly, and the gradients to send back.

    layouts: by the name of an input, what moves it to other memory; through: the outputs that get a gradient.
    """

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    grad_out: Tensor
    grad_lse: Tensor
    options: dict
    layouts: dict[str, Callable[[Tensor], Tensor]] = dataclasses.field(default_factory=dict)
    through: tuple[str, ...] = ("out", "lse")

    def run(
        self, attention, dtype: torch.dtype, table_dtype: torch.dtype | None = None, gradients: bool = True
    ) -> dict[str, Tensor]:
        """out, lse and the gradients of q, k, v by `attention` in `dtype`; results in fp64."""
        inputs = [self.laid_out(name, dtype).detach().requires_grad_(gradients) for name in ("q", "k", "v")]
        tables = [self.laid_out(name, table_dtype or dtype) for name in ("cos", "sin")]
        out, lse = attention(*inputs, *tables, return_lse=True, **self.options)
        assert out.dtype == dtype
        results = {"out": out, "lse": lse}
        if gradients:
            sent = {"out": self.laid_out("grad_out", dtype), "lse": self.grad_lse.to(lse.dtype)}
            grads = torch.autograd.grad(
                [results[name] for name in self.through],
                inputs,
                [sent[name] for name in self.through],
                materialize_grads=True,
            )
            results |= dict(zip(("grad_q", "grad_k", "grad_v"), grads, strict=True))
        return {name: x.detach().double() for name, x in results.items()}

    def laid_out(self, name: str, dtype: torch.dtype) -> Tensor:
        x = getattr(self, name).to(dtype)
        return self.layouts[name](x) if name in self.layouts else x


def make_problem(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0, ids: Tensor | None = None) -> Problem:
    """The case's inputs, rounded to dtype, with the given span ids or those of its kind."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).double()

    cos, sin = rotary_table(case, generator)
    options = {
        "span_ids": span_ids(case, generator) if ids is None else ids,
        "window": case.window,
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


AWKWARD = (1, 2, 63, 64, 65, 129, 257)

CASES = [
    *(Case(f"all-context-{S}", S=S) for S in AWKWARD),
    *(Case(f"causal-{S}", S=S, spans="causal", D=32) for S in AWKWARD),
    *(Case(f"infill-gqa-{S}", S=S, Hq=6, Hkv=2, spans="infill", D=24) for S in AWKWARD),
    *(Case(f"random-spans-{S}", S=S, spans="random", D=64, R=32, Hkv=1) for S in AWKWARD),
    *(Case(f"placeholders-no-mirror-{S}", S=S, spans="placeholders", mirror=False) for S in (2, 65, 129)),
    Case("prefix-interleaved", S=130, spans="prefix", interleaved=True, D=40),
    Case("interleaved-partial-no-mirror", S=70, interleaved=True, R=6, D=20, mirror=False),
    Case("no-rotation", S=66, R=0),
    Case("head-dim-1", S=67, D=1, R=0),
    Case("head-dim-3-R-2", S=67, D=3, R=2, spans="random"),
    Case("odd-halves", S=70, D=40, R=30, spans="random"),
    Case("head-dim-256", S=90, D=256, Hq=1, Hkv=1, spans="infill"),
    Case("head-dim-130", S=65, D=130, Hq=1, Hkv=1),
    Case("head-dim-70", S=130, D=70, Hq=2, Hkv=1, spans="infill"),
    Case("head-dim-80-partial", S=130, D=80, R=32, spans="placeholders"),
    Case("head-dim-96-interleaved", S=150, D=96, interleaved=True, spans="prefix"),
    Case("head-dim-128-partial", S=70, D=128, R=64, spans="infill"),
    Case("head-dim-128-partial-interleaved", S=70, D=128, R=64, interleaved=True, spans="infill"),
    Case("head-dim-128-gqa", S=200, D=128, Hq=4, Hkv=2, spans="infill"),
    Case("scale-negative", S=130, D=64, scale=-0.2, spans="placeholders"),
    Case("scale-zero", S=70, D=32, scale=0.0, spans="infill"),
    Case("all-placeholders", S=70, spans="blind"),
    Case("table-per-batch-entry", S=65, B=3, tables=3, spans="infill"),
    Case("scale", S=65, scale=0.03),
    Case("packed", S=200, B=1, packed=(1, 0, 63, 64, 65, 7, 0), Hq=4, Hkv=2),
    Case("causal-context-37", S=37, Hq=4, Hkv=2, D=24, spans="causal-context"),
    Case("causal-context-130", S=130, Hq=1, Hkv=1, spans="causal-context", mirror=False),
    Case("causal-context-200", S=200, Hkv=1, D=64, spans="causal-context"),
    Case("packed-causal-context", S=150, B=1, packed=(1, 80, 69), spans="causal-context"),
    Case("window-1", S=70, window=1, spans="placeholders"),
    Case("window-20", S=130, window=20, D=32),
    Case("window-40-packed", S=200, B=1, packed=(1, 0, 63, 64, 72), window=40, spans="random", Hq=4, Hkv=2),
    Case("window-64-causal", S=300, window=64, spans="causal"),
    Case("window-97-gqa", S=330, window=97, Hq=4, Hkv=1, D=64, spans="infill"),
    Case("window-100-no-mirror", S=260, window=100, spans="causal-context", mirror=False),
    Case("window-hides-one-pair", S=70, window=69),
    Case("window-of-the-length", S=129, window=129),
    Case("window-beyond-any-length", S=129, window=2**62, spans="placeholders"),
    Case("packed-random-spans", S=150, B=1, packed=(0, 80, 70), spans="random"),
]

# Some results torch gets exactly (S = 1), where the kernels' order of additions shows: a few epsilons of the precision
# they compute in. In float64 the reference rounds as well.
FLOOR = {torch.float64: 16 * 2**-52, torch.float32: 2**-22, torch.bfloat16: 2**-22, torch.float16: 2**-22}


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0


def assert_as_good_as_torch(
    attention,
    problem: Problem,
    dtype: torch.dtype,
    gradients: bool = True,
    table_dtype: torch.dtype = torch.float64,
    more: Iterable[Problem] = (),
    least: dict[str, float] | None = None,
) -> None:
    """RMS error against fp64 at most twice that of the same dense formula computed by torch in dtype.

    `more`: the same problem with other values. Where the errors of the first are too large, those of all count
    together: a few elements that torch happens to round well are luck, which does not last. `least`: by the name of a
    result, an error that torch is assumed to make at least.
    """
    first = _differences(attention, problem, dtype, gradients, table_dtype)
    least = least or {}
    if not _too_large([first], dtype, least):
        return
    every = [first, *(_differences(attention, other, dtype, gradients, table_dtype) for other in more)]
    message = _too_large(every, dtype, least)
    assert not message, message


Differences = dict[str, tuple[Tensor, Tensor, Tensor]]  # by result: what is right, and the errors of ours and of torch


def _differences(
    attention, problem: Problem, dtype: torch.dtype, gradients: bool, table_dtype: torch.dtype
) -> Differences:
    exact = problem.run(reference.split_triangle_attention, torch.float64, gradients=gradients)
    ours = problem.run(attention, dtype, table_dtype=table_dtype, gradients=gradients)
    plain = problem.run(reference.split_triangle_attention, dtype, gradients=gradients)
    differences = {}
    for name, want in exact.items():
        assert torch.equal(ours[name].isfinite(), want.isfinite()), f"{name}: other rows are blind"
        finite = want.isfinite()
        differences[name] = want[finite], (ours[name] - want)[finite], (plain[name] - want)[finite]
    return differences


def _too_large(every: list[Differences], dtype: torch.dtype, least: dict[str, float]) -> str:
    """Say which errors are larger than those of torch allow, or nothing."""
    pooled = {
        name: [rms(torch.cat(parts)) for parts in zip(*(x[name] for x in every), strict=True)] for name in every[0]
    }
    floor = FLOOR[dtype] * max(size for size, _, _ in pooled.values())
    wrong = []
    for name, (_, error, plain) in pooled.items():
        allowed = 2 * max(plain, least.get(name, 0.0)) + floor
        if not error <= allowed:
            wrong.append(f"{name}: rms error {error:.3g}, allowed {allowed:.3g}")
    return "; ".join(wrong)
