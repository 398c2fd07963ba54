"""Which backend runs, and what is said when the one that was asked for cannot."""

import logging
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from devices import needs_compiled
from problems import Case, make_problem
from torch.utils._python_dispatch import TorchDispatchMode

from bico_ext import split_triangle_attention
from bico_ext.ops import backends, portable, reference


@pytest.fixture
def nothing_compiled(monkeypatch):
    monkeypatch.setattr(backends, "compiled", None)
    monkeypatch.setattr(backends, "_WITHOUT", backends.NOT_COMPILED)
    monkeypatch.setattr(backends, "_LOGGED", set())


@pytest.fixture(autouse=True)
def _no_choice_by_the_environment(monkeypatch):
    monkeypatch.delenv("BICO_BACKEND", raising=False)


def run(**options):
    q, k, v, cos, sin = torch.zeros(5, 1, 1, 3, 4).unbind()
    return split_triangle_attention(q, k, v, cos[0], sin[0], **options)


Q = torch.zeros(1, 1, 3, 4)


@needs_compiled
def test_auto_is_the_compiled_op_where_it_has_kernels():
    assert backends.choose("auto", Q) == "compiled"
    elsewhere = SimpleNamespace(device=SimpleNamespace(type="xpu"), dtype=Q.dtype, shape=Q.shape)
    assert backends.choose("auto", elsewhere) == "portable"


@needs_compiled
def test_the_environment_replaces_auto_and_no_explicit_choice(monkeypatch):
    monkeypatch.setenv("BICO_BACKEND", "")
    assert backends.choose("auto", Q) == "compiled"
    monkeypatch.setenv("BICO_BACKEND", "portable")
    assert backends.choose("auto", Q) == "portable"
    assert backends.choose("compiled", Q) == "compiled"


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_the_named_backend_runs(backend, monkeypatch):
    ran = []
    for name in backends.BACKENDS:

        def attention(*arguments, name=name):
            ran.append(name)
            return arguments[0], arguments[0]

        monkeypatch.setitem(backends.BACKENDS, name, backends.Backend(attention, lambda device: None))
    run(backend=backend)
    assert ran == [backend]


@pytest.mark.usefixtures("nothing_compiled")
def test_a_fallback_is_logged_once(caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        run()
    assert [record.getMessage() for record in caplog.records] == [
        f"attention runs on the portable backend: {backends.NOT_COMPILED}"
    ]


@pytest.mark.usefixtures("nothing_compiled")
def test_a_backend_that_is_missing_is_refused_with_its_reason():
    message = f"backend 'compiled' cannot run on cpu: {backends.NOT_COMPILED}; use 'auto'"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run(backend="compiled")


@pytest.mark.usefixtures("nothing_compiled")
def test_a_fallback_can_be_compiled_as_one_graph():
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled().shape == (1, 1, 3, 4)


def test_an_unknown_backend_is_refused(monkeypatch):
    names = "'auto', 'compiled', 'flex', 'portable'"
    with pytest.raises(ValueError, match=re.escape(f"backend must be one of {names}, got 'cuda'")):
        run(backend="cuda")
    monkeypatch.setenv("BICO_BACKEND", "fast")
    with pytest.raises(ValueError, match=re.escape(f"BICO_BACKEND must be one of {names}, got 'fast'")):
        run()


@pytest.mark.usefixtures("nothing_compiled")
def test_the_description_gives_devices_or_reasons():
    shown = backends.describe()
    assert shown["portable"].startswith("cpu")
    assert shown["compiled"] == f"none: {backends.NOT_COMPILED}"
    assert shown["flex"] == "cuda" if torch.cuda.is_available() else shown["flex"].startswith("none: ")


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
def test_autograd_alone_gives_the_portable_gradients(spans):
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
