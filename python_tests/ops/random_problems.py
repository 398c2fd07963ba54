"""Random problems over the whole contract of the op, as one hypothesis strategy, and the judge of its results.

Every test run tries a few hundred of them, `fuzz.py` as many as it is asked for. The text of a problem that failed is
Python: put it into an `@example(...)` in test_attention.py, or give it to `fuzz.py --problem`.
"""

import dataclasses
from itertools import pairwise

import torch
from hypothesis import strategies as st
from problems import Case, Problem, assert_as_good_as_torch, make_problem, rms
from torch import Tensor

from bico_ext.ops import reference
from bico_ext.ops.reference import CAUSAL_CONTEXT

DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
MORE = 15  # other values of the same problem, before an error is more than bad luck

LENGTHS = 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 127, 128, 129, 191, 192, 193, 255, 256, 257, 319, 321, 385
HEAD_DIMS = 1, 2, 3, 8, 16, 24, 32, 64, 72, 80, 96, 112, 128, 130, 160, 192, 255, 256
SPAN_IDS = -1, 0, 1, 2, 3, CAUSAL_CONTEXT, -(2**31), CAUSAL_CONTEXT - 1
WINDOWS = 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 2**31 - 1, 2**31, 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """Moves a tensor [..., D] into a larger one full of NaN.

    order: its dimensions but the last, from the outermost in memory; before, after: elements around each row; offset:
    elements before all; expanded: a dimension that gets stride 0, and its first entry for all.
    """

    order: tuple[int, ...]
    before: int = 0
    after: int = 0
    offset: int = 0
    expanded: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        shape, last = x.shape, x.dim() - 1
        if self.expanded is not None:
            x = x[(slice(None),) * self.expanded + (slice(1),)]
        inner = x.permute(*self.order, last)
        width = self.before + shape[-1] + self.after
        memory = x.new_full((self.offset + inner.shape[:-1].numel() * width,), torch.nan)
        rows = memory[self.offset :].view(*inner.shape[:-1], width)[..., self.before : self.before + shape[-1]]
        rows.copy_(inner)
        return rows.permute(*(self.order.index(i) for i in range(last)), last).expand(shape)


@dataclasses.dataclass(frozen=True)
class RandomProblem:
    """A problem, up to the values of its tensors.

    runs: span ids and how many tokens have each, repeated to the length; `shift` tokens on in each next batch entry.
    flat: q is 0, so that lse is the logarithm of the number of keys that a query sees, even in 16 bits.
    table_scale: a factor of cos and sin, as YaRN has one.
    table_dtype, layouts, strided_ids: how the tensors come. through: the outputs that get a gradient.
    """

    case: Case
    dtype: str
    runs: tuple[tuple[int, int], ...] | None = None
    shift: int = 0
    flat: bool = False
    table_scale: float = 1.0
    table_dtype: str = "torch.float32"
    layouts: tuple[tuple[str, Layout], ...] = ()
    strided_ids: bool = False
    through: tuple[str, ...] = ("out", "lse")

    def span_ids(self) -> Tensor | None:
        if self.runs is None:
            return None
        period = torch.cat([torch.full((count,), span, dtype=torch.int32) for span, count in self.runs])
        place = torch.arange(self.case.S) + self.shift * torch.arange(self.case.B)[:, None]
        return period[place % len(period)]

    def problem(self, seed: int = 0) -> Problem:
        problem = make_problem(self.case, DTYPES[self.dtype], seed, self.span_ids())
        if self.flat:
            problem.q.zero_()
        tables = [(x * self.table_scale).to(DTYPES[self.table_dtype]).double() for x in (problem.cos, problem.sin)]
        problem.cos, problem.sin = tables
        layouts = dict(self.layouts)
        problem.layouts = layouts | ({"cos": layouts["table"], "sin": layouts["table"]} if "table" in layouts else {})
        if self.strided_ids:
            for name in ("span_ids", "cu_seqlens"):
                if problem.options.get(name) is not None:
                    problem.options[name] = torch.stack([problem.options[name]] * 2, -1)[..., 0]
        problem.through = self.through
        return problem


def assert_right(attention, random: RandomProblem, gradients: bool = True) -> None:
    """Judge results by the dense definition in float64: equal in float64, in other dtypes as good as torch."""
    dtype, table_dtype = DTYPES[random.dtype], DTYPES[random.table_dtype]
    problem = random.problem()
    if dtype != torch.float64:
        more = (random.problem(seed) for seed in range(1, MORE + 1))
        least = _cancellation(random, problem) | _equal_addends(random, problem)
        assert_as_good_as_torch(attention, problem, dtype, gradients, table_dtype, more, least)
        return
    want = problem.run(reference.split_triangle_attention, dtype, gradients=gradients)
    got = problem.run(attention, dtype, table_dtype, gradients=gradients)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-11, msg=lambda x, name=name: name + x)


