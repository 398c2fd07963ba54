"""Which backend runs, and what is said when the one that was asked for cannot."""

import logging
import re
from functools import partial

import pytest
import torch
from devices import needs_compiled
from problems import Case, make_problem
from torch.utils._python_dispatch import TorchDispatchMode

from bico_ext import split_triangle_attention
from bico_ext.ops import backends, reference


@pytest.fixture
def nothing_compiled(monkeypatch):
    monkeypatch.setattr(backends, "compiled", None)
    monkeypatch.setattr(backends, "_LOGGED", set())


def run(**options):
    q, k, v, cos, sin = torch.zeros(5, 1, 1, 3, 4).unbind()
    return split_triangle_attention(q, k, v, cos[0], sin[0], **options)


@needs_compiled
def test_auto_is_the_compiled_op_where_it_has_kernels():
    assert backends.choose("auto", "cpu") == "compiled"
    assert backends.choose("auto", "xpu") == "portable"


@needs_compiled
def test_the_environment_replaces_auto_and_no_explicit_choice(monkeypatch):
    monkeypatch.setenv("BICO_BACKEND", "portable")
    assert backends.choose("auto", "cpu") == "portable"
    assert backends.choose("compiled", "cpu") == "compiled"


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
        f"attention runs by the portable backend: {backends.NOT_COMPILED}"
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
    names = "'auto', 'compiled', 'portable'"
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


def test_the_portable_op_never_holds_a_score_matrix():
    """At S = 4096, none of its tensors has a quarter of the elements of a score matrix, forward or backward."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            for x in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(x, torch.Tensor):
                    self.elements = max(self.elements, x.numel())
            return result

    length = 4096
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, length, 16).unbind())
    angle = torch.rand(1, length, 8).repeat(1, 1, 2)
    with Largest() as largest:
        split_triangle_attention(q, k, v, angle.cos(), angle.sin(), backend="portable").sum().backward()
    assert 0 < largest.elements < length**2 / 4


@pytest.mark.parametrize("spans", ["none", "causal", "infill"])
def test_autograd_alone_gives_the_portable_gradients(spans):
    """Its backward is written by hand; autograd through the dense definition is another derivation."""
    problem = make_problem(Case("grads", S=150, Hq=4, Hkv=2, D=8, spans=spans))
    got = problem.run(partial(split_triangle_attention, backend="portable"), torch.float64)
    want = problem.run(reference.split_triangle_attention, torch.float64)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)
