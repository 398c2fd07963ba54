"""The backend `portable` by itself: its memory, its derivatives, and where a product could spoil a result."""

from functools import partial
from itertools import accumulate

import pytest
import torch
from problems import Case, make_problem
from torch.utils._python_dispatch import TorchDispatchMode

from bico_ext import split_triangle_attention
from bico_ext.ops import portable, reference


@pytest.mark.parametrize(("batch", "heads", "length"), [(1, (2, 2), 4096), (4, (8, 1), 512)])
def test_the_portable_op_never_holds_a_score_matrix(batch, heads, length):
    """None of its tensors has many more elements than a block may have scores, forward or backward."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            for x in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(x, torch.Tensor):
                    self.elements = max(self.elements, x.numel())
            return result

    q, k, v = (torch.randn(batch, count, length, 16).requires_grad_() for count in (heads[0], heads[1], heads[1]))
    angle = torch.rand(1, length, 8).repeat(1, 1, 2)
    with Largest() as largest:
        split_triangle_attention(q, k, v, angle.cos(), angle.sin(), backend="portable").sum().backward()
    assert 0 < largest.elements <= 1.1 * portable.MOST_SCORES


def extra_memory(length):
    """The most bytes that are live at once beyond the inputs, out and the gradients, by torch's record."""
    q, k, v = (torch.randn(1, 8, length, 32).requires_grad_() for _ in range(3))
    angle = torch.rand(1, length, 32)
    cos, sin = angle.cos(), angle.sin()
    with torch.profiler.profile(profile_memory=True) as profile:
        split_triangle_attention(q, k, v, cos, sin, backend="portable").sum().backward()
    records = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    records.sort(key=lambda event: event.start_ns())
    live = list(accumulate(event.nbytes() for event in records))
    assert live[-1] >= 3 * q.nbytes, "the gradients stay"
    return max(live) - 4 * q.nbytes


def test_memory_grows_with_the_length_and_not_with_its_square(monkeypatch):
    """In smaller blocks, so that a short sequence is many of them: less than a tenth of the scores of all heads."""
    monkeypatch.setattr(portable, "MOST_SCORES", 2**17)
    half, whole = extra_memory(1024), extra_memory(2048)
    assert 0 < whole < 8 * 2048**2 * 4 / 10
    assert whole < 2.2 * half


@pytest.mark.parametrize(
    ("spans", "packed", "share"),
    [("none", None, 1), ("causal", None, 1 / 2), ("infill", None, 1), ("none", (128, 384), 5 / 8)],
)
def test_keys_that_no_query_of_a_block_may_see_are_not_looked_at(monkeypatch, spans, packed, share):
    """The pairs that get a score, as a share of all: after a query only context counts, and no other sequence."""
    pairs = []
    scores = portable._Heads.scores

    def counted(heads, block):
        result = scores(heads, block)
        pairs.append(result[0, 0, 0].numel())
        return result

    monkeypatch.setattr(portable._Heads, "scores", counted)
    monkeypatch.setattr(portable, "QUERY_BLOCKS", (16, 16))
    problem = make_problem(Case("share", S=512, Hq=1, Hkv=1, D=2, B=1, spans=spans, packed=packed))
    with torch.no_grad():
        split_triangle_attention(
            problem.q, problem.k, problem.v, problem.cos, problem.sin, backend="portable", **problem.options
        )
    assert sum(pairs) / 512**2 == pytest.approx(share, abs=16 / 512)


@pytest.mark.parametrize("length", [5, 31, 33, 38, 66, 150])
@pytest.mark.parametrize("columns", [5, 64])
def test_a_row_of_nan_does_not_reach_the_next_product(length, columns):
    """oneDNN reads beyond the end of a row; whether it shows depends on the shape and the version of torch."""
    left, right = torch.randn(1, 40, length).bfloat16(), torch.randn(1, length, columns).bfloat16()
    left[:, 20] = torch.nan
    broken = portable._matmul(left, right).isnan().any(-1)[0]
    assert broken.nonzero().flatten().tolist() == [20]
    broken = portable._matmul(left.mT.contiguous().mT, right.mT.contiguous().mT).isnan().any(-1)[0]
    assert broken.nonzero().flatten().tolist() == [20]


def test_float16_sums_of_many_values_do_not_overflow():
    """The weights are divided before the product: 2048 values of 40 add up to more than float16 holds."""
    q = torch.zeros(1, 1, 2048, 8, dtype=torch.float16)
    table = torch.ones(1, 2048, 0)
    out = split_triangle_attention(q, q, torch.full_like(q, 40), table, table, backend="portable")
    assert torch.equal(out, torch.full_like(q, 40))


def test_scores_of_minus_infinity_have_no_weight_and_no_gradient():
    k = torch.tensor([-torch.inf, 1.0]).view(1, 1, 2, 1)
    q, v = torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1, requires_grad=True)
    table, ids = torch.ones(1, 2, 0), torch.ones(1, 2, dtype=torch.int32)
    split_triangle_attention(q, k, v, table, table, span_ids=ids, backend="portable").sum().backward()
    assert torch.equal(v.grad.flatten(), torch.tensor([0.0, 1.0]))


def test_wrong_offsets_are_named_wherever_they_are_read():
    with pytest.raises(RuntimeError, match="cu_seqlens must end with S = 6, got 3"):
        portable._Reach.read(torch.zeros(1, 1, 6, 4), None, torch.tensor([0, 3], dtype=torch.int32))


@pytest.mark.parametrize("spans", ["none", "causal", "infill"])
def test_the_gradients_are_those_of_the_definition(spans):
    """Its backward is written by hand; autograd through the dense definition is another derivation."""
    problem = make_problem(Case("grads", S=150, Hq=4, Hkv=2, D=8, spans=spans))
    got = problem.run(partial(split_triangle_attention, backend="portable"), torch.float64)
    want = problem.run(reference.split_triangle_attention, torch.float64)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        Case("gqa", S=5, Hq=4, Hkv=2, D=4),
        Case("spans", S=6, D=4, spans="infill", B=1),
        Case("blind", S=4, D=4, spans="blind"),
        Case("padding", S=5, D=4, spans="causal-padded"),
    ],
    ids=str,
)
def test_second_derivatives_of_the_portable_op(case):
    problem = make_problem(case)

    def run(q, k, v):
        out, lse = split_triangle_attention(
            q, k, v, problem.cos, problem.sin, return_lse=True, backend="portable", **problem.options
        )
        return out, lse[lse.isfinite()]

    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v)]
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