def _cancellation(random: RandomProblem, problem: Problem) -> dict[str, float]:
    """Error of the gradients of q and k where a row has few keys, or one that outweighs the others.

    The gradient of a score is P (dP - delta), where delta is the sum of P dP and comes from out. The closer P is to 1,
    the more cancels, and what is left is the rounding of dP and out. Plain torch subtracts a number from itself then.
    """
    case = random.case
    everything = torch.eye(case.S, dtype=torch.float64).expand(case.B, case.Hkv, -1, -1)  # as v: out is P
    inputs = (problem.laid_out(name, torch.float64) for name in ("q", "k"))
    tables = (problem.laid_out(name, torch.float64) for name in ("cos", "sin"))
    P = reference.split_triangle_attention(*inputs, everything, *tables, **problem.options)
    scale = case.D**-0.5 if case.scale is None else abs(case.scale)
    # A sum of D products of about 1 is rounded, and before that, in float32 at least, while it grows.
    rounded, summed = torch.finfo(DTYPES[random.dtype]).eps, torch.finfo(torch.float32).eps * case.D**0.5 / 8
    of_score = (rounded + summed) * case.D**0.5
    grad_q = random.table_scale**2 * scale * of_score * rms(P) * case.S**0.5
    return {"grad_q": grad_q, "grad_k": grad_q * (case.Hq / case.Hkv) ** 0.5}


def _equal_addends(random: RandomProblem, problem: Problem) -> dict[str, float]:
    """Error of the gradient of v where it sums one number many times: all weights and all gradients of out are equal.

    Then the roundings of a running sum all go in the same direction. Those of n addends make up to u n / 2 of the sum
    (u is half an epsilon), so it matters whether the heads of a group are one sum, as in the portable backend, or
    several, as in the dense definition: for 240 addends the first erred by 2.9e-6 and the second by 0.9e-6.
    """
    layout = dict(random.layouts).get("grad_out")
    if not (random.flat and layout is not None and layout.expanded == 2):
        return {}
    heads = random.case.Hq / random.case.Hkv
    relative = torch.finfo(torch.float32).eps / 2 * heads * random.case.S / 2
    return {"grad_v": relative / 2 * heads * rms(problem.laid_out("grad_out", torch.float64))}  # twice that is allowed


def _layouts(dimensions: int) -> st.SearchStrategy[Layout]:
    gap = st.sampled_from((0, 0, 0, 1, 3, 8))
    return st.builds(
        Layout,
        order=st.permutations(range(dimensions - 1)).map(tuple),
        before=gap,
        after=gap,
        offset=gap,
        expanded=st.sampled_from((*[None] * 5, *range(dimensions - 1))),
    )


def _offsets(length: int) -> st.SearchStrategy[tuple[int, ...] | None]:
    """Lengths of packed sequences, some of them empty."""
    cuts = st.lists(st.integers(0, length), max_size=6).map(lambda inner: [0, *sorted(inner), length])
    return st.none() | cuts.map(lambda offsets: tuple(b - a for a, b in pairwise(offsets)))


@st.composite
def random_problems(draw, most_tokens: int = 400, most_work: int = 2**23, empty: bool = True) -> RandomProblem:
    """Problems of at most that many tokens and about that many multiplications; `empty`: or of no tokens or batch."""
    D = draw(st.sampled_from(HEAD_DIMS) | st.integers(1, 256))
    lengths = [length for length in LENGTHS if length <= most_tokens]
    S = draw(st.sampled_from([*lengths, 0] if empty else lengths) | st.integers(1, most_tokens))
    heads = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (6, 2), (4, 4), (5, 5), (8, 1)]))
    B = draw(st.sampled_from((1, 1, 2, 3, 0) if empty else (1, 1, 2, 3)))
    while B * heads[0] * S * S * D > most_work and (B, heads) != (1, (1, 1)):
        B, heads = (B - 1, heads) if B > 1 else (B, (heads[0] // heads[1], 1) if heads[1] > 1 else (1, 1))
    widths = [R for R in (0, *HEAD_DIMS) if R % 2 == 0 and R <= D]
    R = draw(st.none() | st.sampled_from(widths) | st.integers(0, D // 2).map(lambda pairs: 2 * pairs))
    window = st.sampled_from(WINDOWS) | st.integers(1, max(S + 1, 1))
    case = Case(
        "random",
        S=S,
        Hq=heads[0],
        Hkv=heads[1],
        D=D,
        R=R,
        B=B,
        packed=draw(_offsets(S)) if B == 1 else None,
        window=draw(st.none() | window),
        mirror=draw(st.booleans()),
        interleaved=draw(st.booleans()),
        scale=draw(st.sampled_from((None, None, None, 0.0, -0.2, 0.03, 1.0))),
        tables=draw(st.sampled_from((1, max(B, 1)))),
    )
    run = st.tuples(st.sampled_from(SPAN_IDS), st.integers(1, 3) | st.integers(1, 150))
    layouts = {name: _layouts(4) for name in ("q", "k", "v", "grad_out")} | {"table": _layouts(3)}
    return RandomProblem(
        case,
        draw(st.sampled_from(list(DTYPES))),
        runs=draw(st.none() | st.lists(run, min_size=1, max_size=8).map(tuple)),
        shift=draw(st.integers(0, 200)),
        flat=draw(st.sampled_from((False, False, True))),
        table_scale=draw(st.sampled_from((1.0, 1.0, 1.25))),
        table_dtype=draw(st.sampled_from(list(DTYPES))),
        layouts=tuple((name, draw(layout)) for name, layout in layouts.items() if draw(st.booleans())),
        strided_ids=draw(st.booleans()),
        through=draw(st.sampled_from((("out", "lse"), ("out",), ("lse",)))),
    )


# For the emulator, which takes a hundred times as long as a kernel; and how it runs a problem.
SMALL = {"most_tokens": 260, "most_work": 2**21, "empty": False}
emulations = st.fixed_dictionaries({"seed": st.integers(0, 2**32), "deterministic": st.booleans()})
